"""Typed, frozen config objects from YAML and overrides; every mistake of a file at once, with file and line.

In place of a section, a text that ends in `.yaml` names a file with the section, and any other text is the registered
name of a part with default settings. A section whose class has `of_file(name, folder)` is read by that function from
the file that the text names. A part whose config has `experiment_defaults()` gives defaults of the other sections.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import os
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pydantic
import yaml

from detector.config import registry
from detector.config.key_table import ROOT_KIND, key_table
from detector.config.name_suggestions import unknown_key, value_hint
from detector.config.nodes import (
    MAX_INTEGER,
    Mistakes,
    Node,
    NodeValue,
    SectionText,
    Where,
    describe,
    find_config,
    is_path,
    merge,
    missing_path,
    plain_of,
    read_nodes,
    replaced_lengths,
    section_of,
    shown,
    unknown_part,
    with_overrides,
    with_section_of_run,
)
from detector.errors import ConfigError, DetectorError
from detector.io.addresses import address_of, require_plain_address
from detector.io.folders import absolute

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Schema = TypeVar("Schema")


@functools.cache
def _adapter(hint: Any) -> pydantic.TypeAdapter[object]:
    return pydantic.TypeAdapter(hint, config=pydantic.ConfigDict(strict=True))


@functools.cache
def type_hints(schema: type) -> dict[str, object]:
    """Return the types of the keys of a config class."""
    return typing.get_type_hints(schema)


_FAILED = object()
# Metadata of a key that gives a permission: a value that the user has not written himself counts as the default.
PERMISSION = "permission"


class _Builder:
    """Builder of typed objects from nodes that collects all mistakes."""

    def __init__(self, is_experiment: bool = False) -> None:
        self.mistakes = Mistakes()
        self._is_experiment = is_experiment

    def build(self, hint: object, node: Node, key: str) -> object:
        origin, arguments = typing.get_origin(hint), typing.get_args(hint)
        if origin in (typing.Union, types.UnionType) and type(None) in arguments:
            if node.value is None:
                return None
            rest = [a for a in arguments if a is not type(None)]
            return self.build(rest[0] if len(rest) == 1 else typing.Union[tuple(rest)], node, key)  # noqa: UP007 (dynamic)
        if registry.is_kind(hint) or (isinstance(hint, type) and dataclasses.is_dataclass(hint)):
            return self.section(hint, node, key)
        if origin is tuple and len(arguments) == 2 and arguments[1] is ...:
            return self.sequence(arguments[0], node, key)
        if origin is dict:
            return self.mapping(arguments[1], node, key)
        if hint is Path:
            return self.path(node, key)
        return self.leaf(hint, node, key)

    def section(self, schema: type[DataclassInstance], node: Node, key: str) -> object:
        if isinstance(node.value, str) and hasattr(schema, "of_file"):
            try:
                return schema.of_file(node.value, node.where.folder)
            except DetectorError as error:
                self.mistakes.add(node.where, f"{key}: {error}")
                return _FAILED
        node = with_section_of_run(node, key)
        if isinstance(node.value, str) and (registry.is_kind(schema) or node.value.endswith((".yaml", ".yml"))):
            try:
                node = section_of(node.value, node.where)
            except ConfigError as error:
                self.mistakes.append(str(error))
                return _FAILED
        if not isinstance(node.value, dict):
            self.mistakes.add(node.where, f"{key}: expected a section of keys, got {describe(node.value)}")
            return _FAILED
        entries = dict(node.value)
        if registry.is_kind(schema):
            name = entries.pop(schema.name_key, None)
            if name is None and (unnamed := registry.unnamed_part(schema)) is not None:
                name = Node(unnamed, node.where)
            if name is None or not isinstance(name.value, str):
                known = ", ".join(registry.names(schema))
                where = node.where if name is None else name.where
                self.mistakes.add(where, f"{key or schema.name_key}: expected a {schema.name_key}, one of {known}")
                return _FAILED
            part_name = name.value
            if _is_path(schema, name, entries):
                if not os.path.exists(path := name.where.folder / os.path.expanduser(part_name)):
                    self.mistakes.append(missing_path(part_name, name.where))
                    return _FAILED
                part_name, keys = registry.claim_of(path, schema)
                entries = {**typing.cast("dict[str, Node]", _nodes(keys, name.where)), **entries}
            parts = registry.config_classes(schema)
            if part_name not in parts:
                label = registry.label_of(schema)
                self.mistakes.append(unknown_part(name.where, key or schema.name_key, label, part_name, parts))
                return _FAILED
            schema = parts[part_name]
        return self.fields(schema, entries, node, key)

    def fields(self, schema: type[DataclassInstance], entries: dict[str, Node], node: Node, key: str) -> object:
        before = len(self.mistakes)
        fields = {f.name: f for f in dataclasses.fields(schema)}
        known = [*fields, *([schema.name_key] if issubclass(schema, registry.PartConfig) else [])]
        values: dict[str, object] = {}
        for name, child in entries.items():
            full = f"{key}.{name}" if key else name
            if name not in fields:
                elsewhere = key_table().paths() if self._is_experiment else None
                self.mistakes.add(child.where, f"unknown key {shown(full)}{unknown_key(full, known, elsewhere)}")
            else:
                values[name] = self.build(type_hints(schema)[name], _named(child, fields[name].default), full)
                if fields[name].metadata.get(PERMISSION) and not child.where.is_own:
                    values[name] = fields[name].default
        for name, entry in fields.items():
            required = entry.default is dataclasses.MISSING and entry.default_factory is dataclasses.MISSING
            if required and name not in entries:
                self.mistakes.add(node.where, f"key {f'{key}.{name}' if key else name!r} is missing; add it")
        if len(self.mistakes) > before:
            return _FAILED
        try:
            return schema(**values)
        except ValueError as error:  # of several mistakes, one a line
            for line in str(error).splitlines():
                self.mistakes.add(node.where, f"{key + ': ' if key else ''}{line}")
            return _FAILED

    def sequence(self, hint: object, node: Node, key: str) -> object:
        if not isinstance(node.value, list):
            self.mistakes.add(node.where, f"{key}: expected a list, got {describe(node.value)}")
            return _FAILED
        return tuple(self.build(hint, item, f"{key}[{i}]") for i, item in enumerate(node.value))

    def mapping(self, hint: object, node: Node, key: str) -> object:
        if not isinstance(node.value, dict):
            self.mistakes.add(node.where, f"{key}: expected a section of keys, got {describe(node.value)}")
            return _FAILED
        return {name: self.build(hint, child, f"{key}.{name}") for name, child in node.value.items()}

    def path(self, node: Node, key: str) -> object:
        try:
            if isinstance(node.value, str) and address_of(node.value):
                require_plain_address(node.value)
                return Path(node.value)
            if isinstance(node.value, str) and node.value:
                path = Path(node.value).expanduser()
                return path if path.is_absolute() else absolute(node.where.folder / path)
            problem = ""
        except (OSError, RuntimeError, ValueError) as error:  # an unknown ~user, a loop of links, a null character
            problem = f" ({error})"
        except ConfigError as error:
            self.mistakes.add(node.where, f"{key}: {error}")
            return _FAILED
        self.mistakes.add(node.where, f"{key}: expected a path, got {describe(node.value)}{problem}")
        return _FAILED

    def leaf(self, hint: object, node: Node, key: str) -> object:
        plain = plain_of(node)
        if isinstance(plain, float) and not math.isfinite(plain):
            self.mistakes.add(node.where, f"{key}: expected a finite number, got {plain}")
            return _FAILED
        if isinstance(plain, int) and abs(plain) > MAX_INTEGER:
            self.mistakes.add(node.where, f"{key}: expected a number of at most 64 bits, got {describe(plain)}")
            return _FAILED
        try:
            return _adapter(hint).validate_json(json.dumps(plain))
        except TypeError:
            expected = "a plain value"
        except pydantic.ValidationError as error:
            expected = _fixed_form(hint) or error.errors()[0]["msg"].removeprefix("Input should be ")
        names = {each.__name__ for each in (hint, *typing.get_args(hint)) if isinstance(each, type)}
        self.mistakes.add(
            node.where, f"{key}: expected {expected}, got {describe(plain)}{value_hint(key, plain, names)}"
        )
        return _FAILED


def _fixed_form(hint: object) -> str:
    """Return in words the type of a list of fixed length, alone or instead of a whole number; "" for other types."""
    parts = typing.get_args(hint)
    if typing.get_origin(hint) is tuple and ... not in parts:
        return f"a list of {len(parts)} {'whole ' * (parts[0] is int)}numbers"
    lists = [form for part in parts if (form := _fixed_form(part))]
    return f"a whole number or {lists[0]}" if lists and int in parts else ""


def _is_path(kind: registry.Kind, name: Node, entries: Mapping[str, Node]) -> bool:
    """Tell whether the name of a part of a kind is instead the path of something that parts of the kind read.

    The name of a part that reads nothing without a path is rather that of a folder, if there is one.
    """
    if not isinstance(name.value, SectionText):
        return False
    if not is_path(name.value, name.where) or not registry.reads_paths(kind):
        return False
    part: Any = registry.parts_of(kind).get(name.value)
    return part is None or (not entries and getattr(part.Config(), part.path_key, name) is None)


def _named(node: Node, default: object) -> Node:
    """Return a section that names no part as settings of the default part."""
    if isinstance(node.value, dict) and "name" not in node.value and isinstance(default, registry.PartConfig):
        return Node({"name": Node(registry.name_of(default), node.where), **node.value}, node.where)
    return node


def _schema_of(schema: type[DataclassInstance], node: Node) -> type[DataclassInstance]:
    """Return the config class of a section: for a kind, that of the part that the section names, if it is known."""
    if not registry.is_kind(schema):
        return schema
    entries = node.value if isinstance(node.value, dict) else {}
    name = entries[schema.name_key].value if schema.name_key in entries else registry.unnamed_part(schema)
    return registry.config_classes(schema).get(name, schema) if isinstance(name, str) else schema


def _with_defaults_of_parts(schema: type, node: Node) -> Node:
    """Return the given settings on top of the defaults that the selected parts have for the other sections.

    A schema without some of these sections, such as that of a network alone, leaves their defaults out.
    """
    entries = node.value if isinstance(node.value, dict) else {}
    schema = _schema_of(schema, node)
    for field in dataclasses.fields(schema):
        if field.name in entries and registry.is_kind(type_hints(schema)[field.name]):
            # Mistakes are reported when the whole config is built.
            given = _named(entries[field.name], field.default)
            part = _Builder().build(type_hints(schema)[field.name], given, field.name)
            defaults = part.experiment_defaults() if hasattr(part, "experiment_defaults") else {}
            defaults = {name: settings for name, settings in defaults.items() if name in type_hints(schema)}
            where = Where(f"the defaults of {field.name}", 0, Path.cwd())
            node = merge(Node(_nodes(defaults, where), where), node)
    return node


def _without_own_name(schema: type, node: Node) -> Node:
    """Return the settings of one part without the key that selects that part."""
    if not issubclass(schema, registry.PartConfig) or registry.is_kind(schema) or not isinstance(node.value, dict):
        return node
    name = node.value.get(schema.name_key)
    if name is None or not isinstance(name.value, str):
        return node
    if registry.parts_of(registry.kind_of(schema)).get(name.value) is not registry.part_of(schema):
        return node
    return Node({key: value for key, value in node.value.items() if key != schema.name_key}, node.where)


def _finish(schema: type[Schema], node: Node) -> Schema:
    is_experiment = issubclass(schema, registry.PartConfig) and registry.kind_of(schema).__name__ == ROOT_KIND
    builder = _Builder(is_experiment)
    node = _without_own_name(schema, node)
    built = builder.build(schema, _with_defaults_of_parts(schema, node), "")
    builder.mistakes.raise_any()
    return typing.cast(Schema, _with_absolute_paths(built))


def _with_absolute_paths(built: object) -> object:
    """Return a config with absolute paths, so that it means the same in every working directory once saved."""
    if isinstance(built, Path):
        return built if address_of(built) else absolute(built)
    if not dataclasses.is_dataclass(built) or isinstance(built, type):
        return built
    before = {f.name: getattr(built, f.name) for f in dataclasses.fields(built)}
    after = {name: _with_absolute_paths(value) for name, value in before.items()}
    return built if after == before else dataclasses.replace(built, **after)


def load_config(schema: type[Schema], name: str, overrides: Iterable[str] = (), *, are_own: bool = True) -> Schema:
    """Load a typed configuration from a file or preset, with `key=value` overrides on top.

    Args:
        schema: a frozen dataclass.
        name: a path, or the name of a shipped preset.
        overrides: texts such as `loader.batch_size=8`, in order; relative paths in them start at the working directory,
            those in a file at the folder of the file.
        are_own: as in `with_overrides`.

    Raises:
        ConfigError: every mistake found, one a line, each with file and line.
    """
    node = read_nodes(find_config(name))
    return _finish(schema, with_overrides(node, overrides, are_own=are_own))


def config_from_plain(
    schema: type[Schema],
    plain: Mapping[str, object],
    source: str,
    overrides: Sequence[str] = (),
    *,
    is_own: bool = False,
    are_own: bool = True,
) -> Schema:
    """Build a typed configuration from plain data, such as that of a checkpoint, with overrides on top.

    Args:
        schema: a frozen dataclass.
        plain: the data.
        source: the place of the data, for messages.
        overrides: as in `load_config`.
        is_own: whether the user has given the data in this call, so that they may give a permission.
        are_own: as in `with_overrides`.

    Raises:
        ConfigError: as `load_config`, with `source` in place of file and line.
    """
    where = Where(source, 0, Path.cwd(), is_own)
    node = Node(_nodes(plain, where), where)
    return _finish(schema, with_overrides(node, overrides, are_own=are_own))


def _nodes(plain: object, where: Where) -> NodeValue:
    if isinstance(plain, Mapping):
        return {str(k): Node(_nodes(v, where), where) for k, v in plain.items()}
    if isinstance(plain, (list, tuple)):
        return [Node(_nodes(v, where), where) for v in plain]
    return str(plain) if isinstance(plain, Path) else typing.cast("NodeValue", plain)  # the field refuses other types


def config_to_plain(config: DataclassInstance) -> dict[str, object]:
    """Return a configuration as plain data (mappings, lists, scalars) that `config_from_plain` accepts."""
    plain = {f.name: _value_to_plain(getattr(config, f.name)) for f in dataclasses.fields(config)}
    if not isinstance(config, registry.PartConfig) or registry.name_of(config) == config.default_name:
        return plain
    return {config.name_key: registry.name_of(config), **plain}


def _value_to_plain(value: object) -> object:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return config_to_plain(value)
    if isinstance(value, Mapping):
        return {k: _value_to_plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_value_to_plain(v) for v in value]
    return str(value) if isinstance(value, Path) else value


def merged_plain(base: dict[str, object], over: dict[str, object]) -> dict[str, object]:
    """Merge plain settings on top of others; a section that names another part replaces the section below it."""
    if over.get("name", base.get("name")) != base.get("name"):
        return over
    replaced = replaced_lengths(base, over)
    merged = {key: value for key, value in base.items() if key not in replaced}
    for key, value in over.items():
        below = base.get(key)
        merged[key] = merged_plain(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return merged


class _Dumper(yaml.SafeDumper):
    """YAML dumper that writes texts of several lines as blocks."""


def _write_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar(
        "tag:yaml.org,2002:str", text, style="|" if "\n" in text and text.isascii() else None
    )


_Dumper.add_representer(str, _write_text)


def config_to_yaml(config: DataclassInstance) -> str:
    """Return a configuration as YAML text that `load_config` reads back to an equal object."""
    return yaml.dump(config_to_plain(config), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def flattened(plain: Mapping[str, object], key: str = "") -> dict[str, object]:
    """Return the values of a plain configuration by the keys that overrides have, such as `optimizer.lr`."""
    flat: dict[str, object] = {}
    for name, value in plain.items():
        full = f"{key}.{name}" if key else name
        flat |= flattened(value, full) if isinstance(value, Mapping) else {full: value}
    return flat


def differences(ours: object, theirs: object, key: str = "") -> list[str]:
    """List the differences of two plain configurations, one line each: key, first value, second value."""
    if isinstance(ours, Mapping) and isinstance(theirs, Mapping):
        keys = dict.fromkeys([*ours, *theirs])
        return [d for k in keys for d in differences(ours.get(k), theirs.get(k), f"{key}.{k}" if key else str(k))]
    return [] if ours == theirs else [f"{key}: {ours!r} here, {theirs!r} there"]
