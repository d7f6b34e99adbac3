"""Links that lead nowhere, pipes, devices, encrypted archives and full disks are named in one sentence."""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
import pytest

from detector.cli.main import run
from detector.config.schema import config_to_plain
from detector.models.checkpoint import ModelFile, save_model
from detector.tasks.detection_model import build_model, load_detection

COCO: dict[str, list[object]] = {"images": [], "annotations": [], "categories": []}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = load_detection("mish-n", ["model.width=0.0625", "model.depth=0.33", "input.size=64", "device=cpu"])
    names, path = ("a", "b"), tmp_path_factory.mktemp("model") / "x.safetensors"
    save_model(path, ModelFile(config_to_plain(config), names, (1, 2), dict(build_model(config, 2).state_dict())))
    return path


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("DETECTOR_MISH", "native")  # the other cache has no compiled kernels


def encrypted() -> None:
    with zipfile.ZipFile("x.zip", "w") as archive:
        archive.writestr("a.txt", "x")
    content = bytearray(Path("x.zip").read_bytes())
    content[6] |= 1
    content[content.find(b"PK\1\2") + 8] |= 1
    Path("x.zip").write_bytes(content)


# name: (what there is, the command, its exit code, words of its message)
CASES: dict[str, tuple[Callable[[], object], list[str], int, str]] = {
    "loop of links as image": (
        lambda: os.symlink("x.jpg", "x.jpg"),
        ["predict", "MODEL", "x.jpg", "device=cpu"],
        3,
        "x.jpg cannot be read: Too many levels of symbolic links",
    ),
    "loop of links as folder of results": (
        lambda: os.symlink("out", "out"),
        ["predict", "MODEL", "a.jpg", "--out", "out", "device=cpu"],
        1,
        "out: the folder for results cannot be made",
    ),
    "loop of links as configuration": (
        lambda: os.symlink("x.yaml", "x.yaml"),
        ["train", "x.yaml", "--dry-run"],
        2,
        "no configuration file or preset is named 'x.yaml'",
    ),
    "loop of links as data": (
        lambda: os.symlink("loop", "loop"),
        ["check", "loop"],
        2,
        "there is no file or folder 'loop', and no dataset of that name; check the path",
    ),
    "link that leads nowhere": (
        lambda: os.symlink("gone.jpg", "x.jpg"),
        ["predict", "MODEL", "x.jpg", "device=cpu"],
        3,
        "there is no such file; it is a link that leads to no file",
    ),
    "pipe as image": (
        lambda: os.mkfifo("pipe"),
        ["predict", "MODEL", "pipe", "device=cpu"],
        3,
        "pipe cannot be read: it is a pipe or a device",
    ),
    "device as image": (
        lambda: None,
        ["predict", "MODEL", "/dev/zero", "device=cpu"],
        3,
        "/dev/zero cannot be read: it is a pipe or a device",
    ),
    "pipe as data": (lambda: os.mkfifo("pipe"), ["check", "pipe"], 3, "pipe: it is a pipe or a device"),
    "pipe as results": (
        lambda: os.mkfifo("pipe"),
        ["evaluate", "--results", "pipe", "--annotations", "x.json"],
        3,
        "pipe cannot be read: expected a list of results, got a pipe or a device",
    ),
    "device as tracks": (
        lambda: None,
        ["evaluate", "--tracks", "/dev/zero", "--annotations", "/dev/zero"],
        3,
        "/dev/zero cannot be read: expected a text file of tracks, got a pipe or a device",
    ),
    "encrypted archive": (encrypted, ["check", "x.zip"], 3, "is encrypted; unpack it with its password"),
    "file as folder of images": (
        lambda: None,
        ["predict", "MODEL", "a.jpg", "--annotations", "x.json", "device=cpu"],
        3,
        "the folder of images a.jpg (for x.json) is a file",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_odd_path_is_named(name: str, model: Path, capfd: pytest.CaptureFixture[str]) -> None:
    cv2.imwrite("a.jpg", np.zeros((48, 64, 3), np.uint8))
    image = {"id": 1, "file_name": "a.jpg", "height": 48, "width": 64}
    Path("x.json").write_text(json.dumps({**COCO, "images": [image], "categories": [{"id": 1, "name": "a"}]}))
    arrange, words, code, message = CASES[name]
    arrange()
    assert run([str(model) if word == "MODEL" else word for word in words]) == code
    said = capfd.readouterr().err
    assert message in said
    assert "Traceback" not in said


@contextmanager
def disk_full(num_bytes: int) -> Iterator[None]:
    """Let no file grow beyond a size, as on a full disk.

    Python would cut the byte code of modules that are imported meanwhile, and fail on it later.
    """
    no_bytecode, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
        sys.dont_write_bytecode = no_bytecode


@pytest.mark.parametrize(
    ("target", "words"),
    [("afile/y.safetensors", "its folder is a file"), ("folder.safetensors", "a folder has this name")],
)
def test_model_is_not_saved_below_a_file_or_over_a_folder(
    target: str, words: str, model: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    Path("afile").write_text("x")
    Path("folder.safetensors").mkdir()
    assert run(["convert", str(model), target, "--overwrite"]) == 1
    assert f"{target} is not saved: {words}; choose another path" in capfd.readouterr().err


def test_classes_of_a_data_set_that_is_given_as_a_key_are_renamed(tiny_shapes: Path) -> None:
    split = f"{{annotations: {tiny_shapes}/annotations/train.json, images: {tiny_shapes}/images/train}}"
    assert run(["dataset", "remap", f"data={{name: coco, train: {split}}}", "circle=disc", "--out", "renamed"]) == 0
    written = json.loads(next(Path("renamed").rglob("*.json")).read_text())
    assert "disc" in [category["name"] for category in written["categories"]]


@pytest.mark.parametrize(
    ("words", "num_bytes", "message"),
    [
        (["predict", "MODEL", "a.jpg", "--out", "out", "device=cpu"], 300, "out/a.jpg cannot be written"),
        (
            ["convert", "MODEL", "y.safetensors", "--overwrite"],
            1000,
            "y.safetensors is not saved (File too large), an old one is whole",
        ),
    ],
    ids=["picture", "model"],
)
def test_full_disk_is_named(
    words: list[str], num_bytes: int, message: str, model: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    cv2.imwrite("a.jpg", np.zeros((48, 64, 3), np.uint8))
    Path("y.safetensors").write_bytes(b"old")
    with disk_full(num_bytes):
        code = run([str(model) if word == "MODEL" else word for word in words])
    said = capfd.readouterr().err
    assert code in (1, 3)
    assert message in said
    assert "Traceback" not in said
    assert Path("y.safetensors").read_bytes() == b"old"
