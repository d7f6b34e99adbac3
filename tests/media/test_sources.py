from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from detector.errors import MediaError
from detector.media.images import write_image
from detector.media.sources import ImageSource, Source, VideoSource, as_sources, find_sources, require_images


def picture(seed: int = 0, height: int = 6, width: int = 9, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Make images in two levels of folders, not created in the order of their names, among other files."""
    for number, name in enumerate(("b.png", "a.png", "deep/er/c.PNG", "deep/a.png", "z é#%.png")):
        path = tmp_path / "tree" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_image(path.with_suffix(".png"), picture(number))
        path.with_suffix(".png").rename(path)
    (tmp_path / "tree/notes.md").write_text("no image")
    (tmp_path / "tree/folder.jpg").mkdir()
    return tmp_path / "tree"


def names(sources: Sequence[Source], root: Path) -> list[str]:
    return [str(source.path.relative_to(root)) for source in sources if source.path]


def as_images(given: object) -> tuple[list[ImageSource], bool]:
    """Return what `as_sources` returns for images only."""
    sources, is_single = as_sources(given)
    return require_images(sources, "a test"), is_single


# --- paths -----------------------------------------------------------------------------------------------------------


def test_file_is_one_source_whatever_its_suffix(tree: Path) -> None:
    (tree / "b.png").rename(tree / "b.upload")
    sources, is_single = as_images(tree / "b.upload")
    assert is_single
    assert [(s.name, s.path) for s in sources] == [(str(tree / "b.upload"), tree / "b.upload")]
    np.testing.assert_array_equal(sources[0].load(3).pixels, picture(0))


def test_folder_gives_its_images_recursively_sorted_by_path(tree: Path) -> None:
    sources, is_single = as_images(str(tree))
    assert not is_single
    assert names(sources, tree) == ["a.png", "b.png", "deep/a.png", "deep/er/c.PNG", "z é#%.png"]
    assert all(source.load(3).pixels.shape == (6, 9, 3) for source in sources)


def test_pictures_of_runs_and_results_below_a_folder_are_left_out(tree: Path) -> None:
    own = [source.name for source in find_sources(tree)]
    (image,) = sorted(tree.rglob("*.png"))[:1]
    for name, marker in (
        ("train", "weights/best.safetensors"),
        ("predict", "predictions.json"),
        ("val", "metrics.json"),
    ):
        folder = tree / "runs" / name
        for path in (folder / marker, folder / "crops/drawn.png"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(image.read_bytes())
    assert [source.name for source in find_sources(tree)] == own
    assert len(find_sources(tree / "runs/predict")) == 1  # a folder that is named is meant
    with pytest.raises(MediaError, match="an image or video that no run has drawn"):
        find_sources(tree / "runs")


def test_glob_gives_matching_images_in_order(tree: Path) -> None:
    assert names(find_sources(f"{tree}/*.png"), tree) == ["a.png", "b.png", "z é#%.png"]
    assert names(find_sources(f"{tree}/**/a.*"), tree) == ["a.png", "deep/a.png"]
    assert names(find_sources(f"{tree}/*"), tree) == ["a.png", "b.png", "z é#%.png"]  # neither notes nor folders


def test_existing_file_with_a_glob_name_is_that_file(tree: Path) -> None:
    (tree / "a.png").rename(tree / "[1]*.png")
    assert names(find_sources(tree / "[1]*.png"), tree) == ["[1]*.png"]


def test_brackets_of_existing_files_and_folders_are_part_of_a_pattern(tmp_path: Path) -> None:
    (tmp_path / "album [2024]").mkdir()
    for name in ("album [2024]/a1.png", "album [2024]/a2.png", "album [2024]/b3.png", "x[1]_a.png", "x[1]_b.png"):
        (tmp_path / name).write_bytes(b"")
    for pattern, found in {
        "album [2024]/*.png": ["album [2024]/a1.png", "album [2024]/a2.png", "album [2024]/b3.png"],
        "album [2024]/a[12].png": ["album [2024]/a1.png", "album [2024]/a2.png"],
        "x[1]_*.png": ["x[1]_a.png", "x[1]_b.png"],
    }.items():
        assert names(find_sources(f"{tmp_path}/{pattern}"), tmp_path) == found
    (tmp_path / "x1_a.png").write_bytes(b"")
    assert names(find_sources(f"{tmp_path}/x[1]_*.png"), tmp_path) == ["x1_a.png"]


def test_missing_file_leads_to_the_one_whose_name_differs_in_case(tmp_path: Path) -> None:
    (tmp_path / "IMG_1.JPG").write_bytes(b"")
    if (tmp_path / "img_1.jpg").exists():
        pytest.skip("the file system ignores case")
    with pytest.raises(MediaError, match=r"no such image.*; did you mean '.*IMG_1\.JPG'\?"):
        find_sources(tmp_path / "img_1.jpg")
    (source,) = as_images([tmp_path / "img_1.jpg"])[0]
    with pytest.raises(MediaError, match=r"there is no such file; did you mean '.*IMG_1\.JPG'\?"):
        source.load(3)


def test_list_file_keeps_its_order_and_is_relative_to_its_folder(tree: Path, tmp_path: Path) -> None:
    listed = tmp_path / "list.txt"
    listed.write_text(f"\ufefftree/b.png\n\n  tree/z é#%.png  \r\n{tree}/a.png\ntree/none.png\n", encoding="utf-8")
    sources, is_single = as_images(listed)
    assert not is_single
    assert names(sources, tree) == ["b.png", "z é#%.png", "a.png", "none.png"]
    np.testing.assert_array_equal(sources[0].load(3).pixels, picture(0))
    with pytest.raises(MediaError, match=r"none\.png cannot be read: there is no such file"):
        sources[3].load(3)


def test_list_of_one_image_is_a_list(tree: Path) -> None:
    (tree / "list.txt").write_text("a.png\n")
    assert not as_sources(tree / "list.txt")[1]
    assert not as_sources([tree / "a.png"])[1]
    assert not as_sources(f"{tree}/b*.png")[1]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("none.jpg", "no such image, video, folder, glob, list file or camera"),
        ("no/folder", "no such image, video, folder, glob, list file or camera"),
        ("*.jpg", "expected a matching image or video, got none"),
        ("empty", "expected an image or video, got none"),
        ("empty.txt", "expected a line with a path, got none"),
        ("empty.tar", "expected an image in the archive, got none"),
        ("binary.txt", "expected a list of image paths, got a file that is not text"),
    ],
)
def test_path_without_sources_is_an_error_that_names_it(name: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty.txt").write_text("\n \n")
    (tmp_path / "empty.tar").write_bytes(bytes(1024))
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(MediaError, match=message) as caught:
        as_sources(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)


def test_empty_text_is_not_the_current_folder(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tree)
    with pytest.raises(MediaError, match="expected an image, video or folder, got an empty text"):
        as_sources("")


def test_open_binary_file_is_one_image(tree: Path) -> None:
    encoded = (tree / "a.png").read_bytes()
    with open(tree / "a.png", "rb") as file:
        for given in (file, io.BytesIO(encoded)):
            (source,), is_single = as_sources(given)
            assert isinstance(source, ImageSource)
            assert is_single
            assert source.encoded == encoded


def test_missing_file_in_a_list_fails_only_when_it_is_read(tree: Path) -> None:
    sources, _ = as_images([tree / "a.png", tree / "none.png", str(tree / "deep")])
    assert names(sources, tree) == ["a.png", "none.png", "deep/a.png", "deep/er/c.PNG"]
    with pytest.raises(MediaError, match=r"none\.png cannot be read: there is no such file"):
        sources[1].load(3)


def test_broken_link_is_a_source_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "link.png").symlink_to(tmp_path / "gone.png")
    (source,) = as_images(tmp_path / "link.png")[0]
    with pytest.raises(MediaError, match=r"link\.png cannot be read"):
        source.load(3)


# --- pixels ----------------------------------------------------------------------------------------------------------


def test_array_keeps_its_pixels() -> None:
    pixels = picture()
    (source,), is_single = as_images(pixels)
    assert is_single
    assert (source.name, source.path) == ("0", None)
    np.testing.assert_array_equal(source.load(3).pixels, pixels)
    turned = pixels[:, ::-1]
    (source,), _ = as_images(turned)
    np.testing.assert_array_equal(source.load(3).pixels, turned)
    assert source.load(3).pixels.flags.c_contiguous


@pytest.mark.parametrize("given", [picture(channels=1), picture(channels=1)[..., 0]])
def test_grey_array_has_one_channel_with_or_without_an_axis(given: np.ndarray) -> None:
    (source,), _ = as_images(given)
    np.testing.assert_array_equal(source.load(1).pixels, picture(channels=1))
    np.testing.assert_array_equal(source.load(3).pixels, picture(channels=1).repeat(3, axis=2))  # as grey files
    with pytest.raises(MediaError, match="0: expected an image of 4 channels, got 1"):
        source.load(4)


def test_tensor_is_channels_first() -> None:
    (source,), is_single = as_images(torch.from_numpy(picture()).permute(2, 0, 1))
    assert is_single
    np.testing.assert_array_equal(source.load(3).pixels, picture())
    (source,), _ = as_images(torch.from_numpy(picture(channels=1)[..., 0]))
    np.testing.assert_array_equal(source.load(1).pixels, picture(channels=1))


def test_pil_image_is_rgb_or_grey() -> None:
    (source,), is_single = as_images(Image.fromarray(picture()))
    assert is_single
    np.testing.assert_array_equal(source.load(3).pixels, picture())
    (source,), _ = as_images(Image.fromarray(picture(channels=1)[..., 0]))
    np.testing.assert_array_equal(source.load(1).pixels, picture(channels=1))


def test_list_of_mixed_kinds_numbers_those_without_a_path(tree: Path) -> None:
    given = [picture(1), tree / "a.png", Image.fromarray(picture(2)), torch.from_numpy(picture(3)).permute(2, 0, 1)]
    for several in (given, tuple(given), iter(given)):
        sources, is_single = as_images(several)
        assert not is_single
        assert [source.name for source in sources] == ["0", str(tree / "a.png"), "2", "3"]
        for source, seed in zip(sources, (1, 1, 2, 3), strict=True):  # a.png was drawn second
            np.testing.assert_array_equal(source.load(3).pixels, picture(seed))
    assert as_sources([]) == ([], False)


@pytest.mark.parametrize(
    ("given", "got"),
    [
        (picture().astype(np.float32) / 255, r"got float32 \(6, 9, 3\)"),
        (picture().astype(np.int32), r"got int32 \(6, 9, 3\)"),
        (picture()[0, :, 0], r"got uint8 \(9,\)"),
        (np.zeros((0, 9, 3), np.uint8), r"got uint8 \(0, 9, 3\)"),
        (torch.zeros(3, 6, 9), r"got float32 \(3, 6, 9\)"),
        (torch.zeros(3, 6, 9, dtype=torch.bfloat16), r"got bfloat16 \(3, 6, 9\)"),
    ],
)
def test_pixels_of_another_type_or_shape_are_refused(given: Any, got: str) -> None:
    with pytest.raises(MediaError, match=rf"image 0: expected uint8 pixels of shape .*, {got}; scale to 0\.\.255"):
        as_sources(given)
    with pytest.raises(MediaError, match=f"image 1: .*{got}"):
        as_sources([picture(), given])


@pytest.mark.parametrize(
    ("given", "found"), [(None, "NoneType"), (3, "int"), ({"a": 1}, "str"), ([[picture()]], "list")]
)
def test_object_that_is_no_image_is_refused(given: Any, found: str) -> None:
    if found == "str":  # the keys of a mapping count as paths
        assert as_sources(given)[0][0].path == Path("a")
        return
    with pytest.raises(MediaError, match=f"image 0: expected a path, array, PIL image or tensor, got {found}"):
        as_sources(given)


def test_source_with_neither_path_nor_pixels_is_refused() -> None:
    with pytest.raises(MediaError, match="frame 7: no path and no pixels to read"):
        ImageSource("frame 7").load(3)


# --- sources with frames ---------------------------------------------------------------------------------------------


def test_videos_come_with_images_in_folders_globs_and_lists(tree: Path) -> None:
    for name in ("b.mp4", "deep/z.AVI", "code.ts"):
        (tree / name).write_bytes(b"")
    found, _ = as_sources(tree)
    assert [s.name.removeprefix(f"{tree}/") for s in found if isinstance(s, VideoSource)] == ["b.mp4", "deep/z.AVI"]
    assert [isinstance(s, VideoSource) for s in found] == [False, True, False, False, False, True, False]
    assert len(as_sources(f"{tree}/b.*")[0]) == 2
    (tree / "list.txt").write_text("a.png\nb.mp4\ncamera:2\n")
    assert [s.name for s in as_sources(tree / "list.txt")[0]] == [str(tree / "a.png"), str(tree / "b.mp4"), "camera:2"]
    (video,), is_single = as_sources(tree / "b.mp4")
    assert isinstance(video, VideoSource)
    assert (video.path, video.is_live, is_single) == (tree / "b.mp4", False, False)
    assert [type(s) for s in as_sources([tree / "none.mp4", "camera:1"])[0]] == [VideoSource, VideoSource]


def test_camera_and_stdin_are_words_and_an_existing_file_comes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for word, name, camera in (("0", "camera:0", 0), ("camera:12", "camera:12", 12), ("-", "stdin", None)):
        (source,), is_single = as_sources(word)
        assert isinstance(source, VideoSource)
        assert (source.name, source.camera, source.is_live, is_single) == (name, camera, camera is not None, False)
    write_image(tmp_path / "x.png", picture())
    (tmp_path / "x.png").rename("0")
    assert isinstance(as_sources("0")[0][0], ImageSource)
    with pytest.raises(MediaError, match="no such image, video, folder, glob, list file or camera"):
        as_sources("camera:front")


def test_require_images_names_the_video() -> None:
    image, video = ImageSource("a.png", Path("a.png")), VideoSource("film.mp4", Path("film.mp4"))
    assert require_images([image], "a classifier") == [image]
    with pytest.raises(MediaError, match=r"a classifier: expected images, got a video or stream \(film.mp4\)"):
        require_images([image, video], "a classifier")
