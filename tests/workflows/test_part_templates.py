"""`detector new KIND FILE` writes a part of every kind that can be imported, built and run as it is."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from detector.cli.main import run
from detector.config import registry
from detector.errors import ConfigError
from detector.workflows.part_templates import USES, templates_dir, write_template

RUN = (
    "input.size=64",
    "loader={workers: 0, batch_size: 4}",
    "augment.albumentations=[]",
    "evaluate.batch_size=4",
    "train={precision: fp32, evaluations: 1, iterations: 2}",
    "device=cpu",
)
CLASSIFY = ("train={precision: fp32, evaluations: 1, iterations: 2}", "input={size: 16}", "device=cpu")
TASK = """
task: my_task
model: my_classifier
loss: my_classification_loss
data: my_image_set
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a part of every kind, my_KIND.py."""
    folder = tmp_path_factory.mktemp("own")
    for kind in USES:
        use = write_template(kind, folder / f"my_{kind.replace(' ', '_')}.py")
        assert f"my_{kind.replace(' ', '_')}" in use
    return folder


def given(folder: Path, *kinds: str) -> list[str]:
    return [word for kind in kinds for word in ("--import", str(folder / f"my_{kind}.py"))]


def boxes(shapes: Path, path: Path) -> None:
    """Write a drawn data set in the format that the template of a data reader reads."""
    lines = []
    for split in ("train", "val"):
        coco = json.loads((shapes / f"annotations/{split}.json").read_text())
        names = {category["id"]: category["name"] for category in coco["categories"]}
        files = {image["id"]: shapes / "images" / split / image["file_name"] for image in coco["images"]}
        for row in coco["annotations"]:
            x, y, width, height = row["bbox"]
            corners = "\t".join(str(number) for number in (x, y, x + width, y + height))
            lines.append(f"{split}\t{files[row['image_id']]}\t{corners}\t{names[row['category_id']]}")
    path.write_text("\n".join(lines), encoding="utf-8")


def test_every_kind_has_a_template_and_a_use() -> None:
    labels = {registry.label_of(kind) for kind in registry.every_kind()}
    assert labels <= set(USES)  # some kinds have no shipped part
    assert {path.name for path in templates_dir().glob("*.py")} == {f"toy_{k.replace(' ', '_')}.py" for k in USES}


def test_a_network_of_own_parts_is_trained_evaluated_and_exported(folder: Path, tiny_shapes: Path) -> None:
    boxes(tiny_shapes, folder / "shapes.boxes")
    kinds = ("activation", "attention", "augmentation", "backbone", "dataset", "head", "neck", "optimizer", "schedule")
    words = [
        f"data={folder}/shapes.boxes",
        f"train.project={folder}",
        "train.run_name=net",
        "model={width: 0.25, activation: my_activation, neck: my_neck, head: my_head}",
        "model.backbone={name: my_backbone, attention: my_attention}",
        "optimizer=my_optimizer",
        "schedule={name: my_schedule, warmup_iterations: 0}",
        "augment.extra=[my_augmentation]",
    ]
    assert run(["train", "mish-n", *RUN, *words, "-q", *given(folder, *kinds)]) == 0
    best = f"{folder}/net/weights/best.safetensors"
    metric = ["--metric=my_metric", "-q", f"--save-dir={folder}/val", *given(folder, *kinds, "metric")]
    assert run(["evaluate", best, *metric]) == 0
    export = ["--to=my_export_target", f"--out={folder}/net.my_export_target", "-q"]
    assert run(["export", best, *export, *given(folder, *kinds, "export_target")]) == 0


@pytest.mark.parametrize("kind", ["model", "head"])
def test_a_file_with_a_network_or_head_has_the_loss_that_trains_it(
    kind: str, folder: Path, tiny_shapes: Path, tmp_path: Path
) -> None:
    data = {
        f"data.{split}.{key}": tiny_shapes / place / f"{split}{ending}"
        for split in ("train", "val")
        for key, place, ending in (("annotations", "annotations", ".json"), ("images", "images", ""))
    }
    words = ["data.name=coco", *(f"{key}={path}" for key, path in data.items()), f"train.project={tmp_path}"]
    words += ["model=my_model"] if kind == "model" else ["model={width: 0.25, head: my_head}"]
    assert run(["train", "mish-n", *RUN, *words, "-q", *given(folder, kind)]) == 0


def test_an_own_loss_trains_an_own_network(folder: Path, tiny_shapes: Path, tmp_path: Path) -> None:
    words = [f"data={folder}/shapes.boxes", f"train.project={tmp_path}", "model=my_model", "loss=my_loss"]
    boxes(tiny_shapes, folder / "shapes.boxes")
    assert run(["train", "mish-n", *RUN, *words, "-q", *given(folder, "model", "loss", "dataset")]) == 0


def test_an_own_task_trains_an_own_classifier(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_text(TASK)
    kinds = ("task", "classifier", "classification_loss", "image_set")
    words = [str(tmp_path / "my.yaml"), *CLASSIFY, f"train.project={tmp_path}", "-q"]
    assert run(["train", *words, *given(folder, *kinds)]) == 0


@pytest.mark.parametrize(
    ("kind", "name", "message"),
    [
        ("backbon", "x.py", "expected a kind of part, got 'backbon'; did you mean 'backbone'?"),
        ("neck", "my-neck.py", "expected a file such as my_neck.py, whose name the part gets"),
        ("neck", "class.py", "expected a file such as my_neck.py"),
        ("neck", "neck.txt", "expected a file such as my_neck.py"),
        ("neck", "none/neck.py", "cannot be written: No such file or directory; choose another folder"),
        ("optimizer", "adamw.py", "the optimizer 'adamw' exists already; choose another file name"),
        ("head", "task_aligned.py", "the loss 'task_aligned' exists already"),
        ("neck", "taken.py", "exists already and is not overwritten; choose another name"),
    ],
)
def test_a_wrong_kind_or_file_is_an_error(kind: str, name: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "taken.py").write_text("mine")
    with pytest.raises(ConfigError) as caught:
        write_template(kind, tmp_path / name)
    assert message in str(caught.value)
    assert (tmp_path / "taken.py").read_text() == "mine"


def test_a_name_that_the_template_imports_gives_another_class(tmp_path: Path) -> None:
    write_template("head", tmp_path / "head.py")
    assert "class OwnHead(Head):" in (tmp_path / "head.py").read_text()
    write_template("export-target", tmp_path / "npz.py")
    assert 'suffix = ".npz"' in (tmp_path / "npz.py").read_text()


def test_the_files_pass_a_linter(folder: Path) -> None:
    pytest.importorskip("ruff")
    command = [sys.executable, "-m", "ruff", "check", "--no-cache", "--select=F,E", "--ignore=E501", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_the_command_says_how_to_use_the_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["new", "export", "target", "my_target.py"]) == 0
    assert "--import my_target.py --to my_target" in capsys.readouterr().out
    for words in ([], ["backbone"]):
        assert run(["new", *words]) == 2
        assert "give one such as: detector new backbone my_backbone.py. Kinds: activation," in capsys.readouterr().err
