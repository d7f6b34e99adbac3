"""The table of keys and the pages of the reference: complete, current and right."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from detector.config import key_table as key_table_module
from detector.config import registry
from detector.config.key_reference import entries, key_text, pages
from detector.config.key_survey import survey
from detector.config.key_table import TABLE_FILE, key_table, table_of_text, table_to_text
from detector.errors import ConfigError
from detector.tasks.task import TaskConfig

FOLDER = Path(__file__).parents[2] / "docs" / "reference"


@pytest.fixture(scope="module")
def table():
    return survey(TaskConfig)


def test_committed_table_is_that_of_the_code(table):
    assert TABLE_FILE.read_text("utf-8") == table_to_text(table), "the keys have changed: run make reference"


def test_committed_pages_are_those_of_the_code(table):
    made = pages(table)
    committed = {path.name: path.read_text("utf-8") for path in FOLDER.glob("*.md")}
    assert committed.keys() == made.keys(), "the sections have changed: run make reference"
    assert committed == made, "the keys have changed: run make reference"


def test_table_survives_its_file(table):
    assert table_of_text(table_to_text(table))[0].sections.keys() == table.sections.keys()
    assert table_to_text(table_of_text(table_to_text(table))[0]) == table_to_text(table)


def test_stored_table_is_parsed_once(monkeypatch):
    texts = []
    monkeypatch.setattr(key_table_module, "table_of_text", lambda text: texts.append(text) or table_of_text(text))
    for cached in (key_table_module._stored, key_table_module.is_current):
        cached.cache_clear()
    assert key_table_module.is_current()
    assert key_table_module.key_table() is key_table_module.key_table()
    assert len(texts) == 1


def test_every_key_has_a_meaning_and_a_source(table):
    listed = entries(table)
    assert len(listed) > 200
    assert [entry.path for entry in listed if not entry.key.meaning] == []
    assert [entry.path for entry in listed if not (FOLDER.parents[1] / entry.section.source).is_file()] == []


def test_every_key_is_on_a_page(table):
    text = "\n".join(pages(table).values())
    assert [entry.path for entry in entries(table) if f"`{entry.path}`" not in text and "." not in entry.path] == []


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("train.epochs", "> 0"),
        ("train.ema_horizon", "> 0 and <= 1"),
        ("train.accumulate", ">= 1"),
        ("optimizer.layer_decay", "> 0 and <= 1"),
        ("augment.shear", ">= 0 and < 90"),
        ("views.overlap", ">= 0 and <= 0.9"),
        ("augment.jpeg", ">= 0 and <= 99"),
        ("model.activation.pieces", ">= 2"),
        ("train.run_name", ""),
    ],
)
def test_range_is_that_of_the_code(path, expected):
    assert {entry.key.range for entry in entries(key_table()) if entry.path == path} == {expected}


def test_range_that_depends_on_another_key_names_it():
    @dataclasses.dataclass(frozen=True)
    class FruitConfig(registry.PartConfig[object]):
        """Kind."""

    @registry.register("pear")
    class Pear:
        """A pear."""

        @dataclasses.dataclass(frozen=True)
        class Config(FruitConfig):
            """Settings.

            Attributes:
                low: the lower one.
                high: the higher one, with a text
                    of two lines.
                odd: an odd number.
            """

            low: float = 0.2
            high: float = 0.7
            odd: int = 1

            def __post_init__(self) -> None:
                if not 0 <= self.low <= self.high < 1 or self.odd % 2 == 0:
                    raise ValueError("pear")

    try:
        keys = next(iter(survey(FruitConfig).sections.values())).keys
    finally:
        del registry._PARTS[FruitConfig], registry._PART_OF_CONFIG[Pear.Config]
    assert keys["low"].range == ">= 0 and <= high"
    assert keys["high"].range.endswith("< 1")
    assert keys["high"].meaning == "the higher one, with a text of two lines."
    assert keys["odd"].range == ""


def test_key_is_described():
    text = key_text(key_table(), "train.clip_norm", 100)
    assert text.splitlines()[1:4] == ["  type     number", "  default  10.0", "  range    > 0"]
    assert "detector/training/train_config.py" in text
    assert "train.clip_norm" in key_text(key_table(), "clip_norm", 100)


def test_section_is_listed_within_the_width():
    lines = key_text(key_table(), "optimizer", 120).splitlines()
    assert lines[1] == "parts: adamw, muon, radam, ranger, sgd (default muon)"
    assert any(line.startswith("optimizer.nesterov") for line in lines)
    assert max(map(len, lines)) <= 120


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("imgsz", "here it is input.size"),
        ("train.epoch", "did you mean 'train.epochs'"),
        ("trian", "did you mean 'train'"),
    ],
)
def test_unknown_key_gets_a_suggestion(word, message):
    with pytest.raises(ConfigError, match=message):
        key_text(key_table(), word, 100)
