from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from detector.errors import MediaError, StreamError
from detector.inference import pipeline
from detector.inference.pipeline import Pipeline, PipelineConfig, Result
from detector.inference.prediction_summary import PredictionSummary
from detector.inference.predictor import Predictor, only_detections
from detector.inference.runtime import TorchRuntime
from detector.media.images import write_image
from detector.media.sources import FrameOrigin, ImageSource, Source, VideoSource
from detector.media.streams import frames_of
from detector.models.yolo import Yolo
from detector.structures.canvas import InputConfig
from detector.structures.selection import SelectConfig
from detector.structures.types import Detections

SELECT = SelectConfig(confidence=0.0, max_detections=5)


class Bars:
    """Predictor whose one detection has the number of the frame, read from its bars, as its score."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.input, self.runtime = InputConfig(64), None
        self._seconds, self.sizes = seconds, list[int]()

    def detect(self, images: list[np.ndarray], select: SelectConfig) -> list[Detections]:
        time.sleep(self._seconds)
        self.sizes.append(len(images))
        return [
            Detections(
                torch.zeros(1, 4),
                torch.tensor([float(number(i))]),
                torch.zeros(1, dtype=torch.int64),
                (1, 1),
                ("a",),
                (1,),
            )
            for i in images
        ]


def number(image: np.ndarray) -> int:
    middles = [(2 * bit + 1) * image.shape[1] // 12 for bit in range(6)]
    return int(sum((image[20, x, 0] > 127) << bit for bit, x in enumerate(middles)))


def found(results: Pipeline) -> list[int | str]:
    """Return the number of each frame, or its error."""
    return [r.prediction.error or round(only_detections(r.prediction).scores[0].item()) for r in results]


def video(path: Path) -> VideoSource:
    return VideoSource(str(path), path)


def run(predictor: Any, sources: list[Source], **settings: Any) -> Pipeline:
    return Pipeline(predictor, SELECT, sources, **settings)


@pytest.fixture(autouse=True)
def threads_end() -> Iterator[None]:
    """Check that no test leaves a thread behind or changes the number of torch threads."""
    before, num_threads = set(threading.enumerate()), torch.get_num_threads()
    yield
    left = [t for t in threading.enumerate() if t not in before and t.name.startswith(("model", "stage"))]
    assert left == []
    assert torch.get_num_threads() == num_threads


@pytest.mark.parametrize(("workers", "batch_size"), [(1, 1), (3, 1), (2, 4), (4, 7)])
def test_every_frame_comes_once_and_in_order(
    workers: int, batch_size: int, draw_video: Callable[..., Path], tmp_path: Path
) -> None:
    write_image(tmp_path / "photo.png", np.zeros((48, 64, 3), np.uint8))
    sources: list[Source] = [
        video(draw_video("a.mp4", 20)),
        ImageSource("photo", tmp_path / "photo.png"),
        video(tmp_path / "none.mp4"),
        ImageSource("gone", tmp_path / "gone.png"),
        video(draw_video("b.avi", 7)),
    ]
    made = Bars()
    with run(made, sources, config=PipelineConfig(workers=workers), batch_size=batch_size) as results:
        got = found(results)
    errors = [
        f"{tmp_path / name} cannot be read: there is no such file; check the path" for name in ("none.mp4", "gone.png")
    ]
    assert got == [*range(20), 0, *errors, *range(7)]
    assert max(made.sizes) <= batch_size
    assert sum(made.sizes) == 28


def test_boxes_equal_those_of_the_predictor_alone(draw_video: Callable[..., Path]) -> None:
    torch.manual_seed(0)
    runtime = TorchRuntime(Yolo(Yolo.Config(width=0.125), 3), torch.device("cpu"))
    predictor = Predictor(runtime, InputConfig(64), "abc", (1, 2, 3), batch_size=2)
    source = video(draw_video(num_frames=9))
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with run(predictor, [source], batch_size=2) as results:
            assert (results.num_workers, results.num_threads) == (2, 1)
            got = [result.prediction for result in results]
        torch.set_num_threads(1)  # as each worker has
        wanted = list(predictor.stream(frames_of(source), SELECT))
    finally:
        torch.set_num_threads(before)
    for ours, theirs in zip(got, wanted, strict=True):
        assert ours.source.frame == theirs.source.frame
        for field in ("source_xyxy", "scores", "labels"):
            assert torch.equal(getattr(only_detections(ours), field), getattr(only_detections(theirs), field))
    assert len(got[0].detections or ()) == 5


def test_stages_see_every_result_in_order_and_may_change_it(draw_video: Callable[..., Path]) -> None:
    seen: list[int] = []

    def look(result: Result) -> Result:
        assert result.prediction.source.frame is not None
        seen.append(result.prediction.source.frame.index)
        return replace(result, picture=result.prediction.image)

    with run(Bars(), [video(draw_video())], stages={"looking": look, "nothing": lambda result: result}) as results:
        pictures = [result.picture for result in results]
    assert seen == list(range(60))
    assert [number(p) for p in pictures if p is not None] == list(range(60))


def test_stages_run_at_the_same_time(draw_video: Callable[..., Path]) -> None:
    meeting = threading.Barrier(3)  # its wait fails unless the model and both stages are at work at the same moment

    class Waiting(Bars):
        def detect(self, images: list[np.ndarray], select: SelectConfig) -> list[Detections]:
            if number(images[0]) == 2:
                meeting.wait(timeout=60)
            return super().detect(images, select)

    def waiting_at(index: int) -> Callable[[Result], Result]:
        def stage(result: Result) -> Result:
            if result.prediction.source.frame is not None and result.prediction.source.frame.index == index:
                meeting.wait(timeout=60)
            return result

        return stage

    with run(
        Waiting(), [video(draw_video(num_frames=20))], stages={"first": waiting_at(1), "second": waiting_at(0)}
    ) as results:
        assert len(list(results)) == 20
    assert not meeting.broken


@pytest.mark.parametrize("where", ["model", "stage", "consumer"])
def test_error_in_any_stage_ends_all_and_is_raised(where: str, draw_video: Callable[..., Path]) -> None:
    class Failing(Bars):
        def detect(self, images: list[np.ndarray], select: SelectConfig) -> list[Detections]:
            if where == "model" and number(images[0]) == 7:
                raise ZeroDivisionError(where)
            return super().detect(images, select)

    def fail(result: Result) -> Result:
        assert result.prediction.image is not None
        if where == "stage" and number(result.prediction.image) == 7:
            raise ZeroDivisionError(where)
        return result

    got = []
    pipeline_of = run(Failing(), [video(draw_video())], stages={"failing": fail})
    with pytest.raises(ZeroDivisionError, match=where), pipeline_of as results:  # noqa: PT012, what came before is counted
        for result in results:
            got.append(result)
            if where == "consumer" and len(got) == 7:
                raise ZeroDivisionError(where)
    assert len(got) <= 7


def test_leaving_the_block_early_ends_all_threads(draw_video: Callable[..., Path]) -> None:
    with run(Bars(), [video(draw_video())], config=PipelineConfig(workers=3)) as results:
        assert next(iter(results)).prediction.error is None


def test_results_on_their_way_still_come_after_a_stop(draw_video: Callable[..., Path]) -> None:
    with run(Bars(0.005), [video(draw_video())]) as results:
        got = []
        for result in results:
            assert result.prediction.image is not None
            got.append(number(result.prediction.image))
            if len(got) == 5:
                results.stop()
    assert got == list(range(len(got)))
    assert 5 <= len(got) < 20


# --- live sources ----------------------------------------------------------------------------------------------------


def live(monkeypatch: pytest.MonkeyPatch, num_frames: int, every_s: float = 0.0) -> list[Source]:
    """Replace captures by two cameras, the second of which is lost at its end."""
    cameras = [VideoSource(f"camera:{n}", camera=n) for n in (0, 1)]
    given = frames_of

    def fake(source: Source, *arguments: Any, **settings: Any) -> Iterator[ImageSource]:
        if not isinstance(source, VideoSource) or source.camera is None:
            yield from given(source, *arguments, **settings)
            return
        for index in range(num_frames):
            time.sleep(every_s)
            pixels = np.zeros((48, 64, 3), np.uint8)
            yield ImageSource(source.name, pixels=pixels, frame=FrameOrigin(source, index, index / 25, 25.0))
        if source.camera == 1:
            yield ImageSource(source.name, frame=FrameOrigin(source, num_frames, None, 25.0), error="lost")

    monkeypatch.setattr(pipeline, "frames_of", fake)
    return [*cameras]


def frames_by_source(results: Pipeline) -> dict[str, list[int]]:
    got: dict[str, list[int]] = {}
    for result in results:
        frame = result.prediction.source.frame
        if result.prediction.error is None and frame is not None:
            got.setdefault(result.prediction.source.name, []).append(frame.index)
    return got


def test_live_source_gives_its_latest_frame_and_dropped_frames_are_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cameras = live(monkeypatch, num_frames=60, every_s=0.002)
    with run(Bars(0.02), cameras, batch_size=2) as results:
        got = frames_by_source(results)
        dropped = results.num_dropped
    assert set(got) == {"camera:0", "camera:1"}
    for name, indices in got.items():
        assert indices == sorted(indices)
        assert indices[-1] == 59  # the newest is never the one dropped
        assert len(indices) + dropped[name] == 60
        assert dropped[name] > 20


def test_live_source_waits_on_request_and_drops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    cameras = live(monkeypatch, num_frames=15)
    made = Bars(0.005)
    with run(made, cameras, batch_size=2, config=PipelineConfig(latest_only=False)) as results:
        got = frames_by_source(results)
        assert results.num_dropped == {}
    assert got == {"camera:0": list(range(15)), "camera:1": list(range(15))}
    assert 2 in made.sizes  # frames of both go through the network together


def test_lost_source_gives_its_error_and_files_are_still_read(
    monkeypatch: pytest.MonkeyPatch, draw_video: Callable[..., Path]
) -> None:
    sources = [live(monkeypatch, num_frames=3)[1], video(draw_video(num_frames=30))]
    with run(Bars(), sources) as results:
        predictions = [result.prediction for result in results]
    assert [p.error for p in predictions if p.source.name == "camera:1"][-1] == "lost"
    with pytest.raises(MediaError, match="lost"):
        only_detections(next(p for p in predictions if p.error))
    assert sum(p.source.path is not None for p in predictions) == 30
    assert issubclass(StreamError, MediaError)


def test_impossible_settings_are_refused() -> None:
    impossible: tuple[dict[str, Any], ...] = ({"stride": 0}, {"workers": -1})
    for settings in impossible:
        with pytest.raises(ValueError, match="PipelineConfig: expected stride >= 1 and workers >= 0"):
            PipelineConfig(**settings)


def test_busy_shares_name_the_stage_that_limits(draw_video: Callable[..., Path]) -> None:
    def slow(result: Result) -> Result:
        time.sleep(0.01)
        return result

    stages = {"slow": slow, "quick": lambda result: result}
    with run(Bars(), [video(draw_video(num_frames=20))], stages=stages) as results:
        list(results)
        shares = results.busy_shares
    assert list(shares) == ["reading", "the network", "slow", "quick"]
    assert max(shares, key=lambda name: shares[name]) == "slow"
    assert all(0 <= share <= 1 for share in shares.values())
    summary = PredictionSummary(20, 0, (), (), busy_shares=shares)
    assert str(summary.limit_text).startswith("the speed is limited by slow: busy ")
    assert PredictionSummary(1, 0, (), ()).limit_text is None


def test_large_batches_are_few_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline.torch, "get_num_threads", lambda: 64)
    predictor = Bars()
    predictor.runtime = SimpleNamespace(device=torch.device("cpu"))  # type: ignore[assignment]
    at_once = {size: run(predictor, [ImageSource("a.jpg", path=Path("a.jpg"))], batch_size=size).num_workers for size in (1, 2, 8, 64)}
    assert at_once == {1: 8, 2: 8, 8: 2, 64: 1}
