from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from detector.cli.main import run
from detector.data.augment.augment_config import AugmentConfig
from detector.data.augmentation_preview import STRENGTH_WHEN_OFF, Tile, alone_tiles, whole_tiles
from detector.data.coco import read_coco
from detector.data.loader import TrainingSamples
from detector.media.images import read_image
from detector.structures.canvas import Canvas


def tiles(root: Path, augment: AugmentConfig) -> list[Tile]:
    annotations = read_coco(root / "annotations/train.json", root / "images/train")
    canvas = Canvas((64, 96), 3, "letterbox")
    samples = TrainingSamples(annotations, canvas, augment, seed=0, cache_mb=16)
    return [*whole_tiles(samples, 4), *alone_tiles(samples, augment, canvas, seed=0)]


def yaml_of(root: Path, path: Path) -> Path:
    splits = (f"{s}: {{annotations: {root}/annotations/{s}.json, images: {root}/images/{s}}}" for s in ("train", "val"))
    path.write_text("\n".join(["name: coco", *splits]), encoding="utf-8")
    return path


def test_preview_is_one_picture(
    tiny_shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    data, output = yaml_of(tiny_shapes, tmp_path / "data.yaml"), tmp_path / "sheet.png"
    words = ["augment", "--preview", str(data), "--output", str(output), "input.size=64", "augment.degrees=20"]
    assert run(words) == 0
    printed = capsys.readouterr()
    assert printed.out.strip() == str(output)
    picture = read_image(output)
    assert min(picture.shape[:2]) > 1000
    assert picture.std() > 20
    assert run([*words, "--split", "val", "--quiet"]) == 0
    assert capsys.readouterr().err == ""
    assert not np.array_equal(read_image(output), picture)


@pytest.mark.parametrize(
    ("words", "message", "code"),
    [
        ([], "expected a data set, got none; give --data DATA", 2),
        (["--preview", "shapes", "mish-n"], "expected overrides written key=value, got 'mish-n'", 2),
        (["--preview", "nowhere.yaml"], "nowhere.yaml", 2),
        (["--preview", "shapes", "augment.mosiac=1"], "unknown key 'augment.mosiac'; did you mean 'mosaic'?", 2),
        (["--preview", "shapes", "--num", "0"], "--num: expected at least 1, got 0", 2),
        (["--preview", "shapes", "--split", "holdout"], "has the splits train and val, got 'holdout'", 3),
    ],
)
def test_error_is_reported(
    words: list[str], message: str, code: int, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["augment", *words]) == code
    assert message in capsys.readouterr().err


def test_each_augmentation_is_shown_with_its_strength_on_the_same_image(tiny_shapes: Path) -> None:
    augment = AugmentConfig(degrees=12, albumentations=({"name": "GaussNoise", "p": 0.01},))
    shown = tiles(tiny_shapes, augment)
    titles = [tile.title for tile in shown]
    assert titles[:5] == ["training image 1", "training image 2", "training image 3", "training image 4", "as it is"]
    assert "degrees 12" in titles
    assert "mosaic 1" in titles
    assert "blur off, here 3" in titles
    assert "GaussNoise (p 0.01)" in titles
    assert len(titles) == 5 + len(STRENGTH_WHEN_OFF) + 1
    as_it_is = shown[4].sample
    for tile in shown[5:]:
        assert tile.sample.image.shape == (64, 96, 3)
        changed = not np.array_equal(tile.sample.image, as_it_is.image)
        moved = tile.sample.canvas_xyxy.tolist() != as_it_is.canvas_xyxy.tolist()
        assert changed or moved, tile.title


def test_every_augmentation_setting_has_a_picture() -> None:
    others = {"albumentations", "extra", "degraded_share", "closing_share", "tile"}
    assert set(AugmentConfig.__dataclass_fields__) == set(STRENGTH_WHEN_OFF) | others
