"""Progress bar of images."""

from __future__ import annotations

from types import TracebackType
from typing import NoReturn

from tqdm import tqdm


class ImageBar:
    """Progress bar of images; it ends with the last image, and the next one starts another."""

    def __init__(self, is_shown: bool) -> None:
        self._is_shown = is_shown
        self._bar: tqdm[NoReturn] | None = None

    def __enter__(self) -> ImageBar:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    def __call__(self, done: int, total: int) -> None:
        """Show the number of images done."""
        if self._bar is None:
            self._bar = tqdm(total=total, unit="image", disable=not self._is_shown)
        self._bar.update(done - self._bar.n)
        if done == total:
            self._bar.close()
            self._bar = None  # the next images get a bar of their own
