"""Keys of the sections of a .cfg: their names and types, and the conversion of their values from and to text."""

from __future__ import annotations

import dataclasses
import re
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from detector.config import name_suggestions
from detector.darknet.section import Constraints, Section

_INTEGER = re.compile(r"[+-]?\d+")
_FLOAT = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_MAX_NUMBER_LENGTH = 400  # more than any float64 needs
_MAX_ELEMENTS = 10_000  # of a list; released networks have up to 40, and one per class is possible
_OTHER_NAMES = {"silu": "swish", "sigmoid": "logistic"}  # words of other frameworks -> words of Darknet


@dataclass(frozen=True)
class Key:
    """Key of a section type.

    Attributes:
        attribute: the attribute that holds the value.
        type: type of the value, without None.
        default: value of a section without the key.
        constraints: the values that the key accepts.
    """

    attribute: str
    type: object
    default: Any
    constraints: Constraints


def keys_of(section_type: type[Section]) -> dict[str, Key]:
    """Return the keys of a section type by their names in the file."""
    if section_type not in _KEYS:
        _KEYS[section_type] = dict(_declared(section_type))
    return _KEYS[section_type]


def _declared(section_type: type[Section]) -> Iterator[tuple[str, Key]]:
    hints = typing.get_type_hints(section_type)
    for f in dataclasses.fields(section_type):
        if f.metadata:
            hint = hints[f.name]
            if type(None) in typing.get_args(hint):
                hint = typing.get_args(hint)[0]
            yield f.name.rstrip("_"), Key(f.name, hint, f.default, f.metadata["constraints"])


_KEYS: dict[type, dict[str, Key]] = {}


class UnreadableValueError(ValueError):
    """Value that its key does not accept; the text completes 'key=value ...'."""


def _number(text: str, is_integer: bool, warnings: list[str]) -> float:
    text = text.strip()
    if not _FLOAT.fullmatch(text) or len(text) > _MAX_NUMBER_LENGTH:
        if len(text.split()) > 1:
            raise UnreadableValueError(
                "contains white space inside a number, which Darknet would join; write a comma or remove it"
            )
        raise UnreadableValueError(
            "has an empty element" if not text else f"is not {'an integer' if is_integer else 'a number'}"
        )
    if not is_integer:
        return float(text)
    if "e" in text.lower():
        raise UnreadableValueError("is not an integer: Darknet reads no exponents here")
    whole, _, fraction = text.partition(".")
    if fraction.strip("0"):
        warnings.append(f"is truncated to {whole or 0}")
    return int(whole) if _INTEGER.fullmatch(whole) else 0


def _in_bounds(value: float, constraints: Constraints) -> float:
    low, high = constraints.low, constraints.high
    if not low <= value <= high:  # also refuses a value that overflowed to infinity
        limit = f"at least {low:.10g}" if value < low else f"at most {high:.10g}"
        raise UnreadableValueError(f"is out of range: expected {limit}")
    return value


def read_value(key: Key, text: str, warnings: list[str]) -> object:
    """Convert the text of a key to its typed value, and append remarks on the conversion to `warnings`.

    Raises:
        UnreadableValueError: the key does not accept the text.
    """
    if key.type is str:
        word = key.constraints.aliases.get(text, text)
        if word not in key.constraints.choices:
            same = _OTHER_NAMES.get(text.lower())
            hint = f"; Darknet calls it {same!r}" if same else name_suggestions.nearest(text, key.constraints.choices)
            raise UnreadableValueError(f"is unknown{hint}")
        return word
    if key.type is bool:
        flag = _number(text, True, warnings)
        if flag not in (0, 1):
            warnings.append("is read as 1")
        return bool(flag)
    if key.type is int or key.type is float:
        return key.type(_in_bounds(_number(text, key.type is int, warnings), key.constraints))
    if text.count(",") >= _MAX_ELEMENTS:
        raise UnreadableValueError(f"has more than {_MAX_ELEMENTS} elements")
    kind = typing.get_args(key.type)[0]
    numbers = [_in_bounds(_number(part, kind is int, warnings), key.constraints) for part in text.split(",")]
    if kind in (int, float):
        return tuple(kind(number) for number in numbers)
    if len(numbers) % 2:
        raise UnreadableValueError(
            f"has {len(numbers)} numbers; expected an even count, width and height of each anchor"
        )
    return tuple(zip(map(float, numbers[::2]), map(float, numbers[1::2]), strict=True))


def written(value: object) -> str:
    """Return the text of a value, in the form that every fork of Darknet reads."""
    if isinstance(value, tuple):
        return ",".join(written(element) for element in value)
    if isinstance(value, bool):
        return str(int(value))
    # hank-ai's reader does not know exponents.
    return np.format_float_positional(value, trim="-") if isinstance(value, float) else str(value)
