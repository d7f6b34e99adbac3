"""Conventions of the command line: exit codes, one line per error, results on stdout, the rest on stderr."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from detector import __version__
from detector.cli import models
from detector.cli.main import COMMANDS, run
from detector.errors import ConfigError
from detector.tasks.detection_model import ModelSize


class Outcome(NamedTuple):
    """Exit code and output of a command."""

    code: int
    out: str
    err: str


@pytest.fixture
def detector(capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Return a function that runs a command in an empty folder and captures all output, also that of C libraries."""
    monkeypatch.chdir(tmp_path)

    def run_words(*words: str | Path) -> Outcome:
        capfd.readouterr()
        try:
            code: Any = run([str(word) for word in words])
        except SystemExit as end:
            code = end.code
        sys.stdout.flush()
        captured = capfd.readouterr()
        return Outcome(0 if code is None else code, captured.out, captured.err)

    return run_words


# --- exit codes ----------------------------------------------------------------------------------------------------

USAGE_ERRORS = [
    ([], "detector: the following arguments are required: COMMAND; see detector --help"),
    (["trian"], "detector: no command is named 'trian'; did you mean 'train'?; see detector --help"),
    (["train"], "detector train: expected one configuration, got none"),
    (["train", "mish-n", "mish-s"], "expected one configuration, got mish-n, mish-s"),
    (["train", "--resume", "n" * 300], "n" * 300),
    (["train", "n" * 300], "no configuration file or preset is named 'nnn"),
    (["evaluate", "n" * 300], ": the name is too long for a file"),
    (["train", "mish-n", "data=shapes", "loader.batch_size=1000000000000"], "batch_size within 1..65536"),
    (["train", "mish-n", "data=shapes", "loader.workers=1000000"], "workers within 0..1024"),
    (["train", "mihs-n"], "no configuration file or preset is named 'mihs-n'; did you mean 'mish-n'?"),
    (["train", "mish-n", "train.epohcs=3"], "unknown key 'train.epohcs'; did you mean 'epochs'?"),
    (["train", "mish-n", "train.epochs=few"], "train.epochs: expected a valid number, got the text 'few'"),
    (
        ["train", "mish-n", "--epochs", "5"],
        "detector train: unknown argument '--epochs'; here it is train.epochs=VALUE; see",
    ),
    (["train", "train.epochs=3"], "expected one configuration"),
    (["train", "--resume", "run", "train.epochs=3"], "--resume: expected no overrides but the new place of the data"),
    (["train", "broken.yaml"], "broken.yaml:2:"),
    (["train", "."], ".: expected a configuration, got a folder; give detector train mish-n data=."),
    (["evaluate"], "expected one model file, got none"),
    (["evaluate", "--results", "r.json"], "--results needs --annotations FILE and takes no model"),
    (["evaluate", "--split"], "detector evaluate: argument --split: expected one argument; see"),
    (["predict", "a.safetensors"], "expected a source, or a model file and a source, got "),
    (["predict", "a", "b", "--format", "xml"], "--format: no format is named 'xml'"),
    (["models", "--size", "100"], "expected images with both sides a multiple of 32, got (100, 100)"),
    (["predict", "--confidence", "high"], "argument --confidence: expected a number of 0..1, best or best-overall"),
    (["models", "--size", "0"], "a size and channels of at least 1"),
    (["models", "--num-classes", "0"], "--num-classes: expected at least 1, got 0"),
    (["env", "--all"], "detector env: unknown argument '--all'"),
    (["models", "--import", "nowhere.py"], "--import: expected a Python file with registered parts, got 'nowhere.py'"),
    (
        ["train", "mish-n", "device=abacus", "data=shapes"],
        "device: expected auto, cpu, cuda, cuda:N or mps, got 'abacus'",
    ),
]
DATA_ERRORS = [
    (["train", "mish-n"], "no data set is configured; give data=DATA, a folder, zip or file"),
    (["train", "mish-n", "data={name: coco}"], "the data set has no split 'train'; give data.train.annotations"),
    (
        ["train", "mish-n", "data={name: coco, train: {annotations: none.json, images: .}}"],
        "none.json",
    ),
    (["train", "mish-n", "data.train.annotations=none.json", "data.train.images=."], "none.json"),
    (["evaluate", "--results", "none.json", "--annotations", "none.json"], "none.json cannot be read"),
    (["train", "mish-n", "data=shapes", "data.num_train=0"], "shapes: expected num_train of at least 1, got 0"),
]
MODEL_ERRORS = [
    (["evaluate", "none.safetensors"], "none.safetensors"),
    (["models", "mihs-n"], "mihs-n is no model file"),
    (["val", "none.safetensors"], "none.safetensors"),
    (["evaluate", "text.safetensors"], "text.safetensors"),
    (["evaluate", "empty.pt"], "empty.pt"),
    (["predict", "none.safetensors", "picture.jpg"], "none.safetensors"),
    (["predict", "text.safetensors", "picture.jpg"], "text.safetensors"),
    (["train", "--resume", "nowhere"], "nowhere"),
    (["train", "mish-n", "--resume", "text.safetensors"], "text.safetensors"),
]


