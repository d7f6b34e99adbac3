"""A new part of any kind is one new file: in the folder of its kind, or given with `--import`; nothing else changes."""

from __future__ import annotations

import csv
import json
import math
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from detector.config import registry
from detector.config.schema import config_from_plain
from detector.data.augment.augment_config import AugmentConfig
from detector.data.augment.augmentation import AugmentationConfig
from detector.data.coco import read_coco
from detector.data.loader import TrainingSamples
from detector.models.contracts import ModelConfig
from detector.models.necks import NeckConfig
from detector.structures.canvas import Canvas

ROOT = Path(__file__).resolve().parent.parent
PARTS = ROOT / "tests" / "parts"
# The folder of each kind, by the name in the listing. The example of a kind is `parts/toy_KIND.py`, named `toy`.
FOLDERS = {
    "activation": "models/activations",
    "attention": "models",
    "augmentation": "data/augment",
    "backbone": "models",
    "classification loss": "losses",
    "classifier": "models",
    "dataset": "data",
    "export target": "export",
    "head": "models",
    "image set": "data",
    "logger": "training",
    "loss": "losses",
    "metric": "evaluation",
    "model": "models",
    "neck": "models",
    "optimizer": "training",
    "schedule": "training",
    "task": "tasks",
}
# Runs commands one after another in one process; prints the place of the package and the output of each command.
SESSION = """
import contextlib, io, json, sys
import detector
from detector.cli.main import run

outputs = {}
for name, words in json.loads(sys.argv[1]).items():
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        code = run(words)
    if code:
        sys.exit(f"{name}: exit code {code}")
    outputs[name] = output.getvalue()
print(json.dumps({"package": detector.__file__, "outputs": outputs}))
"""
RUN = (
    "input.size=64",
    "loader={workers: 0, batch_size: 4}",
    "augment.albumentations=[]",
    "evaluate.batch_size=4",
    "train={precision: fp32, evaluations: 1}",
    "device=cpu",
)
# Every key that a part of detection is named by; the head names its loss.
DETECTION = (
    "model={width: 0.25, depth: 0.1, activation: toy, backbone: {name: toy, attention: toy}, neck: toy, head: toy}",
    "optimizer={name: toy, lr: 0.01}",
    "schedule={name: toy, flat: 2, warmup_iterations: 0}",
    "augment.extra=[{name: toy, probability: 1.0}]",
    "train.loggers=[toy]",
    "train.iterations=8",
)
TASK = """
task: toy
model: {name: toy, side: 4}
loss: toy
data: {name: toy, num_images: 16}
input: {size: 16}
loader: {batch_size: 16}
optimizer: {name: toy, lr: 0.02}
schedule: {name: toy, flat: 40, warmup_iterations: 0}
train: {iterations: 40, evaluations: 1, precision: fp32}
device: cpu
"""


def example(kind: str) -> Path:
    return PARTS / f"toy_{kind.replace(' ', '_')}.py"


@dataclass(frozen=True)
class Session:
    """The commands that used the parts.

    Attributes:
        package: the folder of the package that ran: that of this repository or its copy.
        folder: the folder of the runs.
        outputs: the text that each command printed.
    """

    package: Path
    folder: Path
    outputs: dict[str, str]

    def document(self, command: str) -> Any:
        return json.loads(self.outputs[command])


def write_boxes(shapes: Path, path: Path) -> None:
    """Write a drawn data set in the format of the example of a data reader."""
    lines = []
    for split in ("train", "val"):
        coco = json.loads((shapes / f"annotations/{split}.json").read_text())
        classes = {category["id"]: category["name"] for category in coco["categories"]}
        files = {image["id"]: shapes / "images" / split / image["file_name"] for image in coco["images"]}
        for row in coco["annotations"]:
            x, y, width, height = row["bbox"]
            corners = (str(number) for number in (x, y, x + width, y + height))
            lines.append("\t".join([split, str(files[row["image_id"]]), *corners, classes[row["category_id"]]]))
    path.write_text("\n".join(lines), encoding="utf-8")


