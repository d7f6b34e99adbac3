"""Darknet's .cfg files: read to typed sections, and written so that every Darknet and OpenCV's reader accept them.

The reader takes what Darknet takes where its meaning is certain, and says where (`DarknetCfg.warnings`); where the
Darknets disagree silently, or a key cannot be honoured, it refuses, every mistake of the file at once.
"""

from __future__ import annotations

import dataclasses
import math
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from detector.config import nodes, registry
from detector.darknet import sections
from detector.darknet.cfg_keys import UnreadableValueError, keys_of, read_value, written
from detector.darknet.sections import LayerSection, NetSection, Section
from detector.errors import DarknetError

MAX_FILE_BYTES = 1_048_576  # the longest released .cfg has 40 kB
MAX_LAYERS = 2_000  # the deepest released network has 375
MAX_MESSAGES = 100
_REFERENCES = ("layers", "from_", "share_index", "embedding_layer", "yolo_layer")


@dataclass(frozen=True)
class DarknetCfg:
    """A network as its .cfg describes it; equal to another with equal sections.

    Attributes:
        net: the `[net]` section.
        layers: the sections after it; a layer's index is its place here.
        path: what errors call the file.
        warnings: what was read differently than it may have been meant, each with file and line.
    """

    net: NetSection
    layers: tuple[LayerSection, ...]
    path: str = field(default="", compare=False)
    warnings: tuple[str, ...] = field(default=(), compare=False, repr=False)

    def place(self, section: Section) -> str:
        """Where a section stands, as errors begin: `file:line: [name]`."""
        line = f":{section.line}" if section.line else ""
        return f"{self.path or 'the network'}{line}: [{section.name}]"

    def sources(self, index: int) -> tuple[int, ...]:
        """The absolute indices of the layers that layer `index` refers to by number, in its order."""
        section = self.layers[index]
        references: Any = getattr(section, "layers", getattr(section, "from_", ()))
        references = (references,) if isinstance(references, int) else references
        return tuple(reference if reference >= 0 else index + reference for reference in references)


# --- reading -----------------------------------------------------------------------------------------------------


@dataclass
class _RawSection:
    """A section as written: its name without brackets, its line, and per key the text and its line."""

    name: str
    line: int
    keys: dict[str, tuple[str, int]] = field(default_factory=dict)
    doubtful: set[str] = field(default_factory=set)  # keys that are missing or unreadable: checked no further


class _Messages:
    """Located messages of one file, in the order of its lines; memory stays bounded whatever the file."""

    def __init__(self, source: str) -> None:
        self._source, self._found, self._count = source, list[tuple[int, str]](), 0

    def __bool__(self) -> bool:
        return self._count > 0

    @property
    def is_full(self) -> bool:
        return self._count >= MAX_MESSAGES

    def add(self, line: int, text: str) -> None:
        if not self.is_full:
            self._found.append((line, text))
        self._count += 1

    def lines(self) -> tuple[str, ...]:
        more = (f"and {self._count - MAX_MESSAGES} more",) if self._count > MAX_MESSAGES else ()
        return (*(f"{self._source}:{line}: {text}" for line, text in sorted(self._found)), *more)


