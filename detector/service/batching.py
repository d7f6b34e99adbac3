"""Dynamic batching: images that arrive at about the same time go through the network together."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field

from detector.errors import DetectorError
from detector.inference.predictor import Predictor
from detector.structures.letterbox import Image
from detector.structures.selection import SelectConfig
from detector.structures.types import Detections


@dataclass(frozen=True)
class _Job:
    image: Image
    select: SelectConfig
    arrived_s: float
    answer: Future[Detections] = field(default_factory=Future)


class Batcher:
    """Queue of images before a network, which a thread of its own runs.

    An image waits at most `max_wait_s` for others, and then for the passes before its own. Images with other settings
    of the selection go through the network in a later pass. A pass takes the smallest batch that holds its images, so
    the last digits of a score may depend on the number of images that arrive together.
    """

    def __init__(
        self,
        predictors: Mapping[int, Predictor],
        max_wait_s: float,
        on_batch: Callable[[int], None] = lambda num_images: None,
    ) -> None:
        """Start the thread.

        Args:
            predictors: predictors by their batch size.
            max_wait_s: longest time in seconds that an image waits for others.
            on_batch: called with the number of images of each pass.
        """
        self._predictors, self._max_wait_s, self._on_batch = dict(sorted(predictors.items())), max_wait_s, on_batch
        self._batch_size = max(predictors)
        self._jobs: deque[_Job] = deque()
        self._changed = threading.Condition()
        self._is_closed = False
        self._thread = threading.Thread(target=self._work, name="detector-batcher", daemon=True)
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """True while the thread runs."""
        return self._thread.is_alive()

    @property
    def num_waiting(self) -> int:
        """Number of images that wait."""
        return len(self._jobs)

    def submit(self, image: Image, select: SelectConfig) -> Future[Detections]:
        """Add an image, uint8 (H, W, C), and return its detections to come; a future that is cancelled is left out.

        Raises:
            DetectorError: the batcher is closed.
        """
        job = _Job(image, select, time.monotonic())
        with self._changed:
            if self._is_closed:
                raise DetectorError("the service is stopping; send the image to another one")
            self._jobs.append(job)
            self._changed.notify_all()
        return job.answer

    def close(self) -> None:
        """Answer the images that wait, and end the thread."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        self._thread.join()

    def _work(self) -> None:
        while jobs := self._next():
            jobs = [job for job in jobs if job.answer.set_running_or_notify_cancel()]
            if not jobs:
                continue
            size = next(size for size in self._predictors if size >= len(jobs))
            self._on_batch(len(jobs))
            try:
                found = self._predictors[size].detect([job.image for job in jobs], jobs[0].select)
            except Exception as error:  # any failure of a runtime must reach the requests and leave the thread alive
                for job in jobs:
                    job.answer.set_exception(error)
            else:
                for job, detections in zip(jobs, found, strict=True):
                    job.answer.set_result(detections)

    def _next(self) -> list[_Job]:
        """Wait for images and return up to a batch of them with equal settings, or none once the batcher is closed."""
        with self._changed:
            while not self._jobs and not self._is_closed:
                self._changed.wait()
            while self._jobs and not self._is_closed and self._num_alike() < self._batch_size:
                left_s = self._jobs[0].arrived_s + self._max_wait_s - time.monotonic()
                if left_s <= 0:
                    break
                self._changed.wait(left_s)
            taken: list[_Job] = []
            for job in list(self._jobs):
                if job.select == self._jobs[0].select and len(taken) < self._batch_size:
                    taken.append(job)
            self._jobs = deque(job for job in self._jobs if all(job is not other for other in taken))
            return taken

    def _num_alike(self) -> int:
        return sum(job.select == self._jobs[0].select for job in self._jobs)
