"""Contracts of the parts of a model, and the loss and selection that a head names for an experiment."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from detector.config import registry
from detector.config.registry import Kind, find, names, register
from detector.config.schema import config_from_plain, config_to_plain, load_config
from detector.errors import ConfigError
from detector.losses.anchor_loss import AnchorLoss
from detector.losses.loss import ClassificationLossConfig, Loss, LossConfig, LossParts
from detector.losses.task_aligned import TaskAlignedLoss
from detector.models.activations import Activation, ActivationConfig
from detector.models.attention import Attention, AttentionConfig
from detector.models.backbones import Backbone, BackboneConfig
from detector.models.blocks import Scale
from detector.models.contracts import ClassifierConfig, DetectionModel, ModelConfig, TrainableModel
from detector.models.heads import Head, HeadConfig
from detector.models.necks import Neck, NeckConfig
from detector.structures.selection import select
from detector.structures.types import Targets
from detector.tasks.detection_config import DetectionConfig
from detector.tasks.detection_model import build_model
from detector.tasks.task import load_experiment

CONTRACTS: dict[Kind, type] = {
    ActivationConfig: Activation,
    AttentionConfig: Attention,
    BackboneConfig: Backbone,
    NeckConfig: Neck,
    HeadConfig: Head,
    ModelConfig: DetectionModel,
    ClassifierConfig: TrainableModel,
    LossConfig: Loss,
    ClassificationLossConfig: Loss,
}


@pytest.mark.parametrize("kind", CONTRACTS, ids=lambda kind: kind.__name__)
def test_every_part_keeps_the_contract_of_its_kind(kind: Kind) -> None:
    assert names(kind)
    for name in names(kind):
        assert issubclass(find(kind, name), CONTRACTS[kind]), name


@pytest.mark.parametrize("contract", [Attention, Backbone, Neck, Head, DetectionModel, Loss])
def test_a_part_that_lacks_an_abstract_method_is_not_built(contract: type) -> None:
    with pytest.raises(TypeError, match="abstract"):
        type("Unfinished", (contract,), {})()


# ---- the loss and the selection of a head


@pytest.mark.parametrize(("head", "loss"), [("decoupled", TaskAlignedLoss.Config), ("anchor", AnchorLoss.Config)])
def test_an_experiment_without_a_loss_takes_that_of_its_head(head: str, loss: type[LossConfig]) -> None:
    config = load_experiment("mish-n", [f"model.head={head}"])
    assert isinstance(config, DetectionConfig)
    assert config.loss == loss()


def test_settings_of_a_loss_without_a_name_belong_to_that_of_the_head() -> None:
    plain = {"model": {"name": "yolo", "head": "decoupled"}, "loss": {"box": 5.0}}
    assert config_from_plain(DetectionConfig, plain, "test.yaml").loss == TaskAlignedLoss.Config(box=5.0)


def test_a_loss_that_an_experiment_names_comes_before_that_of_the_head() -> None:
    plain = {"model": {"name": "yolo", "head": "anchor"}, "loss": "task_aligned"}
    assert isinstance(config_from_plain(DetectionConfig, plain, "test.yaml").loss, TaskAlignedLoss.Config)


def test_an_unknown_key_of_a_loss_is_reported_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "experiment.yaml"
    path.write_text("model: {name: yolo, head: anchor}\nloss:\n  boxes: 3\n")
    with pytest.raises(ConfigError, match=r"experiment\.yaml:3: unknown key 'loss\.boxes'"):
        load_config(DetectionConfig, str(path))


@pytest.fixture
def head_file(monkeypatch: pytest.MonkeyPatch) -> type[Head]:
    """A head without suppression and its loss, as one file of a user would register them."""
    monkeypatch.setattr(registry, "_PARTS", {kind: dict(parts) for kind, parts in registry._PARTS.items()})
    monkeypatch.setattr(registry, "_PART_OF_CONFIG", dict(registry._PART_OF_CONFIG))

    @register("mean_score")
    class MeanScoreLoss(Loss[tuple[Tensor, ...], Targets]):
        @dataclass(frozen=True)
        class Config(LossConfig):
            weight: float = 1.0

        def __init__(self, config: Config, model: DetectionModel) -> None:
            head = model.detection_head()
            assert head is not None
            self.weight, self.decode = config.weight, head.decode

        def __call__(self, raw_maps: tuple[Tensor, ...], targets: Targets) -> LossParts:
            return LossParts({"score": self.weight * self.decode(raw_maps)[1].mean()}, torch.ones(()))

    @register("one_box")
    class OneBoxHead(Head):
        """One box in every cell of the coarsest map, twice, so that a suppression would show."""

        @dataclass(frozen=True)
        class Config(HeadConfig):
            weight: float = 2.0

            def default_loss(self) -> dict[str, object]:
                return {"name": "mean_score", "weight": self.weight}

            def default_selection(self) -> dict[str, object]:
                return {"nms": "none", "max_detections": 7}

        def __init__(
            self, config: Config, scale: Scale, in_channels: tuple[int, ...], strides: tuple[int, ...], num_classes: int
        ) -> None:
            super().__init__()
            self.last = nn.Conv2d(in_channels[-1], num_classes, 1)

        def forward(self, maps: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return (self.last(maps[-1]),)

        def decode(self, raw_maps: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
            scores = raw_maps[0].float().flatten(2).transpose(1, 2).sigmoid().repeat(1, 2, 1)
            boxes = torch.tensor([0.0, 0.0, 32.0, 32.0]).expand(*scores.shape[:2], 4)
            return boxes, scores

    return OneBoxHead


def test_a_head_without_suppression_is_one_file(head_file: type[Head]) -> None:
    config = load_experiment("mish-n", ["model.head=one_box", "predict.confidence=0"])
    assert isinstance(config, DetectionConfig)
    assert config_to_plain(config.loss) == {"name": "mean_score", "weight": 2.0}
    assert (config.predict.nms, config.predict.max_detections) == ("none", 7)
    assert (config.evaluate.nms, config.evaluate.max_detections) == ("none", 7)
    model = build_model(config, 2)
    raw_maps = model(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))
    targets = Targets(torch.zeros(0, 4), *(torch.zeros(0, dtype=torch.int64),) * 2, torch.zeros(0, dtype=torch.bool), 1)
    assert set(registry.build(config.loss, model)(raw_maps, targets)) == {"score"}
    canvas_xyxy, scores = model.decode(raw_maps)
    assert len(select(canvas_xyxy[0], scores[0], config.predict)[0]) == 7
    assert not model.anchor_levels
    assert not model.class_rows()


def test_a_selection_that_an_experiment_gives_comes_before_that_of_the_head(head_file: type[Head]) -> None:
    config = load_experiment("mish-n", ["model.head=one_box", "predict.nms=plain", "evaluate.max_detections=50"])
    assert isinstance(config, DetectionConfig)
    assert (config.predict.nms, config.predict.max_detections) == ("plain", 7)
    assert (config.evaluate.nms, config.evaluate.max_detections) == ("none", 50)


def test_a_saved_configuration_keeps_its_loss_and_selection_after_a_change_of_the_head(head_file: type[Head]) -> None:
    saved = config_to_plain(load_experiment("mish-n"))
    changed = config_from_plain(DetectionConfig, saved, "saved", ["model.head=one_box"])
    assert isinstance(changed.loss, TaskAlignedLoss.Config)
    assert (changed.predict.nms, changed.evaluate.nms) == ("plain", "plain")
    assert config_to_plain(config_from_plain(DetectionConfig, saved, "saved")) == saved
