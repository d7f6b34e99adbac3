"""YAML files, `base:` parents, `recipe:` and `key=value` overrides as nodes that know their file and line.

A configuration is plain data: no code, no environment variables, no anchors, no tags.
"""

from __future__ import annotations

import datetime
import functools
import os
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import yaml

from detector.config import registry
from detector.config.name_suggestions import did_you_mean, near_names, nearest, preset_hint, unknown_name
from detector.errors import ConfigError
from detector.io.addresses import without_secrets
from detector.io.folders import absolute

# A configuration is a page of text. A larger file is a mistake or an attack and is refused before it is parsed.
MAX_FILE_BYTES = 65_536
MAX_DEPTH = 20
MAX_INTEGER = 2**63 - 1  # what torch and NumPy can hold
MAX_MISTAKES_SHOWN = 50
MAX_SHOWN = 80  # characters of a value in an error message
_PLAIN_TAGS = {f"tag:yaml.org,2002:{t}" for t in ("null", "bool", "int", "float", "str", "seq", "map", "timestamp")}


@dataclass(frozen=True)
class Where:
    """Place of a value.

    Attributes:
        source: the file, override or other place.
        line: its line from 1; 0 for none.
        folder: the folder that its relative paths start from.
        is_own: whether the user has written it for this command or call, not in a file: only then it may give a
            permission.
    """

    source: str
    line: int
    folder: Path
    is_own: bool = False

    def __str__(self) -> str:
        return f"{self.source}:{self.line}" if self.line else self.source


# YAML reads a text such as 2024-01-31 as a date, which every field refuses.
NodeValue: TypeAlias = "bool | int | float | str | datetime.date | list[Node] | dict[str, Node] | None"


@dataclass(frozen=True)
class Node:
    """A value with its place: a mapping of nodes, a list of nodes or a scalar."""

    value: NodeValue
    where: Where


class Mistakes(list[str]):
    """Mistakes of a configuration, collected so that all of them are reported at once."""

    def add(self, where: Where, text: str) -> None:
        """Add a mistake with its place."""
        self.append(f"{where}: {text}")

    def raise_any(self) -> None:
        """Raise every mistake on a line of its own, if there is any.

        Raises:
            ConfigError: there is a mistake.
        """
        lines = list(dict.fromkeys(self))
        if len(lines) > MAX_MISTAKES_SHOWN:
            lines[MAX_MISTAKES_SHOWN:] = [f"and {len(lines) - MAX_MISTAKES_SHOWN} more mistakes"]
        if lines:
            raise ConfigError("\n".join(lines))


# --- presets -----------------------------------------------------------------------------------------------------


def presets_dir() -> Path:
    """Return the folder of the shipped presets: inside the installed package, or `cfg/` of a source checkout."""
    package = Path(__file__).parents[1]
    packed = package / "presets"
    return packed if packed.is_dir() else package.parent / "cfg"


def find_config(name: str, relative_to: Path | None = None) -> Path:
    """Return a configuration file by path or by the name of a shipped preset.

    Raises:
        ConfigError: neither exists; the message gives the nearest preset.
    """
    for path in ([relative_to / name] if relative_to else []) + [Path(name)]:
        if os.path.isfile(path):  # unlike Path.is_file, false for an impossible file name
            return path
    preset = presets_dir() / f"{Path(name).stem if name.endswith('.yaml') else name}.yaml"
    if os.path.isfile(preset) and Path(name).name == name:
        return preset
    known = [p.stem for p in presets_dir().glob("*.yaml")]
    raise ConfigError(f"no configuration file or preset is named {shown(name)}{preset_hint(name, known)}")


# --- YAML to nodes -----------------------------------------------------------------------------------------------


