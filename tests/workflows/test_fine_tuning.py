"""Training from given weights: tensors of the same shape are copied, and rows of classes are copied by name."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from detector.config import registry
from detector.darknet.network import CfgText, DarknetNet
from detector.errors import CheckpointError, ConfigError, DarknetError
from detector.models.checkpoint import (
    ModelFile,
    load_model_file,
    load_training_state,
    save_model,
    save_training_state,
)
from detector.models.class_rows import ClassRows, is_named
from detector.models.contracts import DetectionModel
from detector.models.published_weights import resolve_weights
from detector.models.yolox import Yolox
from detector.models.yolox_checkpoint import save_yolox_file
from detector.tasks.detection_config import DetectionConfig
from detector.tasks.detection_model import build_model, load_detection
from detector.tasks.task import load_experiment
from detector.workflows.starting_weights import load_matching, read_start
from detector.workflows.train import chosen_settings, open_run, train

TINY = Path(__file__).parents[1] / "darknet" / "tiny.cfg"
EXPERIMENTS = {
    "mish-n": ("mish-n", ["model.width=0.125", "model.depth=0.1"]),
    "darknet": (str(TINY), []),
    "anchor": ("yolov4-csp-mish", ["model.width=0.125", "model.depth=0.33"]),
    "yolox": ("yolox-nano", ["model.width=0.125", "model.depth=0.1"]),
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


def share_taken(model: DetectionModel, known: tuple[str, ...], names: tuple[str, ...]) -> float:
    """Return the share of the parameters that are no rows of classes, or of known ones, with a loop over rows."""
    layouts, taken, total = model.class_rows(), 0, 0
    for name, parameter in model.named_parameters():
        total += parameter.numel()
        if name not in layouts:
            taken += parameter.numel()
            continue
        before, classes = rows_of(layouts[name], parameter.detach(), len(names))
        taken += before.numel() + sum(r.numel() for c, r in zip(names, classes, strict=True) if c in known)
    return taken / total


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
    num = len(model.state_dict())
    assert str(taken).startswith(f"{num} of {num} tensors were taken, ")
    assert str(taken).endswith(" of the parameters; classes taken by name: dog, cat; new: emu, yak")
    assert taken.share == pytest.approx(share_taken(model, ("dog", "cat"), NEW), rel=1e-12)


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
    num = len(model.state_dict())
    assert str(taken) == f"{num} of {num} tensors were taken, 100 % of the parameters"
    assert all(torch.equal(tensor, start.state_dict()[name]) for name, tensor in model.state_dict().items())


def test_numbered_names_with_another_count_copy_only_rows_without_a_class(config: DetectionConfig) -> None:
    start, model = model_of(config, 3, seed=0), model_of(config, 4, seed=1)
    fresh = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    taken = load_matching(model, file_of(start, ("0", "1", "2")), NEW)
    assert (taken.left, taken.num_unnamed) == ((), 4)
    assert taken.share == pytest.approx(share_taken(model, (), NEW), rel=1e-12)
    assert "every tensor" not in str(taken)
    assert "100 %" not in str(taken)
    assert str(taken).endswith(
        "; the rows of all 4 classes stay random, because one side has no class names and another number of classes"
    )
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
    num = len(model.state_dict())
    assert f"{num - 2} of {num} tensors were taken, " in str(taken)
    assert "; 2 tensors stay random: " in str(taken)
    assert all(torch.equal(model.state_dict()[n], tensor) for n, tensor in before.items())


def test_numbered_classes_count_as_unnamed() -> None:
    assert not is_named(("0", "1", "2"))
    assert is_named(("1", "2", "3"))
    assert is_named(("0", "one"))


# ---- weights of which little fits


def experiment_of(root: Path, project: Path, *overrides: str) -> DetectionConfig:
    """Return a run of one step of mish-n on drawn images."""
    split = f"{{annotations: {root}/annotations/train.json, images: {root}/images/train}}"
    own = [
        f"data={{name: coco, train: {split}}}",
        f"train={{iterations: 1, evaluations: 0, precision: fp32, project: {project}}}",
        "loader={workers: 0, batch_size: 2}",
        "augment.albumentations=[]",
        "device=cpu",
        "model.width=0.125",
        "input.size=64",
    ]
    return load_detection("mish-n", [*own, *overrides])


@pytest.mark.parametrize(
    ("start", "is_partial", "expected"),
    [
        ("classifier of mish-n", False, "162 of 390 tensors were taken, 36.2 % of the parameters; 228 tensors"),
        ("classifier of another backbone", False, None),
        ("classifier of another backbone", True, "of 390 tensors were taken, "),
        ("nothing", False, None),
    ],
)
def test_weights_that_fit_less_than_a_tenth_are_refused_unless_allowed(
    start: str, is_partial: bool, expected: str | None, tiny_shapes: Path, tmp_path: Path
) -> None:
    preset = "classify-se-resnet18" if "another" in start else "classify"
    classify = load_experiment(preset, ["model.width=0.125"])
    state = {} if start == "nothing" else registry.build(classify.model, 10, 3).state_dict()
    file = ModelFile({}, tuple("abcdefghij"), tuple(range(10)), dict(state))
    config = experiment_of(tiny_shapes, tmp_path / "runs", f"train.weights_partial={str(is_partial).lower()}")
    told: list[object] = []
    if expected is None:
        with pytest.raises(ConfigError, match=r"at least 10 % of the parameters, got fewer: \d+ of 390 tensors"):
            train(config, start=file, report=told.append)
        assert not (tmp_path / "runs").exists()
        return
    train(config, start=file, report=told.append)
    (started,) = (str(event) for event in told if "starting from given weights" in str(event))
    assert expected in started
    assert "classes taken by name" not in started  # a classifier has no rows of a detector


# ---- the learning rate of fine-tuning


@pytest.mark.parametrize(
    ("optimizer", "lr"),
    [
        ("{name: muon, lr: 0.006}", 0.001),
        ("{name: muon, lr: 0.0004}", 0.0004),
        ("{name: muon, lr: 0.006, fine_tuning_lr: 0.002}", 0.002),
        ("{name: muon, lr: 0.006, fine_tuning_lr: null}", 0.006),
        ("{name: adamw, lr: 0.01}", 0.001),
        ("{name: ranger, lr: 0.01}", 0.001),
        ("{name: sgd, lr: 0.01}", 0.01),  # the size of its updates is that of the gradient
    ],
)
def test_learning_rate_of_a_run_from_given_weights_is_bounded(optimizer: str, lr: float) -> None:
    config = load_detection("mish-n", [f"optimizer={optimizer}"])
    told: list[object] = []
    assert chosen_settings(config, False, told.append).optimizer == config.optimizer
    assert told == []
    tuned = chosen_settings(config, True, told.append)
    assert tuned.optimizer == replace(config.optimizer, lr=lr)
    assert len(told) == (lr != config.optimizer.lr)
    wanted = f"lowered to {lr:g} (optimizer.fine_tuning_lr) after a warm-up of up to 100 steps"
    assert all(wanted in str(event) for event in told)


def test_run_that_starts_from_weights_trains_and_continues_at_the_bounded_rate(
    tiny_shapes: Path, tmp_path: Path
) -> None:
    config = experiment_of(tiny_shapes, tmp_path / "runs")
    whole = train(replace(config, train=replace(config.train, run_name="scratch")))
    assert open_run(whole.folder.path)[0].optimizer.lr == 0.006
    tuned = replace(config, train=replace(config.train, weights=whole.folder.best))
    result = train(tuned)
    saved, _, state = open_run(result.folder.path, tuned)  # the same command continues the run
    assert saved.optimizer.lr == 0.001
    assert max(group["lr"] for group in state["optimizer"]["param_groups"]) <= 0.001


def test_fine_tuning_run_that_began_before_the_bound_existed_is_continued(tiny_shapes: Path, tmp_path: Path) -> None:
    config = experiment_of(tiny_shapes, tmp_path / "runs")
    start = train(replace(config, train=replace(config.train, run_name="scratch"))).folder.best
    free = experiment_of(tiny_shapes, tmp_path / "runs", f"train.weights={start}", "optimizer.fine_tuning_lr=null")
    result = train(free)
    last = result.folder.last
    state = load_training_state(last)
    saved: Any = state["config"]
    assert saved["optimizer"].pop("fine_tuning_lr", None) is None  # the key was unknown
    save_training_state(last, state)
    asked = experiment_of(tiny_shapes, tmp_path / "runs", f"train.weights={start}")
    assert open_run(result.folder.path, asked)[0].optimizer.lr == 0.006


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
    assert "21 of 35 tensors were taken, 50.1 % of the parameters; 14 tensors" in started
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


def test_weights_are_also_found_in_the_folder_weights_beside_their_path(tmp_path: Path) -> None:
    here, there = tmp_path / "net.conv.6", tmp_path / "weights/net.conv.6"
    assert resolve_weights(here) == here  # the error about a missing file names the path that was given
    there.parent.mkdir()
    there.write_bytes(b"downloaded")
    assert resolve_weights(here) == there
    here.write_bytes(b"own")
    assert resolve_weights(here) == here


def test_published_name_and_pth_are_read_as_weights_to_start_from(tmp_path: Path) -> None:
    config = load_detection("yolox-nano", ["train.weights=yolox-nano"])
    assert config.train.weights is not None
    shipped = read_start(config.train.weights, config)
    assert shipped.class_names[0] == "person"
    assert shipped.provenance["licence"].startswith("Apache-2.0")
    model = build_model(config, 80)
    assert load_matching(model, shipped, shipped.class_names).left == ()
    assert isinstance(model, Yolox)
    save_yolox_file(tmp_path / "own.pth", model)
    assert read_start(tmp_path / "own.pth", config).provenance == {"source": "own.pth"}


def test_provenance_goes_from_the_first_weights_into_every_file_of_a_run(
    experiment: Callable[..., DetectionConfig], tmp_path: Path
) -> None:
    origin = {"source": "https://example.org/first.pth", "licence": "Apache-2.0", "trained_on": "COCO train2017"}
    config = experiment("train.iterations=2", "train.evaluations=1")
    start = replace(file_of(model_of(config, 3, 0), ("a", "b", "c")), provenance=origin)
    result = train(config, start=start, should_stop=lambda: True)
    assert not result.finished
    asked, folder, state = open_run(result.folder.path)
    assert state["provenance"] == origin
    resumed = train(asked, resume=(folder, state))
    best = load_model_file(resumed.folder.best)
    assert best.provenance == origin
    save_model(tmp_path / "again.safetensors", best)
    assert load_model_file(tmp_path / "again.safetensors").provenance == origin
    scratch = train(experiment("train.iterations=1", "train.evaluations=1", "train.run_name=scratch"))
    assert load_model_file(scratch.folder.best).provenance == {}


@pytest.mark.parametrize("name", ["yolov4-mine.conv.29", "m.weights", "m.safetensors", "m.pth"])
def test_missing_weights_to_start_from_are_named(name, config, tmp_path):
    with pytest.raises(CheckpointError, match=f"train.weights=.*{re.escape(name)}: there is no such file"):
        read_start(tmp_path / name, config)


def test_classes_are_taken_by_the_aliases_that_evaluation_uses(config: DetectionConfig) -> None:
    names, given = ("motorbike", "emu", "potted_plant"), ("Motorcycle", "dog", "potted plant")
    taken = load_matching(model_of(config, 3, 1), file_of(model_of(config, 3, 2), given), names)
    assert taken.known == ("motorbike (from Motorcycle)", "potted_plant (from potted plant)")
    assert taken.new == ("emu",)
