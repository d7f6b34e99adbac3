from __future__ import annotations

import cv2
import numpy as np
import pytest

from detector.media.camera_motion import CameraMotion


def drawn(motion: np.ndarray, image_hw: tuple[int, int] = (240, 320)) -> np.ndarray:
    """Return a picture with details, seen through a turn, zoom and shift."""
    random = np.random.default_rng(4)
    small = random.integers(0, 256, (30, 40), np.uint8)
    picture = cv2.resize(small, (640, 480), interpolation=cv2.INTER_CUBIC)
    seen = cv2.warpAffine(picture, motion, image_hw[::-1], borderMode=cv2.BORDER_REFLECT)
    return np.repeat(seen[..., None], 3, axis=2)


def turned(degrees: float, zoom: float, shift: tuple[float, float]) -> np.ndarray:
    motion = cv2.getRotationMatrix2D((320, 240), degrees, zoom)
    motion[:, 2] += np.array(shift) - np.array((160.0, 120.0))
    return motion


@pytest.mark.parametrize(
    ("degrees", "zoom", "shift"),
    [(0, 1, (0, 0)), (0, 1, (3.5, -2)), (0, 1, (40, 25)), (3, 1, (5, 5)), (-2, 1.04, (-8, 0))],
)
def test_motion_maps_places_of_one_frame_to_the_next(degrees: float, zoom: float, shift: tuple[float, float]) -> None:
    first, second = turned(0, 1, (0, 0)), turned(degrees, zoom, shift)
    camera = CameraMotion()
    assert camera.add(drawn(first)) is None
    motion = camera.add(drawn(second))
    assert motion is not None
    whole = [np.vstack([m, (0, 0, 1)]) for m in (first, second)]
    wanted = whole[1] @ np.linalg.inv(whole[0])
    corners = np.array([(40, 40, 1), (280, 40, 1), (40, 200, 1), (280, 200, 1)], float).T
    np.testing.assert_allclose(motion @ corners, (wanted @ corners)[:2], atol=0.6)


def test_motion_of_large_frames_is_in_their_own_pixels() -> None:
    camera, wide = CameraMotion(), (720, 960)
    pictures = [np.asarray(cv2.resize(drawn(turned(0, 1, s)), wide[::-1]), np.uint8) for s in ((0, 0), (10, 4))]
    camera.add(pictures[0])
    motion = camera.add(pictures[1])
    assert motion is not None
    np.testing.assert_allclose(motion[:, 2], (30, 12), atol=1.0)


def test_moving_object_does_not_move_the_camera() -> None:
    camera, still = CameraMotion(), drawn(turned(0, 1, (0, 0)))
    camera.add(still)
    moved = still.copy()
    moved[60:140, 80:180] = still[60:140, 60:160]
    motion = camera.add(moved)
    assert motion is not None
    np.testing.assert_allclose(motion, np.eye(2, 3), atol=0.02)


@pytest.mark.parametrize("channels", [1, 3])
def test_pictures_without_details_and_new_sizes_give_none(channels: int) -> None:
    camera, flat = CameraMotion(), np.full((48, 64, channels), 90, np.uint8)
    assert camera.add(flat) is None
    assert camera.add(flat) is None
    assert camera.add(np.zeros((64, 48, channels), np.uint8)) is None
