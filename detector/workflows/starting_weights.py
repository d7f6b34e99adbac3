"""Weights that a run of training starts from: read, and copied into its model as far as they fit."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from detector.darknet.darknet_model_file import is_darknet_weights, load_darknet_file
from detector.darknet.network import DarknetNet
from detector.data.class_matching import matched_names
from detector.errors import CheckpointError, ConfigError
from detector.models.checkpoint import ModelFile, load_model_file
from detector.models.class_rows import is_named
from detector.models.contracts import TrainableModel
from detector.models.published_weights import resolve_weights, with_origin
from detector.models.yolox_checkpoint import is_yolox_weights, load_yolox_file
from detector.tasks.task import TaskConfig

_NUM_SHOWN = 5
_LEAST_SHARE = 0.1  # of the parameters, below which weights are more likely of another network than a useful start


@dataclass(frozen=True)
class Taken:
    """The tensors that a model took from a model file.

    Attributes:
        num_tensors: tensors of the model.
        left: the tensors that did not change.
        share: share of the model's parameters that was taken, 0..1.
        known: the classes that both have, if class rows were copied by name.
        new: the classes whose rows did not change.
        num_unnamed: classes of the model whose rows did not change because one side has no class names; 0 if they did.
        copied: the tensors that the file lacks and that took those of another part of the model.
    """

    num_tensors: int
    left: tuple[str, ...]
    share: float
    known: tuple[str, ...] = ()
    new: tuple[str, ...] = ()
    num_unnamed: int = 0
    copied: tuple[str, ...] = ()

    def __str__(self) -> str:
        num_taken = self.num_tensors - len(self.left)
        said = [f"{num_taken} of {self.num_tensors} tensors were taken, {_percent(self.share)} of the parameters"]
        if self.copied:
            said.append(f"{len(self.copied)} of them are copies for a branch that the file lacks: {_few(self.copied)}")
        if self.left:
            said.append(f"{len(self.left)} tensors stay random: {_few(self.left)}")
        if self.known or self.new:
            said.append(
                f"classes taken by name: {', '.join(self.known) or 'none'}; new: {', '.join(self.new) or 'none'}"
            )
        if self.num_unnamed:
            said.append(
                f"the rows of all {self.num_unnamed} classes stay random, because one side has no class names and "
                f"another number of classes"
            )
        return "; ".join(said)

    def require_enough(self, who: str) -> None:
        """Reject weights of which nearly nothing was taken.

        Raises:
            ConfigError: less than a tenth of the parameters was taken.
        """
        if self.share < _LEAST_SHARE:
            raise ConfigError(
                f"{who}: expected weights for at least {100 * _LEAST_SHARE:.0f} % of the parameters, got fewer: {self}"
                f"; give weights of a model with the same backbone, depth and width, or set "
                f"train.weights_partial=true"
            )


def _few(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NUM_SHOWN} more" if len(names) > _NUM_SHOWN else ""
    return f"{', '.join(names[:_NUM_SHOWN])}{more}"


def _percent(share: float) -> str:
    """Return a share in words that say 0 % and 100 % of nothing and everything only."""
    if 0 < share < 0.001 or 0.999 < share < 1:
        return "less than 0.1 %" if share < 0.5 else "more than 99.9 %"
    return f"{100 * share:.1f} %".replace(".0 %", " %")


def read_start(weights: Path, config: TaskConfig) -> ModelFile:
    """Read a file to start training from, by path or published name.

    It is a model file, a .pth of YOLOX, or .weights, whole or partial, of the experiment's network.

    Raises:
        CheckpointError: the file cannot be read.
        DarknetError: the .weights file cannot be read, or is of another network.
        ConfigError: the file is Darknet's and the model of the experiment is not.
    """
    try:
        weights = resolve_weights(weights)
    except CheckpointError as error:
        raise CheckpointError(f"train.weights: {error}") from error
    if not os.path.exists(weights):  # Path.exists raises for a long name
        raise CheckpointError(f"train.weights={weights}: there is no such file; check the path")
    if is_yolox_weights(weights):
        return with_origin(load_yolox_file(weights), weights)
    if not is_darknet_weights(weights):
        return load_model_file(weights)
    if not isinstance(config.model, DarknetNet.Config):
        raise ConfigError(
            f"train.weights={weights}: expected a model file, got Darknet's .weights for another kind of model; "
            f"choose model={{name: darknet, cfg: FILE.cfg}}"
        )
    return with_origin(load_darknet_file(weights, config.model.cfg, partial=True), weights)


def load_matching(model: TrainableModel, file: ModelFile, class_names: Sequence[str]) -> Taken:
    """Copy the tensors of a model file whose names and shapes fit, with class rows matched as `matched_names` does.

    If the classes differ, every other tensor is copied, and classes that both have keep their rows. If one side has no
    class names, all rows are copied if there are as many classes, else only rows that belong to no class. Tensors that
    the file lacks take those that `copied_from` of the model names.
    """
    pairs = model.copied_from().items()
    copies = {name: file.state[other] for name, other in pairs if name not in file.state and other in file.state}
    own, rows = model.state_dict(), model.class_rows()
    by_name = list(class_names) != list(file.class_names) and is_named(class_names) and is_named(file.class_names)
    given = matched_names(class_names, file.class_names) if by_name else [None] * len(class_names)
    fitting: dict[str, Tensor] = {}
    shares: dict[str, float] = {}  # of the rows of a tensor
    for name, tensor in {**file.state, **copies}.items():
        if name not in own or tensor.shape[1:] != own[name].shape[1:]:
            continue
        remaps = name in rows and (by_name or len(class_names) != len(file.class_names))
        if remaps and len(tensor) == rows[name].num_rows(len(file.class_names)):
            fitting[name] = rows[name].remapped(own[name], tensor, given)
            shares[name] = rows[name].num_rows(sum(i is not None for i in given)) / len(own[name])
        elif not remaps and tensor.shape == own[name].shape:
            fitting[name] = tensor
    model.load_state_dict(fitting, strict=False)
    left = tuple(name for name in own if name not in fitting)
    share = _share_of_parameters(model, {name: shares.get(name, 1.0) for name in fitting})
    taken = Taken(len(own), left, share, copied=tuple(name for name in copies if name in fitting))
    if not shares:
        return taken
    if not by_name:
        return replace(taken, num_unnamed=len(class_names))
    matches = [(name, None if i is None else file.class_names[i]) for name, i in zip(class_names, given, strict=True)]
    known = tuple(name if name == other else f"{name} (from {other})" for name, other in matches if other is not None)
    return replace(taken, known=known, new=tuple(name for name, other in matches if other is None))


def _share_of_parameters(model: TrainableModel, shares: Mapping[str, float]) -> float:
    """Return the share of all parameters that was taken, from the share of each tensor that was."""
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    return sum(size * shares.get(name, 0.0) for name, size in sizes.items()) / max(1, sum(sizes.values()))
