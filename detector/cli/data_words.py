"""Data sets as the command line names them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from detector.errors import ConfigError

if TYPE_CHECKING:
    from detector.tasks.detection_config import DetectionConfig

DATA_HELP = "a data set: FILE.yaml, shapes, a data.yaml or .data file, or a COCO FILE.json and its folder of images"
# Where images lie beside a COCO file, from the folder of the file.
_USUAL_FOLDERS = ("images", "../images", ".", "..")


def configured(words: Sequence[str], config_name: str = "base") -> tuple[str, DetectionConfig]:
    """The name of a data set and an experiment on it.

    Args:
        words: the data set, after a `.json` file perhaps the folder of its images, and overrides `key=value`.
        config_name: the experiment's own configuration, a file or preset.

    Raises:
        ConfigError: not one data set is named, the images of a COCO file are not found, or the configuration is wrong.
    """
    from detector.tasks.detection_model import load_detection

    names = [word for word in words if "=" not in word]
    overrides = [word for word in words if "=" in word]
    is_coco = bool(names) and Path(names[0]).suffix.lower() == ".json"
    if not names or len(names) > 1 + is_coco:
        raise ConfigError(f"one data set is wanted, found {', '.join(names) or 'none'}; give {DATA_HELP}")
    if is_coco:
        images = Path(names[1]) if len(names) > 1 else images_beside(Path(names[0]))
        split = {"annotations": str(Path(names[0]).resolve()), "images": str(images.resolve())}
        data = json.dumps({"name": "coco", "train": split})
    else:
        data = json.dumps(names[0])
    return names[0], load_detection(config_name, [f"data={data}", *overrides])


def images_beside(annotations: Path) -> Path:
    """The folder in which the first images of a COCO file lie, sought where they usually are.

    Raises:
        ConfigError: in none of them.
        DatasetError: the file is refused.
    """
    from detector.data.coco import read_coco

    split = annotations.stem.removeprefix("instances_")
    names = read_coco(annotations, None, require_annotations=False).file_names[:10]
    folders = [*_USUAL_FOLDERS, split, f"../{split}", f"../images/{split}", f"images/{split}"]
    for folder in folders:
        if any((annotations.parent / folder / name).is_file() for name in names):
            return annotations.parent / folder
    raise ConfigError(
        f"{annotations}: its images are not in {', '.join(folders)} beside it; give their folder after the file"
    )
