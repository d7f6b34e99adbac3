from __future__ import annotations

import os
import pickle
import shutil
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from detector.data.coco import read_coco
from detector.data.image_cache import ImageCache, prepare_cache_folder, stated_cost
from detector.errors import ConfigError, MediaError
from detector.media.images import read_image


def write(path: Path, seed: int, image_hw: tuple[int, int] = (40, 60)) -> npt.NDArray[np.uint8]:
    pixels = np.random.default_rng(seed).integers(0, 256, (*image_hw, 3), dtype=np.uint8)
    cv2.imwrite(str(path), pixels[..., ::-1])
    return pixels


def cached_files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_memory_stays_within_its_limit(tmp_path: Path) -> None:
    paths = [tmp_path / f"{i}.png" for i in range(2)]
    wanted = [write(path, i, (300, 600)) for i, path in enumerate(paths)]  # 0.51 MiB: one fits a megabyte, two do not
    cache = ImageCache(3, 1, None)
    assert all(np.array_equal(cache.read(path), image) for path, image in zip(paths, wanted, strict=True))
    for path in paths:
        path.unlink()
    assert np.array_equal(cache.read(paths[0]), wanted[0])
    with pytest.raises(MediaError, match="no such file"):
        cache.read(paths[1])


def test_another_process_reads_the_same_pixels_from_the_folder(tmp_path: Path) -> None:
    path, folder = tmp_path / "a.png", tmp_path / "cache"
    wanted = write(path, 0)
    assert np.array_equal(ImageCache(3, 0, folder).read(path), wanted)
    before = path.stat()
    write(path, 1)  # other pixels, but the file claims to be the old one: only a cache can know the old pixels
    path.write_bytes(path.read_bytes()[: before.st_size].ljust(before.st_size, b"\0"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert np.array_equal(ImageCache(3, 0, folder).read(path), wanted)


@pytest.mark.parametrize("change", ["time", "size"])
def test_a_changed_file_is_decoded_again(change: str, tmp_path: Path) -> None:
    path, folder = tmp_path / "a.bmp", tmp_path / "cache"
    write(path, 0)
    ImageCache(3, 0, folder).read(path)
    before = path.stat()
    wanted = write(path, 1, (40, 60) if change == "time" else (41, 60))
    if change == "size":
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    else:
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    assert np.array_equal(ImageCache(3, 0, folder).read(path), wanted)
    assert len(cached_files(folder)) == 1  # the old one is replaced


def test_channels_and_reductions_are_cached_separately(tmp_path: Path) -> None:
    path, folder = tmp_path / "a.jpg", tmp_path / "cache"
    write(path, 0)
    for _ in range(2):
        for channels, reduction in ((3, 1), (1, 1), (3, 2)):
            found = ImageCache(channels, 1, folder).read(path, reduction)
            assert np.array_equal(found, read_image(path, channels, reduction))
    cache = ImageCache(3, 1, None)
    assert cache.read(path).shape == (40, 60, 3)
    assert cache.read(path, 4).shape == (10, 15, 3)


@pytest.mark.parametrize(
    "damage",
    [
        lambda whole: b"",
        lambda whole: whole[:50],
        lambda whole: whole[:-1],
        lambda whole: whole + b"x",
        lambda _: b"x" * 99,
    ],
)
def test_a_damaged_cached_file_is_rewritten(damage: object, tmp_path: Path) -> None:
    path, folder = tmp_path / "a.png", tmp_path / "cache"
    wanted = write(path, 0)
    ImageCache(3, 0, folder).read(path)
    (cached,) = cached_files(folder)
    whole = cached.read_bytes()
    cached.write_bytes(damage(whole))  # type: ignore[operator]  # a function, as above
    assert np.array_equal(ImageCache(3, 0, folder).read(path), wanted)
    assert cached.read_bytes() == whole


def test_a_full_disk_warns_once_and_leaves_no_partial_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths, folder = [tmp_path / f"{i}.png" for i in range(3)], tmp_path / "cache"
    wanted = [write(path, i) for i, path in enumerate(paths)]
    folder.mkdir()

    def full(source: object, target: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    cache = ImageCache(3, 0, folder)
    with pytest.warns(RuntimeWarning, match="cannot hold more images .No space left on device.; they") as told:
        found = [cache.read(path) for path in paths]
    assert len(told) == 1
    assert all(np.array_equal(image, own) for image, own in zip(wanted, found, strict=True))
    assert cached_files(folder) == []


def test_an_unreadable_image_raises_the_error_of_the_reader(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"no image")
    for folder in (None, tmp_path / "cache"):
        with pytest.raises(MediaError, match=r"a\.png"):
            ImageCache(3, 1, folder).read(tmp_path / "a.png")
        with pytest.raises(MediaError, match="no such file"):
            ImageCache(3, 1, folder).read(tmp_path / "b.png")


def test_a_cache_is_pickled_without_its_pixels(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    wanted = write(path, 0, (400, 400))
    cache = ImageCache(3, 16, tmp_path / "cache")
    cache.read(path)
    sent = pickle.dumps(cache)
    assert len(sent) < 1000
    assert np.array_equal(pickle.loads(sent).read(path), wanted)


# ---- where it may lie and what it costs


def test_a_folder_inside_the_data_set_is_refused(tiny_shapes: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(tiny_shapes, tmp_path / "copy"))
    annotations = read_coco(root / "annotations/train.json", root / "images/train")
    before = sorted(root.rglob("*"))
    (tmp_path / "link").symlink_to(root / "images")
    inside = (root / "images/train", root / "images/train/cache/deep", root / "annotations", tmp_path / "link/train/x")
    for folder in inside:
        with pytest.raises(ConfigError, match=r"loader\.disk_cache: .* lies inside the data set .*; name a folder"):
            prepare_cache_folder(folder, annotations.annotations, annotations.images)
    assert sorted(root.rglob("*")) == before
    prepare_cache_folder(tmp_path / "cache/deep", annotations.annotations, annotations.images)
    assert (tmp_path / "cache/deep").is_dir()


def test_a_folder_that_cannot_be_created_is_refused(tiny_shapes: Path, tmp_path: Path) -> None:
    annotations = read_coco(tiny_shapes / "annotations/train.json", tiny_shapes / "images/train")
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"loader\.disk_cache: .*file.* cannot be created.*; name another folder"):
        prepare_cache_folder(tmp_path / "file/cache", annotations.annotations, annotations.images)


def test_the_stated_cost_is_the_measured_one(tiny_shapes: Path, tmp_path: Path) -> None:
    annotations = read_coco(tiny_shapes / "annotations/train.json", tiny_shapes / "images/train")
    cache = ImageCache(3, 0, tmp_path)
    for index in range(len(annotations)):
        cache.read(annotations.path(index))
    files = cached_files(tmp_path)
    pixels = 12 * 64 * 64 * 3
    assert sum(path.stat().st_size for path in files) == pixels + 12 * 64
    stated = stated_cost(annotations, 3, tmp_path)
    assert stated.startswith(f"loader.disk_cache: up to {pixels / 1e9:.1f} GB of decoded images in {tmp_path} (")
    assert "GB are free" in stated
