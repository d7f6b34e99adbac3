"""Window of `detector predict --show`; no other module opens one."""

from __future__ import annotations

import os
import sys
from types import TracebackType

import cv2

from detector.errors import ConfigError
from detector.structures.letterbox import Image

_QUIT_KEYS = (ord("q"), 27)  # and Escape
_TITLE = "detector - q to quit"


def require_display() -> None:
    """Reject a machine without display or windows before OpenCV ends the process.

    Raises:
        ConfigError: there is no display, or OpenCV was built without windows.
    """
    if sys.platform.startswith("linux") and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        raise ConfigError(
            "--show: expected a display, got none (DISPLAY and WAYLAND_DISPLAY are not set); leave it out"
        )
    gui = [line.split(":")[1].strip() for line in cv2.getBuildInformation().splitlines() if line.strip()[:4] == "GUI:"]
    if not gui or gui[0] == "NONE":
        raise ConfigError(
            "--show: expected an OpenCV that opens windows, got opencv-python-headless; replace it by opencv-python "
            "as the README says, or leave --show out"
        )


class Window:
    """Window that is open inside a block."""

    def __enter__(self) -> Window:
        require_display()
        cv2.namedWindow(_TITLE, cv2.WINDOW_NORMAL | cv2.WINDOW_KEEPRATIO)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        cv2.destroyAllWindows()

    def show(self, picture_rgb: Image) -> bool:
        """Show a picture, RGB; return false once the user closes the window or presses q."""
        cv2.imshow(_TITLE, picture_rgb[..., ::-1])
        return cv2.waitKey(1) & 0xFF not in _QUIT_KEYS and cv2.getWindowProperty(_TITLE, cv2.WND_PROP_VISIBLE) > 0