class _Loader(yaml.SafeLoader):
    """YAML loader that refuses anchors, aliases and deep nesting before they cost time or memory."""

    def __init__(self, text: str, source: str, folder: Path) -> None:
        super().__init__(text)
        self._source, self._folder, self._depth = source, folder, 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Return the next node with the nodes below it."""
        event = self.peek_event()  # type: ignore[no-untyped-call]  # the stubs leave it untyped
        where = Where(self._source, event.start_mark.line + 1, self._folder)
        if isinstance(event, yaml.AliasEvent) or event.anchor:
            raise ConfigError(f"{where}: anchors and aliases are not allowed; write the value out or use base:")
        if self._depth > MAX_DEPTH:
            raise ConfigError(f"{where}: sections nest deeper than {MAX_DEPTH}; flatten them")
        self._depth += 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node


def _convert(node: yaml.Node, source: str, folder: Path, mistakes: Mistakes, number_keys: bool = False) -> Node:
    where = Where(source, node.start_mark.line + 1, folder)
    if node.tag not in _PLAIN_TAGS:
        tag = shown(node.tag)
        mistakes.add(where, f"the tag {tag} is not allowed, a configuration holds plain data only; remove it")
        return Node(None, where)
    if isinstance(node, yaml.MappingNode):
        mapping: dict[str, Node] = {}
        lines: dict[str, int] = {}
        for key_node, value_node in node.value:
            key_where = Where(source, key_node.start_mark.line + 1, folder)
            is_number = number_keys and key_node.tag == "tag:yaml.org,2002:int"
            if key_node.tag != "tag:yaml.org,2002:str" and not is_number:
                got = shown(key_node.value) if isinstance(key_node, yaml.ScalarNode) else "a section or list"
                hint = " (YAML reads it as a bool, number or other value; put it in quotes)"
                mistakes.add(key_where, f"expected text as a key, got {got}{hint}")
                continue
            if key_node.value in mapping:
                first = lines[key_node.value]
                mistakes.add(key_where, f"duplicate key {shown(key_node.value)}, first on line {first}; keep one")
                continue
            lines[key_node.value] = key_where.line
            mapping[key_node.value] = _convert(value_node, source, folder, mistakes, number_keys)
        return Node(mapping, where)
    if isinstance(node, yaml.SequenceNode):
        return Node([_convert(item, source, folder, mistakes, number_keys) for item in node.value], where)
    try:
        value = yaml.constructor.SafeConstructor().construct_object(node)
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        text = shown(node.value)
        mistakes.add(where, f"{text} is not a value YAML can read ({error}); put it in quotes if it is text")
        return Node(None, where)
    if isinstance(value, int) and abs(value) > MAX_INTEGER:
        mistakes.add(where, f"expected a whole number of at most {MAX_INTEGER}, got {shown(node.value)}; lower it")
        return Node(None, where)
    return Node(value, where)


def _parse_text(text: str, source: str, folder: Path, number_keys: bool = False) -> Node:
    mistakes = Mistakes()
    try:
        root = _Loader(text, source, folder).get_single_node()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line, column = (mark.line + 1, mark.column + 1) if mark else (0, 0)
        raise ConfigError(f"{source}:{line}:{column}: not valid YAML, {error.problem or error.context}") from error
    except (yaml.YAMLError, RecursionError) as error:
        problem = " ".join(str(error).split()) or type(error).__name__
        raise ConfigError(f"{source}: not valid YAML, {problem}") from error
    if root is None:
        return Node({}, Where(source, 1, folder))
    node = _convert(root, source, folder, mistakes, number_keys)
    mistakes.raise_any()
    return node


def read_foreign(path: Path) -> dict[str, Node]:
    """Return the keys of another program's YAML file, without resolving parents; keys may be whole numbers.

    Raises:
        ConfigError: the file cannot be read, or is not plain YAML of keys and values.
    """
    node = _parse_text(_text_of(path), _relative(path), path.parent, number_keys=True)
    if not isinstance(node.value, dict):
        raise ConfigError(f"{node.where}: expected keys and values, got {describe(node.value)}")
    return node.value


def read_nodes(path: Path, chain: tuple[Path, ...] = (), section: SectionReader | None = None) -> Node:
    """Return a file as nodes, merged on top of its `recipe:` and that on top of its `base:` parents.

    Args:
        path: the file.
        chain: the files that lead to it as parents.
        section: as in `merge`.

    Raises:
        ConfigError: the file cannot be read, is not plain YAML, or its parents form a circle.
    """
    path = absolute(path)
    if path in chain:
        raise ConfigError(f"{path}: base: leads back to this file through {', '.join(p.name for p in chain)}")
    node = _parse_text(_text_of(path), _relative(path), path.parent)
    if not isinstance(node.value, dict):
        raise ConfigError(f"{node.where}: expected a configuration of keys and values, got {describe(node.value)}")
    recipe = node.value.pop("recipe", None)
    node = node if recipe is None else merge(read_recipe(recipe), node, section)
    assert isinstance(node.value, dict)  # merged from two files of keys
    base = node.value.pop("base", None)
    if base is None:
        return node
    if not isinstance(base.value, str):
        raise ConfigError(f"{base.where}: base: expected the name of one file, got {describe(base.value)}")
    try:
        parent = find_config(base.value, relative_to=path.parent)
    except ConfigError as error:
        raise ConfigError(f"{base.where}: base: {error}") from error
    return merge(read_nodes(parent, (*chain, path), section), node, section)


def read_recipe(name: Node) -> Node:
    """Return a shipped recipe, sections of an experiment that a preset or a file of one's own takes over, as nodes.

    Raises:
        ConfigError: there is no recipe of this name.
    """
    recipes = {path.stem: path for path in (presets_dir() / "recipes").glob("*.yaml")}
    if not isinstance(name.value, str) or name.value not in recipes:
        raise ConfigError(
            f"{name.where}: recipe: expected the name of a recipe, got {describe(name.value)}"
            f"{nearest(str(name.value), recipes)}"
        )
    return read_nodes(recipes[name.value])


def with_overrides(
    node: Node, overrides: Iterable[str], section: SectionReader | None = None, *, are_own: bool = True
) -> Node:
    """Return nodes with `key=value` overrides on top; one of the key `recipe` comes below the others.

    Args:
        node: the nodes.
        overrides: texts such as `loader.batch_size=8`.
        section: as in `merge`.
        are_own: false for overrides from a file, which cannot give a permission.

    Raises:
        ConfigError: an override is wrong.
    """
    given = [override_nodes(text, is_own=are_own) for text in overrides]
    for over in given:
        if isinstance(over.value, dict) and (recipe := over.value.pop("recipe", None)) is not None:
            node = merge(node, read_recipe(recipe), section)
    return functools.reduce(functools.partial(merge, section=section), given, node)


def _text_of(path: Path) -> str:
    source = _relative(path)
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise ConfigError(f"{source}: expected a configuration of at most {MAX_FILE_BYTES} bytes, got more")
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ConfigError(f"{source}: cannot be read, {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{source}: not UTF-8 text, byte {error.start} is {error.object[error.start]:#04x}"
        ) from error


def _relative(path: Path) -> str:
    """Return a path as a person would type it: relative if it is below the working directory."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)


