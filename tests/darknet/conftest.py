"""Fixtures of the Darknet tests."""

from __future__ import annotations

from pathlib import Path

import pytest


def _beside(data_folder: Path, name: str) -> Path:
    folder = data_folder.parent / name
    if not folder.is_dir():
        pytest.skip(f"there is no folder {name} beside the one DETECTOR_TEST_DATA names")
    return folder


@pytest.fixture(scope="session")
def released_cfgs(data_folder: Path) -> Path:
    """The folder of .cfg files as their authors released them."""
    return _beside(data_folder, "darknet-cfg")


@pytest.fixture(scope="session")
def darknet_numbers(data_folder: Path) -> Path:
    """The folder of numbers that Darknet itself computed (.npz)."""
    return _beside(data_folder, "darknet-golden")


@pytest.fixture(scope="session")
def tiny_cfg() -> Path:
    """A small network with most kinds of layers: two [yolo] heads of strides 16 and 8, 3 classes, 64 x 64 pixels."""
    return Path(__file__).parent / "tiny.cfg"
