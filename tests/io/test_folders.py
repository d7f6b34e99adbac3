"""Links to folders: followed wherever a folder is searched, once, and never around a loop."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from detector.data.image_folders import FolderSet
from detector.data.yolo_dataset import YoloDataset
from detector.io.folders import files_below
from detector.media.images import write_image
from detector.media.sources import as_sources
from detector.structures.canvas import Canvas

# Links, each with its target, and the images that are found in addition to a/0.png and 1.png of the folder `set`.
CASES: dict[str, tuple[dict[str, str], list[str]]] = {
    "no link": ({}, []),
    "a folder elsewhere": ({"set/more": "elsewhere"}, ["more/2.png", "more/deep/3.png"]),
    "a link in a linked folder": (
        {"set/more": "elsewhere", "elsewhere/on": "third"},
        ["more/2.png", "more/deep/3.png"],
    ),
    "two links to one folder": ({"set/x": "elsewhere", "set/y": "elsewhere"}, ["x/2.png", "x/deep/3.png"]),
    "a part of a linked folder": ({"set/x": "elsewhere/deep", "set/y": "elsewhere"}, ["x/3.png", "y/2.png"]),
    "a folder of the set itself": ({"set/b": "set/a"}, []),
    "the set itself": ({"set/a/loop": "set"}, []),
    "a folder above": ({"set/up": "."}, []),
    "a loop elsewhere": (
        {"set/more": "elsewhere", "elsewhere/deep/loop": "elsewhere"},
        ["more/2.png", "more/deep/3.png"],
    ),
    "a link without target": ({"set/gone": "nowhere"}, []),
    "a link to a file": ({"set/4.png": "elsewhere/2.png"}, ["4.png"]),
}
CASES["a link in a linked folder"][1].append("more/on/5.png")


def draw(root: Path, links: dict[str, str]) -> Path:
    for name in ("set/a/0.png", "set/1.png", "elsewhere/2.png", "elsewhere/deep/3.png", "third/5.png"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        write_image(root / name, np.full((8, 8, 3), 100, np.uint8))
        (root / name).with_suffix(".txt").write_text("0 0.5 0.5 0.5 0.5\n")
    for name, target in links.items():
        (root / name).symlink_to(root / target, target_is_directory=True)
    return root / "set"


def by_files_below(folder: Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in files_below(folder) if path.suffix == ".png"]


def by_prediction(folder: Path) -> list[str]:
    return [Path(source.name).relative_to(folder).as_posix() for source in as_sources(folder)[0]]


def by_yolo(folder: Path) -> list[str]:
    (folder.parent / "data.yaml").write_text("train: set\nnames: [a]\n")
    return list(YoloDataset(YoloDataset.Config(folder.parent / "data.yaml")).split("train").file_names)


def by_class_folders(folder: Path) -> list[str]:
    data = FolderSet(FolderSet.Config(root=folder.parent / "classes", val_share=0.0))
    (folder.parent / "classes").mkdir()
    (folder.parent / "classes" / "cat").symlink_to(folder)
    found = data.split("train", Canvas((8, 8), 3, "stretch")).sources
    return [name.removeprefix("cat/") for name in found]


READERS: dict[str, Callable[[Path], list[str]]] = {
    "files_below": by_files_below,
    "prediction": by_prediction,
    "yolo": by_yolo,
    "class folders": by_class_folders,
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("case", CASES)
def test_linked_folders_are_searched_once(case: str, reader: str, tmp_path: Path) -> None:
    links, more = CASES[case]
    folder = draw(tmp_path, links)
    found = READERS[reader](folder)
    assert sorted(name.removeprefix("set/") for name in found if not name.startswith("gone")) == sorted(
        ["a/0.png", "1.png", *more]
    )


def test_glob_lists_an_image_once_in_a_loop_of_links(tmp_path: Path) -> None:
    folder = draw(tmp_path, {"set/a/loop": "set", "set/more": "elsewhere"})
    found = [Path(source.name).relative_to(folder).as_posix() for source in as_sources(f"{folder}/**/*.png")[0]]
    assert found == ["1.png", "a/0.png", "more/2.png", "more/deep/3.png"]
