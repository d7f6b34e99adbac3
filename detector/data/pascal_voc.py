"""Pascal VOC data sets: an XML file for each image, lists of images for the splits.

The format: the annotation guidelines and development kit of the PASCAL VOC challenge 2012. Corners are pixels counted
from 1, both inside the box: `xmin` 1 is the left edge of the image. LabelImg, CVAT and Roboflow write the edges of the
box instead, so that 0 is the left edge of the image. `detector.data.first_pixel` decides by what the files hold.
"""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PureWindowsPath

from detector.data.annotation_builder import DIFFICULT, ListedObjects, NamedObject, assemble
from detector.data.coco import CocoAnnotations
from detector.data.coco_extras import Extras
from detector.data.first_pixel import first_pixel_of
from detector.data.problems import NUM_LISTED_REFUSALS, shown
from detector.errors import DatasetError
from detector.io.text_file import read_text
from detector.media.images import IMAGE_SUFFIXES

_MAX_BYTES, _MAX_DEPTH = 2**24, 32
_SPLITS = ("train", "val", "test")
_FLAGS = ("truncated", "occluded")
# Names of folders, in any case, by what they hold.
XML_FOLDERS = ("annotations", "annotation", "annots", "xml", "xmls")
_IMAGE_FOLDERS = ("jpegimages", "images", "image", "imgs", "img")


class _RefusedError(Exception):
    """Content that is not allowed in an annotation file."""


class _PlainTree(ElementTree.TreeBuilder):
    """Builder of elements that rejects a document type, before its entities can expand, and deep nesting."""

    depth = 0

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        """Reject `<!DOCTYPE`, before anything that it declares is used."""
        raise _RefusedError("declares a document type, which may hide entities that expand without end; remove it")

    def start(self, tag: str, attrs: dict[str, str]) -> ElementTree.Element:
        """Begin an element."""
        self.depth += 1
        if self.depth > _MAX_DEPTH:
            raise _RefusedError(f"nests elements deeper than {_MAX_DEPTH}")
        return super().start(tag, attrs)

    def end(self, tag: str) -> ElementTree.Element:
        """End an element."""
        self.depth -= 1
        return super().end(tag)


def read_voc(
    root: Path,
    *,
    difficult: str = "ignore",
    first_pixel: int | None = None,
    parts: Mapping[str, str] | None = None,
) -> tuple[dict[str, tuple[CocoAnnotations, Extras]], list[str]]:
    """Read a data set: `Annotations/*.xml`, `JPEGImages/` and, if present, `ImageSets/Main/train.txt` and so on.

    The folders may also be called `annots` or `images`, for example, in any case. A folder that holds XML files beside
    their images is read as the split `train`.

    Args:
        root: the folder.
        difficult: treatment of objects marked as difficult: `ignore` (in training and in evaluation), `keep` or `drop`.
        first_pixel: the number of the first pixel: 1 as in VOC, where both corners are pixels of the box, or 0, where
            they are its edges; None to decide by the files.
        parts: the folder of each split, relative to `root`, by split; None where `root` holds all.

    Returns:
        The splits, and notes on what is changed.

    Raises:
        DatasetError: there is no annotation file, some are wrong (all of them are named), or the data is refused.
    """
    notes, programs = list[str](), list[str]()
    splits: dict[str, list[ListedObjects]] = {}
    images = root
    for split, folder in (parts or {"": "."}).items():
        images, read = _read_folder(root / folder, notes, programs)
        if not parts:
            splits = _splits(root, read, notes)
            continue
        for image in read.values():
            image.file_name = (images.relative_to(root) / image.file_name).as_posix()
        splits[split] = list(read.values())
    found = [image for of_split in splits.values() for image in of_split]
    objects = [item for image in found for item in image.objects]
    counted_from, reason = first_pixel_of(found, programs, root) if first_pixel is None else (first_pixel, "as asked")
    notes.append(
        f"{reason}: pixels count from 1 and belong to the box, as in VOC: boxes begin 1 px before xmin and ymin"
        if counted_from
        else f"{reason}: coordinates are taken as edges, not as the pixels of VOC, which count from 1"
    )
    if num_difficult := sum(item.is_ignored for item in objects):
        notes.append(f"{num_difficult} difficult objects {DIFFICULT[difficult]}")
    for image in {id(image): image for image in found}.values():
        kept = [item for item in image.objects if not (item.is_ignored and difficult == "drop")]
        is_ignored = difficult == "ignore"
        image.objects = [
            replace(item, source_xyxy=_edges(item, float(counted_from)), is_ignored=item.is_ignored and is_ignored)
            for item in kept
        ]
    return assemble(root, root if parts else images, splits), notes


