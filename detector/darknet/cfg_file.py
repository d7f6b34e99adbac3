"""Reader and writer of Darknet's .cfg files.

The reader turns the text into typed sections. It accepts doubtful texts whose meaning is certain, with a warning
(`DarknetCfg.warnings`). It refuses keys that cannot be honoured and texts that the forks of Darknet read differently,
with one error that lists all mistakes. Every fork of Darknet and OpenCV's reader accept what the writer writes.
"""

from __future__ import annotations

import dataclasses
import math
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from detector.config import name_suggestions, nodes
from detector.darknet import sections
from detector.darknet.cfg_keys import UnreadableValueError, keys_of, read_value, written
from detector.darknet.sections import LayerSection, NetSection, Section
from detector.errors import DarknetError

MAX_FILE_BYTES = 1_048_576  # the longest released .cfg has 40 kB
MAX_LAYERS = 2_000  # the deepest released network has 375
MAX_MESSAGES = 100
AnySection = TypeVar("AnySection", bound=Section)

_REFERENCES = ("layers", "from_", "share_index", "embedding_layer", "yolo_layer")


@dataclass(frozen=True)
class DarknetCfg:
    """Network as its .cfg describes it; two networks with equal sections are equal.

    Attributes:
        net: the `[net]` section.
        layers: the sections after it; a layer's index is its position here.
        path: name of the file in error messages.
        warnings: readings that may differ from the intention of the author, each with file and line.
    """

    net: NetSection
    layers: tuple[LayerSection, ...]
    path: str = field(default="", compare=False)
    warnings: tuple[str, ...] = field(default=(), compare=False, repr=False)

    def place(self, section: Section) -> str:
        """Return the location of a section, with which error messages begin: `file:line: [name]`."""
        line = f":{section.line}" if section.line else ""
        return f"{self.path or 'the network'}{line}: [{section.name}]"

    def sources(self, index: int) -> tuple[int, ...]:
        """Return the absolute indices of the layers that layer `index` refers to by number, in the order of its key."""
        section = self.layers[index]
        references: int | tuple[int, ...] = getattr(section, "layers", getattr(section, "from_", ()))
        references = (references,) if isinstance(references, int) else references
        return tuple(reference if reference >= 0 else index + reference for reference in references)


# --- reading -----------------------------------------------------------------------------------------------------


@dataclass
class _RawSection:
    """Section as written: name without brackets, line number, and the text and line number of each key."""

    name: str
    line: int
    keys: dict[str, tuple[str, int]] = field(default_factory=dict)
    doubtful: set[str] = field(default_factory=set)  # missing or unreadable keys, which get no further checks


class _Messages:
    """Located messages of one file, in the order of its lines; at most `MAX_MESSAGES` of them are kept."""

    def __init__(self, source: str) -> None:
        self._source, self._kept, self._count = source, list[tuple[int, str]](), 0

    def __bool__(self) -> bool:
        return self._count > 0

    @property
    def is_full(self) -> bool:
        return self._count >= MAX_MESSAGES

    def add(self, line: int, text: str) -> None:
        if not self.is_full:
            self._kept.append((line, text))
        self._count += 1

    def lines(self) -> tuple[str, ...]:
        more = (f"and {self._count - MAX_MESSAGES} more",) if self._count > MAX_MESSAGES else ()
        return (*(f"{self._source}:{line}: {text}" for line, text in sorted(self._kept)), *more)


