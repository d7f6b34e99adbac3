from __future__ import annotations

import errno
import os
import random
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn

from detector.errors import CheckpointError
from detector.io.atomic import sweep_temporary
from detector.models.checkpoint import (
    FORMAT_VERSION,
    ModelFile,
    load_model_file,
    load_state,
    load_training_state,
    save_model,
    save_training_state,
)

CONFIG = {"model": {"name": "tiny", "widths": [8, 16], "dropout": None}, "lr": 0.01, "amp": True}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))


def model_file(**changes: Any) -> ModelFile:
    fields = {"config": CONFIG, "class_names": ("cat", "dög"), "category_ids": (3, 90), "metrics": {"AP": 0.25}}
    return ModelFile(**{**fields, "state": network().state_dict(), **changes})


def training_state(**changes: Any) -> dict[str, Any]:
    model = network()
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3, 5, 5)).square().sum().backward()
    optimizer.step()
    ema = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    ema["0.bias"] += 1.0
    fields = {"config": CONFIG, "class_names": ["cat", "dög"], "category_ids": [3, 90], "metrics": {"AP": 0.25}}
    weights = {"model": model.state_dict(), "ema": ema, "optimizer": optimizer.state_dict()}
    generators = {"torch": torch.get_rng_state(), "python": random.Random(0).getstate()}
    return {**fields, **weights, "step": 7, "generators": generators, **changes}


def same(left: Any, right: Any) -> bool:
    if isinstance(left, torch.Tensor):
        return left.dtype == right.dtype and torch.equal(left, right)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, (list, tuple)):
        return type(left) is type(right) and len(left) == len(right) and all(map(same, left, right))
    return bool(left == right)


def refusal(call: Callable[[Path], object], path: Path) -> str:
    """Return the message of a refusal, which is one sentence on one line that names the file."""
    with pytest.raises(CheckpointError) as caught:
        call(path)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    assert len(message) < len(str(path)) + 400
    assert ". " not in message.replace(str(path), "")
    return message


@pytest.fixture
def best(tmp_path: Path) -> Path:
    save_model(tmp_path / "weights" / "best.safetensors", model_file())
    return tmp_path / "weights" / "best.safetensors"


@pytest.fixture
def last(tmp_path: Path) -> Path:
    save_training_state(tmp_path / "weights" / "last.safetensors", training_state())
    return tmp_path / "weights" / "last.safetensors"


def test_a_model_file_is_loaded_bit_for_bit(best: Path) -> None:
    loaded, saved = load_model_file(best), model_file()
    assert same(vars(loaded), vars(saved))
    assert loaded.state["1.num_batches_tracked"].dtype == torch.int64
    assert same(safetensors.torch.load_file(best), saved.state)  # other readers of the format get the tensors too


def test_every_dtype_scalar_empty_tied_and_transposed_tensor_is_loaded(tmp_path: Path) -> None:
    tied = torch.randn(3, 4, generator=torch.Generator().manual_seed(1))
    dtypes = (torch.float64, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.uint8, torch.bool)
    state = {str(dtype): torch.tensor([0, 1, 2]).to(dtype) for dtype in dtypes}
    state |= {"scalar": torch.tensor(5), "empty": torch.empty(0, 3), "a": tied, "b": tied, "c": tied.T}
    save_model(tmp_path / "best.safetensors", model_file(state=state))
    loaded = load_model_file(tmp_path / "best.safetensors").state
    assert loaded.keys() == state.keys()
    for name, tensor in state.items():
        assert loaded[name].dtype == tensor.dtype
        assert loaded[name].shape == tensor.shape
        assert loaded[name].double().equal(tensor.double())


def test_a_training_state_is_loaded_bit_for_bit_and_resumes_an_optimizer(last: Path) -> None:
    loaded: dict[str, Any] = dict(load_training_state(last))
    saved = training_state()
    assert loaded.pop("format_version") == FORMAT_VERSION
    assert same(loaded, saved)
    optimizer = torch.optim.AdamW(network().parameters())
    optimizer.load_state_dict(loaded["optimizer"])
    assert same(optimizer.state_dict(), saved["optimizer"])


def test_a_training_state_of_an_older_version_is_loaded_bit_for_bit(tmp_path: Path) -> None:
    torch.save({**training_state(), "format_version": FORMAT_VERSION}, tmp_path / "last.pt", pickle_protocol=2)
    loaded: dict[str, Any] = dict(load_training_state(tmp_path / "last.pt"))
    assert loaded.pop("format_version") == FORMAT_VERSION
    assert same(loaded, training_state())
    assert same(vars(load_model_file(tmp_path / "last.pt")), vars(model_file(state=training_state()["ema"])))


def test_the_model_of_a_training_state_is_its_ema(last: Path) -> None:
    assert same(vars(load_model_file(last)), vars(model_file(state=training_state()["ema"])))


def test_the_content_decides_the_kind_of_a_file_not_its_name(best: Path, last: Path) -> None:
    renamed_best, renamed_last = best.rename(best.with_name("a.pt")), last.rename(last.with_name("b.safetensors"))
    assert load_model_file(renamed_best).category_ids == load_model_file(renamed_last).category_ids == (3, 90)


