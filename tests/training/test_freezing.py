from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from detector.errors import ConfigError
from detector.models.checkpoint import load_training_state
from detector.tasks.detection_config import DetectionConfig
from detector.tasks.detection_model import build_model
from detector.training.freezing import freeze
from detector.workflows.train import open_run, train

Make = Callable[..., DetectionConfig]
PART = {"mish-n": "backbone", "darknet": "layers.0"}


@pytest.mark.parametrize("experiment", list(PART), indirect=True)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_frozen_part_keeps_its_weights_and_statistics_exactly(
    experiment: Make, precision: str, request: pytest.FixtureRequest
) -> None:
    part = PART[request.node.callspec.params["experiment"]]
    settings = (f"train.freeze=[{part}]", "train.iterations=2", f"train.precision={precision}")
    config = experiment(*settings)
    torch.manual_seed(config.train.seed)
    before = build_model(config, 3).state_dict()
    state = load_training_state(train(config).folder.last)
    num_frozen = 0
    for name, tensor in state["model"].items():
        if name.startswith(f"{part}."):
            num_frozen += 1
            assert torch.equal(tensor, before[name]), name
            assert torch.equal(state["ema"][name], before[name]), name
        elif name.endswith("conv.weight"):
            assert not torch.equal(tensor, before[name]), name
    assert num_frozen >= 5


def test_run_with_frozen_parts_resumes_to_the_same_bits(experiment: Make, assert_same: Callable[..., None]) -> None:
    asked: list[int] = []

    def stops() -> bool:
        asked.append(1)
        return len(asked) == 3

    config = experiment("train.freeze=[backbone, neck]", "optimizer.layer_decay=0.5", "loader.workers=1")
    whole, stopped = train(config), train(config, should_stop=stops)
    _, folder, state = open_run(stopped.folder.path, config)
    assert train(config, resume=(folder, state)).finished
    ours, theirs = (load_training_state(result.folder.last) for result in (stopped, whole))
    for key in ("model", "ema", "optimizer", "random"):
        assert_same(ours[key], theirs[key])


def test_names_freeze_modules_and_single_parameters(experiment: Make) -> None:
    model = build_model(experiment(), 3)
    modules = freeze(model, ["backbone.stages.1", "backbone.stem.conv.weight"])
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    wanted = {n for n, _ in model.named_parameters() if n.startswith("backbone.stages.1.")}
    assert frozen == wanted | {"backbone.stem.conv.weight"}
    named = {name for name, module in model.named_modules() if any(module is m for m in modules)}
    assert {n for n in named if not n.startswith("backbone.stages.1.")} == {"backbone.stages.1"}
    assert freeze(model, ()) == ()


def test_every_unknown_name_is_reported_with_the_nearest_one(experiment: Make) -> None:
    with pytest.raises(ConfigError) as caught:
        train(experiment("train.freeze=[backbon, neck, head.levls, qqq]"))
    lines = str(caught.value).splitlines()
    assert len(lines) == 3
    assert "train.freeze: expected names of modules or parameters of Yolo, got 'backbon'" in lines[0]
    assert "did you mean 'backbone'?" in lines[0]
    assert "'head.levls'" in lines[1]
    assert lines[2].endswith("got 'qqq'; known: backbone, head, neck")


def test_freezing_every_parameter_is_rejected(experiment: Make) -> None:
    with pytest.raises(ConfigError, match=r"leaves no parameter to train"):
        train(experiment("train.freeze=[backbone, neck, head]"))
