"""Freezing of parts of a network."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from detector.config import name_suggestions
from detector.errors import ConfigError


def freeze(model: nn.Module, names: Sequence[str]) -> tuple[nn.Module, ...]:
    """Exclude parameters from training.

    A name is that of a module or parameter, such as `backbone`, `backbone.stages.0` or `head.0.weight`, and covers
    everything below it.

    Args:
        model: the model; gradients of its named parameters are switched off.
        names: names of modules or parameters.

    Returns:
        The frozen modules, which the caller keeps in evaluation mode so that their batch norm statistics do not change.

    Raises:
        ConfigError: names are unknown, all of them in one error, or no parameter is left to train.
    """
    modules = {name: module for name, module in model.named_modules() if name}
    parameters = dict(model.named_parameters())
    known = modules.keys() | parameters.keys()
    if unknown := [name for name in names if name not in known]:
        raise ConfigError(
            "\n".join(
                f"train.freeze: expected names of modules or parameters of {type(model).__name__}, got {name!r}"
                f"{_nearest(name, known)}"
                for name in unknown
            )
        )
    for name, parameter in parameters.items():
        if any(_is_within(name, frozen) for frozen in names):
            parameter.requires_grad_(False)
    if names and not any(parameter.requires_grad for parameter in model.parameters()):
        raise ConfigError(f"train.freeze={list(names)} leaves no parameter to train; freeze less, such as backbone")
    return tuple(module for name, module in modules.items() if any(_is_within(name, frozen) for frozen in names))


def _is_within(name: str, outer: str) -> bool:
    return name == outer or name.startswith(f"{outer}.")


def _nearest(name: str, known: set[str]) -> str:
    """Return a hint with the nearest of all names, or with the names of the first level if none is near."""
    hint = name_suggestions.nearest(name, known)
    return hint if "did you mean" in hint else name_suggestions.nearest(name, [k for k in known if "." not in k])
