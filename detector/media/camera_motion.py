"""Motion of the camera between two frames, from points that are followed by sparse optical flow.

Aharon et al. 2022, "BoT-SORT: Robust Associations Multi-Pedestrian Tracking", section 3.2: corners (Shi and Tomasi
1994) are followed by pyramidal Lucas-Kanade flow, and a turn, zoom and shift is fitted to them by RANSAC, so that
points on moving objects do not count.
"""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from detector.structures.letterbox import Image

Affine = npt.NDArray[np.float64]  # (2, 3): x' = a x + b y + c, y' = d x + e y + f

_LONG_SIDE_PX = 480  # frames are reduced to this; the flow costs a few milliseconds then
_NUM_CORNERS, _QUALITY, _DISTANCE_PX = 300, 0.01, 8
_WINDOW_PX, _NUM_LEVELS = 21, 4  # reach: 21 / 2 * 2^4 pixels of the reduced frame
_LEAST_INLIERS, _LEAST_SHARE = 12, 0.4  # fewer points that agree say nothing about the camera


class CameraMotion:
    """Estimator for the frames of one video, one after another."""

    def __init__(self) -> None:
        self._before: npt.NDArray[np.uint8] | None = None

    def add(self, image: Image) -> Affine | None:
        """Return the motion from the frame before to this one; None at first and where it cannot be told.

        Args:
            image: uint8 (H, W, C), C is 1 or 3.

        Returns:
            float64 (2, 3), pixels: places of the frame before become places of this one.
        """
        grey = image[..., 0] if image.shape[2] == 1 else cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
        scale = min(1.0, _LONG_SIDE_PX / max(grey.shape))
        if scale < 1:
            grey = cv2.resize(grey, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        now = np.ascontiguousarray(grey, np.uint8)
        before, self._before = self._before, now
        if before is None or before.shape != now.shape:
            return None
        motion = _fitted(before, now)
        if motion is not None:
            motion[:, 2] /= scale
        return motion


def _fitted(before: npt.NDArray[np.uint8], now: npt.NDArray[np.uint8]) -> Affine | None:
    corners = cv2.goodFeaturesToTrack(before, _NUM_CORNERS, _QUALITY, _DISTANCE_PX)
    if corners is None or len(corners) < _LEAST_INLIERS:
        return None
    window = (_WINDOW_PX, _WINDOW_PX)
    places, is_found, _ = cv2.calcOpticalFlowPyrLK(
        before, now, corners, np.zeros_like(corners), winSize=window, maxLevel=_NUM_LEVELS
    )
    rows = is_found.ravel() == 1
    if rows.sum() < _LEAST_INLIERS:
        return None
    motion, inliers = cv2.estimateAffinePartial2D(corners[rows], places[rows])
    if motion is None or inliers.sum() < max(_LEAST_INLIERS, _LEAST_SHARE * rows.sum()):
        return None
    return np.asarray(motion, np.float64)
