"""Words for files and folders that no reader of data sets takes: what they are, and what to give instead."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import PurePosixPath

from detector.data.path_contents import PathContents
from detector.errors import DatasetError
from detector.io.nouns import plural

_LFS = "version https://git-lfs.github.com/spec/"
_GIVE = "give a folder, zip or file with images and annotations: COCO, YOLO, Pascal VOC, CSV, ..."
_EXPORT = "export it as COCO or YOLO"
# First bytes or suffixes of files, what they are, and what to do.
_SIGNATURES: tuple[tuple[bytes, str, str], ...] = (
    (b"%PDF", "a PDF", _GIVE),
    (b"PAR1", "a Parquet table", _EXPORT),
    (b"ARROW1", "an Arrow table", _EXPORT),
    (b"\x89HDF", "an HDF5 file", _EXPORT),
    (b"\x93NUMPY", "a NumPy array", _EXPORT),
    (b"SQLite format 3", "an SQLite database", _EXPORT),
    (b"MATLAB 5.0", "a MATLAB file", _EXPORT),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive", "unpack it and give the folder"),
    (b"Rar!", "a RAR archive", "unpack it and give the folder"),
    (b"\x1f\x8b", "a gzip file", "unpack it and give the file in it"),
    (b"PK\x03\x04", "a zip archive under another name", "rename it to .zip"),
    (b"\xff\xd8\xff", "an image", "give its folder, with annotations; to detect objects in it, use detector predict"),
    (b"\x89PNG", "an image", "give its folder, with annotations; to detect objects in it, use detector predict"),
    (b"\xff\xfe", "text in UTF-16", "save it as UTF-8"),
    (b"\xfe\xff", "text in UTF-16", "save it as UTF-8"),
)
_SUFFIXES: dict[str, tuple[str, str]] = {
    **dict.fromkeys((".tfrecord", ".tfrecords", ".record"), ("a TFRecord", _EXPORT)),
    **dict.fromkeys((".xlsx", ".xls", ".ods"), ("a spreadsheet", "save it as CSV")),
    **dict.fromkeys((".docx", ".doc", ".odt", ".pptx"), ("a document", _GIVE)),
    **dict.fromkeys((".pkl", ".pickle"), ("a pickle, which can hold code and is not opened", _EXPORT)),
    **dict.fromkeys((".mdb", ".lmdb"), ("an LMDB database", _EXPORT)),
    **dict.fromkeys((".npz", ".mat", ".h5", ".hdf5", ".parquet", ".arrow"), ("arrays", _EXPORT)),
    **dict.fromkeys(
        (".mp4", ".avi", ".mov", ".mkv", ".webm"),
        ("a video", "label its frames first; to detect objects in it, use detector predict"),
    ),
    **dict.fromkeys(
        (".safetensors", ".pt", ".pth", ".onnx", ".weights"),
        ("a model file", "give it as the model, and the data set as data"),
    ),
    ".cfg": ("a network of Darknet", "give it as the configuration: detector train FILE.cfg data=..."),
    ".names": ("a list of class names", "give the folder of the data set, or the file that names its splits"),
    ".ipynb": ("a notebook", _GIVE),
}
_LISTED = 4


def require_content(contents: PathContents, place: str) -> None:
    """Refuse empty files and folders, and files that version control has left out.

    Raises:
        DatasetError: there is nothing to read yet.
    """
    if not contents.names:
        raise DatasetError(f"{place}: the folder is empty, expected a data set; {_GIVE}")
    if not contents.is_folder and not contents.path.stat().st_size:
        found = "the file is empty" if contents.path.is_file() else "it is a pipe or a device"
        raise DatasetError(f"{place}: {found}, expected a data set; {_GIVE}")
    texts = [n for n in contents.names if PurePosixPath(n).suffix.lower() in (".json", ".csv", ".xml", ".yaml", ".txt")]
    for name in (*contents.samples(contents.images), *contents.samples(texts), *contents.samples(contents.names)):
        if contents.head(name).startswith(_LFS):
            raise DatasetError(
                f"{place}: {name} is a Git LFS pointer, not the file itself; fetch the files with git lfs pull, "
                "run in that folder"
            )
        if os.path.islink(contents.root / name) and not os.path.exists(contents.root / name):
            raise DatasetError(
                f"{place}: {name} is a link to a file that does not exist; fetch the files (git annex get . or "
                "datalad get .), or copy them"
            )


def what_it_is(contents: PathContents) -> str:
    """Return what a path holds instead of a data set, and what to do."""
    if not contents.is_folder:
        what, advice = _of_file(contents, contents.names[0])
        return f"expected a data set, got {what}; {advice}"
    others = Counter(PurePosixPath(name).suffix.lower() for name in contents.names if name not in set(contents.images))
    listed = [f"{number:,} {suffix or 'without suffix'}" for suffix, number in others.most_common(_LISTED)]
    if contents.images:
        beside = f" (other files: {', '.join(listed)})" if listed else ""
        return (
            f"expected images and annotations, got {plural(len(contents.images), 'image')} without annotations that "
            f"can be read{beside}; add the annotations, or give the folder or file that holds them"
        )
    suffix = others.most_common(1)[0][0]
    example = next(name for name in contents.names if name.lower().endswith(suffix))
    what, advice = _of_file(contents, example)
    holds = f"no image, but {', '.join(listed)} ({example} is {what})"
    return f"expected images and annotations, got {holds}; {advice}"


def _of_file(contents: PathContents, name: str) -> tuple[str, str]:
    """Return what a file is, and what to do."""
    suffix = PurePosixPath(name).suffix.lower()
    if suffix in _SUFFIXES:
        return _SUFFIXES[suffix]
    try:
        with (contents.root / name).open("rb") as file:
            start = file.read(16)
    except OSError as error:
        return f"a file that cannot be read ({error.strerror})", "check its permissions"
    for signature, what, advice in _SIGNATURES:
        if start.startswith(signature):
            return what, advice
    head = contents.head(name)
    if "\0" in head:
        return f"a binary file {suffix or 'without suffix'}", _GIVE
    if head.lstrip()[:1] in ("{", "["):
        return _of_json(contents, name)
    if head.lstrip().lower().startswith(("<!doctype html", "<html")):
        return "a web page (a failed download?)", "download the file again"
    if suffix == ".xml":
        return "one XML file", "give the folder that holds it and the images"
    if suffix in (".csv", ".tsv"):
        columns = head.splitlines()[0][:100] if head.strip() else "no line"
        return (
            f"a table with the columns {columns}",
            "name the columns of image, class and box in line 1",
        )
    return "text", _GIVE


def _of_json(contents: PathContents, name: str) -> tuple[str, str]:
    keys = contents.keys(name)
    first = keys[0] if keys else frozenset[str]()
    if {"image_id", "score"} <= first:
        return "a list of results", "give it to detector evaluate --results, and the annotations as data"
    if {"type", "features"} <= first:
        return "GeoJSON with geographic outlines", _EXPORT
    if {"frames", "video"} & first:
        return "annotations of a video", f"{_EXPORT}, frame by frame"
    listed = ", ".join(sorted(first)[:6]) or "none"
    return f"JSON of an unknown format (keys {listed})", f"expected COCO (images, annotations, categories); {_EXPORT}"
