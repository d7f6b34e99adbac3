from __future__ import annotations

import base64
import re
from html.parser import HTMLParser

import cv2
import numpy as np
import pytest

from detector.data.doctor.doctor_page import draw_offender, page
from detector.data.doctor.doctor_text import report_text
from detector.data.doctor.examination import examine
from detector.data.doctor.findings import Finding, Offender

NASTY = "<script>alert('1')</script>&\"$x_1$"


class Tags(HTMLParser):
    """Every tag and attribute, and whether all that is opened is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.attributes: list[tuple[str, str, str]] = []
        self.open: list[str] = []
        self.tags: set[str] = set()

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def parsed(text):
    tags = Tags()
    tags.feed(text)
    tags.close()
    assert tags.open == []
    return tags


def spoilt(folder):
    folder.classes = {1: NASTY, 2: "雪 snow"}
    folder.box("train", 2, 1, [300, 100, 60, 60])
    folder.box("train", 1, 2, [100, 100, 1, 15])
    folder.add("val", "<b>copy&.png")
    folder.path("val", "<b>copy&.png").write_bytes(folder.path("train", "train4.png").read_bytes())
    return folder.report()


def test_page_has_no_external_references_and_no_scripts(folder):
    text = page(spoilt(folder))
    tags = parsed(text)
    assert tags.tags.isdisjoint({"script", "link", "iframe", "object", "embed", "b", "form", "base"})
    for tag, name, value in tags.attributes:
        assert not name.startswith("on"), (tag, name)
        assert name not in ("href", "srcset", "style", "action"), (tag, name)
        assert name != "src" or value.startswith(("data:image/png;base64,", "data:image/jpeg;base64,"))
    style = text[text.index("<style>") : text.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style
    assert re.findall(r"https?://", text) == []


def test_names_from_files_are_escaped(folder):
    text = page(spoilt(folder))
    assert NASTY not in text
    assert "&lt;script&gt;alert(&#x27;1&#x27;)&lt;/script&gt;&amp;&quot;$x_1$" in text
    assert "雪 snow" in text


def test_every_picture_on_the_page_can_be_decoded(folder):
    pictures = re.findall(r"base64,([A-Za-z0-9+/=]+)'", page(spoilt(folder)))
    assert len(pictures) >= 6 + 4
    for picture in pictures:
        image = cv2.imdecode(np.frombuffer(base64.b64decode(picture), np.uint8), cv2.IMREAD_COLOR)
        assert image.std() > 1


def test_page_without_a_readable_split_is_complete(folder):
    text = page(examine("none", {}, refusals=(Finding("split-refused", "error", "train is refused", {"train": 1}),)))
    assert "train is refused" in text
    assert "data:image" not in text
    parsed(text)


def test_page_without_objects_is_complete(folder):
    folder.boxes["train"].clear()
    text = page(folder.report())
    assert "train has no object" in text
    parsed(text)


def test_correct_data_set_has_a_clean_page(folder):
    text = page(folder.report())
    assert "Nothing to report." in text
    assert "<span class='badge good'>Clean</span>" in text


def test_text_has_the_same_content_as_the_page(folder):
    report = spoilt(folder)
    lines = report_text(report).splitlines()
    for finding in report.findings:
        assert any(line.startswith(f"{finding.severity}: {finding.title}") for line in lines)
    assert lines[-1] == f"test: {len(report.findings)} warnings (annotations, 10 image files decoded)"


def red(picture):
    """Pixels in the colour of offending boxes."""
    return (np.abs(picture.astype(int) - (230, 60, 30)).sum(axis=2) < 30).sum()


def test_box_beyond_the_image_is_drawn_with_a_margin(folder):
    folder.box("train", 2, 1, [300, 100, 60, 60])
    report = folder.report()
    (offender,) = report.findings[0].offenders
    picture = draw_offender(report, offender)
    assert picture is not None
    assert picture.shape == (240, 360, 3)  # 40 px more to the right
    assert (picture[5, 345:] == 114).all()  # grey outside the image
    assert red(picture) > 100
    whole = draw_offender(report, Offender("train", 1, (), ""))
    assert whole is not None
    assert (red(whole), whole.shape) == (0, (270, 360, 3))


def test_small_box_is_drawn_close_up(folder):
    folder.box("train", 1, 2, [200, 100, 1, 8])
    report = folder.report()
    finding = next(f for f in report.findings if f.code == "box-sliver")
    picture = draw_offender(report, finding.offenders[0])
    assert picture is not None
    assert picture.shape[0] == pytest.approx(360, rel=0.03)  # a square window around it
    assert picture.shape[1] == pytest.approx(360, rel=0.03)
    rows = np.flatnonzero((np.abs(picture.astype(int) - (230, 60, 30)).sum(axis=2) < 30).any(axis=1))
    assert 180 - 60 < rows.min() < rows.max() < 180 + 60