def _read_folder(root: Path, notes: list[str], programs: list[str]) -> tuple[Path, dict[str, ListedObjects]]:
    """Return the folder of images and the images by the stem of their annotation file; add notes and programs."""
    folder = _subfolder(root, XML_FOLDERS) or root
    images = _subfolder(root, _IMAGE_FOLDERS) or folder
    files = sorted(path for path in folder.glob("*.xml") if path.is_file())
    if not files:
        raise DatasetError(f"{root}: expected annotation files *.xml in it or in Annotations, got none")
    read, own_notes, own_programs = _read_files(root, files, images)
    notes += own_notes
    programs += own_programs
    return images, read


def _subfolder(root: Path, names: Sequence[str]) -> Path | None:
    """Return the folder of the first of the names that there is, in any case; None without one."""
    found = {path.name.lower(): path for path in sorted(root.iterdir(), reverse=True) if path.is_dir()}
    return next((found[name] for name in names if name in found), None)


def _read_files(
    root: Path, files: Sequence[Path], images: Path
) -> tuple[dict[str, ListedObjects], list[str], list[str]]:
    """Return the images of annotation files by the stem of the file, notes on names that clash, and `<database>`.

    Raises:
        DatasetError: some files are wrong; all of them are named.
    """
    names = {path.name for path in images.iterdir()}
    by_stem = {Path(name).stem: name for name in sorted(names) if Path(name).suffix.lower() in IMAGE_SUFFIXES}
    read: dict[str, ListedObjects] = {}
    wrong: list[str] = []
    renamed: list[str] = []
    programs: list[str] = []
    for file in files:
        try:
            tree = parse_xml(file)
            programs.append((tree.findtext("source/database") or "").strip())
            read[file.stem], written = _image(file, tree, names, by_stem)
            if written in names and written != read[file.stem].file_name:
                renamed.append(f"{file.name} names {shown(written)}")
        except DatasetError as error:
            wrong.append(str(error))
    if wrong:
        more = f"; and {len(wrong) - NUM_LISTED_REFUSALS} more" if len(wrong) > NUM_LISTED_REFUSALS else ""
        raise DatasetError(f"{root} cannot be used: {'; '.join(wrong[:NUM_LISTED_REFUSALS])}{more}")
    notes = _without_clashes(read)
    if renamed:
        notes.append(
            f"{len(renamed)} annotation files name another image than that of their own name, which is used, first: "
            f"{renamed[0]}"
        )
    return read, notes, programs


def _without_clashes(read: dict[str, ListedObjects]) -> list[str]:
    """Remove all but one of the annotation files of an image; return notes on files that name another image."""
    first: dict[str, str] = {}  # the annotation file of each image; one of its own name comes first
    for stem, image in sorted(read.items(), key=lambda item: Path(item[1].file_name).stem != item[0]):
        first.setdefault(image.file_name, stem)
    lost = [stem for stem, image in read.items() if first[image.file_name] != stem]
    notes = [
        f"{len(lost)} annotation files are left out, because their image has another one, first: {shown(stem)}.xml "
        f"names {shown(read[stem].file_name)}, which {shown(first[read[stem].file_name])}.xml describes"
        for stem in lost[:1]
    ]
    for stem in lost:
        del read[stem]
    return notes


def _edges(item: NamedObject, offset: float) -> tuple[float, float, float, float]:
    x1, y1, x2, y2 = item.source_xyxy
    return x1 - offset, y1 - offset, x2, y2


