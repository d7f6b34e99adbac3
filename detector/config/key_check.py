"""Check of an experiment against the table of keys, which needs no part to be imported and so no torch.

It finds unknown keys, unknown parts, missing keys and plain values of a wrong type, in the words of `schema`. What the
table cannot decide, such as ranges and files of other formats, is left to `schema`, which checks everything.
"""

from __future__ import annotations

import operator
import os
from collections.abc import Sequence
from pathlib import Path

from detector.config.key_table import (
    ROOT_KIND,
    KeyTable,
    KindOfPart,
    TableKey,
    TableSection,
    ValueType,
    alternatives,
    key_table,
    types_of,
)
from detector.config.name_suggestions import unknown_key, value_hint
from detector.config.nodes import (
    MAX_INTEGER,
    Mistakes,
    Node,
    Where,
    describe,
    find_config,
    find_section_file,
    missing_path,
    plain_of,
    read_nodes,
    shown,
    unknown_part,
    with_overrides,
)
from detector.errors import ConfigError

_ROOT = TableKey({"kind": ROOT_KIND}, None, False, "", "")
_UNREAD = "\0"  # the name of a part that a file selects which is not read here
_COMPARISONS = {">": operator.gt, ">=": operator.ge, "<": operator.lt, "<=": operator.le}
_EXPECTED = {
    "int": "a valid integer",
    "float": "a valid number",
    "bool": "a valid boolean",
    "str": "a valid string",
    "path": "a path",
}


def check_experiment(name: str, overrides: Sequence[str]) -> None:
    """Check a configuration file, preset or `.cfg` with overrides on top.

    Raises:
        ConfigError: every mistake found, each with file and line.
    """
    if name.endswith(".cfg"):
        where = Where(name, 0, Path.cwd())
        node = Node({"model": Node({"name": Node("darknet", where)}, where)}, where)
    else:
        node = read_nodes(find_config(name), section=_section_of)
    _check(node, overrides, is_whole=True)


def check_overrides(overrides: Sequence[str]) -> None:
    """Check overrides of an experiment that is not known, such as that of a model file.

    Raises:
        ConfigError: every mistake found.
    """
    where = Where("overrides", 0, Path.cwd())
    _check(Node({}, where), overrides, is_whole=False)


def _check(node: Node, overrides: Sequence[str], is_whole: bool) -> None:
    node = with_overrides(node, overrides, _section_of)
    check = _Check(key_table(), is_whole)
    check.value((_ROOT,), node, "")
    if not check.is_undecided:  # the full check reports that value together with all other mistakes
        check.mistakes.raise_any()


def _section_of(text: str, where: Where) -> Node:
    """Return the section that a text stands for; that of a file or folder is not read."""
    if _is_unread(text, where):
        return Node({"name": Node(_UNREAD, where)}, where)
    if "/" in text and not text.endswith((".yaml", ".yml")):
        raise ConfigError(missing_path(text, where))
    if not Path(text).suffix:
        return Node({"name": Node(text, where)}, where)
    find_section_file(text, where)
    return Node({"name": Node(_UNREAD, where)}, where)


def _is_unread(text: str, where: Where) -> bool:
    """Tell whether a text names a file or folder, such as that of a run or of data, which only `schema` reads."""
    return bool(text) and os.path.exists(where.folder / os.path.expanduser(text))