def test_loading_neither_warns_nor_prints(best: Path, last: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_model_file(best)
        load_training_state(last)
    assert capfd.readouterr() == ("", "")


def test_subclasses_of_plain_types_are_saved_as_plain_types(tmp_path: Path) -> None:
    class Seconds(float): ...

    save_training_state(tmp_path / "last.safetensors", training_state(version=torch.__version__, wall_s=Seconds(2.5)))
    loaded: dict[str, Any] = dict(load_training_state(tmp_path / "last.safetensors"))
    assert (type(loaded["version"]), type(loaded["wall_s"]), loaded["wall_s"]) == (str, float, 2.5)


# ---- saving


BAD_FIELDS: list[dict[str, Any]] = [
    *({"config": config} for config in ([1], {"path": Path("x")}, {1: 2}, {"weight": torch.ones(1)})),
    *({"class_names": names} for names in ("cat", ("cat", 3), ("cat",))),
    *({"category_ids": ids} for ids in (None, (3, True), (3, 3), (3,))),
    *({"metrics": metrics} for metrics in ([0.5], {"AP": "high"}, {"AP": None})),
]


@pytest.mark.parametrize("changes", BAD_FIELDS, ids=str)
def test_a_description_that_cannot_be_loaded_again_is_not_saved(changes: dict[str, Any], tmp_path: Path) -> None:
    refusal(lambda path: save_model(path, model_file(**changes)), tmp_path / "best.safetensors")
    refusal(lambda path: save_training_state(path, training_state(**changes)), tmp_path / "last.safetensors")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("value", [Path("x"), {1, 2}, b"x", torch.device("cpu"), torch.eye(2).to_sparse(), lambda: 0])
def test_a_value_that_is_not_plain_is_not_saved_and_its_place_is_named(value: object, tmp_path: Path) -> None:
    state = training_state(loader=[{"sampler": value}])
    assert "['loader'][0]['sampler']" in refusal(lambda p: save_training_state(p, state), tmp_path / "last.safetensors")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_a_weight_that_is_not_finite_is_not_saved(value: float, dtype: torch.dtype, tmp_path: Path) -> None:
    state = {"fine": torch.ones(3), "0.bias": torch.tensor([1.0, value], dtype=dtype)}
    for key in ("model", "ema"):
        save = partial(save_training_state, state=training_state(**{key: state}))
        assert "0.bias" in refusal(save, tmp_path / "last.safetensors")
    assert "0.bias" in refusal(lambda p: save_model(p, model_file(state=state)), tmp_path / "best.safetensors")
    assert not any(tmp_path.iterdir())


def saves(path: Path) -> None:
    if path.stem == "last":
        save_training_state(path, training_state())
    else:
        save_model(path, model_file())


@pytest.mark.parametrize("name", ["best.safetensors", "last.safetensors"])
@pytest.mark.parametrize("failing", ["fsync", "replace", "limit"])
def test_a_full_disk_keeps_the_earlier_file_and_leaves_no_temporary_file(
    name: str, failing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / name
    path.write_bytes(b"the earlier file")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    resource = pytest.importorskip("resource")  # Windows has none
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    if failing == "limit":  # a real write that fails half-way
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    else:
        monkeypatch.setattr(os, failing, full)
    try:
        message = refusal(saves, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert ("File too large" if failing == "limit" else "No space left on device") in message
    assert [entry.name for entry in tmp_path.iterdir()] == [name]
    assert path.read_bytes() == b"the earlier file"


def test_a_save_into_a_folder_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(b"")
    assert "is not saved" in refusal(saves, tmp_path / "weights" / "best.safetensors")


def test_a_killed_save_keeps_the_earlier_file_and_leaves_a_temporary_file(tmp_path: Path) -> None:
    saves(tmp_path / "last.safetensors")
    script = (
        "import os, sys, pathlib, torch; from detector.models import checkpoint;"
        "os.fsync = lambda _: os._exit(9);"
        "weights = {'a': torch.ones(2)};"
        "state = dict(config={}, class_names=[], category_ids=[], model=weights, ema=weights);"
        "checkpoint.save_training_state(pathlib.Path(sys.argv[1]), state)"
    )
    assert (
        subprocess.run([sys.executable, "-c", script, str(tmp_path / "last.safetensors")], check=False).returncode == 9
    )
    (tmp_path / "mine.tmp").touch()
    assert len(list(tmp_path.iterdir())) == 3
    assert load_training_state(tmp_path / "last.safetensors")["step"] == 7
    sweep_temporary(tmp_path)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["last.safetensors", "mine.tmp"]
    sweep_temporary(tmp_path / "missing")


# ---- copying a state into a model


def test_a_state_is_copied_into_a_model() -> None:
    model = network()
    state = {name: tensor + 1 for name, tensor in model.state_dict().items()}
    load_state(model, state, "best.safetensors")
    assert same(dict(model.state_dict()), state)


def test_a_state_that_does_not_fit_is_refused_with_the_names_and_copies_nothing() -> None:
    model = network()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = {f"extra.{index}": torch.ones(1) for index in range(8)} | {name: t + 1 for name, t in before.items()}
    state["0.bias"] = torch.ones(5)
    state["1.num_batches_tracked"] = torch.tensor(1.5)
    del state["1.weight"]
    with pytest.raises(CheckpointError) as caught:
        load_state(model, state, "best.safetensors")
    message = str(caught.value)
    assert message.startswith("best.safetensors does not fit the model")
    assert "missing: 1.weight;" in message
    assert "unexpected: extra.0, extra.1, extra.2, extra.3, extra.4 and 3 more;" in message
    assert "0.bias (torch.float32 (5,) instead of torch.float32 (4,))" in message
    assert "1.num_batches_tracked (torch.float32 () instead of torch.int64 ())" in message
    assert same(dict(model.state_dict()), before)
