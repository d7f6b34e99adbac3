"""Training from given weights: tensors of the same shape are copied, and rows of classes are copied by name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from detector.darknet.network import CfgText, DarknetNet
from detector.errors import ConfigError, DarknetError
from detector.models.checkpoint import ModelFile
from detector.models.class_rows import ClassRows, is_named
from detector.models.contracts import DetectionModel
from detector.tasks.detection_config import DetectionConfig
from detector.tasks.detection_model import build_model, load_detection
from detector.workflows.train import load_matching, read_start, train

TINY = Path(__file__).parents[1] / "darknet" / "tiny.cfg"
EXPERIMENTS = {
    "mish-n": ("mish-n", ["model.width=0.125"]),
    "darknet": (str(TINY), []),
    "anchor": ("yolov4-csp-mish", ["model.width=0.125", "model.depth=0.33"]),
}
OLD, NEW = ("cat", "dog", "ant"), ("dog", "emu", "cat", "yak")


@pytest.fixture(params=EXPERIMENTS)
def config(request: pytest.FixtureRequest) -> DetectionConfig:
    name, overrides = EXPERIMENTS[request.param]
    return load_detection(name, [*overrides, "input.size=64"])


def model_of(config: DetectionConfig, num_classes: int, seed: int) -> DetectionModel:
    torch.manual_seed(seed)
    model = build_model(config, num_classes)
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.randn(tensor.shape))
    return model


def file_of(model: DetectionModel, class_names: tuple[str, ...]) -> ModelFile:
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    return ModelFile({}, class_names, tuple(range(len(class_names))), state)


def rows_of(layout: ClassRows, tensor: Tensor, num_classes: int) -> tuple[Tensor, list[Tensor]]:
    """Return the rows without a class and the rows of each class, with a loop over rows."""
    before: list[Tensor] = []
    classes: list[list[Tensor]] = [[] for _ in range(num_classes)]
    for index, row in enumerate(tensor):
        entry = index % (layout.num_before + num_classes)
        (before if entry < layout.num_before else classes[entry - layout.num_before]).append(row)
    return torch.stack(before) if before else torch.zeros(0), [torch.stack(rows) for rows in classes]


def test_other_classes_copy_the_rows_of_known_names_and_all_other_tensors(config: DetectionConfig) -> None:
    start, model = model_of(config, 3, seed=0), model_of(config, 4, seed=1)
    fresh = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    taken = load_matching(model, file_of(start, OLD), NEW)
    assert (taken.left, taken.known, taken.new) == ((), ("dog", "cat"), ("emu", "yak"))
    layouts = model.class_rows()
    assert len(layouts) == 2 * len(model.anchor_levels or (8, 16, 32))  # weight and bias of each level
    for name, tensor in model.state_dict().items():
        given = start.state_dict()[name]
        if name not in layouts:
            assert torch.equal(tensor, given), name
            continue
        ours, theirs, random = (rows_of(layouts[name], t, n) for t, n in ((tensor, 4), (given, 3), (fresh[name], 4)))
        assert torch.equal(ours[0], theirs[0])
        assert torch.equal(ours[1][0], theirs[1][1])  # dog
        assert torch.equal(ours[1][2], theirs[1][0])  # cat
        assert torch.equal(ours[1][1], random[1][1])  # emu is new
        assert torch.equal(ours[1][3], random[1][3])  # yak is new
    assert str(taken) == "every tensor was taken; classes taken by name: dog, cat; new: emu, yak"


def test_classes_in_another_order_keep_their_rows(config: DetectionConfig) -> None:
    start, model = model_of(config, 3, seed=0), model_of(config, 3, seed=1)
    taken = load_matching(model, file_of(start, OLD), ("ant", "cat", "dog"))
    assert (taken.left, taken.new) == ((), ())
    for name, layout in model.class_rows().items():
        ours, theirs = (rows_of(layout, m.state_dict()[name], 3)[1] for m in (model, start))
        assert all(torch.equal(ours[i], theirs[j]) for i, j in ((0, 2), (1, 0), (2, 1)))


@pytest.mark.parametrize("names", [OLD, ("0", "1", "2")])
def test_same_classes_or_numbered_names_copy_every_tensor(config: DetectionConfig, names: tuple[str, ...]) -> None:
    start, model = model_of(config, 3, seed=0), model_of(config, 3, seed=1)
    taken = load_matching(model, file_of(start, names), OLD)
    assert (taken.left, taken.known, taken.new) == ((), (), ())
    assert str(taken) == "every tensor was taken"
    assert all(torch.equal(tensor, start.state_dict()[name]) for name, tensor in model.state_dict().items())


def test_numbered_names_with_another_count_copy_only_rows_without_a_class(config: DetectionConfig) -> None:
    start, model = model_of(config, 3, seed=0), model_of(config, 4, seed=1)
    fresh = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert load_matching(model, file_of(start, ("0", "1", "2")), NEW).left == ()
    for name, layout in model.class_rows().items():
        ours, theirs = rows_of(layout, model.state_dict()[name], 4), rows_of(layout, start.state_dict()[name], 3)
        assert torch.equal(ours[0], theirs[0])
        random = rows_of(layout, fresh[name], 4)[1]
        assert all(torch.equal(a, b) for a, b in zip(ours[1], random, strict=True))


def test_tensors_of_another_shape_are_not_copied_and_are_named(config: DetectionConfig) -> None:
    start, model = model_of(config, 3, seed=0), model_of(config, 3, seed=1)
    file = file_of(start, OLD)
    name = next(iter(file.state))
    other = next(iter(model.class_rows()))
    state = {**file.state, name: torch.zeros(1, 2), other: file.state[other][:-1], "foreign": torch.zeros(3)}
    before = {n: model.state_dict()[n].clone() for n in (name, other)}
    taken = load_matching(model, replace(file, state=state), ("dog", "cat", "ant"))
    assert set(taken.left) == {name, other}
    assert str(taken).startswith("2 tensors stay random: ")
    assert all(torch.equal(model.state_dict()[n], tensor) for n, tensor in before.items())


def test_numbered_classes_count_as_unnamed() -> None:
    assert not is_named(("0", "1", "2"))
    assert is_named(("1", "2", "3"))
    assert is_named(("0", "one"))


# ---- .weights as the start of training


def test_partial_darknet_weights_start_a_network_with_other_classes(tiny_shapes: Path, tmp_path: Path) -> None:
    torch.manual_seed(5)
    net = DarknetNet(DarknetNet.Config(CfgText.of_file(str(TINY))), 3)
    whole, partial = tmp_path / "tiny.weights", tmp_path / "tiny.conv.6"
    net.save_weights(whole)
    sizes = 4 * sum(p.numel() for n, p in net.named_parameters() if int(n.split(".")[1]) < 6)
    sizes += 4 * sum(b.numel() for n, b in net.named_buffers() if "running" in n and int(n.split(".")[1]) < 6)
    partial.write_bytes(whole.read_bytes()[: 20 + sizes])
    listed = ", ".join(
        f"{n}: {{annotations: {tiny_shapes}/annotations/{n}.json, images: {tiny_shapes}/images/{n}}}"
        for n in ("train", "val")
    )
    overrides = [
        f"data={{name: coco, {listed}}}",
        f"train={{iterations: 1, evaluations: 0, precision: fp32, project: {tmp_path}/runs, weights: {partial}}}",
        "loader={workers: 0, batch_size: 4}",
        "augment.albumentations=[]",
        "device=cpu",
    ]
    told: list[object] = []
    train(load_detection(str(TINY), overrides), report=told.append)
    (started,) = (str(event) for event in told if "starting from given weights" in str(event))
    assert "tensors stay random: layers.6.conv.weight" in started
    with pytest.raises(ConfigError, match=r"train\.weights=.*tiny\.conv\.6: expected a model file, got Darknet's"):
        read_start(partial, load_detection("mish-n"))
    partial.write_bytes(whole.read_bytes()[: 20 + sizes + 4])
    with pytest.raises(DarknetError, match="it ends in layer 6"):
        read_start(partial, load_detection(str(TINY)))


def test_network_that_cannot_be_trained_is_rejected_before_anything_is_written(
    tiny_shapes: Path, tmp_path: Path
) -> None:
    path = tmp_path / "contrastive.cfg"
    path.write_text(TINY.read_text("utf-8") + "[route]\nlayers=-1\n[contrastive]\nclasses=1\n".replace("-1", "13"))
    split = f"{{annotations: {tiny_shapes}/annotations/train.json, images: {tiny_shapes}/images/train}}"
    config = load_detection(str(path), [f"data={{name: coco, train: {split}}}", f"train.project={tmp_path}/runs"])
    with pytest.raises(ConfigError, match=r"contrastive\.cfg:\d+: \[contrastive\] is a loss on embeddings"):
        train(config)
    assert not (tmp_path / "runs").exists()
