"""Small things that commands and the Python interface say."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from detector.cli.compare import _test_lines
from detector.cli.main import run
from detector.cli.predict_video import _source_text
from detector.errors import ConfigError
from detector.evaluation.resampling import Interval, PairedTest
from detector.inference.prediction_summary import SourceSummary
from detector.models.checkpoint import ModelFile
from detector.structures.selection import SelectConfig
from detector.tasks.detection_prediction import select_boxes
from detector.workflows.keywords import split_keywords

FILE = ModelFile({}, ("Motorbike", "tv monitor", "dog", "Dog house"), (0, 1, 2, 3), {})


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (0.01, 0.05, "better"),
        (-0.05, -0.01, "worse"),
        (-0.01, 0.05, "no evidence of a difference"),
        (-0.05, 0.0, "no evidence of a difference"),
        (0.0, 0.0, "no evidence of a difference"),
    ],
)
def test_comparison_calls_a_run_better_only_where_the_interval_excludes_0(
    low: float, high: float, verdict: str
) -> None:
    lines = _test_lines(PairedTest(Interval((low + high) / 2, low, high, 0.01), 0.2, 0.7, 100))
    assert lines[0].endswith(f", {verdict}")


@pytest.mark.parametrize(
    ("counts", "text"),
    [
        (Counter({"car": 2}), "2 car, each followed, in 5 frames"),
        (Counter(), "nothing in 5 frames"),
    ],
)
def test_summary_of_a_video_with_tracks(counts: Counter[str], text: str) -> None:
    summary = SourceSummary(is_video=True, num_read=5, counts=counts, num_tracks=sum(counts.values()))
    assert _source_text(summary) == text


@pytest.mark.parametrize(
    ("given", "indices"),
    [(["motorcycle"], (0,)), ("tv-monitor", (1,)), (["dog", 0], (2, 0)), (["DOG"], (2,)), (["tv"], (1,)), ("3", (3,))],
)
def test_class_to_keep_may_be_an_alias(given: object, indices: tuple[int, ...]) -> None:
    assert select_boxes(SelectConfig(), FILE, {"classes": given}, "m").classes == indices


@pytest.mark.parametrize(
    ("given", "words"),
    [([], "classes: expected at least one class, got an empty list"), (["cow"], "expected a class of the model, got")],
)
def test_class_to_keep_is_refused(given: object, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        select_boxes(SelectConfig(), FILE, {"classes": given}, "m")


@pytest.mark.parametrize(
    ("keyword", "meant"),
    [
        ("imgsz", "input.size"),
        ("conf", "here it is confidence"),
        ("max_det", "here it is max_detections"),
        ("half", "runtime.precision=fp16"),
        ("save_dirr", "did you mean 'save_dir'"),
    ],
)
def test_keyword_of_another_program_leads_to_ours(keyword: str, meant: str) -> None:
    with pytest.raises(ConfigError, match=meant) as caught:
        split_keywords({keyword: 1}, "Detector.run")
    assert len(str(caught.value)) < 200


def test_preset_is_described_as_a_model_without_weights(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert run(["models", "mish-n", "--json"]) == 0
    described = capsys.readouterr().out
    assert '"network": "yolo"' in described
    assert '"has_weights": false' in described