class SectionText(str):
    """A text in place of a section: the name of a part, or a path; the value of a key `name` can only be a name."""


SectionReader: TypeAlias = "Callable[[str, Where], Node]"


def merge(base: Node, over: Node, section: SectionReader | None = None) -> Node:
    """Merge one node on top of another, key by key; a section with another `name` replaces the whole section.

    Args:
        base: the lower node.
        over: the upper node.
        section: returns the section that a text stands for; None for `section_of`.
    """
    if isinstance(base.value, str) and isinstance(over.value, dict):
        base = (section or section_of)(base.value, base.where)
    if not (isinstance(base.value, dict) and isinstance(over.value, dict)):
        return over
    ours, theirs = over.value.get("name"), base.value.get("name")
    if ours is not None and theirs is not None and ours.value != theirs.value:
        return over
    replaced = replaced_lengths(base.value, over.value)
    merged = {key: node for key, node in base.value.items() if key not in replaced}
    for key, node in over.value.items():
        merged[key] = merge(merged[key], node, section) if key in merged else node
    return Node(merged, over.where)


def replaced_lengths(base: Collection[str], over: Collection[str]) -> tuple[str, ...]:
    """Return the keys of a section `train` that a given `epochs` above them replaces.

    These are the number of steps, and the least number of steps if it belongs to other epochs.
    """
    if "epochs" not in over:
        return ()
    return ("iterations", "min_iterations") if "epochs" in base else ("iterations",)


def section_of(text: str, where: Where) -> Node:
    """Return the section that a text stands for: that of the YAML file it names, or a part by its registered name.

    A path of another program's file or folder takes the place of the name; `schema` finds the part that reads it.

    Raises:
        ConfigError: the named file cannot be read.
    """
    named = Node({"name": Node(SectionText(text), where)}, where)
    if not Path(text).suffix or text.endswith("/") or os.path.isdir(where.folder / text):
        return named
    path = find_section_file(text, where)
    try:
        return read_nodes(path) if text.endswith((".yaml", ".yml")) and not registry.is_foreign(path) else named
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error


def find_section_file(text: str, where: Where) -> Path:
    """Return the file that a text in place of a section names, by path or by the name of a shipped preset.

    Raises:
        ConfigError: there is none; the message gives the nearest file or preset, if one has a similar name.
    """
    try:
        return find_config(text, relative_to=where.folder)
    except ConfigError as error:
        is_near = near_names(Path(text).stem, [preset.stem for preset in presets_dir().glob("*.yaml")])
        raise ConfigError(f"{where}: {error}" if is_near else missing_path(text, where)) from error


