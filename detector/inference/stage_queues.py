"""How the stages of a pipeline hand work on: bounded, in order, and ended from either side without a deadlock."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Generic, TypeVar

from detector.media.sources import ImageSource

T = TypeVar("T")


class Channel(Generic[T]):
    """A queue of a few items from one thread to another."""

    def __init__(self, capacity: int) -> None:
        """`capacity` items wait in it at most; putting a further one waits."""
        self._items: deque[T] = deque()
        self._capacity, self._is_closed, self._is_cancelled = capacity, False, False
        self._changed = threading.Condition()

    def put(self, item: T) -> bool:
        """Adds an item when there is room; false where nobody takes any longer."""
        with self._changed:
            self._changed.wait_for(lambda: len(self._items) < self._capacity or self._is_cancelled)
            if not self._is_cancelled:
                self._items.append(item)
                self._changed.notify_all()
            return not self._is_cancelled

    def __iter__(self) -> Iterator[T]:
        """The items until the channel is closed and empty, or cancelled."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._items or self._is_closed or self._is_cancelled)
                if not self._items or self._is_cancelled:
                    return
                item = self._items.popleft()
                self._changed.notify_all()
            yield item

    def close(self) -> None:
        """No more items will come; those in it can still be taken."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    def cancel(self) -> None:
        """Nothing more goes in or comes out."""
        with self._changed:
            self._is_cancelled = True
            self._items.clear()
            self._changed.notify_all()


class Ordered(Generic[T]):
    """Puts what several threads worked out side by side back into order."""

    def __init__(self, capacity: int) -> None:
        """Item `n` waits for room until item `n - capacity` is taken."""
        self._items: dict[int, T] = {}
        self._next, self._end = 0, -1
        self._capacity, self._is_cancelled = capacity, False
        self._changed = threading.Condition()

    def put(self, number: int, item: T) -> bool:
        """Adds the item of a number; false where nobody takes any longer."""
        with self._changed:
            self._changed.wait_for(lambda: number < self._next + self._capacity or self._is_cancelled)
            if not self._is_cancelled:
                self._items[number] = item
                self._changed.notify_all()
            return not self._is_cancelled

    def __iter__(self) -> Iterator[T]:
        """The items by their numbers, until the end or until it is cancelled."""
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
        """There is no item of this number, nor any behind it."""
        with self._changed:
            self._end = number
            self._changed.notify_all()

    def cancel(self) -> None:
        """Nothing more goes in or comes out."""
        with self._changed:
            self._is_cancelled, self._end = True, self._next
            self._items.clear()
            self._changed.notify_all()


class Inbox:
    """Images of several sources on their way to a model, which takes from all of them in turn.

    A source that can wait puts the next image when there is room. A live one that cannot replaces its image that was
    not taken yet by the newer one.

    Attributes:
        num_dropped: images replaced, by the number of the source.
    """

    def __init__(self, may_wait: Sequence[bool], capacity: int) -> None:
        """`may_wait` says of each source whether it can wait; `capacity` is how many of its images lie here at most."""
        self._waiting: list[deque[ImageSource]] = [deque() for _ in may_wait]
        self._may_wait, self._capacity = list(may_wait), capacity
        self._is_open = [True for _ in may_wait]
        self._next = 0  # the source to begin with, so that none is starved
        self._num_taken = 0
        self._changed = threading.Condition()
        self.num_dropped = [0 for _ in may_wait]

    def put(self, number: int, image: ImageSource) -> bool:
        """Adds an image of a source; false where nobody takes any longer."""
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
        """A source gives no more images; those in it can still be taken."""
        with self._changed:
            self._is_open[number] = False
            self._changed.notify_all()

    def stop(self) -> None:
        """No source gives more images, and those in it are not wanted."""
        with self._changed:
            for number, waiting in enumerate(self._waiting):
                self._is_open[number] = False
                waiting.clear()
            self._changed.notify_all()

    def take(self, most: int) -> tuple[int, list[ImageSource]]:
        """The number of this batch and up to `most` images, none at the end; fewer only where none can be waited for.

        Several threads may take; where none is left all of them get the same number.
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
        # A live image is wanted now; a batch of others is worth waiting for.
        has_live = any(w and not m for w, m in zip(self._waiting, self._may_wait, strict=True))
        return num_waiting >= most or has_live or not any(self._is_open)
