"""The table of all configuration keys: `keys.json`, made from the registered parts and read without any of them.

It answers mistakes before torch is loaded and holds the text of the key reference. `make reference` makes it again
after a key has changed; a test compares both.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

# The type of a value: the name of a plain type, or one entry {constructor: arguments}, such as {"list": "int"}.
ValueType: TypeAlias = "str | dict[str, object]"

TABLE_FILE = Path(__file__).with_name("keys.json")
ROOT_KIND = "TaskConfig"
_WORDS = {
    "int": "whole number",
    "float": "number",
    "bool": "true or false",
    "str": "text",
    "path": "path",
    "null": "nothing",
    "any": "plain data",
}


@dataclass(frozen=True)
class TableKey:
    """A key of a section.

    Attributes:
        value_type: the type of its value.
        default: the default as plain data; that of a part is its name, that of a section and a required key is None.
        is_required: true if the key has no default.
        range: the accepted numbers, such as `> 0`; empty for all numbers and for other types.
        meaning: its text in the documentation.
    """

    value_type: ValueType
    default: object
    is_required: bool
    range: str
    meaning: str

    @property
    def kind(self) -> str:
        """Name of the kind of part that the key selects, or empty."""
        return _argument(self.value_type, "kind")

    @property
    def section(self) -> str:
        """Identifier of the section that the key holds, or empty."""
        return _argument(self.value_type, "section")

    @property
    def is_optional(self) -> bool:
        """True if the value may be null."""
        return "null" in alternatives(self.value_type)


@dataclass(frozen=True)
class TableSection:
    """The keys of a config class.

    Attributes:
        meaning: the first paragraph of the documentation of the part or section.
        source: file of the package that defines it, such as `detector/training/optimizers.py`.
        chooses: the other sections of an experiment whose part it may choose by its defaults for them.
        reads_file: true if the section is read from a file of another format that a text names.
        keys: the keys by name.
    """

    meaning: str
    source: str
    chooses: Sequence[str]
    reads_file: bool
    keys: Mapping[str, TableKey]


@dataclass(frozen=True)
class KindOfPart:
    """A kind of part.

    Attributes:
        label: its name in words.
        name_key: the key that selects a part.
        unnamed: the part that a section without this key stands for, or None.
        parts: identifiers of the sections of its parts, by registered name.
    """

    label: str
    name_key: str
    unnamed: str | None
    parts: Mapping[str, str]


@dataclass(frozen=True)
class KeyTable:
    """Every section and kind that an experiment may contain.

    Attributes:
        kinds: by the name of the class.
        sections: by the dotted name of the class.
    """

    kinds: Mapping[str, KindOfPart]
    sections: Mapping[str, TableSection]

    def candidates(self, value_type: ValueType) -> tuple[TableSection, ...]:
        """Return the sections that a value of a type may be: one, or those of all parts of a kind."""
        section, kind = _argument(value_type, "section"), _argument(value_type, "kind")
        if section:
            return (self.sections[section],)
        return tuple(self.sections[name] for name in self.kinds[kind].parts.values()) if kind else ()

    def paths(self) -> dict[str, list[TableKey]]:
        """Return the keys of experiments of all tasks by dotted path; one path may have a key in each of many parts."""
        found: dict[str, list[TableKey]] = {}
        for section in self.candidates({"kind": ROOT_KIND}):
            for path, key in self._below(section, ()):
                if key not in found.setdefault(path, []):
                    found[path].append(key)
        return found

    def _below(self, section: TableSection, above: tuple[str, ...]) -> Iterator[tuple[str, TableKey]]:
        for name, key in section.keys.items():
            path = (*above, name)
            yield ".".join(path), key
            for inner in self.candidates(key.value_type):
                yield from self._below(inner, path)


def type_in_words(value_type: ValueType) -> str:
    """Return the type of a value in words, such as `list of numbers`."""
    if isinstance(value_type, str):
        return _WORDS[value_type]
    ((constructor, arguments),) = value_type.items()
    if constructor == "kind":
        return f"part ({arguments})"
    if constructor == "section":
        return "section"
    if constructor == "choices" and isinstance(arguments, list):
        return " or ".join(str(choice) for choice in arguments)
    inner = types_of(arguments)
    if constructor == "either":
        return " or ".join(type_in_words(each) for each in inner)
    if constructor == "fixed":
        words = [type_in_words(each) for each in inner]
        return f"{len(words)} {_plural(words[0])}" if len(set(words)) == 1 else f"({', '.join(words)})"
    return f"{'list' if constructor == 'list' else 'mapping to'} {'of ' if constructor == 'list' else ''}" + _plural(
        type_in_words(inner[0])
    )


def _plural(words: str) -> str:
    if words.startswith("part ("):
        return f"parts {words.removeprefix('part ')}"
    return {"plain data": "mappings", "2 numbers": "pairs of numbers"}.get(words, f"{words}s")


def types_of(arguments: object) -> list[ValueType]:
    """Return the types among the arguments of a constructor."""
    listed = arguments if isinstance(arguments, list) else [arguments]
    return [each for each in listed if isinstance(each, (str, dict))]


def alternatives(value_type: ValueType) -> list[ValueType]:
    """Return the types of which a value has one."""
    return types_of(value_type["either"]) if isinstance(value_type, dict) and "either" in value_type else [value_type]


def _argument(value_type: ValueType, constructor: str) -> str:
    """Return the only argument of a constructor in a type, which may also be null; empty if it has another one."""
    for each in alternatives(value_type):
        if isinstance(each, dict) and constructor in each:
            return str(each[constructor])
    return ""


# --- the file --------------------------------------------------------------------------------------------------------


def package_files() -> list[str]:
    """Return the Python files of the package that may hold parts, relative to its folder."""
    root = Path(__file__).parents[1]
    files = (path.relative_to(root).as_posix() for path in root.rglob("*.py"))
    return sorted(file for file in files if not file.startswith(("cli/", "templates/")))


@functools.cache
def is_current() -> bool:
    """Return true if the table was made from the files that the package has; a new file may hold a new part."""
    return _stored()[1] == package_files()


def key_table() -> KeyTable:
    """Return the table of the parts of the package."""
    return _stored()[0]


@functools.cache
def _stored() -> tuple[KeyTable, list[str]]:
    return table_of_text(TABLE_FILE.read_text(encoding="utf-8"))


def table_of_text(text: str) -> tuple[KeyTable, list[str]]:
    """Return the table that `table_to_text` has written, and the files that it was made from."""
    plain = json.loads(text)
    kinds = {
        name: KindOfPart(**{**kind, "parts": dict(sorted(kind["parts"].items()))})
        for name, kind in plain["kinds"].items()
    }
    sections = {
        name: TableSection(**{**section, "keys": {key: TableKey(*values) for key, values in section["keys"].items()}})
        for name, section in plain["sections"].items()
    }
    return KeyTable(kinds, sections), plain["files"]


def table_to_text(table: KeyTable) -> str:
    """Return a table as JSON with one key on a line, so that versions of the file can be compared."""
    lines = ["{", '"kinds": {']
    lines.append(",\n".join(f"{json.dumps(name)}: {json.dumps(vars(kind))}" for name, kind in table.kinds.items()))
    lines += ["},", '"sections": {']
    sections = []
    for name, section in table.sections.items():
        head = {field: value for field, value in vars(section).items() if field != "keys"}
        keys = ",\n".join(
            f"  {json.dumps(key)}: {json.dumps(list(vars(entry).values()))}" for key, entry in section.keys.items()
        )
        sections.append(f'{json.dumps(name)}: {json.dumps(head)[:-1]}, "keys": {{\n{keys}}}}}')
    lines += [",\n".join(sections), "},", f'"files": {json.dumps(package_files())}', "}"]
    return "\n".join(lines) + "\n"
