"""Mutated VOC and CSV files are read or refused in one sentence, and none takes long."""

from __future__ import annotations

import html
import re
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from detector.data.csv_boxes import read_csv
from detector.data.pascal_voc import read_voc
from detector.errors import DatasetError

Mutate = Callable[[bytes, np.random.Generator], bytes]
MAX_S = 2.0
OBJECT = (
    "<object><name>{name}</name><difficult>0</difficult><bndbox><xmin>{x}</xmin><ymin>5</ymin><xmax>30</xmax>"
    "<ymax>17.5</ymax></bndbox></object>\n"
)
XML = (
    '<?xml version="1.0" encoding="UTF-8"?>\n<annotation><folder>x</folder><filename>a.png</filename>\n'
    "<size><width>40</width><height>30</height><depth>3</depth></size>\n"
    # Enough of them for one that is spoilt to stay below the share that may be skipped.
    + "".join(OBJECT.format(name=("dog", "cat")[x % 2], x=x) for x in range(1, 13))
    + "</annotation>\n"
).encode()
CSV = b"""filename,width,height,class,xmin,ymin,xmax,ymax,split
a.png,40,30,dog,4,5,16,17,train
a.png,40,30,cat,1.5,2,9,8,train
b.png,40,30,dog,1,1,20,20,val
b.png,40,30,"a, b",3,4,5,6,val
"""
PIECES = [
    *(
        b"<",
        b">",
        b"</",
        b"&amp;",
        b"&x;",
        b"<!--",
        b"]]>",
        b"<!DOCTYPE a [",
        b"<!ENTITY b 'c'>",
        b"<object>",
        b"</object>",
    ),
    *(
        b"<bndbox>",
        b"<xmin>",
        b"nan",
        b"inf",
        b"-1",
        b"1e999",
        b"0",
        b"99999999999999999999",
        b"1_0",
        b"\xc3\x28",
        b"\x00",
    ),
    *(
        b"\xff\xfe",
        b"\xef\xbb\xbf",
        b",",
        b";",
        b"\t",
        b'"',
        b'""',
        b"\n",
        b"\r\n",
        b"\r",
        b"..",
        b"/",
        b"\\",
        b"C:\\x\\",
    ),
    *(b"class", b"x1", b"width", "\u202e\u0000\ud7ff".encode(), b"a" * 300),
]


def mutated(text: bytes, most: int, rng: np.random.Generator) -> bytes:
    """A text with one piece or some more put in, taken out, doubled or changed."""
    changed = bytearray(text)
    for _ in range(rng.integers(1, most + 1)):
        at = int(rng.integers(0, len(changed) + 1))
        end = min(len(changed), at + int(rng.integers(1, 12)))
        kind = rng.integers(0, 6)
        if kind == 0:
            changed[at:at] = PIECES[rng.integers(len(PIECES))]
        elif kind == 1:
            changed[at:end] = b""
        elif kind == 2:
            changed[at:at] = changed[at:end]
        elif kind == 3:
            changed[at:end] = PIECES[rng.integers(len(PIECES))]
        elif kind == 4 and at < len(changed):
            changed[at] ^= 1 << int(rng.integers(0, 8))
        elif kind == 5:
            del changed[at + len(changed) // 2 :]
    return bytes(changed)


def with_other_values(text: bytes, rng: np.random.Generator) -> bytes:
    """Well-formed XML, mostly: what stands between tags is changed, and lines are doubled or left out."""
    values = list(re.finditer(rb">([^<>\n]*)<", text))
    chosen = values[rng.integers(len(values))]
    piece = PIECES[rng.integers(len(PIECES))].decode("utf-8", "replace")
    plain = "".join(c for c in html.escape(piece) if c.isprintable() or c in "\t\n").encode()
    text = text[: chosen.start(1)] + plain + text[chosen.end(1) :]
    lines = text.splitlines(keepends=True)
    at = int(rng.integers(3, len(lines) - 1))
    lines[at : at + 1] = [lines[at]] * int(rng.integers(0, 3))
    return b"".join(lines)


def any_xml(text: bytes, rng: np.random.Generator) -> bytes:
    """Half of them well-formed."""
    return with_other_values(text, rng) if rng.random() < 0.5 else mutated(text, 2, rng)


def any_table(text: bytes, rng: np.random.Generator) -> bytes:
    """Up to four changes."""
    return mutated(text, 4, rng)


def outcomes(
    write: Callable[[bytes], None], read: Callable[[], object], text: bytes, mutate: Mutate, num: int
) -> Counter[str]:
    """Return how many mutants are read and how many refused; anything else fails the test."""
    found: Counter[str] = Counter()
    rng = np.random.default_rng(11)
    for _ in range(num):
        mutant = mutate(text, rng)
        write(mutant)
        started_s = time.process_time()
        said = ""
        try:
            read()
        except DatasetError as error:
            said = str(error)
        found["refused" if said else "read"] += 1
        assert "\n" not in said, mutant
        assert "\x00" not in said, mutant
        assert time.process_time() - started_s < MAX_S, mutant
    return found


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for name in ("a.png", "b.png"):
        cv2.imwrite(str(tmp_path / name), np.zeros((30, 40, 3), np.uint8))
    return tmp_path


@pytest.mark.parametrize("num", [250, pytest.param(20_000, marks=pytest.mark.nightly)])
def test_mutated_xml_is_read_or_refused(images, num):
    found = outcomes((images / "a.xml").write_bytes, lambda: read_voc(images), XML, any_xml, num)
    assert sum(found.values()) == num
    assert min(found["read"], found["refused"]) > num // 10


@pytest.mark.parametrize("num", [250, pytest.param(20_000, marks=pytest.mark.nightly)])
def test_mutated_tables_are_read_or_refused(images, num):
    path = images / "boxes.csv"
    found = outcomes(path.write_bytes, lambda: read_csv(path, images), CSV, any_table, num)
    assert sum(found.values()) == num
    assert min(found["read"], found["refused"]) > num // 10
