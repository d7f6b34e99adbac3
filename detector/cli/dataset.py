"""`detector dataset`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from detector.cli.data_words import configured
from detector.cli.dataset_options import _SHARES
from detector.cli.progress import say
from detector.cli.usage import data_words
from detector.config import registry
from detector.config.nodes import read_foreign
from detector.data.annotation_index import IndexedAnnotations
from detector.data.coco_extras import read_extras
from detector.data.conversion import Conversion, coco_to_darknet, coco_to_yolo, yolo_to_coco
from detector.data.dataset_editing import (
    Portion,
    merge,
    numbered_alike,
    pooled,
    remap_classes,
    require_no_leak,
    split_portion,
    subset,
)
from detector.data.doctor.look_alikes import copies_between
from detector.data.doctor.orphan_checks import check_orphans
from detector.data.folds import groups_of
from detector.data.foreign_dataset import ForeignDataset
from detector.data.problems import shown
from detector.data.shard_writer import coco_to_shards
from detector.data.split_words import SPLIT_WORDS, word_of
from detector.errors import ConfigError, DatasetError
from detector.io.folders import absolute
from detector.io.nouns import plural


def run(arguments: argparse.Namespace) -> int:
    """Convert or edit a data set; return the exit code."""
    words = [arguments.words[0], *data_words(arguments, arguments.words[1:])]
    if words[0] == "index":
        return _index(words, arguments)
    actions: dict[str, Callable[[list[str], argparse.Namespace], tuple[Conversion, list[str]]]] = {
        "to-coco": _to_coco,
        "to-yolo": _to_labels,
        "to-darknet": _to_labels,
        "to-shards": _to_labels,
        "split": _split,
        "merge": _merge,
        "subset": _subset,
        "remap": _remap,
    }
    conversion, notes = actions[words[0]](words, arguments)
    for note in (*notes, *conversion.notes):
        say(note, arguments.quiet)
    print(conversion.description)
    return 0


def _read(words: list[str], target: Path, overrides: Sequence[str] = ()) -> tuple[dict[str, Portion], list[str]]:
    """Return every split of a data set and the notes of its reader; reject a target in a folder of its images."""
    _, config = configured([*words, *overrides])
    assert config.data is not None  # `configured` names one
    dataset = registry.build(config.data)
    names = dataset.split_names()
    if not names:
        raise DatasetError(f"{words[0]}: the data set has no split; give data.train.annotations and data.train.images")
    portions, notes = {}, list(dataset.notes())
    for name in names:
        annotations = dataset.split(name)
        notes += [f"{name}: {problem}" for problem in annotations.problems if problem.outcome != "noted"]
        extras = dataset.portion(name)[1] if isinstance(dataset, ForeignDataset) else read_extras(annotations)
        portions[name] = Portion(annotations, extras)
    for finding in check_orphans({name: portion.annotations for name, portion in portions.items()}):
        notes.append(f"{finding.title}, first: {finding.examples[0]}")
    _require_apart(portions, target)
    return numbered_alike(portions, notes), notes


def _write(portions: Mapping[str, Portion], folder: Path) -> Conversion:
    annotations = {name: portion.annotations for name, portion in portions.items()}
    return yolo_to_coco(annotations, folder, {name: portion.extras for name, portion in portions.items()})


def _require_apart(portions: Mapping[str, Portion], folder: Path) -> None:
    """Reject a target that is, or lies below, a folder of source images."""
    target = absolute(folder)
    for source in (portion.annotations for portion in portions.values()):
        holders = {source.path(index).parent for index in range(len(source))}
        inside = next((holder for holder in holders if target.is_relative_to(absolute(holder))), None)
        if inside is not None:
            raise ConfigError(f"{folder} lies in {inside}, which holds images of the source; name a folder elsewhere")


def _to_coco(words: list[str], arguments: argparse.Namespace) -> tuple[Conversion, list[str]]:
    settings = {"difficult": arguments.difficult, "first_pixel": arguments.first_pixel}
    overrides = [f"data.{key}={value}" for key, value in settings.items() if value is not None]
    portions, notes = _read(words[1:], arguments.out, overrides)
    return _write(portions, arguments.out), notes


def _to_labels(words: list[str], arguments: argparse.Namespace) -> tuple[Conversion, list[str]]:
    portions, notes = _read(words[1:], arguments.out)
    splits = {name: portion.annotations for name, portion in portions.items()}
    for name, portion in portions.items():
        keys = sorted({key for other in (*portion.extras.rows, *portion.extras.images) for key in other} - {"id"})
        if keys:
            kind = "shards" if words[0] == "to-shards" else "text labels"
            notes.append(f"{name}: {kind} cannot hold {', '.join(keys)}, which is left out")
    if words[0] == "to-shards":
        return coco_to_shards(splits, arguments.out, arguments.shard_mb), notes
    if words[0] == "to-darknet":
        return coco_to_darknet(splits, arguments.out, link=arguments.link, relative=arguments.relative), notes
    return coco_to_yolo(splits, arguments.out, link=arguments.link), notes


def _index(words: list[str], arguments: argparse.Namespace) -> int:
    """Build or open an index of each split, print its classes and return the exit code."""
    folder = json.dumps(str(arguments.out.absolute()))
    _, config = configured([*words[1:], f"data.index={folder}"])
    assert config.data is not None  # `configured` names one
    dataset = registry.build(config.data)
    for name in dataset.split_names():
        annotations = dataset.split(name)
        assert isinstance(annotations, IndexedAnnotations)  # the key `index` is that of COCO files
        for problem in annotations.problems:
            say(f"{name}: {problem}", arguments.quiet)
        print(f"{name}: {plural(len(annotations), 'image')}, {plural(annotations.num_boxes, 'box', 'boxes')}")
        print(f"{'class':24}{'boxes':>12}{'images':>12}{'small':>12}{'medium':>12}{'large':>12}{'crowd':>12}")
        for each in annotations.statistics:
            counts = (each.num_boxes, each.num_images, each.num_small, each.num_medium, each.num_large, each.num_crowd)
            print(f"{each.name:24}" + "".join(f"{count:12,}" for count in counts))
    return 0


def _split(words: list[str], arguments: argparse.Namespace) -> tuple[Conversion, list[str]]:
    shares = _shares(arguments.shares)
    portions, notes = _read(words[1:], arguments.out)
    source, again = arguments.from_split, arguments.again
    if source not in portions and not again:
        raise DatasetError(
            f"{words[1]}: expected a split of {', '.join(portions)}, got {source!r}; change --from-split"
        )
    divided = {name: portion for name, portion in portions.items() if name == source or (again and name in shares)}
    kept = {name: portion for name, portion in portions.items() if name not in divided}
    if lost := [name for name in kept if name in shares]:
        raise ConfigError(
            f"{words[1]}: already has a split {lost[0]}; give --again to divide them together, or leave {lost[0]} out "
            "of --shares"
        )
    if not divided:
        raise ConfigError(f"{words[1]}: --shares names none of its splits {', '.join(portions)}; name one of them")
    whole = pooled(divided, notes)
    groups = groups_of(arguments.group, whole.annotations, notes)
    parts = split_portion(whole, shares, seed=arguments.seed, groups=groups)
    made = {**parts, **kept}
    require_no_leak(made, "add the splits to --shares and give --again to divide them together")
    notes += [
        f"{name}: {plural(len(part.annotations), 'image')}, {plural(part.annotations.num_boxes, 'box', 'boxes')}"
        for name, part in parts.items()
    ]
    return _write(made, arguments.out), [*notes, *_copies(made, "--group duplicates keeps copies in one split")]


def _copies(portions: Mapping[str, Portion], remedy: str) -> list[str]:
    """Return a note for each two splits that share copies of images."""
    found = copies_between({name: portion.annotations for name, portion in portions.items()})
    return [
        f"{other} has {plural(len(pairs), 'copy', 'copies')} of images of {one}, first {shown(pairs[0][1])} of "
        f"{shown(pairs[0][0])}; {remedy}"
        for (one, other), pairs in found.items()
    ]


def _shares(text: str) -> dict[str, float]:
    shares: dict[str, float] = {}
    for item in text.split(","):
        name, equals, share = item.strip().partition("=")
        try:
            value = float(share)
        except ValueError:
            equals = ""
        if not equals or name not in ("train", "val", "test") or name in shares:
            raise ConfigError(
                f"--shares: expected train, val and test, each once with its share, as {_SHARES}; got {text!r}"
            )
        shares[name] = value
    return shares


def _merge(words: list[str], arguments: argparse.Namespace) -> tuple[Conversion, list[str]]:
    if len(words) < 3:
        raise ConfigError(
            "expected two data sets or more; name a COCO file without its images, which are looked for beside it"
        )
    data_sets: list[dict[str, Portion]] = []
    notes: list[str] = []
    for word in words[1:]:
        portions, own_notes = _read([word], arguments.out)
        notes += [f"{word}: {note}" for note in own_notes]
        name = _split_named(word)
        if name != "train" and list(portions) == ["train"]:
            portions = {name: portions["train"]}
            notes.append(f"{word}: its images are the split {name}, as its name says")
        data_sets.append(portions)
    merged, changed = merge(data_sets)
    require_no_leak(merged, "leave them out of one of the data sets")
    return _write(merged, arguments.out), [
        *notes,
        *changed,
        *_copies(merged, "check the data sets with detector check"),
    ]


def _split_named(word: str) -> str:
    """Return the split that the name of a file or of its folder means, `train` by default."""
    path = Path(word)
    return SPLIT_WORDS.get(word_of("/".join(path.absolute().parts[-2:])) or "", "train") if path.is_file() else "train"


def _subset(words: list[str], arguments: argparse.Namespace) -> tuple[Conversion, list[str]]:
    if arguments.classes is None and arguments.num is None:
        raise ConfigError("expected classes or a number of images to keep, got neither; give --classes A,B or --num N")
    names = [name.strip() for name in arguments.classes.split(",") if name.strip()] if arguments.classes else []
    portions, notes = _read(words[1:], arguments.out)
    chosen = {}
    for name, portion in portions.items():
        kept = subset(
            portion, class_names=names, num=arguments.num, seed=arguments.seed, keep_empty=arguments.keep_empty
        )
        chosen[name] = kept
        num_boxes, num_before = kept.annotations.num_boxes, portion.annotations.num_boxes
        notes.append(
            f"{name}: {len(kept.annotations)} of {plural(len(portion.annotations), 'image')}, "
            f"{num_boxes} of {plural(num_before, 'box', 'boxes')}"
        )
    return _write(chosen, arguments.out), notes


def _remap(words: list[str], arguments: argparse.Namespace) -> tuple[Conversion, list[str]]:
    mapping = _mapping(arguments.map) if arguments.map is not None else {}
    pairs = [word for word in words[1:] if "=" in word and not word.startswith(("data=", "data."))]
    mapping.update((old.strip(), new.strip()) for old, _, new in (pair.partition("=") for pair in pairs))
    if not mapping:
        raise ConfigError(
            "expected a mapping, got none; give words old=new (old= leaves a class out) or --map FILE.yaml"
        )
    portions, notes = _read([word for word in words[1:] if word not in pairs], arguments.out)
    changed = {name: remap_classes(portion, mapping) for name, portion in portions.items()}
    for name, portion in changed.items():
        lost = portions[name].annotations.num_boxes - portion.annotations.num_boxes
        if lost:
            notes.append(f"{name}: {plural(lost, 'box', 'boxes')} of removed classes left out")
    return _write(changed, arguments.out), notes


def _mapping(path: Path) -> dict[str, str]:
    mapping = {}
    for old, node in read_foreign(path).items():
        if not (node.value is None or isinstance(node.value, str)):
            raise ConfigError(f"{node.where}: expected a class name (in quotes if it is a number) or nothing")
        mapping[old] = node.value or ""
    return mapping
