"""Queues between the stages of a pipeline: bounded, in order, and ended from either side without a deadlock."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Generic, TypeVar

from detector.media.sources import ImageSource

T = TypeVar("T")


class Channel(Generic[T]):
    """Queue of a few items from one thread to another."""

    def __init__(self, capacity: int) -> None:
        """Create an empty queue; `put` waits while it holds `capacity` items."""
        self._items: deque[T] = deque()
        self._capacity, self._is_closed, self._is_cancelled = capacity, False, False
        self._changed = threading.Condition()

    def put(self, item: T) -> bool:
        """Add an item once there is room; return false once the consumer has stopped."""
        with self._changed:
            self._changed.wait_for(lambda: len(self._items) < self._capacity or self._is_cancelled)
            if not self._is_cancelled:
                self._items.append(item)
                self._changed.notify_all()
            return not self._is_cancelled

    def __iter__(self) -> Iterator[T]:
        """Yield the items until the channel is closed and empty, or cancelled."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._items or self._is_closed or self._is_cancelled)
                if not self._items or self._is_cancelled:
                    return
                item = self._items.popleft()
                self._changed.notify_all()
            yield item

    def close(self) -> None:
        """Announce that no more items will come; those in the queue can still be taken."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    def cancel(self) -> None:
        """Drop all items; nothing more goes in or comes out."""
        with self._changed:
            self._is_cancelled = True
            self._items.clear()
            self._changed.notify_all()


class Ordered(Generic[T]):
    """Queue that restores the order of items that several threads compute in parallel."""

    def __init__(self, capacity: int) -> None:
        """Create an empty queue; item `n` waits until item `n - capacity` has been taken."""
        self._items: dict[int, T] = {}
        self._next, self._end = 0, -1
        self._capacity, self._is_cancelled = capacity, False
        self._changed = threading.Condition()

    def put(self, number: int, item: T) -> bool:
        """Add the item of a number; return false once the consumer has stopped."""
        with self._changed:
            self._changed.wait_for(lambda: number < self._next + self._capacity or self._is_cancelled)
            if not self._is_cancelled:
                self._items[number] = item
                self._changed.notify_all()
            return not self._is_cancelled

    def __iter__(self) -> Iterator[T]:
        """Yield the items by their numbers, until the end or until the queue is cancelled."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._next in self._items or self._next == self._end)
                if self._next == self._end:
                    return
                item = self._items.pop(self._next)
                self._next += 1
                self._changed.notify_all()
            yield item

    def end(self, number: int) -> None:
        """Announce that there is no item of this number or of a higher one."""
        with self._changed:
            if not self._is_cancelled:  # another end would never be reached
                self._end = number
            self._changed.notify_all()

    def cancel(self) -> None:
        """Drop all items; nothing more goes in or comes out."""
        with self._changed:
            self._is_cancelled, self._end = True, self._next
            self._items.clear()
            self._changed.notify_all()


class Inbox:
    """Queue of images of several sources for a model, which takes from all of them in turn.

    A source that can wait adds its next image once there is room. A live source that cannot wait replaces its own image
    that has not been taken yet.

    Attributes:
        num_dropped: replaced images, by the number of the source.
    """

    def __init__(self, may_wait: Sequence[bool], capacity: int) -> None:
        """Create an empty queue; sources with a true `may_wait` wait while `capacity` of their images are in it."""
        self._waiting: list[deque[ImageSource]] = [deque() for _ in may_wait]
        self._may_wait, self._capacity = list(may_wait), capacity
        self._is_open = [True for _ in may_wait]
        self._next = 0  # the source to begin with, so that no source is starved
        self._num_taken = 0
        self._changed = threading.Condition()
        self.num_dropped = [0 for _ in may_wait]

    def put(self, number: int, image: ImageSource) -> bool:
        """Add an image of a source; return false once the consumer has stopped."""
        waiting = self._waiting[number]
        with self._changed:
            if self._may_wait[number] or image.error is not None:  # an error is never replaced
                capacity = self._capacity if self._may_wait[number] else 1
                self._changed.wait_for(lambda: len(waiting) < capacity or not self._is_open[number])
            elif waiting:
                image = replace(image, warnings=(*waiting.pop().warnings, *image.warnings))
                self.num_dropped[number] += 1
            if self._is_open[number]:
                waiting.append(image)
                self._changed.notify_all()
            return self._is_open[number]

    def end(self, number: int) -> None:
        """Announce that a source gives no more images; those in the queue can still be taken."""
        with self._changed:
            self._is_open[number] = False
            self._changed.notify_all()

    def stop(self) -> None:
        """Refuse more images of all sources and drop those in the queue."""
        with self._changed:
            for number, waiting in enumerate(self._waiting):
                self._is_open[number] = False
                waiting.clear()
            self._changed.notify_all()

    def take(self, most: int) -> tuple[int, list[ImageSource]]:
        """Return the number of this batch and its images: `most`, or fewer for a live image or at the end, then none.

        Several threads may take; at the end all of them get the same number.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._is_ready(most))
            taken: list[ImageSource] = []
            while len(taken) < most and any(self._waiting):
                waiting = self._waiting[self._next]
                self._next = (self._next + 1) % len(self._waiting)
                if waiting:
                    taken.append(waiting.popleft())
            self._changed.notify_all()
            number = self._num_taken
            self._num_taken += bool(taken)
            return number, taken

    def _is_ready(self, most: int) -> bool:
        num_waiting = sum(map(len, self._waiting))
        # A live image is taken at once; other images wait until they fill a batch.
        has_live = any(w and not m for w, m in zip(self._waiting, self._may_wait, strict=True))
        return num_waiting >= most or has_live or not any(self._is_open)
