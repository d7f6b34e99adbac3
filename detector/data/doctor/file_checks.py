"""Checks of the image files: unreadable files, wrong sizes, orientation, channels, duplicates and leaks."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from detector.data.coco import CocoAnnotations
from detector.data.doctor.findings import NUM_DRAWN, NUM_EXAMPLES, Finding, Offender, Severity
from detector.data.doctor.near_duplicates import Look, look_at, near_duplicates
from detector.data.problems import shown
from detector.errors import MediaError
from detector.io.files import sha256_of_files
from detector.io.nouns import plural
from detector.media.drawing import as_rgb
from detector.media.headers import ImageHeader
from detector.media.images import image_header, load_image

_MIN_DECODED_SIDE = 32  # in pixels; enough for a hash on a grid of 9
_MAX_THREADS = 8
_PLANES = {1: "grey or palette", 2: "grey with alpha", 3: "colour", 4: "colour with alpha"}


@dataclass(frozen=True, eq=False)
class ImageFile:
    """Image file of a split, as far as it could be read.

    Attributes:
        split: name of the split.
        index: position of the image in the split.
        name: name in the annotation file, printable.
        path: the file.
        header: header of the file; None if it cannot be read.
        error: why the file cannot be read or decoded; empty if it can.
        warnings: oddities of a file that can be decoded.
        look: appearance of the image, for near duplicates; None if it was not decoded.
    """

    split: str
    index: int
    name: str
    path: Path
    header: ImageHeader | None
    error: str = ""
    warnings: tuple[str, ...] = ()
    look: Look | None = None


def scan_files(
    splits: Mapping[str, CocoAnnotations],
    channels: int,
    decode: bool,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[ImageFile]:
    """Read every image of every split: its header and, with `decode`, its pixels at a reduced size.

    Args:
        splits: the splits, read with folders of images.
        channels: number of channels of the network input.
        decode: whether to decode; otherwise only the header of a file is read.
        progress: called with the number of files done and the number of all files.
    """
    images = [
        (name, index, shown(split.file_names[index]), split.path(index))
        for name, split in splits.items()
        for index in range(len(split))
    ]
    scanned = []
    with ThreadPoolExecutor(min(_MAX_THREADS, os.cpu_count() or 1)) as pool:
        for file in pool.map(lambda entry: _scan(*entry, channels=channels, decode=decode), images):
            scanned.append(file)
            progress(len(scanned), len(images))
    return scanned


def _scan(split: str, index: int, name: str, path: Path, *, channels: int, decode: bool) -> ImageFile:
    header = None
    try:
        header = image_header(path)
        if not decode:
            return ImageFile(split, index, name, path, header)
        largest = min(header.stored_hw) // _MIN_DECODED_SIDE
        loaded = load_image(path, channels, reduction=max(r for r in (1, 2, 4, 8) if r <= max(largest, 1)))
    except MediaError as error:
        return ImageFile(split, index, name, path, header, str(error))
    return ImageFile(split, index, name, path, header, "", loaded.warnings, look_at(as_rgb(loaded.pixels)))


def check_files(splits: Mapping[str, CocoAnnotations], files: Sequence[ImageFile]) -> list[Finding]:
    """Return every finding about image files."""
    totals = Counter(file.split for file in files)
    readable = [file for file in files if not file.error]
    broken = [(file, file.error) for file in files if file.error]
    odd = [(file, file.warnings[0]) for file in readable if file.warnings]
    groups = content_groups([file.path for file in files])
    is_all = any(totals[split] == count for split, count in Counter(file.split for file, _ in broken).items())
    return [
        *_per_file("image-unreadable", "error" if is_all else "warning", "{} cannot be read", broken, totals),
        *_sizes(splits, readable, totals),
        *_per_file("image-odd", "note", "{} readable with warnings", odd, totals),
        *_mix(readable, totals),
        *_copies(splits, files, groups, totals),
        *_near_copies(files, groups, totals),
    ]


def _per_file(
    code: str, severity: Severity, title: str, remarks: Sequence[tuple[ImageFile, str]], totals: Mapping[str, int]
) -> list[Finding]:
    """Make a finding about single files, each with a remark; readable files are drawn."""
    if not remarks:
        return []
    counts = Counter(file.split for file, _ in remarks)
    first = remarks[:NUM_EXAMPLES]
    examples = tuple(shown(text if file.name in text else f"{file.split} {file.name}: {text}") for file, text in first)
    drawn = [Offender(f.split, f.index, (), e) for (f, _), e in zip(first, examples, strict=True) if not f.error]
    total = sum(totals[split] for split in counts)
    words = title.format(plural(len(remarks), "image"))
    return [Finding(code, severity, words, dict(counts), total, examples, tuple(drawn[:NUM_DRAWN]))]


def _sizes(
    splits: Mapping[str, CocoAnnotations], files: Sequence[ImageFile], totals: Mapping[str, int]
) -> list[Finding]:
    """Find images with another size than in the annotations, and images stored rotated."""
    other: list[tuple[ImageFile, str]] = []
    exchanged: list[tuple[ImageFile, str]] = []
    turned: list[tuple[ImageFile, str]] = []
    for file in files:
        if file.header is None:
            continue
        height, width = file.header.image_hw
        listed_h, listed_w = splits[file.split].image_hw[file.index].tolist()
        text = f"{width} x {height} in the file, {listed_w} x {listed_h} in the annotations"
        if listed_h and listed_w and (height, width) != (listed_h, listed_w):
            (exchanged if (width, height) == (listed_h, listed_w) else other).append((file, text))
        if file.header.orientation != 1:
            turned.append((file, f"orientation {file.header.orientation}"))
    return [
        *_per_file("image-size", "warning", "{} with another size than in the annotations", other, totals),
        *_per_file(
            "image-exchanged", "warning", "{} with width and height exchanged in the annotations", exchanged, totals
        ),
        *_per_file("image-orientation", "note", "{} stored rotated (EXIF)", turned, totals),
    ]


def _mix(files: Sequence[ImageFile], totals: Mapping[str, int]) -> list[Finding]:
    """Find a mix of channels and bit depths in a data set."""
    kinds: dict[str, list[ImageFile]] = {}
    for file in files:
        if file.header is not None:
            planes = _PLANES.get(file.header.num_planes, f"{file.header.num_planes} planes")
            if file.header.format in ("WebP", "BMP"):  # their headers do not tell
                planes = _PLANES[3]
            bits = f", {file.header.bits} bits" if file.header.bits > 8 else ""
            kinds.setdefault(planes + bits, []).append(file)
    if len(kinds) < 2:
        return []
    ranked = sorted(kinds.items(), key=lambda item: -len(item[1]))
    odd = [(file, kind) for kind, members in ranked[1:] for file in members]
    listed = ", ".join(f"{len(members):,} {kind}" for kind, members in ranked)
    return _per_file("image-mix", "note", f"images of several kinds: {listed}", odd, totals)


def content_groups(paths: Sequence[Path]) -> list[list[int]]:
    """Group the positions of files with the same content (SHA-256); only files of equal length are read."""
    by_length: dict[int, list[int]] = {}
    for position, path in enumerate(paths):
        try:
            by_length.setdefault(path.stat().st_size, []).append(position)
        except (OSError, ValueError):  # a missing file or an impossible name, which the image reader reports
            continue
    by_content: dict[tuple[int, str], list[int]] = {}
    for length, members in by_length.items():
        if len(members) > 1 and length:
            for position in members:
                with suppress(OSError):
                    by_content.setdefault((length, sha256_of_files([paths[position]])), []).append(position)
    return sorted(group for group in by_content.values() if len(group) > 1)


def _copies(
    splits: Mapping[str, CocoAnnotations],
    files: Sequence[ImageFile],
    groups: Sequence[Sequence[int]],
    totals: Mapping[str, int],
) -> list[Finding]:
    """Find files with the same content, in one split and across splits."""
    pairs = []
    for group in groups:
        pairs += [(files[a], files[b]) for a, b in _representatives([files[i].split for i in group], group)]
    inside = [(a, b) for a, b in pairs if a.split == b.split and a.path != b.path]
    across = [(a, b) for a, b in pairs if a.split != b.split]
    agreeing = [(a, b) for a, b in inside if _same_boxes(splits, a, b)]
    others = [pair for pair in inside if pair not in agreeing]
    return [
        *_pairs("leak-exact", "warning", "{} also in another split", across, totals),
        *_pairs("image-duplicate-labels", "warning", "{} with a duplicate that has different boxes", others, totals),
        *_pairs("image-duplicate", "warning", "{} with a duplicate under another name", agreeing, totals),
    ]


def _near_copies(
    files: Sequence[ImageFile], groups: Sequence[Sequence[int]], totals: Mapping[str, int]
) -> list[Finding]:
    """Find files that look the same but differ in content."""
    group_of = {position: number for number, group in enumerate(groups) for position in group}
    looking = [position for position, file in enumerate(files) if file.look is not None]
    duplicates = near_duplicates([look for file in files if (look := file.look) is not None])
    pairs = [
        (files[one], files[other])
        for one, other in ((looking[a], looking[b]) for a, b in duplicates)
        if group_of.get(one, -1) != group_of.get(other, -2)
    ]
    across: dict[tuple[str, int], tuple[ImageFile, ImageFile]] = {}
    within: dict[tuple[str, int], tuple[ImageFile, ImageFile]] = {}
    for a, b in pairs:
        (within if a.split == b.split else across).setdefault((b.split, b.index), (a, b))
    leaks, repeats = list(across.values()), list(within.values())
    return [
        *_pairs("leak-near", "warning", "{} nearly identical to one of another split", leaks, totals),
        *_pairs(
            "image-near-duplicate", "note", "{} nearly identical to an earlier one of the same split", repeats, totals
        ),
    ]


def _representatives(names: Sequence[str], group: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Pair each member of a group with an earlier one, of its own split if there is one."""
    for later in range(1, len(group)):
        own = [earlier for earlier in range(later) if names[earlier] == names[later]]
        yield group[(own or [0])[0]], group[later]


