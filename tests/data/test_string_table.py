from __future__ import annotations

import pickle

import pytest

from detector.data.coco_file import Names

TEXTS = ("000.jpg", "", "ordner ä/图片 🚗.png", "\udcff.png", "a\0b", "000.jpg")


def test_names_are_preserved() -> None:
    names = Names(iter(TEXTS))
    assert len(names) == 6
    assert list(names) == list(TEXTS)
    assert [names[i] for i in range(-6, 6)] == [*TEXTS, *TEXTS]
    assert names[1:4] == TEXTS[1:4]
    assert names[::-2] == TEXTS[::-2]
    assert names.index("a\0b") == 4
    assert "x" not in names
    for index in (6, -7):
        with pytest.raises(IndexError):
            names[index]


def test_names_equal_tuples_and_names_of_the_same_texts() -> None:
    assert Names(TEXTS) == TEXTS == Names(TEXTS)
    assert Names(TEXTS) != TEXTS[1:]
    assert Names(TEXTS) != list(TEXTS)
    assert Names([]) == ()


def test_names_are_pickled_as_one_block() -> None:
    names = Names(f"{i:012d}.jpg" for i in range(1000))
    pickled = pickle.dumps(names)
    assert pickle.loads(pickled) == names
    assert len(pickled) < 1000 * (16 + 8) + 1000
