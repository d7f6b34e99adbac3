"""The one registry: a part is a class with a nested `Config`, and its kind is the base class of that config.

    @register("csp_darknet")
    class CSPDarknet(nn.Module):
        @dataclass(frozen=True)
        class Config(BackboneConfig):
            width: float = 1.0

        def __init__(self, config: Config, ...) -> None: ...

A kind is declared by deriving a frozen dataclass from `PartConfig` directly. `build(config, ...)` makes the part that a
config belongs to; nothing else in the tree chooses a class by a name.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

from detector.errors import ConfigError


@dataclass(frozen=True)
class PartConfig:
    """Base of every kind of part."""


Part = TypeVar("Part", bound=type)

_PARTS: dict[type[PartConfig], dict[str, type]] = {}
_PART_OF_CONFIG: dict[type[PartConfig], tuple[str, type]] = {}


def kind_of(config_class: type) -> type[PartConfig]:
    """The kind a config class belongs to: its ancestor just below `PartConfig`.

    Raises:
        TypeError: the class has no kind.
    """
    for ancestor in config_class.__mro__:
        if PartConfig in ancestor.__bases__:
            return ancestor
    raise TypeError(f"{config_class.__qualname__} belongs to no kind: derive it from a class derived from PartConfig")


def is_kind(candidate: object) -> bool:
    """Whether a class is a kind, so that a config field of that type is chosen by `name`."""
    return isinstance(candidate, type) and PartConfig in candidate.__bases__


def register(name: str) -> Callable[[Part], Part]:
    """Registers a class under a name among the parts of its kind.

    Raises:
        TypeError: the class has no nested `Config` of its own that is a frozen dataclass with a kind.
        ValueError: the name is taken among the parts of that kind, or the `Config` belongs to another part.
    """

    def add(part: Part) -> Part:
        config_class = part.__dict__.get("Config")
        # What a base class makes of it does not count: without a decorator of its own its fields would be lost.
        if not (isinstance(config_class, type) and "__dataclass_fields__" in config_class.__dict__):
            raise TypeError(f"@register({name!r}) wants {part.__qualname__} to define a dataclass named Config")
        if not config_class.__dataclass_params__.frozen:  # type: ignore[attr-defined]  # set by @dataclass
            raise TypeError(f"@register({name!r}) wants {part.__qualname__}.Config to be frozen")
        kind = kind_of(config_class)
        config = cast("type[PartConfig]", config_class)
        if config in _PART_OF_CONFIG:
            raise ValueError(
                f"@register({name!r}) finds that {part.__qualname__}.Config belongs to {_PART_OF_CONFIG[config][0]!r}"
            )
        taken = _PARTS.setdefault(kind, {})
        if name in taken:
            raise ValueError(f"@register({name!r}) finds the name taken by {taken[name].__qualname__}")
        taken[name] = part
        _PART_OF_CONFIG[config] = (name, part)
        return part

    return add


def names(kind: type[PartConfig]) -> list[str]:
    """The registered names of a kind, sorted."""
    return sorted(_PARTS.get(kind, {}))


def kinds() -> list[type[PartConfig]]:
    """Every kind that has a part."""
    return list(_PARTS)


def find(kind: type[PartConfig], name: str) -> Any:
    """The class registered under a name.

    Raises:
        ConfigError: no such name; the message gives the nearest one.
    """
    parts = _PARTS.get(kind, {})
    if name not in parts:
        raise ConfigError(f"no {kind.__name__.removesuffix('Config').lower()} is named {name!r}{nearest(name, parts)}")
    return parts[name]


def claimant(path: Path) -> str | None:
    """The name of the part that says of a file of another program's format, by its `claims(path)`, that it reads it."""
    for parts in _PARTS.values():
        for name, part in parts.items():
            claims = getattr(part, "claims", None)
            if claims is not None and claims(path):
                return name
    return None


def name_of(config: PartConfig) -> str:
    """The registered name of the part a config belongs to."""
    return _PART_OF_CONFIG[type(config)][0]


def build(config: PartConfig, *args: Any, **kwargs: Any) -> Any:
    """The part a config belongs to, made from that config and what else it needs."""
    if type(config) not in _PART_OF_CONFIG:
        raise TypeError(f"build wants the Config of a registered part, found {type(config).__qualname__}")
    return _PART_OF_CONFIG[type(config)][1](config, *args, **kwargs)


def nearest(name: str, known: Any) -> str:
    """The tail of an error message: the nearest known name, or all of them."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; known: {', '.join(sorted(known)) or 'none'}"