class _Reader:
    """Reader of one .cfg text that collects all mistakes and warnings."""

    def __init__(self, text: str, name: str) -> None:
        self.name = name
        self.mistakes, self.warnings = _Messages(name), _Messages(name)
        self.raw = self._lex(text)

    def _lex(self, text: str) -> list[_RawSection]:
        raw_sections: list[_RawSection] = []
        for number, full_line in enumerate(text.removeprefix("\ufeff").split("\n"), 1):
            if full_line.lstrip().startswith(";"):
                continue
            line = full_line.partition("#")[0].strip()
            if not line:
                continue
            if not line.isascii() or not line.replace("\t", " ").isprintable():
                self.mistakes.add(number, f"{nodes.shown(line)} has a character outside printable ASCII; remove it")
            elif line.startswith("["):
                self._open(raw_sections, line, number)
            elif not raw_sections:
                self.mistakes.add(number, f"{nodes.shown(line)} comes before the first section; start with [net]")
            else:
                self._take(raw_sections[-1], line, number)
        return raw_sections

    def _open(self, raw_sections: list[_RawSection], line: str, number: int) -> None:
        name = "".join(line.split())[1:-1]
        if not line.endswith("]") or not re.fullmatch(r"\w+", name):
            self.mistakes.add(number, f"{nodes.shown(line)} is not a section header; write [name]")
            name = ""
        raw_sections.append(_RawSection(sections.SHORT_NAMES.get(name, name), number))

    def _take(self, section: _RawSection, line: str, number: int) -> None:
        key, separator, value = (part.strip() for part in line.partition("="))
        place = f"[{section.name}] {nodes.shown(key)}"
        if not separator or not value:
            self.warnings.add(number, f"{place} has no value and is ignored; write key=value")
        elif not re.fullmatch(r"\w+", key):
            self.mistakes.add(number, f"{place} is not a valid key; write it as one word")
        elif key in section.keys:
            first = section.keys[key][1]
            self.warnings.add(number, f"{place} is a duplicate key; the value of line {first} is used, as in Darknet")
        else:
            section.keys[key] = (value, number)

    def read(self) -> DarknetCfg:
        if not self.raw and not self.mistakes:
            self.mistakes.add(1, "the file has no sections; expected [net] as the first one")
        if self.raw and self.raw[0].name != "net":
            first = self.raw[0]
            self.mistakes.add(first.line, f"[{first.name}] is the first section; expected [net]")
        if len(self.raw) > MAX_LAYERS + 1:
            line = self.raw[MAX_LAYERS + 1].line
            raise DarknetError(f"{self.name}:{line}: more than {MAX_LAYERS} layers; check that this file is a network")
        layers: list[LayerSection | None] = []
        net = NetSection()
        for index, raw in enumerate(self.raw):
            if raw.name == "net" and index == 0:
                net = self._typed(raw, NetSection)
                self._check_net(raw, net)
            elif index or raw.name in sections.SECTION_TYPES:
                layers.append(self._layer(raw, layers))
        if self.raw and not layers:
            self.mistakes.add(self.raw[0].line, "[net] is the only section; add at least one layer")
        if self.mistakes:
            raise DarknetError("\n".join(self.mistakes.lines()))
        return DarknetCfg(net, tuple(filter(None, layers)), self.name, self.warnings.lines())

    def _layer(self, raw: _RawSection, before: list[LayerSection | None]) -> LayerSection | None:
        if raw.name in sections.REFUSED_SECTIONS:
            self.mistakes.add(raw.line, f"[{raw.name}] cannot be honoured: {sections.REFUSED_SECTIONS[raw.name]}")
        elif raw.name == "net":
            self.mistakes.add(raw.line, "[net] is a duplicate section; one file describes one network")
        elif raw.name in sections.SECTION_TYPES:
            section: LayerSection = self._typed(raw, sections.SECTION_TYPES[raw.name])
            self._check_references(raw, section, before)
            self._check_anchors(raw, section)
            return section
        elif raw.name:  # an unreadable header has already been reported
            nearest = name_suggestions.nearest(raw.name, sections.SECTION_TYPES)
            self.mistakes.add(raw.line, f"[{raw.name}] is an unknown section{nearest}")
        return None

    def _typed(self, raw: _RawSection, section_type: type[AnySection]) -> AnySection:
        """Convert the keys of a section; report those that cannot be read and keep their defaults."""
        known, values = keys_of(section_type), {}
        for name, (text, line) in raw.keys.items():
            place = f"[{raw.name}] {name}={nodes.shown(text)}"
            if name in section_type.refused:
                harmless, reason = section_type.refused[name]
                if text != harmless and not (harmless == "0" and re.fullmatch(r"[+-]?0*\.?0*", text)):
                    self.mistakes.add(line, f"{place} cannot be honoured: {reason}")
            elif name in known:
                notes: list[str] = []
                try:
                    values[known[name].attribute] = read_value(known[name], text, notes)
                except UnreadableValueError as problem:
                    self.mistakes.add(line, f"{place} {problem}")
                    raw.doubtful.add(name)
                for note in notes:
                    self.warnings.add(line, f"{place} {note}")
            elif name not in section_type.ignored:
                # The search for the nearest key is slow, so it stops once no more warnings are shown.
                nearest = "" if self.warnings.is_full else _did_you_mean(name, known)
                self.warnings.add(line, f"[{raw.name}] {nodes.shown(name)} is an unknown key and is ignored{nearest}")
        for name, key in known.items():
            if key.constraints.required and name not in raw.keys:
                self.mistakes.add(raw.line, f"[{raw.name}] has no {name}")
                raw.doubtful.add(name)
        return section_type(line=raw.line, **values)

    def _at(self, raw: _RawSection, key: str) -> int:
        return raw.keys[key][1] if key in raw.keys else raw.line

    def _check_net(self, raw: _RawSection, net: NetSection) -> None:
        if net.policy == "steps" and not {"steps", "scales"} & raw.doubtful and len(net.steps) != len(net.scales):
            counts = f"{len(net.steps)} steps and {len(net.scales)} scales"
            self.mistakes.add(self._at(raw, "steps"), f"[net] policy=steps: expected one scale per step, got {counts}")

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
                    problem = "refers to an earlier layer, but this is the first one"
                elif not 0 <= target < index:
                    problem = f"is layer {target}; layer {index} can refer to 0..{index - 1} only"
                elif attribute == "share_index" and not isinstance(before[target], sections.ConvolutionalSection):
                    problem = f"is layer {target}, which is not [convolutional]"
                if problem:
                    self.mistakes.add(self._at(raw, key), f"[{raw.name}] {key}={reference} {problem}")

    def _check_anchors(self, raw: _RawSection, section: LayerSection) -> None:
        if not isinstance(section, sections.AnchorSection | sections.RegionSection):
            return
        if not {"anchors", "num"} & raw.doubtful and len(section.anchors) != section.num:
            counts = f"num={section.num} and {2 * len(section.anchors)} numbers"
            self.mistakes.add(self._at(raw, "anchors"), f"[{raw.name}] anchors: expected num pairs, got {counts}")
        if isinstance(section, sections.AnchorSection):
            over = [m for m in section.mask if m >= section.num]
            if over and not {"mask", "num"} & raw.doubtful:
                self.mistakes.add(
                    self._at(raw, "mask"), f"[{raw.name}] mask: expected indices below num={section.num}, got {over[0]}"
                )
            counters = section.counters_per_class
            if counters and "classes" not in raw.doubtful and len(counters) != section.classes:
                counts = f"{len(counters)} for classes={section.classes}"
                self.mistakes.add(
                    self._at(raw, "counters_per_class"),
                    f"[{raw.name}] counters_per_class: expected one number per class, got {counts}",
                )


