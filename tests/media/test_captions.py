from __future__ import annotations

import itertools
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest

from detector.media import captions
from detector.media.captions import caption, lay, place_captions, readable_ink

GROUND = (200, 30, 60)


def luminance(colour: tuple[int, int, int]) -> float:
    """Relative luminance, WCAG 2.2."""
    linear = [v / 255 / 12.92 if v / 255 <= 0.04045 else ((v / 255 + 0.055) / 1.055) ** 2.4 for v in colour]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_ink_is_readable_on_every_background() -> None:
    levels = range(0, 256, 51)
    for ground in itertools.product(levels, levels, levels):
        ink = readable_ink(ground)
        assert ink in ((0, 0, 0), (255, 255, 255))
        bright, dark = sorted((luminance(ink), luminance(ground)), reverse=True)
        assert (bright + 0.05) / (dark + 0.05) >= 4.5  # the minimum of WCAG for text


@pytest.mark.parametrize("text", ["dog 0.87", "Zürich", "собака", "σκύλος", "", " ", "Ä" * 300])
@pytest.mark.parametrize("size_px", [8, 13, 40])
def test_captions_of_one_size_have_equal_height_and_hold_their_letters(text: str, size_px: int) -> None:
    patch = caption(text, size_px, GROUND)
    assert patch.dtype == np.uint8
    assert patch.shape[0] == round(1.36 * size_px)
    ink = (patch != GROUND).any(axis=-1)
    assert ink.any() == bool(text.strip())
    assert not ink[:, [0, -1]].any()  # padding at both ends
    if text.strip():
        assert (np.abs(patch.astype(int) - 255).max(axis=-1) < 60).any()  # white ink on this background
        assert ink.any(axis=1).sum() > 0.4 * size_px


def test_captions_drawn_in_threads_equal_those_drawn_one_by_one() -> None:
    jobs = [(f"{word} {number}", size_px) for number in range(60) for word in ("car", "zebra") for size_px in (11, 30)]
    caption.cache_clear()
    wanted = [caption(text, size_px, GROUND) for text, size_px in jobs]
    interval_s = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    caption.cache_clear()
    try:
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(lambda job: caption(*job, GROUND), jobs))
    finally:
        sys.setswitchinterval(interval_s)
        caption.cache_clear()
    assert all(np.array_equal(one, other) for one, other in zip(wanted, found, strict=True))


@pytest.mark.parametrize("letter", ["x", "猫", "\n"])
def test_very_long_text_is_cut(letter: str) -> None:
    np.testing.assert_array_equal(caption(letter * 2000, 11, GROUND), caption(letter * 300, 11, GROUND))


def test_combining_marks_are_drawn_on_their_letters() -> None:
    plain, marked = caption("Zurich", 30, GROUND), caption("Zürich", 30, GROUND)
    assert plain.shape == marked.shape
    differs = (plain != marked).any(axis=-1)
    rows, columns = np.nonzero(differs)
    assert differs.any()
    assert columns.max() - columns.min() < 25  # one letter
    assert rows.max() < plain.shape[0] / 2  # in its upper half


@pytest.mark.skipif(not hasattr(cv2, "FontFace"), reason="OpenCV 5 has a font for it")
def test_chinese_japanese_and_korean_are_drawn() -> None:
    patches = [caption(text, 24, GROUND) for text in ("猫", "犬", "고양이")]
    assert all((patch != GROUND).any(axis=-1).sum() > 60 for patch in patches)
    assert patches[0].shape == patches[1].shape
    assert (patches[0] != patches[1]).any()
    assert 20 < patches[0].shape[1] < 60


def test_letter_that_no_font_has_is_shown_as_its_code_point(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(cv2, "FontFace", raising=False)
    caption.cache_clear()
    assert np.array_equal(caption("a猫", 20, GROUND), caption("a\\u732b", 20, GROUND))
    assert np.array_equal(caption("a\nb\x00", 20, GROUND), caption("a\\nb\\x00", 20, GROUND))
    assert np.array_equal(
        caption("\udcff", 20, GROUND), caption("\\udcff", 20, GROUND)
    )  # a file name that is not UTF-8
    caption.cache_clear()


def test_caption_is_cached_and_read_only() -> None:
    patch = caption("dog", 12, GROUND)
    assert caption("dog", 12, GROUND) is patch
    with pytest.raises(ValueError, match="read-only"):
        patch[0] = 0


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    sides = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
    return float(sides.clip(min=0).prod())


def test_captions_stay_on_the_picture_and_apart_if_there_is_room() -> None:
    rng = np.random.default_rng(0)
    for _ in range(30):
        cells = rng.permutation(30)[: int(rng.integers(1, 30))]
        left_top = np.stack([cells % 6 * 200, cells // 6 * 140], axis=1) + rng.integers(0, 60, (len(cells), 2))
        boxes = np.concatenate([left_top, left_top + rng.integers(5, 130, (len(cells), 2))], axis=1)
        sizes = np.stack([rng.integers(30, 130, len(cells)), np.full(len(cells), 20)], axis=1)
        places = place_captions(boxes, sizes, (700, 1200))
        placed = np.concatenate([places, places + sizes], axis=1)
        assert (placed[:, :2] >= 0).all()
        assert (placed[:, 2:] <= (1200, 700)).all()
        assert sum(overlap(a, b) for a, b in itertools.combinations(placed, 2)) == 0
        for box, at in zip(boxes, placed, strict=True):  # each touches its own box
            assert overlap(np.add(at, (-1, -1, 1, 1)), box) > 0


def test_captions_of_equal_boxes_do_not_overlap() -> None:
    boxes = np.array([[100, 100, 260, 200]] * 6)
    sizes = np.array([[60, 20]] * 6)
    places = place_captions(boxes, sizes, (400, 400))
    assert places[0].tolist() == [100, 80]  # the first caption gets the preferred place, above
    assert len({tuple(place) for place in places.tolist()}) == 6


def test_caption_at_the_border_moves_inside() -> None:
    for box in ([0, 0, 50, 40], [350, 360, 400, 400], [-30, 10, 500, 300], [390, 0, 400, 10]):
        (place,) = place_captions(np.array([box]), np.array([[80, 20]]), (400, 400))
        assert 0 <= place[0] <= 320
        assert 0 <= place[1] <= 380
    (place,) = place_captions(
        np.array([[0, 0, 4, 4]]), np.array([[80, 20]]), (8, 8)
    )  # the picture is smaller than the caption
    picture = np.zeros((8, 8, 3), np.uint8)
    lay(picture, caption("a long name", 12, GROUND), place.tolist())
    assert (picture == GROUND).all(axis=-1).any()


def test_no_captions_give_no_places() -> None:
    assert place_captions(np.zeros((0, 4), np.int64), np.zeros((0, 2), np.int64), (10, 10)).shape == (0, 2)


def test_font_is_loaded_once_and_without_matplotlib() -> None:
    assert captions._font(12) is captions._font(12)
    code = "import sys; from detector.media.captions import caption; caption('a', 12, (0, 0, 0))"
    code += "; print('matplotlib' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout == "False\n"
