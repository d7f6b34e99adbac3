"""Rules for every key of every registered config: it is read, documented and survives a round trip through YAML."""

from __future__ import annotations

import ast
import dataclasses
import typing
from pathlib import Path

import pytest

import detector
from detector.config import registry
from detector.config.schema import config_to_yaml
from detector.tasks.classification_config import ClassificationConfig
from detector.tasks.detection_config import DetectionConfig
from detector.tasks.task import TaskConfig, load_experiment


def hints_of(schema: type) -> dict[str, tuple[type, ...]]:
    """Return the classes in the annotation of each key."""

    def classes(hint: object) -> tuple[type, ...]:
        inside = tuple(c for argument in typing.get_args(hint) for c in classes(argument))
        return (*inside, hint) if isinstance(hint, type) else inside

    return {name: classes(hint) for name, hint in typing.get_type_hints(schema).items()}


def reachable(schema: type) -> set[type]:
    """Return every config class that a configuration may contain, through the registry."""
    found: set[type] = set()
    waiting = [schema]
    while waiting:
        current = waiting.pop()
        if current in found:
            continue
        found.add(current)
        for classes in hints_of(current).values():
            for hint in classes:
                if registry.is_kind(hint):
                    waiting += registry.config_classes(hint).values()
                elif dataclasses.is_dataclass(hint):
                    waiting.append(hint)
    return {c for c in found if c.__module__.startswith("detector.")}


def every_config() -> set[type]:
    """Return every config class that an experiment of any task may contain."""
    return set().union(*(reachable(config) for config in registry.config_classes(TaskConfig).values()))


def attributes_read(path: Path) -> list[tuple[str, list[str]]]:
    """Return each attribute that a file reads, with the names of the enclosing classes and functions."""
    found: list[tuple[str, list[str]]] = []

    def visit(node: ast.AST, inside: list[str]) -> None:
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
            inside = [*inside, node.name]
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
            found.append((node.attr, inside))
        for child in ast.iter_child_nodes(node):
            visit(child, inside)

    visit(ast.parse(path.read_text("utf-8")), [])
    return found


# Splits are read by name: getattr(config, "val").
READ_BY_NAME = {("Config", "train"), ("Config", "val"), ("Config", "test")}


def test_every_key_is_read_by_the_code():
    configs = every_config()
    assert len(configs) > 20
    reads = [
        (attribute, path, inside)
        for path in Path(detector.__file__).parent.rglob("*.py")
        for attribute, inside in attributes_read(path)
    ]
    unread = []
    for config in configs:
        own = [*config.__qualname__.split("."), "__post_init__"]  # checking a value does not count as reading it
        home = Path(str(detector.__file__)).parent.parent / (config.__module__.replace(".", "/") + ".py")
        for field in dataclasses.fields(config):
            is_read = any(a == field.name and not (p == home and inside == own) for a, p, inside in reads)
            if not is_read and (own[-2], field.name) not in READ_BY_NAME:
                unread.append(f"{config.__module__}.{config.__qualname__}.{field.name}")
    assert sorted(unread) == []


def test_every_config_is_frozen_and_every_key_is_documented():
    for config in every_config():
        assert config.__dataclass_params__.frozen, config
        documented = " ".join(c.__doc__ or "" for c in config.__mro__ if dataclasses.is_dataclass(c))
        for field in dataclasses.fields(config):
            assert f"{field.name}:" in documented, f"{config.__qualname__}.{field.name}"


@pytest.mark.parametrize(("schema", "preset"), [(DetectionConfig, "mish-n"), (ClassificationConfig, "classify")])
def test_config_of_every_part_survives_a_round_trip(schema, preset, tmp_path):
    for field in dataclasses.fields(schema):
        kind = next((h for h in hints_of(schema)[field.name] if registry.is_kind(h)), None)
        for name in registry.names(kind) if kind else ():
            config = load_experiment(preset, [f"{field.name}={name}"])
            assert registry.name_of(getattr(config, field.name)) == name
            path = tmp_path / f"{field.name}_{name}.yaml"
            path.write_text(config_to_yaml(config), encoding="utf-8")
            assert load_experiment(str(path)) == config