def _did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return a hint at the nearest key; an empty text if none is near, because a list of all keys would be too long."""
    text = name_suggestions.nearest(name, known)
    return text if text.startswith("; did") else ""


def parse_cfg(text: str, name: str) -> DarknetCfg:
    """Read the text of a .cfg.

    Args:
        text: the whole file.
        name: name of the file in errors and warnings.

    Raises:
        DarknetError: the file cannot be read or honoured; one line per mistake, with file, line, section and key.
    """
    if len(text) > MAX_FILE_BYTES:
        raise DarknetError(f"{name} is longer than {MAX_FILE_BYTES} characters; check that it is a .cfg file")
    return _Reader(text, name).read()


def find_cfg(name: str | Path) -> Path:
    """Find a .cfg by its path, or a shipped one by its name: `yolov4`, `yolov4.cfg` or `cfg/darknet/yolov4.cfg`.

    Raises:
        DarknetError: there is no such file (the message names the nearest shipped one), or it is a folder or a pipe.
    """
    path = Path(name)
    if os.path.isfile(path):  # unlike Path.is_file, false for a name that no file can have
        return path
    if os.path.exists(path):
        raise DarknetError(f"{path} is not a regular file; expected a .cfg file")
    folder = nodes.presets_dir() / "darknet"
    shipped = folder / f"{path.name.removesuffix('.cfg')}.cfg"
    if path.parent.parts in ((), ("darknet",), ("cfg", "darknet")) and os.path.isfile(shipped):
        return shipped
    known = [p.stem for p in folder.glob("*.cfg")]
    raise DarknetError(f"{nodes.shown(str(name))}: no such .cfg{name_suggestions.nearest(path.name, known)}")


def read_cfg(path: str | Path) -> DarknetCfg:
    """Read a .cfg file, given by its path or by the name of a shipped one; see `parse_cfg` and `find_cfg`.

    Raises:
        DarknetError: there is no such file, or it cannot be read or honoured.
    """
    file_path = find_cfg(path)
    try:
        with open(file_path, "rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise DarknetError(f"{file_path} cannot be read: {error.strerror}") from error
    # The keys are ASCII in any encoding; other bytes are accepted in comments and refused elsewhere.
    return parse_cfg(data.decode("utf-8", "replace"), str(file_path))


# --- writing -----------------------------------------------------------------------------------------------------


def _section_lines(section: Section) -> list[str]:
    """Return the header and those keys that are always written or that differ from what the reader would derive."""
    lines = [f"[{section.name}]"]
    for name, key in keys_of(type(section)).items():
        value = getattr(section, key.attribute)
        needed = dataclasses.replace(section, **{key.attribute: key.default}) != section
        if needed or (key.constraints.explicit and value != ()):
            lines.append(f"{name}={written(value)}")
    return lines


def dump_cfg(cfg: DarknetCfg) -> str:
    """Return the text of a .cfg that both forks of Darknet, AlexeyAB's and hank-ai's, and OpenCV read alike.

    `parse_cfg` gives back `cfg`. The text has long section names, one `key=value` per line, no comments, no exponents
    and no duplicate keys.

    Raises:
        DarknetError: a value is NaN or infinite, which no .cfg can hold.
    """
    for section in (cfg.net, *cfg.layers):
        for name, key in keys_of(type(section)).items():
            value = getattr(section, key.attribute)
            if isinstance(value, float) and not math.isfinite(value) and value != key.default:
                raise DarknetError(f"{cfg.place(section)} {name}={value} cannot be written to a .cfg")
    return "\n\n".join("\n".join(_section_lines(section)) for section in (cfg.net, *cfg.layers)) + "\n"
