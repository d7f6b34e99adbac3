"""The contracts of data sets, and a reader that is one file."""

from __future__ import annotations

from pathlib import Path

import pytest

from detector.config import registry
from detector.config.registry import import_parts
from detector.data.classification_split import ImageSet, ImageSetConfig
from detector.data.dataset import Dataset, DatasetConfig
from detector.tasks.detection_model import load_detection, read_split

TOY_READER = """
from dataclasses import dataclass
from pathlib import Path

from detector.config.registry import register
from detector.data.coco import read_coco
from detector.data.dataset import Dataset, DatasetConfig, required_file


@register("toy")
class ToyDataset(Dataset):
    @dataclass(frozen=True)
    class Config(DatasetConfig):
        file: Path | None = None

    def __init__(self, config):
        self.config = config

    @classmethod
    def claims(cls, path):
        return path.suffix == ".toy"

    def split_names(self):
        return ("train",)

    def split(self, name):
        root = Path(required_file(self.config.file, "a .toy file").read_text().strip())
        return read_coco(root / "annotations/train.json", root / "images/train")
"""


def test_every_reader_fulfils_its_contract() -> None:
    assert {"coco", "csv", "darknet", "shapes", "voc", "yolo"} <= set(registry.parts_of(DatasetConfig))
    assert all(issubclass(part, Dataset) for part in registry.parts_of(DatasetConfig).values())
    assert set(registry.parts_of(ImageSetConfig)) == {"cifar", "drawn", "folders"}
    assert all(issubclass(part, ImageSet) for part in registry.parts_of(ImageSetConfig).values())


def test_a_dataset_without_splits_cannot_be_constructed() -> None:
    class Incomplete(Dataset):
        def split_names(self) -> tuple[str, ...]:
            return ()

    with pytest.raises(TypeError, match="split"):
        Incomplete()  # type: ignore[abstract]  # that is what is tested


def test_a_reader_is_one_file(tiny_shapes: Path, tmp_path: Path) -> None:
    (tmp_path / "toy_reader.py").write_text(TOY_READER, encoding="utf-8")
    import_parts(tmp_path / "toy_reader.py")
    description = tmp_path / "pets.toy"
    description.write_text(f"{tiny_shapes}\n", encoding="utf-8")
    config = load_detection("base", [f"data={description}"])
    assert config.data is not None
    assert registry.name_of(config.data) == "toy"
    dataset = registry.build(config.data)
    assert isinstance(dataset, Dataset)
    assert dataset.split_names() == ("train",)
    assert len(read_split(config, "train")) > 0
