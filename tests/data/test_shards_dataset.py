from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from detector.cli.main import run
from detector.config import registry
from detector.data.augment.augment_config import AugmentConfig
from detector.data.coco import CocoAnnotations, read_coco
from detector.data.loader import BatchRange, LoaderConfig, StreamSampler, TrainingSamples, training_batches
from detector.data.shards_dataset import ShardsDataset, samples_of
from detector.errors import DatasetError, MediaError
from detector.io.files import write_whole
from detector.media.images import image_hw, load_image, read_image
from detector.media.sources import find_sources
from detector.structures.canvas import Canvas
from detector.tasks.detection_model import load_detection


@pytest.fixture(scope="module")
def shards(tiny_shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return `tiny_shapes` as shards; those of train hold several images each."""
    folder = tmp_path_factory.mktemp("shards") / "set"
    assert run(["dataset", "to-shards", str(tiny_shapes), "--out", str(folder), "--quiet"]) == 0
    return folder


def read(folder: Path, split: str = "train") -> CocoAnnotations:
    return ShardsDataset(ShardsDataset.Config(folder)).split(split)


def write_set(folder: Path, members: dict[str, bytes], **changes: Any) -> Path:
    """Write a data set with one shard."""
    folder.mkdir()
    with tarfile.open(folder / "train-000000.tar", "w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name.removesuffix("#"))
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    split = {"shards": ["train-000000.tar"], "num_images": sum(name.endswith(".png") for name in members)}
    listing = {"format": "detector shards 1", "categories": [{"id": 1, "name": "a"}], "splits": {"train": split}}
    (folder / "dataset.json").write_text(json.dumps({**listing, **changes}))
    return folder


@pytest.fixture(scope="module")
def png(tiny_shapes: Path) -> bytes:
    return next(iter(sorted((tiny_shapes / "images/train").iterdir()))).read_bytes()


@pytest.mark.parametrize("split", ["train", "val"])
def test_shards_have_the_annotations_and_pixels_of_the_files(split: str, shards: Path, tiny_shapes: Path) -> None:
    loose = read_coco(tiny_shapes / f"annotations/{split}.json", tiny_shapes / f"images/{split}")
    found = read(shards, split)
    assert (found.class_names, found.category_ids) == (loose.class_names, loose.category_ids)
    for name in ("image_ids", "image_hw", "offsets", "boxes_xywh", "labels", "is_crowd", "areas"):
        np.testing.assert_array_equal(getattr(found, name), getattr(loose, name), err_msg=name)
    for index in range(len(loose)):
        assert image_hw(found.path(index)) == image_hw(loose.path(index))
        np.testing.assert_array_equal(read_image(found.path(index)), read_image(loose.path(index)))


def test_shards_are_recognised_and_their_bytes_are_a_function_of_the_set(
    shards: Path, tiny_shapes: Path, tmp_path: Path
) -> None:
    config = load_detection("base", [f"data={shards}"])
    assert config.data is not None
    assert registry.name_of(config.data) == "shards"
    again = tmp_path / "again"
    assert run(["dataset", "to-shards", str(shards), "--out", str(again), "--quiet"]) == 0  # from shards to shards
    names = sorted(path.name for path in shards.iterdir())
    assert names == ["dataset.json", "train-000000.tar", "val-000000.tar"]
    for name in names[1:]:
        with tarfile.open(shards / name) as first, tarfile.open(again / name) as second:
            assert first.getnames()[:2] == ["00000000.jpg", "00000000.json"]
            assert second.getnames() == first.getnames()


def test_a_shard_ends_after_its_megabytes(tiny_shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from detector.data import shard_writer

    monkeypatch.setattr(shard_writer, "_MB", 1000)
    assert run(["dataset", "to-shards", str(tiny_shapes), "--out", str(tmp_path / "s"), "--shard-mb", "3", "-q"]) == 0
    listing = json.loads((tmp_path / "s/dataset.json").read_text())
    shards = listing["splits"]["train"]["shards"]
    assert len(shards) > 2
    assert sum(len(list(samples_of(tmp_path / "s" / shard))) for shard in shards) == 12
    assert len(read(tmp_path / "s")) == 12


def batches(
    annotations: CocoAnnotations, workers: int, start: int, stop: int, rank: int = 0, size: int = 1
) -> list[Any]:
    config = LoaderConfig(batch_size=4, workers=workers, cache_mb=1)
    samples = TrainingSamples(annotations, Canvas((64, 64), 3, "letterbox"), AugmentConfig(albumentations=()), 7, 1)
    sampler = StreamSampler(len(annotations), 4, 7, BatchRange(start, stop, 99, rank, size))
    return list(training_batches(samples, sampler, config))


def test_batches_are_those_of_the_files_for_any_workers_ranks_and_resumes(
    shards: Path, tiny_shapes: Path, assert_same: Callable[..., None]
) -> None:
    loose = read_coco(tiny_shapes / "annotations/train.json", tiny_shapes / "images/train")
    expected = batches(loose, 0, 0, 4)
    found = read(shards)
    for own in (
        batches(found, 0, 0, 4),
        batches(found, 2, 0, 4),
        batches(found, 0, 0, 2) + batches(found, 2, 2, 4),  # resumed
        [batch for pair in zip(*(batches(found, 0, 0, 2, rank, 2) for rank in (0, 1)), strict=True) for batch in pair],
    ):
        for ours, theirs in zip(own, expected, strict=True):
            assert_same(ours.images, theirs.images)
            assert_same(ours.targets.__dict__, theirs.targets.__dict__)


def test_cache_on_disk_knows_the_images_of_a_shard(shards: Path, tmp_path: Path) -> None:
    from detector.data.image_cache import ImageCache

    path = read(shards).path(0)
    first = ImageCache(3, 0, tmp_path).read(path)
    assert len(list(tmp_path.rglob("*.pixels"))) == 1
    np.testing.assert_array_equal(ImageCache(3, 0, tmp_path).read(path), first)


def test_images_of_archives_are_sources(shards: Path, tmp_path: Path) -> None:
    for word, number in ((shards / "val-000000.tar", 6), (shards, 18), (f"{shards}/train-*.tar", 12)):
        sources = find_sources(word)
        assert len(sources) == number
        assert all(source.load(3).pixels.shape == (64, 64, 3) for source in sources)  # type: ignore[union-attr]
    cut = tmp_path / "cut.tar"
    cut.write_bytes((shards / "val-000000.tar").read_bytes()[:9000])
    *whole, last = find_sources(cut)
    assert whole
    with pytest.raises(MediaError, match="cut or damaged"):
        last.load(3)  # type: ignore[union-attr]


def test_images_are_detected_in_archives(
    shards: Path, tiny_shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    archive = tmp_path / "some.tar"
    archive.write_bytes((shards / "val-000000.tar").read_bytes())
    assert run(["predict", str(archive), "--out", str(tmp_path / "out"), "--no-pictures", "--quiet", "--json"]) == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [record["source"].rpartition("/")[2] for record in records] == [f"0000000{i}.jpg" for i in range(6)]


def test_shards_are_converted_to_files(shards: Path, tmp_path: Path) -> None:
    assert run(["dataset", "to-yolo", str(shards), "--out", str(tmp_path / "yolo"), "--quiet"]) == 0
    assert len(list((tmp_path / "yolo").rglob("*.jpg"))) == 18


def test_shards_are_checked(shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["check", str(shards), "--quiet"]) == 0
    assert "Traceback" not in capsys.readouterr().err


def sample(png: bytes, **entry: Any) -> dict[str, bytes]:
    content = {"image_id": 5, "annotations": [{"category_id": 1, "bbox": [1, 2, 3, 4]}], **entry}
    return {"00.png": png, "00.json": json.dumps(content).encode()}


def test_image_without_annotations_and_other_members_are_accepted(png: bytes, tmp_path: Path) -> None:
    found = read(write_set(tmp_path / "s", {**sample(png), "01.png": png, "readme.txt": b"x", "02.json": b"{}"}))
    assert found.image_ids.tolist() == [5, 2]
    assert found.offsets.tolist() == [0, 1, 1]
    assert found.boxes_xywh.tolist() == [[1, 2, 3, 4]]
    assert {str(problem) for problem in found.problems if "without width" in str(problem)}


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"00.png": b"", "00.json": b"{"}, "is not JSON"),
        ({"00.png": b"", "00.json": b"[" * 100_000}, "is not JSON"),
        ({"00.png": b"", "00.json": b"[]"}, "expected a JSON object, got list"),
        ({"00.png": b"", "00.json": b'{"annotations": 3}'}, "expected a list of annotations"),
        ({"00.png": b"", "00.json": b'{"annotations": [3]}'}, r"annotations\[0\] must be an object"),
        ({"00.png": b"", "00.json": b'{"image_id": "x"}'}, "id of images"),
        ({"00.png": b"", "00.png#": b""}, "of one key"),
        ({"00.png": b"", "00.jpg": b""}, "of one key"),
        ({"../00.png": b""}, "leads out of its folder"),
        ({"00.txt": b""}, "expected 0 images in its shards, got 0"),
    ],
)
def test_unusable_shard_is_refused(members: dict[str, bytes], message: str, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=message):
        read(write_set(tmp_path / "s", members))


def test_listing_is_checked(png: bytes, shards: Path, tmp_path: Path) -> None:
    split = {"shards": ["train-000000.tar"], "num_images": 1}
    cases: list[tuple[dict[str, Any], str]] = [
        ({"format": "x"}, "expected the format"),
        ({"splits": []}, "with splits"),
        ({"splits": {"train": {**split, "shards": ["../x.tar"]}}}, "expected shards, as file names"),
        ({"splits": {"train": {**split, "num_images": 3}}}, "expected 3 images in its shards, got 1"),
        ({"splits": {"train": {**split, "shards": ["gone.tar"]}}}, "gone.tar cannot be read: No such file"),
        ({"categories": []}, "expected categories with id and name"),
        ({"splits": {"val": split}}, "no split 'train'; it has val"),
    ]
    for number, (changes, message) in enumerate(cases):
        with pytest.raises(DatasetError, match=message):
            read(write_set(tmp_path / str(number), sample(png), **changes))
    with pytest.raises(DatasetError, match=r"expected tar shards with dataset\.json"):
        read(tmp_path)
    with pytest.raises(DatasetError, match=r"give data\.root"):
        ShardsDataset(ShardsDataset.Config()).split_names()


def test_interrupted_writing_leaves_no_data_set(
    tiny_shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from detector.data import shard_writer

    def fail(path: Path, content: Any) -> None:
        if path.name.startswith("val"):
            raise OSError(28, "No space left on device")
        write_whole(path, content)

    monkeypatch.setattr(shard_writer, "write_whole", fail)
    assert run(["dataset", "to-shards", str(tiny_shapes), "--out", str(tmp_path / "s")]) == 3
    assert "val-000000.tar cannot be written: No space left on device" in capsys.readouterr().err
    assert sorted(path.name for path in (tmp_path / "s").iterdir()) == ["train-000000.tar"]


def test_annotations_of_shards_are_replaceable(shards: Path) -> None:
    """The data set is an ordinary `CocoAnnotations`, which editing copies."""
    found = read(shards)
    assert len(replace(found, annotations=Path("x"))) == 12
    assert load_image(found.path(3)).warnings == ()