class _Reader:
    def __init__(self, text: str, name: str) -> None:
        self.name = name
        self.mistakes, self.warnings = _Messages(name), _Messages(name)
        self.raw = self._lex(text)

    def _lex(self, text: str) -> list[_RawSection]:
        found: list[_RawSection] = []
        for number, full_line in enumerate(text.removeprefix("\ufeff").split("\n"), 1):
            if full_line.lstrip().startswith(";"):
                continue
            line = full_line.partition("#")[0].strip()
            if not line:
                continue
            if not line.isascii() or not line.replace("\t", " ").isprintable():
                self.mistakes.add(number, f"{nodes.shown(line)} holds a character outside of printable ASCII")
            elif line.startswith("["):
                self._open(found, line, number)
            elif not found:
                self.mistakes.add(number, f"{nodes.shown(line)} stands before the first section; start with [net]")
            else:
                self._take(found[-1], line, number)
        return found

    def _open(self, found: list[_RawSection], line: str, number: int) -> None:
        name = "".join(line.split())[1:-1]
        if not line.endswith("]") or not re.fullmatch(r"\w+", name):
            self.mistakes.add(number, f"{nodes.shown(line)} is no section header; write [name]")
            name = ""
        found.append(_RawSection(sections.SHORT_NAMES.get(name, name), number))

    def _take(self, section: _RawSection, line: str, number: int) -> None:
        key, separator, value = (part.strip() for part in line.partition("="))
        place = f"[{section.name}] {nodes.shown(key)}"
        if not separator or not value:
            self.warnings.add(number, f"{place} has no value and is left out; write key=value")
        elif not re.fullmatch(r"\w+", key):
            self.mistakes.add(number, f"{place} is no key; a key is one word")
        elif key in section.keys:
            first = section.keys[key][1]
            self.warnings.add(number, f"{place} is given again; the value of line {first} counts, as in Darknet")
        else:
            section.keys[key] = (value, number)

    def read(self) -> DarknetCfg:
        if not self.raw and not self.mistakes:
            self.mistakes.add(1, "the file holds no section; a network starts with [net]")
        if self.raw and self.raw[0].name != "net":
            first = self.raw[0]
            self.mistakes.add(first.line, f"[{first.name}] is the first section; a network starts with [net]")
        if len(self.raw) > MAX_LAYERS + 1:
            line = self.raw[MAX_LAYERS + 1].line
            raise DarknetError(f"{self.name}:{line}: more than {MAX_LAYERS} layers; is this a network?")
        layers: list[LayerSection | None] = []
        net = NetSection()
        for index, raw in enumerate(self.raw):
            if raw.name == "net" and index == 0:
                net = self._typed(raw, NetSection)
                self._check_net(raw, net)
            elif index or raw.name in sections.SECTION_TYPES:
                layers.append(self._layer(raw, layers))
        if self.raw and not layers:
            self.mistakes.add(self.raw[0].line, "[net] is the only section; a network has layers")
        if self.mistakes:
            raise DarknetError("\n".join(self.mistakes.lines()))
        return DarknetCfg(net, tuple(filter(None, layers)), self.name, self.warnings.lines())

    def _layer(self, raw: _RawSection, before: list[LayerSection | None]) -> LayerSection | None:
        if raw.name in sections.REFUSED_SECTIONS:
            self.mistakes.add(raw.line, f"[{raw.name}] cannot be honoured: {sections.REFUSED_SECTIONS[raw.name]}")
        elif raw.name == "net":
            self.mistakes.add(raw.line, "[net] stands a second time; one file describes one network")
        elif raw.name in sections.SECTION_TYPES:
            section: LayerSection = self._typed(raw, sections.SECTION_TYPES[raw.name])
            self._check_references(raw, section, before)
            self._check_anchors(raw, section)
            return section
        elif raw.name:  # a header that could not be read has been reported
            nearest = registry.nearest(raw.name, sections.SECTION_TYPES)
            self.mistakes.add(raw.line, f"[{raw.name}] is an unknown section{nearest}")
        return None

    def _typed(self, raw: _RawSection, section_type: type[Any]) -> Any:
        """The section with every key that could be read; the others are reported and keep their defaults."""
        known, values = keys_of(section_type), {}
        for name, (text, line) in raw.keys.items():
            place = f"[{raw.name}] {name}={nodes.shown(text)}"
            if name in section_type.refused:
                harmless, reason = section_type.refused[name]
                if text != harmless and not (harmless == "0" and re.fullmatch(r"[+-]?0*\.?0*", text)):
                    self.mistakes.add(line, f"{place} cannot be honoured: {reason}")
            elif name in known:
                noted: list[str] = []
                try:
                    values[known[name].attribute] = read_value(known[name], text, noted)
                except UnreadableValueError as problem:
                    self.mistakes.add(line, f"{place} {problem}")
                    raw.doubtful.add(name)
                for note in noted:
                    self.warnings.add(line, f"{place} {note}")
            elif name not in section_type.ignored:
                # Looking for the nearest takes time: not for more keys than are shown.
                nearest = "" if self.warnings.is_full else _did_you_mean(name, known)
                self.warnings.add(line, f"[{raw.name}] {nodes.shown(name)} is an unknown key and left out{nearest}")
        for name, key in known.items():
            if key.constraints["required"] and name not in raw.keys:
                self.mistakes.add(raw.line, f"[{raw.name}] has no {name}")
                raw.doubtful.add(name)
        return section_type(line=raw.line, **values)

    def _at(self, raw: _RawSection, key: str) -> int:
        return raw.keys[key][1] if key in raw.keys else raw.line

    def _check_net(self, raw: _RawSection, net: NetSection) -> None:
        if net.policy == "steps" and not {"steps", "scales"} & raw.doubtful and len(net.steps) != len(net.scales):
            found = f"{len(net.steps)} steps and {len(net.scales)} scales"
            self.mistakes.add(self._at(raw, "steps"), f"[net] policy=steps wants a scale for each step, found {found}")

    def _check_references(self, raw: _RawSection, section: LayerSection, before: list[LayerSection | None]) -> None:
        index = len(before)
        for attribute in _REFERENCES:
            value = getattr(section, attribute, None)
            key = attribute.rstrip("_")
            if value is None or key in raw.doubtful:
                continue
            for reference in (value,) if isinstance(value, int) else value:
                target = reference if reference >= 0 else index + reference
                problem = ""
                if not index:
                    problem = "refers to a layer before this one, which is the first"
                elif not 0 <= target < index:
                    problem = f"is layer {target}; layer {index} can refer to 0..{index - 1} only"
                elif attribute == "share_index" and not isinstance(before[target], sections.ConvolutionalSection):
                    problem = f"is layer {target}, no [convolutional]"
                if problem:
                    self.mistakes.add(self._at(raw, key), f"[{raw.name}] {key}={reference} {problem}")

    def _check_anchors(self, raw: _RawSection, section: LayerSection) -> None:
        if not isinstance(section, sections.AnchorSection | sections.RegionSection):
            return
        if not {"anchors", "num"} & raw.doubtful and len(section.anchors) != section.num:
            found = f"num={section.num} and {2 * len(section.anchors)} numbers"
            self.mistakes.add(self._at(raw, "anchors"), f"[{raw.name}] anchors wants num pairs, found {found}")
        if isinstance(section, sections.AnchorSection):
            over = [m for m in section.mask if m >= section.num]
            if over and not {"mask", "num"} & raw.doubtful:
                self.mistakes.add(
                    self._at(raw, "mask"), f"[{raw.name}] mask {over[0]} wants to be below num={section.num}"
                )
            counters = section.counters_per_class
            if counters and "classes" not in raw.doubtful and len(counters) != section.classes:
                found = f"{len(counters)} for classes={section.classes}"
                self.mistakes.add(
                    self._at(raw, "counters_per_class"),
                    f"[{raw.name}] counters_per_class wants one per class, found {found}",
                )