def _splits(root: Path, read: Mapping[str, ListedObjects], notes: list[str]) -> dict[str, list[ListedObjects]]:
    lists = root / "ImageSets" / "Main"
    splits: dict[str, list[ListedObjects]] = {}
    for name in _SPLITS:
        path = lists / f"{name}.txt"
        if not path.is_file():
            continue
        text = read_text(path, "a list of images")
        stems = [line.split()[0] for line in text.splitlines() if line.strip()]
        unknown = [stem for stem in stems if stem not in read]
        if unknown:
            notes.append(
                f"{path}: {len(unknown)} images have no annotation file and are left out, first: {shown(unknown[0])}"
            )
        if len(unknown) < len(stems):
            splits[name] = [read[stem] for stem in dict.fromkeys(stems) if stem in read]
    if not splits:
        return {"train": list(read.values())}
    listed = {id(image) for images in splits.values() for image in images}
    unlisted = [stem for stem, image in read.items() if id(image) not in listed]
    if unlisted:
        notes.append(
            f"{len(unlisted)} annotation files are in no split and are left out, first: {shown(unlisted[0])}.xml"
        )
    return splits


def parse_xml(path: Path, max_bytes: int = _MAX_BYTES) -> ElementTree.Element:
    """Return the root element of an XML file of at most `max_bytes`.

    Raises:
        DatasetError: the file cannot be read, is not XML, is too large or too deeply nested, or declares a document
            type.
    """
    try:
        size = path.stat().st_size
        if size > max_bytes:
            raise DatasetError(f"{path}: expected an annotation file of at most {max_bytes} bytes, got {size}")
        parser = ElementTree.XMLParser(target=_PlainTree())
        parser.feed(path.read_bytes())
        root: ElementTree.Element = parser.close()
    except OSError as error:
        raise DatasetError(f"{path} cannot be read: {error.strerror}; check the path") from error
    except _RefusedError as error:
        raise DatasetError(f"{path} {error}") from error
    except (ElementTree.ParseError, ValueError, LookupError) as error:  # an encoding that Python does not know
        raise DatasetError(f"{path} is not XML: {shown(str(error))}; export it again") from error
    return root


def _image(
    file: Path, root: ElementTree.Element, names: set[str], by_stem: Mapping[str, str]
) -> tuple[ListedObjects, str]:
    """Return the image of a file with its objects, and the name that the file gives to the image."""
    if root.tag != "annotation":
        raise DatasetError(f"{file}: expected a root element <annotation>, got <{shown(root.tag)}>")
    # Programs write whole paths of another machine, so only the name counts. A copy keeps the name in its original.
    written = PureWindowsPath(_text(root, "filename")).name
    if written not in names or Path(written).stem != file.stem:
        other = written if written in names else by_stem.get(Path(written).stem, written)
        name = by_stem.get(file.stem, other)
    else:
        name = written
    if not name:
        raise DatasetError(f"{file}: names no image in <filename>, and no image is called {file.stem}")
    size = root.find("size")
    hw = (0, 0) if size is None else (_side(size, "height"), _side(size, "width"))
    image = ListedObjects(name, str(file), hw if all(hw) else (0, 0))
    for number, element in enumerate(root.findall("object"), start=1):
        place = f"{file}, object {number}"
        class_name, box = _text(element, "name"), element.find("bndbox")
        if not class_name:
            raise DatasetError(f"{place}: has no <name>")
        if box is None:
            raise DatasetError(f"{place}: has no <bndbox>")
        x1, y1, x2, y2 = (_number(box, key, place) for key in ("xmin", "ymin", "xmax", "ymax"))
        extras: dict[str, int | str] = {key: 1 for key in (*_FLAGS, "difficult") if _is_set(element, key)}
        pose = _text(element, "pose")
        if pose and pose.lower() != "unspecified":
            extras["pose"] = pose
        image.objects.append(NamedObject(class_name, (x1, y1, x2, y2), place, _is_set(element, "difficult"), extras))
    return image, written


def _text(element: ElementTree.Element, key: str) -> str:
    return (element.findtext(key) or "").strip()


def _side(size: ElementTree.Element, key: str) -> int:
    """Return a side in pixels; 0 where none is written, as by some programs."""
    text = _text(size, key)
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 9 else 0


def _is_set(element: ElementTree.Element, key: str) -> bool:
    return _text(element, key).lower() in ("1", "true", "yes")


def _number(box: ElementTree.Element, key: str, place: str) -> float:
    text = _text(box, key)
    try:
        return float(text if "_" not in text else "")  # Python reads 1_0 as 10
    except ValueError as error:
        raise DatasetError(f"{place}: <{key}>: expected a number, got {shown(repr(text))}") from error
