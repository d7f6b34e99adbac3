"""Names of data sets on the command line."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from detector.cli.usage import DATA_HELP, names_data
from detector.data.coco import read_coco
from detector.errors import ConfigError
from detector.tasks.detection_config import DetectionConfig
from detector.tasks.detection_model import load_detection

# Usual folders of the images of a COCO file, relative to the folder of the file.
_USUAL_FOLDERS = ("images", "../images", ".", "..")


def configured(words: Sequence[str], config_name: str = "base") -> tuple[str, DetectionConfig]:
    """Return the name of a data set and an experiment on it.

    Args:
        words: the data set, optionally the folder of the images of a `.json` file, and overrides `key=value`.
        config_name: the configuration of the experiment, a file or preset.

    Raises:
        ConfigError: there is not exactly one data set, the images of a COCO file do not exist, or the configuration is
            wrong.
    """
    names = [word for word in words if "=" not in word]
    overrides = [word for word in words if "=" in word]
    is_coco = bool(names) and Path(names[0]).suffix.lower() == ".json"
    if len(names) > 1 + is_coco or (not names and not names_data(overrides)):
        raise ConfigError(f"expected one data set, got {', '.join(names) or 'none'}; give {DATA_HELP}")
    if not names:
        label = next(word for word in overrides if names_data([word]))
        return label.removeprefix("data=").strip('"'), load_detection(config_name, overrides)
    if is_coco:
        images = Path(names[1]) if len(names) > 1 else images_beside(Path(names[0]))
        split = {"annotations": str(Path(names[0]).resolve()), "images": str(images.resolve())}
        data = json.dumps({"name": "coco", "train": split})
    else:
        data = json.dumps(names[0])
    return names[0], load_detection(config_name, [f"data={data}", *overrides])


def images_beside(annotations: Path) -> Path:
    """Return the folder that holds the first images of a COCO file, out of the usual ones.

    Raises:
        ConfigError: none of them holds such an image.
        DatasetError: the file is refused.
    """
    split = annotations.stem.removeprefix("instances_")
    names = read_coco(annotations, None, require_annotations=False).file_names[:10]
    folders = [*_USUAL_FOLDERS, split, f"../{split}", f"../images/{split}", f"images/{split}"]
    for folder in folders:
        if any((annotations.parent / folder / name).is_file() for name in names):
            return annotations.parent / folder
    raise ConfigError(
        f"{annotations}: its images are not in {', '.join(folders)} beside it; give their folder after the file"
    )
