"""The table of configuration keys made from the registered parts: types, defaults, meanings and measured ranges."""

from __future__ import annotations

import dataclasses
import inspect
import re
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from detector.config import registry
from detector.config.key_table import ROOT_KIND, KeyTable, KindOfPart, TableKey, TableSection, ValueType
from detector.config.schema import config_to_plain, type_hints

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

_PLAIN = {int: "int", float: "float", bool: "bool", str: "str", Path: "path", type(None): "null"}
_FAR = 10**6  # farther from zero than any bound of a key
_NUM_BISECTIONS = 200
_SAMPLES = 7  # values inside a measured range that must be accepted as well


def survey(root: registry.Kind) -> KeyTable:
    """Return the table of a kind of experiment and of everything that it may contain."""
    kinds: dict[str, KindOfPart] = {}
    sections: dict[str, TableSection] = {}

    def add_kind(kind: registry.Kind) -> None:
        if kind.__name__ not in kinds:
            classes = registry.config_classes(kind)
            parts = {name: _name_of(each) for name, each in classes.items()}
            kinds[kind.__name__] = KindOfPart(
                registry.label_of(kind), kind.name_key, registry.unnamed_part(kind), parts
            )
            for each in classes.values():
                add_section(each)

    def add_section(schema: type[DataclassInstance]) -> None:
        if _name_of(schema) not in sections:
            inner: list[type] = []
            sections[_name_of(schema)] = _section(schema, inner)
            for each in inner:
                if registry.is_kind(each):
                    add_kind(each)
                else:
                    add_section(each)

    add_kind(root)
    return KeyTable(dict(sorted(kinds.items())), dict(sorted(sections.items())))


def _name_of(schema: type) -> str:
    return f"{schema.__module__}.{schema.__qualname__}"


def _section(schema: type[DataclassInstance], inner: list[type]) -> TableSection:
    """Return a section; the classes that its keys contain are added to `inner`."""
    described: type = schema
    if issubclass(schema, registry.PartConfig) and registry.kind_of(schema).__name__ != ROOT_KIND:
        described = registry.part_of(schema)
    texts = _texts_of_keys(schema)
    keys = {}
    for field in dataclasses.fields(schema):
        hint = type_hints(schema)[field.name]
        value_type = _type_of(hint, inner)
        keys[field.name] = TableKey(
            value_type,
            _plain_default(field, value_type),
            field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING,
            _range(schema, field.name, value_type),
            texts.get(field.name, ""),
        )
    return TableSection(
        " ".join((inspect.getdoc(described) or "").partition("\n\n")[0].split()),
        schema.__module__.replace(".", "/") + ".py" if schema.__module__.startswith("detector.") else schema.__module__,
        _chosen_sections(schema),
        hasattr(schema, "of_file"),
        keys,
    )


def _chosen_sections(schema: type[DataclassInstance]) -> list[str]:
    """Return the sections whose part a part may choose by its defaults, with any of its flags and inner parts."""
    if not hasattr(schema, "experiment_defaults"):
        return []
    default = schema()
    variants = [default]
    for field in dataclasses.fields(schema):
        hint, value = type_hints(schema)[field.name], getattr(default, field.name)
        if isinstance(value, bool):
            variants.append(dataclasses.replace(default, **{field.name: not value}))
        elif registry.is_kind(hint):
            inner = [each() for each in registry.config_classes(hint).values()]
            variants += [dataclasses.replace(default, **{field.name: each}) for each in inner]
    given = [variant.experiment_defaults().items() for variant in variants if hasattr(variant, "experiment_defaults")]
    return sorted({section for items in given for section, settings in items if "name" in settings})


def _type_of(hint: object, inner: list[type]) -> ValueType:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if isinstance(hint, type) and (registry.is_kind(hint) or dataclasses.is_dataclass(hint)):
        inner.append(hint)
        return {"kind": hint.__name__} if registry.is_kind(hint) else {"section": _name_of(hint)}
    if isinstance(hint, type) and hint in _PLAIN:
        return _PLAIN[hint]
    if origin is typing.Literal:
        return {"choices": list(arguments)}
    if origin in (typing.Union, types.UnionType):
        return {"either": [_type_of(each, inner) for each in arguments]}
    if origin is tuple and len(arguments) == 2 and arguments[1] is ...:
        return {"list": _type_of(arguments[0], inner)}
    if origin is tuple:
        return {"fixed": [_type_of(each, inner) for each in arguments]}
    if origin is dict and arguments[1] is not object:
        return {"map": _type_of(arguments[1], inner)}
    return "any"


