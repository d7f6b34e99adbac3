"""Fixtures for the tests of losses."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def darknet_numbers(data_folder: Path) -> Path:
    """Return the folder of numbers computed by Darknet, beside the real data; without it the test is skipped."""
    folder = data_folder.parent / "darknet-golden"
    if not folder.is_dir():
        pytest.skip("there is no folder darknet-golden beside DETECTOR_TEST_DATA")
    return folder
