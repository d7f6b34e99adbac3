"""Checks of files without a partner: labels without an image, images that no split lists, images that are not read."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from detector.data.coco import CocoAnnotations
from detector.data.doctor.findings import NUM_EXAMPLES, Finding, Severity
from detector.data.pascal_voc import XML_FOLDERS
from detector.data.path_contents import shown_path
from detector.data.problems import shown
from detector.data.yolo_dataset import label_file
from detector.data.yolo_folder import is_other_text
from detector.io.nouns import plural
from detector.media.images import IMAGE_SUFFIXES

_LABEL_SUFFIXES = (".txt", ".xml")
# Images that other programs write and this package does not read.
_UNREAD_SUFFIXES = (
    *(".heic", ".heif", ".avif", ".jp2", ".j2k", ".jxl", ".psd", ".raw", ".cr2", ".cr3", ".nef", ".arw", ".dng"),
    *(".dcm", ".svg", ".exr", ".hdr", ".tga", ".ico", ".jfif"),
)


def check_orphans(splits: Mapping[str, CocoAnnotations]) -> list[Finding]:
    """Return a finding for each kind of file without a partner, in the folders that hold images of a split."""
    listed = {split.path(index) for split in splits.values() for index in range(len(split))}
    unlisted, unread = list[Path](), list[Path]()
    stems_of: dict[Path, set[str]] = {}  # of the images, by the folder that may hold their labels
    for folder in sorted({path.parent for path in listed}):
        files = list(_files(folder))
        images = [path for path in files if path.suffix.lower() in IMAGE_SUFFIXES]
        unlisted += [path for path in images if path not in listed]
        unread += [path for path in files if path.suffix.lower() in _UNREAD_SUFFIXES]
        for labels in {folder, label_file(folder / "a").parent, *_xml_folders(folder.parent)}:
            stems_of.setdefault(labels, set()).update(path.stem for path in images)
    labels, orphans = 0, list[Path]()
    for folder, stems in stems_of.items():
        for suffix in _LABEL_SUFFIXES:
            found = [path for path in _files(folder) if path.suffix.lower() == suffix and not is_other_text(path.name)]
            alone = [path for path in found if path.stem not in stems]
            if len(alone) < len(found):  # else they are no labels, or the reader refuses the split
                labels += len(found)
                orphans += alone
    is_renamed = 2 * len(orphans) > labels
    return [
        *_finding("label-without-image", plural(len(orphans), "label file") + " without an image", orphans, is_renamed),
        *_finding("image-unlisted", plural(len(unlisted), "image") + " that no split lists", unlisted),
        *_finding("image-type-unread", plural(len(unread), "image") + " of a type that is not read", unread, True),
    ]


def _finding(code: str, title: str, paths: list[Path], is_warning: bool = False) -> list[Finding]:
    severity: Severity = "warning" if is_warning else "note"
    examples = tuple(shown(shown_path(path)) for path in paths[:NUM_EXAMPLES])
    return [Finding(code, severity, title, {"all": len(paths)}, 0, examples)] if paths else []


def _files(folder: Path) -> Iterable[Path]:
    """Return the files of a folder, sorted; none where it cannot be listed."""
    try:
        with os.scandir(folder) as entries:
            return sorted(folder / e.name for e in entries if not e.name.startswith(".") and e.is_file())
    except OSError:
        return []


def _xml_folders(folder: Path) -> Iterable[Path]:
    """Return the folders of XML files in a folder."""
    try:
        with os.scandir(folder) as entries:
            return [folder / entry.name for entry in entries if entry.name.lower() in XML_FOLDERS and entry.is_dir()]
    except OSError:
        return []
