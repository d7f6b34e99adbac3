"""Fixtures of the tests of the engine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor, equal

from detector.experiment import ExperimentConfig, load_experiment

# The smallest networks: of our own family, and of a Darknet .cfg.
NETWORKS = {
    "mish-n": "model.width=0.125",
    "darknet": f"model={{name: darknet, cfg: {Path(__file__).parents[1]}/darknet/tiny.cfg}}",
}
# The smallest run there is: about a twentieth of a second a step.
TINY = (
    "input.size=64",
    "loader.workers=0",
    "loader.batch_size=4",
    "augment.albumentations=[]",
    "evaluate.batch_size=4",
    "train.iterations=6",
    "train.evaluations=2",
    "train.precision=fp32",
    "device=cpu",
)


def data_override(root: Path) -> str:
    """The override that names the splits of a drawn data set."""
    listed = ", ".join(
        f"{name}: {{annotations: {root}/annotations/{name}.json, images: {root}/images/{name}}}"
        for name in ("train", "val")
    )
    return f"data={{name: coco, {listed}}}"


@pytest.fixture
def experiment(request: pytest.FixtureRequest, tiny_shapes: Path, tmp_path: Path) -> Callable[..., ExperimentConfig]:
    """Makes the experiment of a tiny run in the test's own folder, with overrides on top.

    The network is that of mish-n, or the one of `NETWORKS` that the fixture's parameter names.
    """
    network = NETWORKS[getattr(request, "param", "mish-n")]

    def make(*overrides: str, data: Path = tiny_shapes) -> ExperimentConfig:
        own = [network, *TINY, data_override(data), f"train.project={tmp_path}/runs"]
        return load_experiment("mish-n", [*own, *overrides])

    return make


def _assert_same(ours: Any, theirs: Any, where: str = "state") -> None:
    """Two states are equal to the last bit."""
    assert type(ours) is type(theirs), where
    if isinstance(ours, Tensor):
        assert ours.dtype == theirs.dtype, where
        assert equal(ours, theirs), where
    elif isinstance(ours, dict):
        assert ours.keys() == theirs.keys(), where
        for key in ours:
            _assert_same(ours[key], theirs[key], f"{where}[{key!r}]")
    elif isinstance(ours, (list, tuple)):
        assert len(ours) == len(theirs), where
        for index, pair in enumerate(zip(ours, theirs, strict=True)):
            _assert_same(*pair, f"{where}[{index}]")
    else:
        assert ours == theirs, where


@pytest.fixture
def assert_same() -> Callable[..., None]:
    """Asserts that two states are equal to the last bit."""
    return _assert_same