def _did_you_mean(name: str, known: Iterable[str]) -> str:
    """The nearest key, or nothing: a list of all helps nobody."""
    text = registry.nearest(name, known)
    return text if text.startswith("; did") else ""


def parse_cfg(text: str, name: str) -> DarknetCfg:
    """Reads the text of a .cfg.

    Args:
        text: the whole file.
        name: what errors and warnings call it.

    Raises:
        DarknetError: the file cannot be read or honoured; one line for each mistake with file, line, section and key.
    """
    if len(text) > MAX_FILE_BYTES:
        raise DarknetError(f"{name} is longer than {MAX_FILE_BYTES} characters; is this a .cfg?")
    return _Reader(text, name).read()


def find_cfg(name: str | Path) -> Path:
    """A .cfg by its path, or a shipped one by name: `yolov4`, `yolov4.cfg` or `cfg/darknet/yolov4.cfg`.

    Raises:
        DarknetError: there is none (the message gives the nearest shipped one), or it is a folder or a pipe.
    """
    path = Path(name)
    if os.path.isfile(path):  # unlike Path.is_file, false for a name that no file can have
        return path
    if os.path.exists(path):
        raise DarknetError(f"{path} is no file; a .cfg is wanted")
    folder = nodes.presets_dir() / "darknet"
    shipped = folder / f"{path.name.removesuffix('.cfg')}.cfg"
    if path.parent.parts in ((), ("darknet",), ("cfg", "darknet")) and os.path.isfile(shipped):
        return shipped
    known = [p.stem for p in folder.glob("*.cfg")]
    raise DarknetError(f"{nodes.shown(str(name))}: no such .cfg{registry.nearest(path.name, known)}")


def read_cfg(path: str | Path) -> DarknetCfg:
    """Reads a .cfg file, given by its path or by the name of a shipped one; see `parse_cfg` and `find_cfg`.

    Raises:
        DarknetError: there is no such file, or it cannot be read or honoured.
    """
    found = find_cfg(path)
    try:
        with open(found, "rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise DarknetError(f"{found} cannot be read: {error.strerror}") from error
    # Whatever its encoding, a file whose keys are ASCII reads; other bytes are fine in comments and refused elsewhere.
    return parse_cfg(data.decode("utf-8", "replace"), str(found))


# --- writing -----------------------------------------------------------------------------------------------------


def _section_lines(section: Section) -> list[str]:
    """Header and keys: the explicit ones, and each without which the section would be another."""
    lines = [f"[{section.name}]"]
    for name, key in keys_of(type(section)).items():
        value = getattr(section, key.attribute)
        needed = dataclasses.replace(section, **{key.attribute: key.default}) != section
        if needed or (key.constraints["explicit"] and value != ()):
            lines.append(f"{name}={written(value)}")
    return lines


def dump_cfg(cfg: DarknetCfg) -> str:
    """The text of a .cfg that AlexeyAB's and hank-ai's Darknet and OpenCV read alike; `parse_cfg` gives back `cfg`.

    Long section names, one `key=value` per line, no comments, no exponents, no key twice.

    Raises:
        DarknetError: a value that no .cfg can hold, NaN or infinite.
    """
    for section in (cfg.net, *cfg.layers):
        for name, key in keys_of(type(section)).items():
            value = getattr(section, key.attribute)
            if isinstance(value, float) and not math.isfinite(value) and value != key.default:
                raise DarknetError(f"{cfg.place(section)} {name}={value} cannot be written to a .cfg")
    return "\n\n".join("\n".join(_section_lines(section)) for section in (cfg.net, *cfg.layers)) + "\n"
