"""Files written by the last commit before the rebuild (4fa9e09) open and give the same numbers.

`fixtures/make_before_rebuild.py` made the files and, with the functions below, `expected.json`. The drawn data sets are
not stored: runs and model files name the folder `shapes` in the working directory, which is drawn on first use.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest
import safetensors.torch
import torch
from torch import Tensor

from detector import Classifier, Detector
from detector.cli.main import run
from detector.models.checkpoint import load_training_state

FIXTURES = Path(__file__).parent / "fixtures/before_rebuild"
RUNS = ("mish", "darknet", "classifier")
DETECTORS = ("mish.safetensors", "darknet.safetensors")
EXPORTS = {"mish.onnx": "onnxruntime", "mish.xml": "openvino", "mish.torchscript": "torch", "mish.pt2": "torch"}

# Largest differences allowed on other processors; if `environment` equals that of expected.json, bits must be equal.
# Two threads or torch's operators in place of the fused kernels change weights by up to 6e-5 and the optimizer's state
# by up to 7e-4 of a tensor's root mean square, scores by 1e-5. A resume that loses the averaged weights or
# the optimizer's state, or repeats a batch, changes them by more than 0.1.
LARGEST_SHARE = {"model": 1e-3, "averaged": 1e-3, "best": 1e-3, "optimizer": 1e-2}
SAME_BITS = {"rel": 0.0, "abs": 0.0}
LOSSES = {"rel": 1e-4, "abs": 2e-5}  # results.csv has five digits
PREDICTIONS = {"rel": 1e-4, "abs": 1e-4}
METRICS = {"rel": 1e-2, "abs": 1e-3}
ENTROPY = {"rel": 1e-4, "abs": 1e-4}


# --- compared values; the commit before the rebuild computed the same ones for expected.json ------------------------


def environment() -> dict[str, Any]:
    """Return the properties of the machine that the last bits of the results depend on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        compiler = subprocess.run(["g++", "--version"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        lines, compiler = [], ""
    told = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    return {
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "opencv": cv2.__version__,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "processor": [told.get("model name"), hashlib.sha256(told.get("flags", "").encode()).hexdigest()],
        "mish": os.environ.get("DETECTOR_MISH", "auto"),
        "compiler": compiler.partition("\n")[0],
        "threads": torch.get_num_threads(),
    }


def images() -> list[npt.NDArray[np.uint8]]:
    """Return two images of coloured tiles, one square, one to be letterboxed."""
    random = np.random.RandomState(0)  # its numbers are the same in every version of NumPy
    return [
        random.randint(0, 256, (height // 8, width // 8, 3)).astype(np.uint8).repeat(8, axis=0).repeat(8, axis=1)
        for height, width in ((64, 64), (48, 80))
    ]


def resumed(name: str) -> dict[str, Any]:
    """Resume a run in the working directory; return its tensors as hashes and samples, and its last results."""
    folder = Path(shutil.copytree(FIXTURES / "runs" / name, Path("runs") / name))
    assert run(["train", "--resume", str(folder), "--quiet"]) == 0
    assert not (folder / "weights/last.pt").exists()  # replaced
    state: dict[str, Any] = dict(load_training_state(folder / "weights/last.safetensors"))
    optimizer = {
        f"{index}.{key}": torch.as_tensor(value)
        for index, entry in state["optimizer"]["state"].items()
        for key, value in entry.items()
    }
    best = safetensors.torch.load_file(folder / "weights/best.safetensors")
    groups = {"model": state["model"], "averaged": state["ema"], "optimizer": optimizer, "best": best}
    results = (folder / "results.csv").read_text().splitlines()
    row = dict(zip(results[0].split(","), results[-1].split(","), strict=True))
    return {
        "step": state["step"],
        "num_results": len(results) - 1,
        "results": {key: float(value) for key, value in row.items() if value and key != "time"},
        "sha256": {group: sha256(tensors) for group, tensors in groups.items()},
        "samples": {group: samples(tensors) for group, tensors in groups.items()},
    }


def sha256(tensors: Mapping[str, Tensor]) -> str:
    """Return the hash of names, types, shapes and bits."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def samples(tensors: Mapping[str, Tensor]) -> dict[str, list[float]]:
    """Return the root mean square of each tensor and four of its values."""
    found = {}
    for name, tensor in tensors.items():
        flat = tensor.double().flatten()
        chosen = flat[torch.linspace(0, len(flat) - 1, 4).long()].tolist()
        found[name] = [float(f"{value:.9g}") for value in (float(flat.square().mean().sqrt()), *chosen)]
    return found


def model(file: str) -> str:
    """Return the path of a model file or export; exports are unpacked in the working directory."""
    if file not in EXPORTS:
        return str(FIXTURES / "models" / file)
    if not Path("exports").is_dir():
        shutil.unpack_archive(FIXTURES / "models/exports.zip", "exports")
    return f"exports/{file}"


def detections(file: str, **settings: Any) -> list[list[dict[str, Any]]]:
    """Return the detections of a model file or export on each of the images."""
    found = Detector(model(file)).predict(images(), **settings)
    assert isinstance(found, list)
    return [
        [
            {"name": name, "score": score, "box": box}
            for name, score, box in zip(each.names, each.scores.tolist(), each.source_xyxy.tolist(), strict=True)
        ]
        for each in found
    ]


def probabilities(file: str) -> list[dict[str, float]]:
    """Return the probability of each class on each of the images."""
    found = Classifier(model(file)).predict(images())
    assert isinstance(found, list)
    return [dict(each.top(10)) for each in found]


def measured(file: str) -> dict[str, Any]:
    """Return the numbers of `detector evaluate` on the drawn data set.

    Those of detectors were computed again when evaluation began to keep 100 detections of each class of an image.
    """
    assert run(["evaluate", model(file), "--save-dir", "measured", "--quiet"]) == 0
    found = json.loads(Path("measured/metrics.json").read_text())
    return {key: value for key, value in found.items() if isinstance(value, (int, float))}


def finished_study() -> dict[str, Any]:
    """Make the missing runs of the study; return its table and the runs that were continued or changed."""
    for name in ("study.yaml", "study"):
        (shutil.copytree if (FIXTURES / name).is_dir() else shutil.copy)(FIXTURES / name, name)
    marks = [path.parents[1] / "mark" for path in Path("study/runs").glob("*/weights/last.pt")]
    for mark in marks:
        mark.touch()  # a run that restarts empties its folder
    done = {path: path.read_bytes() for path in Path("study/results").iterdir() if b'"finished"' in path.read_bytes()}
    assert run(["study", "study.yaml", "--out", "study", "--quiet"]) == 0
    summary = json.loads(Path("study/summary.json").read_text())
    columns = ("cell", "values", "mean", "deviation", "low", "high", "best", "num_runs", "num_failed")
    return {
        "num_done_before": len(done),
        "changed": [path.name for path, content in done.items() if path.read_bytes() != content],
        "went_on": [mark.parent.name for mark in marks if mark.exists()],
        "table": [{column: cell[column] for column in columns} for cell in summary["cells"]],
        "differences": [each["effect"]["difference"] for each in summary["comparisons"]],
    }


# --- the tests ------------------------------------------------------------------------------------------------------


@functools.cache
def expected() -> dict[str, Any]:
    return json.loads((FIXTURES / "expected.json").read_text())


def assert_close(found: Any, wanted: Any, tolerance: Mapping[str, float], where: str = "") -> None:
    """Compare plain data, numbers within a tolerance."""
    if isinstance(wanted, dict):
        assert found.keys() == wanted.keys(), f"{where}: expected the keys {list(wanted)}, got {list(found)}"
        for key, value in wanted.items():
            assert_close(found[key], value, tolerance, f"{where} {key}")
    elif isinstance(wanted, list):
        assert len(found) == len(wanted), f"{where}: expected {len(wanted)} entries, got {len(found)}"
        for index, pair in enumerate(zip(found, wanted, strict=True)):
            assert_close(*pair, tolerance, f"{where}[{index}]")
    elif isinstance(wanted, float):
        assert found == pytest.approx(wanted, tolerance["rel"], tolerance["abs"]), (
            f"{where}: expected {wanted}, got {found}"
        )
    else:
        assert found == wanted, f"{where}: expected {wanted!r}, got {found!r}"


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Run each test in its own folder, on one thread, with Muon's direct iteration, as when expected.json was made."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("detector.training.optimizers._LEAST_RATIO", math.inf)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


@pytest.mark.parametrize("name", RUNS)
def test_run_stopped_at_step_3_resumes_to_the_same_weights(name: str) -> None:
    found, wanted = resumed(name), expected()["runs"][name]
    if environment() == expected()["environment"]:
        assert_close(found, wanted, SAME_BITS, "on the same machine:")
    for key in ("step", "num_results"):
        assert found[key] == wanted[key], f"{key}: expected {wanted[key]}, got {found[key]}"
    assert_close(found["results"], wanted["results"], LOSSES, "results.csv")
    for group, share in LARGEST_SHARE.items():
        ours, theirs = found["samples"][group], wanted["samples"][group]
        assert list(ours) == list(theirs), f"{group}: expected the tensors {list(theirs)}, got {list(ours)}"
        for tensor, values in theirs.items():
            assert_close(ours[tensor], values, {"rel": 0.0, "abs": share * values[0]}, f"{group} {tensor}")


@pytest.mark.parametrize("name", RUNS)
def test_state_of_a_stopped_run_opens_as_a_model(name: str) -> None:
    opened: Callable[..., Any] = Classifier if name == "classifier" else Detector
    state = FIXTURES / "runs" / name / "weights/last.pt"
    assert list(opened(state).class_names) == expected()["class_names"][name]


@pytest.mark.parametrize("file", DETECTORS)
def test_model_file_gives_the_same_detections(file: str) -> None:
    found, wanted = detections(file), expected()["detections"][file]
    if environment() == expected()["environment"]:
        assert_close(found, wanted, SAME_BITS, "on the same machine:")
    assert_close(found, wanted, PREDICTIONS, file)


@pytest.mark.parametrize("file", EXPORTS)
def test_export_gives_the_same_detections(file: str) -> None:
    pytest.importorskip(EXPORTS[file])
    assert_close(detections(file), expected()["detections"][file], PREDICTIONS, file)


def test_classifier_gives_the_same_probabilities() -> None:
    found, wanted = probabilities("classifier.safetensors"), expected()["probabilities"]
    if environment() == expected()["environment"]:
        assert_close(found, wanted, SAME_BITS, "on the same machine:")
    assert_close(found, wanted, PREDICTIONS, "classifier")


@pytest.mark.parametrize("file", [*DETECTORS, "classifier.safetensors", *EXPORTS])
def test_evaluate_gives_the_same_metrics(file: str) -> None:
    pytest.importorskip(EXPORTS.get(file, "torch"))
    assert_close(measured(file), expected()["measured"][file], METRICS, file)


def test_unfinished_study_is_completed_with_the_same_table() -> None:
    found, wanted = finished_study(), expected()["study"]
    if environment() == expected()["environment"]:
        assert_close(found, wanted, SAME_BITS, "on the same machine:")
    assert_close(found, wanted, ENTROPY, "study")