def missing_path(text: str, where: Where) -> str:
    """Return the message for a file or folder that does not exist, with the part of its path that is missing.

    It begins with the place where the path is written, if that is in a file.
    """
    path = where.folder / os.path.expanduser(text)
    parent = next((above for above in path.parents if os.path.isdir(above)), path.parent)
    missing = path.relative_to(parent).parts[0]
    try:
        close = [parent / name for name in near_names(missing, os.listdir(parent))]
        near = [str(each) if os.path.isabs(text) else os.path.relpath(each, where.folder) for each in close]
    except (OSError, ValueError):  # a folder that cannot be listed, a null character
        near = []
    what = "file" if Path(text).suffix and not text.endswith("/") else "file or folder"
    inside = "there is no folder" if parent == Path.cwd() else f"{shown(_relative(parent))} has no"
    lacks = "" if missing == path.name else f", because {inside} {shown(missing)}"
    source = f"{where}: " if where.line else ""
    return f"{source}there is no {what} {shown(text)}{lacks}{did_you_mean(near) if near else '; check the path'}"


def unknown_part(where: Where, key: str, label: str, name: str, known: Iterable[str]) -> str:
    """Return the message for a name that is none of the parts of a kind; a missing path of the user's comes first."""
    text = unknown_name(label, name, known)
    return text if text.startswith("there is no file") and not where.line else f"{where}: {key}: {text}"


def is_path(text: str, where: Where) -> bool:
    """Tell whether a text in place of the name of a part can only be a path: it names one, or looks like one."""
    looks_like_one = "/" in text or "\\" in text or bool(Path(text).suffix)
    return bool(text) and (looks_like_one or os.path.exists(where.folder / text))


def with_section_of_run(node: Node, key: str) -> Node:
    """Return a section, where it names the folder of a run with the section of the same key in its `config.yaml`.

    The folder is the value, or stands in place of the name of a part; other keys of the section change the run's.
    """
    given = dict(node.value) if isinstance(node.value, dict) else {}
    named = given.pop("name", None) if given else node
    if named is None or not isinstance(named.value, str) or not named.value:
        return node
    config = named.where.folder / named.value / "config.yaml"
    if not os.path.isfile(config):
        return node
    section = read_nodes(config)
    for name in key.split("."):
        entries = section.value
        if not isinstance(entries, dict) or name not in entries:
            raise ConfigError(f"{named.where}: {key}: the run {named.value} has no {key}; name another one")
        section = entries[name]
    return merge(section, Node(given, node.where)) if given else section


def override_nodes(text: str, *, is_own: bool = True) -> Node:
    """Return `a.b.c=value` as the nodes of a file with these keys; `is_own` as in `Where`.

    Raises:
        ConfigError: the text is not such an override, or its value is not plain YAML.
    """
    key, equals, value = text.partition("=")
    where = Where(f"override {without_secrets(text)!r}", 0, Path.cwd(), is_own)
    if not equals or not all(part.isidentifier() for part in key.split(".")):
        raise ConfigError(f"{where}: expected an override key=value, such as loader.batch_size=8")
    parsed = _parse_text(value, where.source, where.folder) if value else Node("", where)
    node = Node(_number_if_one(parsed.value), where) if isinstance(parsed.value, str) else _relocated(parsed, where)
    for part in reversed(key.split(".")):
        node = Node({part: node}, where)
    return node


def _number_if_one(text: str) -> str | float:
    """Read text such as 1e-3 as a number, as people expect on a command line; YAML 1.1 reads it as text."""
    try:
        return float(text) if "e" in text.lower() and text[0] in "+-.0123456789" else text
    except ValueError:
        return text


def _relocated(node: Node, where: Where) -> Node:
    if isinstance(node.value, dict):
        return Node({k: _relocated(v, where) for k, v in node.value.items()}, where)
    if isinstance(node.value, list):
        return Node([_relocated(v, where) for v in node.value], where)
    return Node(node.value, where)


def describe(value: object) -> str:
    """Return a value in words, for an error message."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return f"the bool {str(value).lower()}"
    if isinstance(value, int) and abs(value) > MAX_INTEGER:
        return "a number of more than 64 bits"
    names: dict[type, str] = {str: "the text", int: "the number", float: "the number"}
    if isinstance(value, dict):
        return "a section"
    if isinstance(value, list):
        return "a list"
    return f"{names.get(type(value), 'the ' + type(value).__name__)} {shown(value)}"


def shown(value: object) -> str:
    """Return a scalar as an error message shows it: text in quotes, long values cut."""
    text = repr(value)
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."


def plain_of(node: Node) -> object:
    """Return a node without the places: mappings, lists and scalars."""
    if isinstance(node.value, dict):
        return {k: plain_of(v) for k, v in node.value.items()}
    if isinstance(node.value, list):
        return [plain_of(v) for v in node.value]
    return node.value
