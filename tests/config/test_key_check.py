"""The check without parts: it says what the full check says, and never refuses what that accepts."""

from __future__ import annotations

import subprocess
import sys

import pytest

from detector.config.key_check import check_experiment, check_overrides
from detector.config.nodes import presets_dir
from detector.errors import ConfigError, DetectorError
from detector.tasks.task import load_experiment

PRESETS = sorted(path.stem for path in presets_dir().glob("*.yaml"))
MISTAKES = [
    ("train.epoch=3", "data=none.json"),
    ("train.epochs=few",),
    ("train.iterations=few",),
    ("train.patience=1.5",),
    ("train.accumulate=null",),
    ("train.tensorboard=maybe",),
    ("train.run_name=5",),
    ("train.weights=5",),
    ("train.precision=half",),
    ("runtime.precision=16",),
    ("train=5",),
    ("augment=none",),
    ("device=0",),
    ("device=[0, 1]",),
    ("optimizer=AdamW",),
    ("optimizer=sgd", "optimizer.beta1=0.9"),
    ("optimizer={name: [sgd]}",),
    ("schedule.gamma=0.1",),
    ("schedule=step", "schedule.gama=0.1"),
    ("data=none.yaml",),
    ("data.train.annotations=a.json",),
    ("data=shapes", "data.train.images=x"),
    ("data.name=cifar",),
    ("model.backbone=csp",),
    ("model.backbone.chanels=[1, 2, 3, 4, 5]",),
    ("model.activation={name: relu, alpha: 3}",),
    ("model.head=anchor", "loss.normalizer=3"),
    ("task=clasify",),
    ("task=classify",),
    ("loader.workers=two", "loader.batchsize=4"),
    ("imgsz=640", "epochs=3", "data={nmae: yolo}"),
]
# The table cannot decide these: the part depends on another one, or the type is not a simple one.
LEFT_TO_THE_FULL_CHECK = [
    ("model.head=anchor", "loss.box=3"),
    ("input.size=big",),
    ("augment.extra=[x]",),
    ("train.epochs=-1",),
    ("train.epoch=3", "input.size=big"),
    ("train.epoch=3", "optimizer.lr=-1"),
]


def message_of(check, name: str, overrides: tuple[str, ...]) -> str:
    try:
        check(name, overrides)
    except DetectorError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("overrides", MISTAKES, ids=" ".join)
def test_mistake_gets_the_message_of_the_full_check(overrides):
    message = message_of(load_experiment, "mish-n", overrides)
    assert message
    assert message_of(check_experiment, "mish-n", overrides) == message


@pytest.mark.parametrize("overrides", LEFT_TO_THE_FULL_CHECK, ids=" ".join)
def test_undecided_value_is_left_to_the_full_check(overrides):
    assert message_of(check_experiment, "mish-n", overrides) == ""
    assert message_of(load_experiment, "mish-n", overrides)


@pytest.mark.parametrize("preset", PRESETS)
def test_preset_passes(preset):
    check_experiment(preset, ())


@pytest.mark.parametrize(
    "overrides",
    [
        ("data=shapes", "data.num_train=3"),
        ("optimizer=sgd", "optimizer.nesterov=false", "optimizer.momentum=0.8"),
        ("model={name: darknet, cfg: yolov4-tiny}", "schedule=steps", "loss=anchor"),
        ("model.head={name: anchor}", "model.head.training={iou_loss: giou}", "evaluate.nms=greedy"),
        ("train.iterations=null", "train.epochs=1", "train.freeze=[backbone]", "device='0'"),
        ("augment.albumentations=[{name: Blur, p: 0.1}]", "input.size=[320, 640]"),
        ("model.backbone.attention=null", "model.activation=leaky", "model.activation.slope=0.2"),
    ],
    ids=" ".join,
)
def test_right_experiment_passes_both_checks(overrides):
    assert message_of(load_experiment, "mish-n", overrides) == ""
    assert message_of(check_experiment, "mish-n", overrides) == ""


def test_section_whose_part_depends_on_a_cfg_passes_both_checks():
    overrides = ("model.recipe=true", "optimizer.nesterov=false", "schedule.scales=[0.1, 0.1]")
    assert message_of(load_experiment, "yolov4-tiny.cfg", overrides) == ""
    assert message_of(check_experiment, "yolov4-tiny.cfg", overrides) == ""


def test_mistakes_of_file_and_override_are_reported_together_with_their_lines(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.yaml").write_text("base: mish-n\ntrain:\n  epohcs: 3\n")
    with pytest.raises(ConfigError) as refused:
        check_experiment("a.yaml", ["loader.batch_size=x"])
    assert str(refused.value).splitlines() == [
        "a.yaml:3: unknown key 'train.epohcs'; did you mean 'epochs'?",
        "override 'loader.batch_size=x': loader.batch_size: expected a valid integer, got the text 'x'",
    ]


@pytest.mark.parametrize(
    "override", ["model.width=0.5", "optimizer.nesterov=true", "evaluate.batch_size=4", "data.root=x"]
)
def test_override_that_some_experiment_has_passes_for_an_unknown_one(override):
    check_overrides([override])


def test_override_that_no_experiment_has_is_refused_for_an_unknown_one():
    with pytest.raises(ConfigError, match=r"unknown key 'evaluate\.conf'; here it is evaluate\.confidence"):
        check_overrides(["evaluate.conf=0.3"])


def test_file_of_another_format_is_not_read(tmp_path):
    (tmp_path / "data.yaml").write_text("names: [a]\ntrain: images\n")
    (tmp_path / "wrong.yaml").write_text("name: coco\nunknown: 3\n")
    for name in ("data.yaml", "wrong.yaml"):
        check_experiment("mish-n", [f"data={tmp_path / name}", "data.ignore_unknown=true"])


def test_wrong_key_is_answered_without_torch():
    code = (
        "import sys\nfrom detector.cli.main import run\n"
        "assert run(['train', 'mish-n', 'data=x.json', 'train.epoch=3']) == 2\n"
        "print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "did you mean 'epochs'?" in done.stderr
    assert not {"torch", "numpy", "cv2", "pydantic"} & set(done.stdout.split())


def test_override_of_one_key_of_a_file_or_run_does_not_ask_for_the_others(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    split = "{annotations: a.json, images: .}"
    (tmp_path / "mine.yaml").write_text(f"train: {split}\nval: {split}\n", encoding="utf-8")
    given = ("data=mine.yaml", "data.train.annotations=b.json")
    check_experiment("mish-n", given)
    assert load_experiment("mish-n", given).data.train.annotations == tmp_path / "b.json"
    check_overrides(["data.val.annotations=b.json"])  # of the data of a model file or an interrupted run