class _Check:
    """Walk over the nodes of an experiment beside the table of keys.

    Several keys or sections at once stand for an unknown choice among them: only a mistake in all of them counts.
    """

    def __init__(self, table: KeyTable, is_whole: bool) -> None:
        self.mistakes = Mistakes()
        self._table = table
        self._paths = table.paths()
        self._is_whole = is_whole  # a section without a name belongs to the default part
        self._open_sections: set[str] = set()
        self._is_partly_unread = not is_whole  # the rest of a section may be in a file that is not read here
        self.is_undecided = False

    def value(self, keys: Sequence[TableKey], node: Node, path: str) -> None:
        """Check the value of a key."""
        if len({str(key.value_type) for key in keys}) > 1 and not all(key.kind or key.section for key in keys):
            return
        if keys[0].kind or keys[0].section:
            if node.value is not None or not any(key.is_optional for key in keys):
                self._section(keys, node, path)
        else:
            self._leaf(keys[0], node, path)

    def _section(self, keys: Sequence[TableKey], node: Node, path: str) -> None:
        kinds = [self._table.kinds[key.kind] for key in keys if key.kind]
        sections = [section for key in keys for section in self._table.candidates(key.value_type)]
        if isinstance(node.value, str) and (
            any(section.reads_file for section in sections) or _is_unread(node.value, node.where)
        ):
            return
        if isinstance(node.value, str) and (kinds or node.value.endswith((".yaml", ".yml"))):
            try:
                node = _section_of(node.value, node.where)
            except ConfigError as error:
                self.mistakes.append(str(error))
                return
        if not isinstance(node.value, dict):
            self.mistakes.add(node.where, f"{path}: expected a section of keys, got {describe(node.value)}")
        elif not kinds:
            self._keys(sections, node, path)
        elif (chosen := self._chosen(keys, kinds, node, path)) is not None:
            before, name_key = self._is_partly_unread, kinds[0].name_key
            self._is_partly_unread |= name_key in node.value and node.value[name_key].value == _UNREAD
            self._keys(chosen, node, path, name_key)
            self._is_partly_unread = before

    def _chosen(
        self, keys: Sequence[TableKey], kinds: Sequence[KindOfPart], node: Node, path: str
    ) -> Sequence[TableSection] | None:
        """Return the sections of the parts that a node may select, the usual one first, or None after a mistake."""
        assert isinstance(node.value, dict)
        kind = kinds[0]
        known = {name: section for each in kinds for name, section in each.parts.items()}
        named = node.value.get(kind.name_key)
        if named is not None and (named.value == _UNREAD or _is_unread(str(named.value), named.where)):
            return [self._table.sections[section] for section in known.values()]
        if named is None:
            usual = keys[0].default if isinstance(keys[0].default, str) else kind.unnamed
            if len(keys) > 1 or path in self._open_sections or not self._is_whole:
                return [self._table.sections[section] for section in sorted(known.values(), key=lambda s: s != usual)]
            named = Node(usual, node.where)
        if not isinstance(named.value, str):
            names = ", ".join(sorted(kind.parts))
            self.mistakes.add(named.where, f"{path or kind.name_key}: expected a {kind.name_key}, one of {names}")
            return None
        if named.value not in known:
            label = path or kind.name_key
            self.mistakes.append(unknown_part(named.where, label, kind.label, named.value, known))
            return None
        parts = [each.parts[named.value] for each in kinds if named.value in each.parts]
        return [self._table.sections[part] for part in parts]

    def _keys(self, sections: Sequence[TableSection], node: Node, path: str, name_key: str = "") -> None:
        """Check the keys of a node that is one of some sections."""
        assert isinstance(node.value, dict)
        if not path:
            self._open_sections = self._sections_that_parts_choose(sections, node.value)
        for name, child in node.value.items():
            full = f"{path}.{name}" if path else name
            keys = [section.keys[name] for section in sections if name in section.keys]
            if keys:
                self.value([key for number, key in enumerate(keys) if key not in keys[:number]], child, full)
            elif name != name_key:
                known = [*sections[0].keys, *([name_key] if name_key else [])]
                self.mistakes.add(child.where, f"unknown key {shown(full)}{unknown_key(full, known, self._paths)}")
        for name, key in sections[0].keys.items() if len(sections) == 1 and not self._is_partly_unread else ():
            if key.is_required and name not in node.value:
                full = f"{path}.{name}" if path else name
                self.mistakes.add(node.where, f"key {full!r} is missing; add it")

    def _sections_that_parts_choose(self, roots: Sequence[TableSection], entries: dict[str, Node]) -> set[str]:
        """Return the sections of an experiment whose part is chosen by the defaults of another part."""
        chosen: set[str] = set()
        for root in roots:
            for name, key in root.keys.items():
                kind = self._table.kinds.get(key.kind)
                if kind is None:
                    continue
                given = entries.get(name)
                if given is not None and isinstance(given.value, dict):
                    given = given.value.get(kind.name_key)
                part = key.default if given is None and self._is_whole else given and given.value
                names = [part] if isinstance(part, str) and part in kind.parts else kind.parts
                chosen.update(*(self._table.sections[kind.parts[each]].chooses for each in names))
        return chosen

    def _leaf(self, key: TableKey, node: Node, path: str) -> None:
        """Check a plain value; a wrong one of a type that is not simple, or out of range, leaves all to `schema`."""
        plain, types = plain_of(node), [each for each in alternatives(key.value_type) if each != "null"]
        if plain is None and key.is_optional:
            return
        if any(_fits(each, plain) for each in types):
            self.is_undecided |= not _is_within(key.range, plain)
            return
        value_type = types[0]
        choices = value_type.get("choices") if isinstance(value_type, dict) else None
        if len(types) == 1 and isinstance(choices, list):
            *first, last = map(repr, choices)
            expected, names = f"{', '.join(first)} or {last}", set[str]()
        elif len(types) == 1 and isinstance(value_type, str):
            expected, names = _EXPECTED[value_type], {value_type} - {"path"}
        else:
            self.is_undecided = True
            return
        hint = value_hint(path, plain, names)
        self.mistakes.add(node.where, f"{path}: expected {expected}, got {describe(plain)}{hint}")


def _fits(value_type: ValueType, plain: object) -> bool:
    """Tell whether a plain value has a type; parts in lists are not looked at."""
    if value_type == "any" or (isinstance(value_type, dict) and {"kind", "section", "map"} & set(value_type)):
        return True
    if isinstance(value_type, str):
        if value_type in ("int", "float"):
            is_number = isinstance(plain, int if value_type == "int" else (int, float))
            return is_number and not isinstance(plain, bool) and abs(plain) <= MAX_INTEGER  # type: ignore[arg-type]
        return isinstance(plain, bool if value_type == "bool" else str)
    ((constructor, arguments),) = value_type.items()
    if constructor == "choices":
        return isinstance(arguments, list) and plain in arguments
    inner = types_of(arguments)
    if constructor == "either":
        return any(_fits(each, plain) for each in inner)
    if not isinstance(plain, list):
        return False
    if constructor == "list":
        return all(_fits(inner[0], each) for each in plain)
    return len(plain) == len(inner) and all(map(_fits, inner, plain))


def _is_within(accepted: str, plain: object) -> bool:
    """Tell whether a number is in a range of the table; bounds that are other keys are not looked at."""
    if not accepted or not isinstance(plain, (int, float)):
        return True
    bounds = [part.split(" ") for part in accepted.split(" and ")]
    return all(_COMPARISONS[sign](plain, float(bound)) for sign, bound in bounds if not bound.isidentifier())
