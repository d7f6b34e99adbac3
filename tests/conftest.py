"""Fixtures that every test file may use."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from detector.data.shapes import draw_shapes


def pytest_configure(config: pytest.Config) -> None:
    """Two threads, the least machine this is meant for; one where tests run side by side or OMP_NUM_THREADS says so."""
    if int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")) > 1:
        os.environ.setdefault("OMP_NUM_THREADS", "1")  # for the commands that tests start
        torch.set_num_threads(1)
    torch.set_num_threads(min(2, torch.get_num_threads()))


@pytest.fixture(scope="session")
def tiny_shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded data set, 12 images to train on and 6 to validate on, 64 pixels a side; read only."""
    root = tmp_path_factory.mktemp("shapes") / "tiny"
    draw_shapes(root, num_train=12, num_val=6, image_size=64)
    return root


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder of real data that DETECTOR_TEST_DATA names; without it the test is skipped."""
    named = os.environ.get("DETECTOR_TEST_DATA", "")
    if not named or not Path(named).is_dir():
        pytest.skip("DETECTOR_TEST_DATA names no folder")
    return Path(named)


@pytest.fixture
def draw_video(tmp_path: Path) -> Callable[..., Path]:
    """Draws videos: six bars of frame `n` are black or white as the bits of `n`, so that a frame tells its number."""

    def draw(
        name: str = "video.mp4", num_frames: int = 60, image_hw: tuple[int, int] = (48, 64), fps: float = 25.0
    ) -> Path:
        path = tmp_path / name
        fourcc = cv2.VideoWriter.fourcc(*("MJPG" if path.suffix == ".avi" else "mp4v"))
        writer = cv2.VideoWriter(str(path), fourcc, fps, image_hw[::-1])
        for number in range(num_frames):
            bits = [255 * (number >> bit & 1) for bit in range(6)]
            bars = np.repeat(np.array(bits, np.uint8), -(-image_hw[1] // 6))[: image_hw[1]]
            writer.write(np.ascontiguousarray(np.broadcast_to(bars[None, :, None], (*image_hw, 3))))
        writer.release()
        return path

    return draw


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Says how many tests were skipped also when there are none."""
    terminalreporter.write_line(f"tests skipped: {len(terminalreporter.stats.get('skipped', []))}")