@pytest.mark.parametrize(
    ("code", "words", "message"),
    [
        (code, words, message)
        for code, errors in ((2, USAGE_ERRORS), (3, DATA_ERRORS), (4, MODEL_ERRORS))
        for words, message in errors
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else str(value)[:30],
)
def test_user_error_is_one_line_with_its_exit_code(detector, tmp_path, code, words, message):
    (tmp_path / "text.safetensors").write_text("not a model\n", encoding="utf-8")
    (tmp_path / "empty.pt").write_bytes(b"")
    (tmp_path / "broken.yaml").write_text("train:\n\tepochs: 3\n", encoding="utf-8")
    # Draw few small images: these commands fail before training or right after drawing.
    small = ["data.num_val=1", "data.image_size=64", f"train.project={tmp_path}/runs"] if "data=shapes" in words else []
    small += ["data.num_train=1"] if "device=abacus" in words else []
    outcome = detector(*words, *small)
    assert message in outcome.err
    assert outcome.code == code
    assert outcome.out == ""
    assert 1 <= len(outcome.err.splitlines()) <= 3
    assert "Traceback" not in outcome.err
    assert outcome.err.startswith("detector")


def test_wrong_use_of_a_model_is_one_line_with_its_exit_code(detector, trained, tmp_path):
    for words, code, message in [
        (
            ["predict", trained.weights, "nowhere.jpg"],
            3,
            "nowhere.jpg: no such image, video, folder, glob, list file or camera",
        ),
        (["predict", trained.weights, tmp_path], 3, "expected an image or video, got none"),
        (["predict", trained.weights, "n" * 300], 3, "nnn: no such image, video, folder, glob, list file or camera"),
        (["predict", trained.weights, trained.images, "--classes", "cirlce"], 2, "did you mean 'circle'?"),
        (
            ["predict", trained.weights, trained.images, "--classes", "99"],
            2,
            "expected a class of the model, got 99; it has 0 to 5",
        ),
        (["predict", trained.weights, trained.images, "predict.classes=[99]"], 2, "classes of 0 to 5, got 99"),
        (["predict", trained.weights, trained.images, "--confidence", "1.5"], 2, "within 0..1, got 1.5"),
        (["predict", trained.weights, trained.images, "--max-detections", "0"], 2, "at least 1, got 0"),
        (["predict", trained.weights, trained.images, "--format", "coco"], 2, "an annotation file; give --annotations"),
        (["predict", trained.weights, trained.images, "preidct.iou=0.5"], 2, "did you mean 'predict'?"),
        (["evaluate", trained.weights, "--split", "test"], 3, "no split 'test'"),
        (["evaluate", trained.weights, "--split", "ignore_unknown"], 3, "no split 'ignore_unknown'"),
        (["evaluate", trained.weights, "--split", "__class__"], 3, "no split '__class__'"),
        (["evaluate", trained.weights, trained.weights], 2, "expected one model file, got "),
        (["evaluate", trained.weights, "input.size=50"], 2, "a multiple of 32, got (50, 50)"),
        (["evaluate", trained.weights, "model.width=0.5"], 4, str(trained.weights)),
        (["evaluate", trained.weights, "--save-dir", trained.weights], 1, "the folder for results cannot be made"),
    ]:
        outcome = detector(*words)
        assert message in outcome.err, (words, outcome)
        assert (outcome.code, outcome.out) == (code, ""), (words, outcome)
        assert len(outcome.err.splitlines()) <= 3, (words, outcome.err)


def test_damaged_image_is_skipped_and_fails_only_under_strict(detector, trained, tmp_path):
    good = sorted(trained.images.glob("*.jpg"))[0]
    (tmp_path / "in").mkdir()
    (tmp_path / "in/bad.jpg").write_bytes(b"")
    (tmp_path / "in/good.jpg").write_bytes(good.read_bytes())
    outcome = detector("predict", trained.weights, "in", "--json")
    assert outcome.code == 0
    bad, kept = (json.loads(line) for line in outcome.out.splitlines())
    assert "error" in bad
    assert bad["detections"] == []
    assert "error" not in kept
    assert "bad.jpg" in outcome.err
    assert detector("predict", trained.weights, "in", "--strict").code == 5
    only_bad = detector("predict", trained.weights, "in/bad.jpg")
    assert only_bad.code == 3
    assert "none of 1 image could be read" in only_bad.err


def test_all_mistakes_of_a_configuration_are_reported_together(detector, tmp_path):
    (tmp_path / "a.yaml").write_text("base: mish-n\noptimizer: {lr: 1e-3}\ntrian: {}\n", encoding="utf-8")
    outcome = detector("train", "a.yaml", "input.size=x")
    assert outcome.code == 2
    assert [line.removeprefix("detector train: ").split(": ")[0] for line in outcome.err.splitlines()] == [
        "a.yaml:2",
        "a.yaml:3",
        "override 'input.size=x'",
    ]


def test_debug_raises_the_error(detector):
    with pytest.raises(ConfigError, match="mihs-n"):
        detector("train", "mihs-n", "--debug")


def test_error_of_the_package_is_a_traceback(detector, monkeypatch):
    def break_down(arguments):
        raise KeyError("a defect of this package")

    monkeypatch.setattr("detector.cli.models.run", break_down)
    with pytest.raises(KeyError, match="a defect of this package"):
        detector("models")


@pytest.mark.parametrize("words", [["--help"], *([name, "--help"] for name in COMMANDS)], ids=" ".join)
def test_help_goes_to_stdout(detector, words):
    outcome = detector(*words)
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out.startswith("usage: detector")
    assert "exit codes: 0 done" in outcome.out


def test_help_lists_every_command(detector):
    out = detector("--help").out
    for name, (_, summary) in COMMANDS.items():
        assert re.search(rf"^ +{name}\s+{re.escape(summary[:30])}", out, re.MULTILINE), name


def test_version_is_printed(detector):
    assert detector("--version") == Outcome(0, f"detector {__version__}\n", "")


# --- results and progress ------------------------------------------------------------------------------------------


def test_training_prints_results_on_stdout_and_progress_on_stderr(detector, tiny_words, tmp_path):
    words = [*tiny_words, "train.iterations=2", "train.evaluations=1"]
    talkative = detector("train", *words)
    assert talkative.code == 0
    assert f"best weights (AP 0.000): {tmp_path}/runs/train/weights/best.safetensors" in talkative.out
    assert "0.50:0.95" in talkative.out
    assert "training 2 steps" in talkative.err
    assert "step 2: AP" in talkative.err
    assert "training 2 steps" not in talkative.out
    quiet = detector("train", *words, "-q")
    assert (quiet.code, quiet.err) == (0, "")
    assert len(quiet.out.splitlines()) == 1
    assert (tmp_path / "runs/train2/weights/best.safetensors").is_file()
    as_json = detector("train", "--json", *words)
    summary = json.loads(as_json.out)
    assert as_json.code == 0
    assert Path(summary["weights"]).is_file()
    assert summary["run"] == f"{tmp_path}/runs/train3"
    assert summary["num_skipped"] == 0
    assert summary["metrics"]["num_images"] == 6


def test_finished_run_accepts_the_same_command_with_resume(detector, tiny_words, tmp_path):
    words = [*tiny_words, "train.iterations=2", "train.evaluations=1"]
    assert detector("train", *words, "-q").code == 0
    again = detector("train", *words, "--resume", tmp_path / "runs/train", "-q")
    assert (again.code, again.err) == (0, "")
    other = detector("train", *words, "train.iterations=3", "--resume", tmp_path / "runs/train")
    assert other.code == 2
    assert "got 1 difference: train.iterations: 3 here, 2 there" in other.err
    assert len(other.err.splitlines()) == 1
    bare = detector("train", "--resume", tmp_path / "runs/train", "-q")
    assert (bare.code, bare.err) == (0, "")
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["train"]  # no second folder


def test_evaluation_prints_results_on_stdout_and_the_rest_on_stderr(detector, trained, tmp_path):
    words = [trained.weights, "--save-dir", tmp_path / "out"]
    talkative = detector("evaluate", *words)
    assert talkative.code == 0
    assert "0.50:0.95" in talkative.out
    assert f"results: {tmp_path}/out/results.json" in talkative.err
    quiet = detector("evaluate", *words, "-q")
    assert quiet == Outcome(0, talkative.out, "")
    as_json = detector("evaluate", *words, "--json", "-q")
    numbers = json.loads(as_json.out)
    assert numbers["AP"] > 0
    assert numbers["num_images"] == 6


def test_val_is_evaluate(detector, trained, tmp_path):
    words = [trained.weights, "--save-dir", tmp_path / "out", "--json", "-q"]
    assert detector("val", *words) == detector("evaluate", *words)


def test_options_and_overrides_are_accepted_in_any_order(detector, trained, tmp_path):
    out = tmp_path / "out"
    first, *others = [
        ["evaluate", trained.weights, "evaluate.iou=0.5", "--save-dir", out, "--json", "-q"],
        ["evaluate", "--json", "evaluate.iou=0.5", "-q", trained.weights, "--save-dir", out],
        ["evaluate", "-q", "--save-dir", out, trained.weights, "--json", "evaluate.iou=0.5"],
        ["evaluate", f"--save-dir={out}", "evaluate.iou=0.5", "--json", trained.weights, "-q"],
    ]
    wanted = detector(*first)
    assert wanted.code == 0
    for words in others:
        assert detector(*words) == wanted, words
    assert detector("evaluate", trained.weights, "evaluate.iou=0.05", "--save-dir", out, "--json", "-q") != wanted


def test_prediction_prints_one_line_per_image(detector, trained, tmp_path):
    words = ["predict", trained.weights, trained.images, "--save-dir", tmp_path / "out"]
    talkative = detector(*words)
    assert talkative.code == 0
    assert len(talkative.out.splitlines()) == 6
    assert re.search(r"6 images, 0 skipped, [\d.]+ ms per image: .*/out/predictions.json", talkative.err)
    assert detector(*words, "-q") == Outcome(0, talkative.out, "")
    assert len(list((tmp_path / "out").glob("*.jpg"))) == 6
    records = [json.loads(line) for line in detector(*words, "--json", "-q").out.splitlines()]
    assert records == json.loads((tmp_path / "out/predictions.json").read_text("utf-8"))
    assert {"source", "height", "width", "detections"} == set(records[0])
    bare = detector(*words[:3], "--save-dir", tmp_path / "bare", "--no-pictures", "--confidence", "0.9", "-q")
    assert bare.code == 0
    assert [path.name for path in (tmp_path / "bare").iterdir()] == ["predictions.json"]


def test_models_and_env_print_json(detector, monkeypatch):
    sizes = json.loads(detector("models", "--size", "64", "--json").out)
    listed = [size["preset"] for size in sizes]
    assert [name for name in listed if name.startswith("mish-")] == [f"mish-{size}" for size in "nsmlx"]
    assert {"yolov4-tiny", "yolov4"} <= set(listed)
    assert all(size["num_parameters"] > 1e5 and size["gflops"] > 0 for size in sizes)
    # Measuring every preset takes seconds, so the table is printed from the sizes that were measured for the JSON.
    monkeypatch.setattr(models, "measure_presets", lambda size, num_classes: [ModelSize(**size) for size in sizes])
    table = detector("models", "--size", "64")
    assert len(table.out.splitlines()) == len(sizes) + 1
    assert table.err == ""
    found = json.loads(detector("env", "--json").out)
    assert found["detector"] == __version__
    assert re.fullmatch(r"\d+\.\d+.*", found["torch"])
    assert "torch " in detector("env").out


def test_parts_are_imported_before_the_configuration_is_read(detector, tmp_path):
    (tmp_path / "parts.py").write_text("raise RuntimeError('imported')\n", encoding="utf-8")
    with pytest.raises(RuntimeError, match="imported"):  # the traceback of the imported file
        detector("train", "mihs-n", "--import", "parts.py")


@pytest.mark.parametrize("module", ["detector", "tools/train.py"])
def test_command_line_works_in_its_own_process(tmp_path, module):
    root = Path(__file__).parent.parent.parent
    command = ["-m", "detector", "train"] if module == "detector" else [str(root / module)]
    done = subprocess.run(
        [sys.executable, *command, "mihs-n"], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("detector train: no configuration file or preset is named 'mihs-n'")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.skipif(os.name != "posix", reason="pipes end in signals on POSIX only")
def test_closed_pipe_ends_the_command_without_a_message(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-m", "detector", "config"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=tmp_path,
        env={k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"},
    )
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == b""
    assert process.wait() == 1