def commands(folder: Path, images: Path) -> dict[str, list[str]]:
    """Return the command lines that use every example, by name."""
    data = ["mish-n", *RUN, f"data={folder}/shapes.boxes", f"train.project={folder}"]
    detector, turner = (f"{folder}/{name}/weights/best.safetensors" for name in ("detector", "turner"))
    export, out = f"{folder}/detector.toy", f"--save-dir={folder}"
    train = ["train", "--json", "-q"]
    return {
        "parts": ["parts", "--json"],
        "listing": ["parts"],
        "train": [*train, *data, *DETECTION, "train.run_name=detector"],
        "evaluate": ["evaluate", detector, "--metric=toy", "--match-iou=0.2", "--json", "-q", f"{out}/evaluate"],
        "export": ["export", detector, "--to=toy", f"--out={export}", "--json", "-q"],
        "predict": ["predict", export, str(images), "--confidence=0.01", "--json", "-q", f"{out}/predict"],
        "network": [*train, *data, "model=toy", "train.iterations=2", "train.run_name=network"],
        "task": [*train, f"{folder}/turns.yaml", f"train.project={folder}", "train.run_name=turner"],
        "evaluate task": ["evaluate", turner, "--json", "-q", f"{out}/evaluate-turns"],
        "predict task": ["predict", turner, str(images), "--json", "-q"],
    }


