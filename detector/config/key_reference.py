"""The reference of all configuration keys as text for a terminal and as Markdown pages, made from the table of keys."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from detector.config.key_table import ROOT_KIND, KeyTable, KindOfPart, TableKey, TableSection, ValueType, type_in_words
from detector.config.name_suggestions import unknown_key
from detector.errors import ConfigError

_HEAD = ("key", "type", "default", "range", "meaning")
_TASKS = {"detect": "detection", "classify": "classification"}


@dataclass(frozen=True)
class Entry:
    """A key in one place of an experiment.

    Attributes:
        path: its dotted path.
        key: its properties.
        section: the section that defines it.
        owners: the parts or tasks that have the key with these properties, such as `muon` or `classify`.
    """

    path: str
    key: TableKey
    section: TableSection
    owners: tuple[str, ...]


def entries(table: KeyTable) -> list[Entry]:
    """Return every key of every part and task, section by section; equal keys of several of them once."""
    found: dict[tuple[str, str], Entry] = {}

    def below(section: TableSection, above: str, owner: str) -> None:
        for name, key in section.keys.items():
            path = f"{above}{name}"
            entry = found.setdefault((path, str(key)), Entry(path, key, section, ()))
            if owner not in entry.owners:
                found[path, str(key)] = replace(entry, owners=(*entry.owners, owner))
            for part, inner in _choices(table, key.value_type):
                below(inner, f"{path}.", part or owner)

    for task, section_id in sorted(table.kinds[ROOT_KIND].parts.items(), reverse=True):
        below(table.sections[section_id], "", task)
    order = {name: number for number, name in enumerate(top_sections(table))}
    return sorted(found.values(), key=lambda entry: (order[entry.path.partition(".")[0]], entry.path, entry.owners))


def top_sections(table: KeyTable) -> list[str]:
    """Return the keys at the top of an experiment, in the order of detection."""
    roots = [table.sections[section] for _, section in sorted(table.kinds[ROOT_KIND].parts.items(), reverse=True)]
    return list(dict.fromkeys(name for root in roots for name in root.keys))


def _choices(table: KeyTable, value_type: ValueType) -> list[tuple[str, TableSection]]:
    """Return the sections that a value may be, each with the name of its part, which is empty for a plain section."""
    key = TableKey(value_type, None, False, "", "")
    if key.section:
        return [("", table.sections[key.section])]
    parts = table.kinds[key.kind].parts if key.kind else {}
    return [(name, table.sections[section]) for name, section in sorted(parts.items())]


# --- text ------------------------------------------------------------------------------------------------------------


def key_text(table: KeyTable, word: str, width: int) -> str:
    """Return the description of a section or key in lines of at most `width` characters, where that is possible.

    Raises:
        ConfigError: no key has this name; the message says which is meant.
    """
    listed = entries(table)
    own = [entry for entry in listed if entry.path == word]
    inside = [entry for entry in listed if entry.path.startswith(f"{word}.")]
    if not own and "." not in word:
        own = [entry for entry in listed if entry.path.rpartition(".")[2] == word]
    if not own:
        paths = list(dict.fromkeys(entry.path for entry in listed))
        known = [path for path in paths if "." not in path]
        raise ConfigError(f"no key or section is named {word!r}{unknown_key(word, known, paths)}")
    if not inside:
        return "\n\n".join("\n".join(_block(table, entry)) for entry in own)
    lines = [f"{word}: {' / '.join(dict.fromkeys(entry.key.meaning.rstrip('.') for entry in own))}"]
    parts = [name for entry in own for name, _ in _choices(table, entry.key.value_type) if name]
    if parts:
        default = " or ".join(dict.fromkeys(str(entry.key.default) for entry in own if entry.key.default is not None))
        lines.append(f"parts: {', '.join(dict.fromkeys(parts))}" + (f" (default {default})" if default else ""))
    return "\n".join([*lines, "", *_rows(table, inside, width)])


def all_keys_text(table: KeyTable, width: int) -> str:
    """Return a line for each key."""
    return "\n".join(_rows(table, [entry for entry in entries(table) if _is_leaf(entry.key)], width))


def _is_leaf(key: TableKey) -> bool:
    return not key.section


def _rows(table: KeyTable, listed: Sequence[Entry], width: int) -> list[str]:
    """Return a table with the columns of the reference; the meaning is cut at the width."""
    several = {entry.path for entry in listed if sum(other.path == entry.path for other in listed) > 1}
    cells = []
    for entry in listed:
        owner = f" ({', '.join(entry.owners)})" if entry.path in several else ""
        key = entry.key
        cells.append((f"{entry.path}{owner}", _type(table, key), shown_default(key), key.range or "-", key.meaning))
    most = (44, 28, 20, 14)
    widths = [min(most[n], max(len(row[n]) for row in [_HEAD, *cells])) for n in range(4)]
    lines = []
    for row in [_HEAD, *cells]:
        fitted = [_cut(cell, each).ljust(each) for cell, each in zip(row[:4], widths, strict=True)]
        lines.append(_cut("  ".join([*fitted, row[4]]), max(width, sum(widths) + 28)).rstrip())
    return lines


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 3]}..."


def _block(table: KeyTable, entry: Entry) -> Iterator[str]:
    """Yield the lines on one key."""
    key = entry.key
    yield f"{entry.path} ({', '.join(_TASKS.get(owner, owner) for owner in entry.owners)})"
    yield f"  type     {_type(table, key)}"
    yield f"  default  {shown_default(key)}"
    if key.range:
        yield f"  range    {key.range}"
    if parts := [name for name, _ in _choices(table, key.value_type) if name]:
        yield f"  parts    {', '.join(parts)}"
    yield f"  meaning  {key.meaning}"
    yield f"  source   {entry.section.source}"


def _type(table: KeyTable, key: TableKey) -> str:
    if key.kind:
        return table.kinds[key.kind].label + (" or nothing" if key.is_optional else "")
    return type_in_words(key.value_type)


def shown_default(key: TableKey) -> str:
    """Return the default of a key as it is written in YAML; `-` for a section and `required` without a default."""
    if key.is_required:
        return "required"
    if key.section and key.default is None and not key.is_optional:
        return "-"
    if key.default is None:
        return "nothing"
    return key.default if isinstance(key.default, str) else json.dumps(key.default)


# --- pages -----------------------------------------------------------------------------------------------------------

_MADE = "<!-- Made by `make reference` from the code; do not edit. -->"


def pages(table: KeyTable) -> dict[str, str]:
    """Return the pages of the reference by file name: an index, and a page for each section of an experiment."""
    roots = {task: table.sections[section] for task, section in table.kinds[ROOT_KIND].parts.items()}
    keys = {name: [root.keys[name] for root in roots.values() if name in root.keys] for name in top_sections(table)}
    names = [name for name, each in keys.items() if any(_choices(table, key.value_type) for key in each)]
    made = {f"{name}.md": _page(table, name, roots) for name in names}
    plain = [name for name in keys if name not in names]
    return {"README.md": _index(table, names, plain, roots), **made}


def _index(table: KeyTable, names: Sequence[str], plain: Sequence[str], roots: dict[str, TableSection]) -> str:
    lines = [
        _MADE,
        "",
        "# Reference of all keys",
        "",
        "An experiment is a YAML file, and every key can be changed on the command line:",
        "`detector train mish-n train.epochs=50`. `detector config` prints this reference, `detector config train` a",
        "section and `detector config train.epochs` a key. A section with several parts selects one by `name`; its",
        "name alone is enough: `optimizer=sgd`. A range holds while the other keys have their defaults.",
        "",
        "| section | meaning | page |",
        "|---|---|---|",
    ]
    meaning = {name: _first(roots, name).meaning for name in [*names, *plain]}
    lines += [f"| `{name}` | {_cell(meaning[name])} | [{name}.md]({name}.md) |" for name in names]
    lines += ["", "Keys outside a section:", "", *_table_head()]
    lines += [_table_row(table, name, _first(roots, name)) for name in plain]
    return "\n".join(lines) + "\n"


def _first(roots: dict[str, TableSection], name: str) -> TableKey:
    """Return a key at the top of an experiment, that of detection if it has it."""
    return next(roots[task].keys[name] for task in sorted(roots, reverse=True) if name in roots[task].keys)


def _page(table: KeyTable, name: str, roots: dict[str, TableSection]) -> str:
    keys = {task: roots[task].keys[name] for task in sorted(roots, reverse=True) if name in roots[task].keys}
    lines = [_MADE, "", f"# `{name}`", ""]
    is_same = len({str(key.value_type) for key in keys.values()}) == 1
    for task, key in keys.items():
        if is_same and task != next(iter(keys)):
            continue
        title = "" if is_same else f" of {_TASKS.get(task, task)}"
        lines += [f"{key.meaning[:1].upper()}{key.meaning[1:]}" if is_same else f"## `{name}`{title}", ""]
        if not is_same:
            lines += [f"{key.meaning[:1].upper()}{key.meaning[1:]}", ""]
        lines += _choice_lines(table, name, key, 2 if is_same else 3, set())
    return "\n".join(lines).rstrip("\n") + "\n"


def _choice_lines(table: KeyTable, path: str, key: TableKey, level: int, seen: set[str]) -> list[str]:
    """Return the parts or the section that a key holds, each with the table of its keys; a kind once on a page."""
    if (key.kind or key.section) in seen:
        return []
    seen.add(key.kind or key.section)
    lines = []
    kind = table.kinds.get(key.kind)
    if kind is not None:
        lines += [_selection(kind, path, key), ""]
    for part, section in _choices(table, key.value_type):
        heading = f"`{path}={part}`" if part else f"`{path}`"
        if part or level > 3:
            lines += [f"{'#' * min(level, 6)} {heading}", ""]
        lines += [f"{section.meaning} Source: `{section.source}`.", ""]
        if section.keys:
            rows = [_table_row(table, f"{path}.{name}", each) for name, each in section.keys.items()]
            lines += [*_table_head(), *rows, ""]
        for name, each in section.keys.items():
            lines += _choice_lines(table, f"{path}.{name}", each, level + 1, seen)
    return lines


def _selection(kind: KindOfPart, path: str, key: TableKey) -> str:
    names = ", ".join(f"`{name}`" for name in sorted(kind.parts))
    default = key.default if isinstance(key.default, str) else kind.unnamed
    return f"`{path}` is one of {names}" + (
        f"; the default is `{default}`." if default else "; the default is nothing."
    )


def _table_head() -> list[str]:
    return [f"| {' | '.join(_HEAD)} |", "|---|---|---|---|---|"]


def _table_row(table: KeyTable, path: str, key: TableKey) -> str:
    default = shown_default(key)
    cells = (f"`{path}`", _type(table, key), default if default == "-" else f"`{default}`", key.range, key.meaning)
    return f"| {' | '.join(_cell(cell) for cell in cells)} |"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;") if "`" not in text else text.replace("|", "\\|")