def _same_boxes(splits: Mapping[str, CocoAnnotations], a: ImageFile, b: ImageFile) -> bool:
    def labelled(file: ImageFile) -> list[tuple[float, ...]]:
        split = splits[file.split]
        rows = slice(int(split.offsets[file.index]), int(split.offsets[file.index + 1]))
        boxes = zip(split.labels[rows].tolist(), split.boxes_xywh[rows].tolist(), strict=True)
        return sorted((float(label), *box) for label, box in boxes)

    ours, theirs = labelled(a), labelled(b)
    return len(ours) == len(theirs) and bool(np.allclose(np.array(ours), np.array(theirs), rtol=0, atol=1))


def _pairs(
    code: str,
    severity: Severity,
    title: str,
    pairs: Sequence[tuple[ImageFile, ImageFile]],
    totals: Mapping[str, int],
) -> list[Finding]:
    """Make a finding about pairs of files, counted by the split of the later one; both are drawn."""
    if not pairs:
        return []
    counts = Counter(later.split for _, later in pairs)
    first = pairs[:NUM_EXAMPLES]
    examples = tuple(f"{b.split} {b.name} = {a.split} {a.name}" for a, b in first)
    drawn = [Offender(f.split, f.index, (), f"{f.split} {f.name}") for pair in first for f in pair if not f.error]
    total = sum(totals[split] for split in counts)
    words = title.format(plural(len(pairs), "image"))
    return [Finding(code, severity, words, dict(counts), total, examples, tuple(drawn[:NUM_DRAWN]))]