@pytest.fixture(scope="module", params=["folders", pytest.param("--import", marks=pytest.mark.nightly)])
def session(request: pytest.FixtureRequest, tiny_shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Session:
    """Commands with the examples in the folders of a copy of the package, or given with `--import`."""
    folder = tmp_path_factory.mktemp("parts")
    write_boxes(tiny_shapes, folder / "shapes.boxes")
    (folder / "turns.yaml").write_text(TASK, encoding="utf-8")
    words = commands(folder, tiny_shapes / "images/val")
    source = ROOT
    if request.param == "folders":
        source = folder / "copy"
        for name in ("detector", "cfg"):  # with the byte code, which saves seconds
            shutil.copytree(ROOT / name, source / name)
        for kind, inside in FOLDERS.items():
            shutil.copy(example(kind), source / "detector" / inside)
    else:
        given = [word for kind in FOLDERS for word in ("--import", str(example(kind)))]
        words = {name: [*line, *given] for name, line in words.items()}
    done = subprocess.run(
        [sys.executable, "-c", SESSION, json.dumps(words)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(source)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    printed = json.loads(done.stdout)
    package = Path(printed["package"]).parent
    assert package == source / "detector"
    return Session(package, folder, printed["outputs"])


def test_every_kind_has_an_example_and_a_line_in_the_guide() -> None:
    kinds = {registry.label_of(kind): kind for kind in registry.every_kind() if kind.__module__.startswith("detector.")}
    assert set(kinds) <= set(FOLDERS)
    guide = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert {path.name for path in PARTS.iterdir() if path.suffix == ".py"} == {example(kind).name for kind in FOLDERS}
    for label, folder in FOLDERS.items():
        assert f"`{folder}/`" in guide
        assert f"](tests/parts/{example(label).name})" in guide
        if label in kinds:
            assert folder.replace("/", ".") in kinds[label].folders, label


def test_each_part_is_listed(session: Session) -> None:
    listed = session.document("parts")
    assert set(listed) == set(FOLDERS)
    assert [kind for kind in FOLDERS if "toy" not in listed[kind]] == []
    lines = session.outputs["listing"].splitlines()
    assert len(lines) == len(FOLDERS)
    assert all("toy" in line.split() or "toy," in line.split() for line in lines)


def test_a_network_of_new_parts_is_trained_on_a_new_data_set(session: Session) -> None:
    config = yaml.safe_load((session.folder / "detector/config.yaml").read_text(encoding="utf-8"))
    model = config["model"]
    parts = [model[kind] for kind in ("activation", "backbone", "neck", "head")]
    parts += [model["backbone"]["attention"], *config["augment"]["extra"]]
    parts += [config[section] for section in ("loss", "data", "optimizer", "schedule")]
    parts += config["train"]["loggers"]
    assert [part["name"] for part in parts] == ["toy"] * 11
    (logged,) = (session.folder / "detector/metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(logged)["step"] == 8
    rows = list(csv.DictReader((session.folder / "detector/results.csv").open(encoding="utf-8")))
    assert float(rows[-1]["train/box_loss"]) > 0
    assert float(rows[-1]["train/cls_loss"]) > 0
    assert math.isclose(float(rows[-1]["lr/pg0"]), 0.01 * (2 / 8) ** 0.5)
    assert session.document("train")["num_skipped"] == 0


def test_a_model_is_evaluated_with_a_new_metric(session: Session) -> None:
    document = session.document("evaluate")
    assert document["metric"] == "toy"
    assert 0 < document["num_covered"] <= document["num_objects"]
    assert json.loads((session.folder / "evaluate/metrics.json").read_text())["metric"] == "toy"


def test_a_new_export_target_is_written_checked_and_predicts(session: Session) -> None:
    exported = session.document("export")
    assert [Path(file).name for file in exported["files"]] == ["detector.toy"]
    assert exported["difference"]["num_matched"] > 0
    records = [json.loads(line) for line in session.outputs["predict"].splitlines()]
    assert len(records) == 6
    assert all(record["detections"] for record in records)


def test_a_new_network_is_trained(session: Session) -> None:
    assert session.document("network")["metrics"]["num_images"] == 6


def test_a_new_task_is_trained_evaluated_and_predicts(session: Session) -> None:
    trained, measured = session.document("task"), session.document("evaluate task")
    assert trained["best_turns"] == measured["top1"] > 0.5
    assert [row["name"] for row in measured["classes"]] == ["0", "90", "180", "270"]
    assert len(session.outputs["predict task"].splitlines()) == 6


# --- parts of a file given with --import, registered until the end of a test ----------------------------------------


@pytest.fixture
def imported(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Imports the example of a kind."""
    registry.every_kind()  # imports the shipped parts, so that they stay registered
    monkeypatch.setattr(registry, "_PARTS", {kind: dict(parts) for kind, parts in registry._PARTS.items()})
    monkeypatch.setattr(registry, "_PART_OF_CONFIG", dict(registry._PART_OF_CONFIG))
    return lambda kind: registry.import_parts(example(kind))


def test_a_file_that_is_imported_twice_runs_once(imported: Callable[[str], None]) -> None:
    imported("neck")
    neck = registry.find(NeckConfig, "toy")
    imported("neck")
    assert registry.find(NeckConfig, "toy") is neck


def test_a_spawned_worker_knows_an_imported_augmentation(imported: Callable[[str], None], tiny_shapes: Path) -> None:
    imported("augmentation")
    augment = AugmentConfig(extra=(registry.find_config_class(AugmentationConfig, "toy")(),))
    annotations = read_coco(tiny_shapes / "annotations/train.json", tiny_shapes / "images/train")
    samples = TrainingSamples(annotations, Canvas((64, 64), 3, "letterbox"), augment, seed=0, cache_mb=0)
    code = "import pickle, sys; print(len(pickle.load(sys.stdin.buffer)))"  # as in a spawned process
    done = subprocess.run([sys.executable, "-c", code], input=pickle.dumps(samples), capture_output=True, check=False)
    assert done.stdout.split() == [b"12"], done.stderr.decode()


def test_a_section_alone_is_read_without_the_defaults_of_its_parts_for_other_sections() -> None:
    config = config_from_plain(ModelConfig, {"name": "yolo", "head": {"name": "anchor"}}, "a test")
    assert registry.name_of(config) == "yolo"