def _plain_default(field: dataclasses.Field[object], value_type: ValueType) -> object:
    default = field.default
    if default is dataclasses.MISSING and field.default_factory is not dataclasses.MISSING:
        default = field.default_factory()
    if default is dataclasses.MISSING:
        return None
    if isinstance(default, registry.PartConfig):
        return registry.name_of(default)
    if dataclasses.is_dataclass(default):
        return None
    if isinstance(default, tuple):
        return [config_to_plain(each) if isinstance(each, registry.PartConfig) else each for each in default]
    return str(default) if isinstance(default, Path) else default


# --- meanings --------------------------------------------------------------------------------------------------------


def _texts_of_keys(schema: type) -> dict[str, str]:
    """Return the texts below `Attributes:` in the docstrings of a class and its bases, by key."""
    texts: dict[str, str] = {}
    for ancestor in reversed(schema.__mro__):
        _, _, attributes = inspect.cleandoc(ancestor.__doc__ or "").partition("Attributes:\n")
        for name, text in re.findall(r"^ {4}(\w+): (.*(?:\n {8,}.*)*)", attributes.split("\n\n")[0], re.MULTILINE):
            texts[name] = " ".join(text.split())
    return texts


# --- ranges ----------------------------------------------------------------------------------------------------------


def _range(schema: type[DataclassInstance], name: str, value_type: ValueType) -> str:
    """Return the numbers that a key accepts while the others have their defaults, or an empty text for all.

    The range is measured: values are tried and the bounds found by bisection. A bound that equals the default of
    another key is written as that key.
    """
    numbers = [each for each in ("int", "float") if each in (value_type, *_either(value_type))]
    try:
        default = schema()
    except (TypeError, ValueError):
        return ""  # a required key is missing
    if not numbers:
        return ""

    def accepts(value: float) -> bool:
        return _replaced(default, **{name: value}) is not None

    current = getattr(default, name)
    inside = current if isinstance(current, (int, float)) and not isinstance(current, bool) else 1
    if not accepts(inside):
        return ""
    low, high = (_bound(accepts, inside, end, numbers == ["int"]) for end in (-_FAR, _FAR))
    near = [inside + step for step in range(_SAMPLES) if high is None or inside + step <= high]
    if numbers == ["int"] and not all(map(accepts, near)):
        return ""  # not every number between the bounds is accepted

    def shown(bound: float) -> str:
        return _bounding_key(default, name, bound) or f"{bound:g}"

    parts = []
    if low is not None:
        parts.append(f"{'>=' if accepts(low) else '>'} {shown(low)}")
    if high is not None:
        parts.append(f"{'<=' if accepts(high) else '<'} {shown(high)}")
    return " and ".join(parts)


def _bounding_key(default: DataclassInstance, name: str, bound: float) -> str | None:
    """Return the key whose value bounds another key: the bound no longer holds when that value is smaller."""
    for field in dataclasses.fields(default):
        value = getattr(default, field.name)
        if field.name != name and isinstance(value, (int, float)) and not isinstance(value, bool) and value == bound:
            smaller = _replaced(default, **{field.name: type(value)(value / 2)})
            if smaller and _replaced(default, **{name: bound}) and not _replaced(smaller, **{name: bound}):
                return field.name
    return None


def _replaced(config: DataclassInstance, **values: object) -> DataclassInstance | None:
    """Return a config with other values, or None if it refuses them."""
    try:
        return dataclasses.replace(config, **values)
    except (TypeError, ValueError):
        return None


def _either(value_type: ValueType) -> list[object]:
    alternatives = value_type.get("either") if isinstance(value_type, dict) else None
    return alternatives if isinstance(alternatives, list) else []


def _bound(accepts: Callable[[float], bool], inside: float, outside: float, is_whole: bool) -> float | None:
    """Return the bound between an accepted number and a far one, or None if that is accepted too."""
    if accepts(outside):
        return None
    good, bad = inside, outside
    for _ in range(_NUM_BISECTIONS):
        middle = (good + bad) // 2 if is_whole else (good + bad) / 2
        if middle in (good, bad):
            break
        good, bad = (middle, bad) if accepts(middle) else (good, middle)
    if is_whole:
        return good if accepts(good) else bad
    return round(good, 6) + 0.0
