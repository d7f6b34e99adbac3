"""The head `dual`: branches, folding, starting weights, defaults, and a trained run in every command that selects."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from detector.cli.main import run
from detector.config.schema import config_to_plain
from detector.errors import ConfigError
from detector.losses.task_aligned import TaskAlignedLoss
from detector.models.checkpoint import ModelFile, save_model
from detector.models.dual_head import DualHead
from detector.models.folding import fold, without_training_parts
from detector.models.heads import DecoupledHead
from detector.models.yolo import Yolo
from detector.tasks.detection_config import DetectionConfig
from detector.tasks.detection_model import build_model, load_detection
from detector.tasks.detection_prediction import select_boxes
from detector.workflows.describe import describe_model
from detector.workflows.starting_weights import load_matching
from detector.workflows.train import train

SMALL = ("model.width=0.125", "model.depth=0.1", "model.max_channels=64", "input.size=64")
IMAGES = torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def random_model(head: str, num_classes: int = 3, seed: int = 0) -> Yolo:
    """Return a model in evaluation mode whose tensors are all random, those of its branches too."""
    torch.manual_seed(seed)
    model = build_model(load_detection("mish-n", [*SMALL, f"model.head={head}"]), num_classes)
    assert isinstance(model, Yolo)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                tensor.add_(torch.rand(tensor.shape) * (0.5 if "running_var" in name else 0.1))
    return model.eval()


def boxes_of(model: Yolo) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        return model.decode(model(IMAGES))


def branch_boxes(model: Yolo, branch: str) -> Tensor:
    head = model.head
    assert isinstance(head, DualHead)
    with torch.no_grad():
        raw_maps = model(IMAGES)
        return (head.dense_one_to_one if branch == "one_to_one" else head.dense)(raw_maps).canvas_xyxy()


@pytest.mark.parametrize("predicts", ["one_to_one", "one_to_many"])
def test_the_branch_that_predicts_is_decoded_and_the_other_one_is_dropped_at_folding(predicts: str) -> None:
    model = random_model(f"{{name: dual, predicts: {predicts}}}")
    assert len(model(IMAGES)) == 6
    boxes, scores = boxes_of(model)
    assert torch.equal(boxes, branch_boxes(model, predicts))
    other = branch_boxes(model, {"one_to_one": "one_to_many", "one_to_many": "one_to_one"}[predicts])
    assert (boxes - other).abs().max() > 1
    bare = without_training_parts(copy.deepcopy(model))
    assert len(bare(IMAGES)) == 3
    assert all(torch.equal(*pair) for pair in zip(boxes_of(bare), (boxes, scores), strict=True))
    folded = fold(copy.deepcopy(model))
    plain = fold(random_model("decoupled"))
    assert sum(p.numel() for p in folded.parameters()) == sum(p.numel() for p in plain.parameters())
    assert len(list(folded.modules())) - len(list(plain.modules())) <= 2
    torch.testing.assert_close(boxes_of(folded), (boxes, scores), rtol=1e-3, atol=1e-3)


def test_the_branches_begin_alike_and_the_first_has_the_names_of_the_decoupled_head() -> None:
    torch.manual_seed(0)
    state = build_model(load_detection("mish-n", [*SMALL, "model.head=dual"]), 3).state_dict()
    plain = build_model(load_detection("mish-n", list(SMALL)), 3).state_dict()
    assert plain.keys() == {name for name in state if "one_to_one" not in name}
    copies = {name: tensor for name, tensor in state.items() if "one_to_one" in name}
    assert len(copies) == sum(name.startswith("head.") for name in plain)
    for name, tensor in copies.items():
        assert torch.equal(tensor, state[name.replace("one_to_one.", "")]), name


def test_the_one_to_one_branch_trains_itself_alone() -> None:
    model = random_model("{name: dual}").train()
    head = model.head
    assert isinstance(head, DualHead)
    predictions = head.dense_one_to_one(model(IMAGES))
    (predictions.class_logits.sum() + predictions.canvas_xyxy().sum()).backward()
    trained = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert trained == {name for name, _ in model.named_parameters() if "one_to_one" in name}


# ---- weights


def file_of(model: Yolo, names: tuple[str, ...]) -> ModelFile:
    return ModelFile({}, names, tuple(range(len(names))), {k: v.clone() for k, v in model.state_dict().items()})


def test_weights_of_the_decoupled_head_start_both_branches() -> None:
    start, model = random_model("decoupled", 2), random_model("dual", 3, seed=1)
    taken = load_matching(model, file_of(start, ("cat", "dog")), ("dog", "emu", "cat"))
    given, found = start.state_dict(), model.state_dict()
    assert (taken.left, taken.known, taken.new) == ((), ("dog", "cat"), ("emu",))
    assert set(taken.copied) == {name for name in found if "one_to_one" in name}
    for name, tensor in found.items():
        source = given[name.replace("one_to_one.", "")]
        if name in model.class_rows():
            assert torch.equal(tensor[[2, 0]], source), name
        else:
            assert torch.equal(tensor, source), name
    assert f"{len(taken.copied)} of them are copies for a branch that the file lacks: head.one_to_one." in str(taken)


def test_weights_of_the_dual_head_keep_each_branch_and_start_a_decoupled_head() -> None:
    start, model, plain = random_model("dual"), random_model("dual", seed=1), random_model("decoupled", seed=2)
    names = ("cat", "dog", "emu")
    taken = load_matching(model, file_of(start, names), names)
    assert (taken.left, taken.copied) == ((), ())
    assert all(
        torch.equal(*pair) for pair in zip(model.state_dict().values(), start.state_dict().values(), strict=True)
    )
    assert load_matching(plain, file_of(start, names), names).left == ()
    assert torch.equal(boxes_of(plain)[0], branch_boxes(start, "one_to_many"))


# ---- settings


def test_the_head_selects_without_suppression_unless_the_other_branch_predicts() -> None:
    config = load_detection("mish-n", ["model.head=dual"])
    assert isinstance(config.loss, TaskAlignedLoss.Config)
    assert (config.evaluate.nms, config.predict.nms) == ("none", "none")
    config = load_detection("mish-n", ["model.head={name: dual, predicts: one_to_many}"])
    assert (config.evaluate.nms, config.predict.nms) == ("plain", "plain")
    larger = load_detection("mish-n", ["model.head=dual", "input.size=1280"]).for_canvas()
    assert isinstance(larger.model, Yolo.Config)
    assert isinstance(larger.model.head, DualHead.Config)
    assert (larger.model.head.bins or 0) > 16


def test_the_description_counts_what_runs(tmp_path: Path) -> None:
    counts = []
    for head in ("decoupled", "dual"):
        config = load_detection("mish-n", [*SMALL, f"model.head={head}"])
        model, path = random_model(head), tmp_path / f"{head}.safetensors"
        save_model(path, replace(file_of(model, ("a", "b", "c")), config=config_to_plain(config)))
        found = describe_model(path)
        counts.append((found.num_parameters, found.gflops, len(found.layers)))
    assert counts[0] == counts[1]


def test_an_overlap_is_refused_where_nothing_is_suppressed() -> None:
    config, file = load_detection("mish-n", ["model.head=dual"]).predict, ModelFile({}, ("a",), (0,), {})
    with pytest.raises(
        ConfigError, match=r"iou: expected a model whose boxes suppress each other, got best.safetensor"
    ):
        select_boxes(config, file, {"iou": 0.5}, "best.safetensors")
    assert select_boxes(config, file, {"iou": 0.5, "nms": "plain"}, "best.safetensors").iou == 0.5
    assert select_boxes(config, file, {"confidence": 0.4}, "best.safetensors").nms == "none"


# ---- a run


@pytest.mark.parametrize("experiment", ["dual"], indirect=True)
def test_a_trained_file_is_evaluated_predicted_and_continued_without_suppression(
    experiment: Callable[..., DetectionConfig], tmp_path: Path, tiny_shapes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trained = train(experiment("train.iterations=4", "train.evaluations=1"))
    best = trained.folder.best
    rows = (trained.folder.path / "results.csv").read_text().splitlines()
    assert "train/one_box_loss" in rows[0]
    val = tiny_shapes / "images" / "val"
    assert run(["evaluate", str(best), "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert trained.metrics is not None
    assert summary["AP"] == pytest.approx(trained.metrics.headline, abs=1e-6)
    words = ["predict", str(best), str(val), "--confidence", "0.001", "--no-pictures", "--out"]
    assert run([*words, str(tmp_path / "plain")]) == 0
    assert run([*words, str(tmp_path / "views"), "--flip", "--tile", "48"]) == 0
    capsys.readouterr()
    assert run([*words, str(tmp_path / "overlap"), "--iou", "0.5"]) == 2
    assert "iou: expected a model whose boxes suppress each other" in capsys.readouterr().err
    other = ["model.head.predicts=one_to_many", "evaluate.nms=plain"]
    assert run(["evaluate", str(best), *other]) == 0
    again = train(experiment("train.iterations=1", "train.evaluations=0", f"train.weights={best}"))
    assert again.finished


def test_a_head_with_one_branch_has_no_second_one() -> None:
    model = random_model("decoupled")
    assert isinstance(model.head, DecoupledHead)
    assert model.head.dense_one_to_one(model(IMAGES)) is None
    assert (model.copied_from(), model.head.copied_from()) == ({}, {})
