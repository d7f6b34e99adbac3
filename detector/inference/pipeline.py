"""Pipeline from sources to results: reading, the model and the stages behind it overlap in threads of their own.

Decoding, the network, drawing and encoding spend their time in libraries that release the interpreter lock. Short
queues between them keep memory constant. Results come in the order of their frames.

On a CPU several frames are in the network at once, each on its share of the threads: one small network does not fill
two cores, two of them in parallel do. With live sources alone, one frame at a time has all threads, for low latency.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from types import TracebackType

import torch

from detector.errors import MediaError
from detector.inference.predictor import Prediction, Predictor
from detector.inference.stage_queues import Channel, Inbox, Ordered
from detector.io.machine import merge_freed_memory
from detector.media.images import LoadedImage
from detector.media.sources import ImageSource, Source, VideoSource
from detector.media.streams import ReconnectConfig, frames_of
from detector.media.video import opencv_threads
from detector.structures.letterbox import Image
from detector.structures.selection import SelectConfig

READING, NETWORK = "reading", "the network"  # names of the stages that every pipeline has
_MAX_WORKERS = 8  # batches in the network at once on a CPU; each has its own activations in memory
_MAX_IMAGES = 16  # in these batches together: a photo may have 100 MB


@dataclass(frozen=True)
class PipelineConfig:
    """Settings of a pipeline.

    Attributes:
        stride: look at every `stride`-th frame of a video or live source.
        workers: batches in the network at once; 0 for a number that suits the device.
        latest_only: true if frames of a live source that come while the model is busy are dropped, and counted.
        reconnect: attempts to reach a lost live source.
    """

    stride: int = 1
    workers: int = 0
    latest_only: bool = True
    reconnect: ReconnectConfig = field(default_factory=ReconnectConfig)

    def __post_init__(self) -> None:
        if self.stride < 1 or self.workers < 0:
            raise ValueError(
                f"PipelineConfig: expected stride >= 1 and workers >= 0, got {self.stride}, {self.workers}"
            )


@dataclass(frozen=True)
class Result:
    """Result of one image or frame on its way through the stages behind the model.

    Attributes:
        prediction: the record of the frame or image.
        picture: its annotated picture, uint8 (H, W, 3), or None.
    """

    prediction: Prediction
    picture: Image | None = None


Stage = Callable[[Result], Result]  # called in the order of frames, by one thread


class Pipeline:
    """Predictions of any mix of sources, one after another; a context manager.

    with Pipeline(predictor, select, sources, stages={"drawing": draw, "writing": write}) as results:
        for result in results: ...

    Images and videos come in their order, one record per frame; a source that cannot be read gives a record with its
    error. Frames of live sources come in between as they arrive. An error in any stage ends all of them, and the
    iteration raises it.

    Attributes:
        num_workers: batches in the network at once.
        num_threads: torch threads for each.
    """

    def __init__(
        self,
        predictor: Predictor,
        select: SelectConfig,
        sources: Sequence[Source],
        *,
        stages: Mapping[str, Stage] | None = None,
        config: PipelineConfig | None = None,
        batch_size: int = 1,
    ) -> None:
        """Prepare the queues; nothing is started yet.

        Args:
            predictor: the model, built for batches of `batch_size`.
            select: selection among its boxes.
            sources: images, videos and streams.
            stages: by name, functions that each result goes through behind the model, each in a thread of its own.
            config: settings of the pipeline.
            batch_size: images in a batch, of one or several sources.
        """
        stages = stages or {}
        self._predictor, self._select = predictor, select
        self._names, self._stages = tuple(stages), tuple(stages.values())
        self._config, self._batch_size = config or PipelineConfig(), batch_size
        # Sources that can wait share a thread and come one after another; each live source has a thread of its own.
        live = [s for s in sources if isinstance(s, VideoSource) and s.is_live]
        still = [s for s in sources if not (isinstance(s, VideoSource) and s.is_live)]
        self._feeds: list[Sequence[Source]] = [*([still] if still else []), *([s] for s in live)]
        may_wait = [(bool(still) and n == 0) or not self._config.latest_only for n in range(len(self._feeds))]
        self._live_names = {n: feed[0].name for n, feed in enumerate(self._feeds) if not may_wait[n]}
        self._inbox = Inbox(may_wait, 2 * batch_size)
        self.num_workers, self.num_threads = self._shares(is_live=not still)
        # Batches of images are larger than those of frames, and photos larger than frames: fewer of them wait.
        is_lean = bool(live) or not any(isinstance(source, VideoSource) for source in sources)
        self._found: Ordered[list[Prediction]] = Ordered(self.num_workers if is_lean else 2 * self.num_workers)
        self._lanes: list[Channel[Result]] = [Channel(1 if live else 2) for _ in self._stages]
        self._num_threads_of = {READING: len(self._feeds), NETWORK: self.num_workers, **dict.fromkeys(stages, 1)}
        self._busy_s: dict[str, float] = defaultdict(float)
        self._started_s = self._ended_s = 0.0
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._loops: list[Future[None]] = []
        self._open = ExitStack()

    def _shares(self, is_live: bool) -> tuple[int, int]:
        num_threads = torch.get_num_threads()
        device = getattr(self._predictor.runtime, "device", None)
        is_on_cpu = isinstance(device, torch.device) and device.type == "cpu"
        suits = (
            min(num_threads, _MAX_WORKERS, max(1, _MAX_IMAGES // self._batch_size)) if is_on_cpu and not is_live else 1
        )
        num_workers = self._config.workers or suits
        return num_workers, max(1, num_threads // num_workers)

    @property
    def num_dropped(self) -> dict[str, int]:
        """Frames of each live source that were dropped because newer ones had come."""
        return {name: self._inbox.num_dropped[number] for number, name in self._live_names.items()}

    @property
    def busy_shares(self) -> dict[str, float]:
        """Share of the time, 0..1, in which the threads of each stage worked; complete once the iteration has ended."""
        elapsed_s = (self._ended_s or time.perf_counter()) - self._started_s
        return {name: self._busy_s[name] / elapsed_s / num for name, num in self._num_threads_of.items()}

    def __enter__(self) -> Pipeline:
        self._started_s = time.perf_counter()
        merge_freed_memory()
        with ExitStack() as opened:
            opened.enter_context(opencv_threads(1))  # the stages fill the cores
            opened.enter_context(_torch_threads(self.num_threads))
            num_loops = len(self._feeds) + self.num_workers + len(self._stages)
            loops = ThreadPoolExecutor(num_loops, "stage")
            opened.callback(loops.shutdown)
            opened.callback(self._cancel)
            self._loops = [
                *(loops.submit(self._read, number) for number in range(len(self._feeds))),
                *(loops.submit(self._find) for _ in range(self.num_workers)),
                *(loops.submit(self._run_stage, number, name) for number, name in enumerate(self._names)),
            ]
            for loop in self._loops:
                loop.add_done_callback(self._end_if_failed)
            self._open = opened.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._open.close()

    def __iter__(self) -> Iterator[Result]:
        """Yield the results, in order.

        Raises:
            Exception: the error of a stage.
        """
        yield from self._results_behind(len(self._stages))
        self._ended_s = time.perf_counter()
        for loop in self._loops:
            if loop.done():
                loop.result()

    def stop(self) -> None:
        """Stop reading; frames on their way still come. A signal handler may call this."""
        self._stopping.set()
        self._inbox.stop()  # only threads of the pipeline hold its lock, never the one a handler interrupts

    def _cancel(self) -> None:
        self._stopping.set()
        self._inbox.stop()
        self._found.cancel()
        for lane in self._lanes:
            lane.cancel()

    def _end_if_failed(self, loop: Future[None]) -> None:
        if loop.exception() is not None:
            self._cancel()

    @contextmanager
    def _busy(self, stage: str) -> Iterator[None]:
        """Add the time of the block to that of a stage."""
        started_s = time.perf_counter()
        yield
        with self._lock:
            self._busy_s[stage] += time.perf_counter() - started_s

    # Work of the threads -------------------------------------------------------------------------------------------

    def _read(self, number: int) -> None:
        channels, stride, reconnect = self._predictor.input.channels, self._config.stride, self._config.reconnect
        for source in self._feeds[number]:
            read = frames_of(source, channels, stride=stride, reconnect=reconnect, wait=self._stopping.wait)
            with closing(read) as frames:
                while True:
                    with self._busy(READING):
                        frame = next(frames, None)
                    if frame is None:
                        break
                    if not self._inbox.put(number, frame):
                        return
        self._inbox.end(number)

    def _find(self) -> None:
        torch.set_num_threads(self.num_threads)  # of this thread
        number, batch = self._inbox.take(self._batch_size)
        while batch:
            if not self._found.put(number, self._detect(batch)):
                return
            number, batch = self._inbox.take(self._batch_size)
        self._found.end(number)

    def _detect(self, batch: Sequence[ImageSource]) -> list[Prediction]:
        loaded: list[LoadedImage | str] = []
        for source in batch:
            with self._busy(READING):
                try:
                    loaded.append(source.load(self._predictor.input.channels))
                except MediaError as error:
                    loaded.append(str(error))
        images = [image.pixels for image in loaded if isinstance(image, LoadedImage)]
        with self._busy(NETWORK):
            found = iter(self._predictor.detect(images, self._select) if images else [])
        return [
            Prediction(source, None, image)
            if isinstance(image, str)
            else Prediction(source, next(found), None, image.pixels, image.warnings)
            for source, image in zip(batch, loaded, strict=True)
        ]

    def _results_behind(self, number: int) -> Iterator[Result]:
        """Yield the results behind the first `number` stages."""
        if number > 0:
            yield from self._lanes[number - 1]
            return
        for batch in self._found:
            yield from map(Result, batch)

    def _run_stage(self, number: int, name: str) -> None:
        for result in self._results_behind(number):
            with self._busy(name):
                done = self._stages[number](result)
            if not self._lanes[number].put(done):
                return
        self._lanes[number].close()


@contextmanager
def _torch_threads(num_threads: int) -> Iterator[None]:
    previous = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        yield
    finally:
        torch.set_num_threads(previous)
