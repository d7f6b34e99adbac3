"""The figures of the source tree, measured on small packages that break each rule."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

TOOLS = Path(__file__).parents[2] / "tools"
sys.path.insert(0, str(TOOLS))

import house  # noqa: E402
import source_tree  # noqa: E402


def repository(root: Path, files: dict[str, str]) -> Path:
    """A repository with the files of a package, given by their place in it."""
    for folder in ("detector", "tests", "tools"):
        (root / folder).mkdir(exist_ok=True)
    for name, text in {"__init__.py": "", **files}.items():
        path = root / "detector" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        (path.parent / "__init__.py").touch()
        path.write_text(text, "utf-8")
    return root


def test_folders_and_loose_modules_are_rooms(tmp_path):
    root = repository(tmp_path, {"errors.py": "", "__main__.py": "", "data/coco.py": "", "data/augment/warp.py": ""})
    assert house.rooms(root) == ["data", "data.augment", "errors"]


def test_folders_that_import_each_other_are_a_circle(tmp_path):
    files = {
        "data/a.py": "from detector.darknet.b import x",
        "data/augment/c.py": "from detector.data import a",
        "darknet/b.py": "def f():\n    import detector.data.augment.c",
    }
    circles = house.folder_circles(repository(tmp_path, files))
    assert circles == ["darknet <-> data: detector/darknet/b.py:2, detector/data/a.py:1"]


def test_a_floor_below_the_level_of_folders_is_an_exception(tmp_path):
    root = repository(tmp_path, {})
    laws = root / "tests" / "test_laws.py"
    laws.write_text("FLOORS = ('io', 'data.names', 'data')")
    assert house.floor_exceptions(root) == ["data.names"]
    laws.write_text("")
    with pytest.raises(LookupError, match="expected an assignment to FLOORS, got none"):
        house.floor_exceptions(root)


def test_an_import_that_is_never_used_registers(tmp_path):
    text = 'from detector.data.coco import Coco, Rows\nfrom detector.errors import Error\n\nx: "Rows" = Error()\n'
    root = repository(tmp_path, {"experiment.py": text})
    assert house.registering_imports(root) == ["detector/experiment.py:1: Coco"]


def test_long_and_wide_functions_are_counted(tmp_path):
    body = "\n".join(["    x = 1"] * 59)
    eight = "self, a, b, c, d, e, f, /, g, *rest, h"
    text = f"def short():\n{body}\ndef long():\n{body}\n    x = 1\ndef fits({eight}): ...\ndef wide({eight}, i): ..."
    root = repository(tmp_path, {"a.py": text})
    assert house.long_functions(root) == ["detector/a.py:61: long, 61 lines"]
    assert house.wide_functions(root) == ["detector/a.py:123: wide, 9 parameters"]


def test_docstrings_that_open_with_a_question_word_are_counted(tmp_path):
    text = '"""Whatever."""\nclass A:\n    """What it is."""\n    def f(self):\n        """Return what it is."""\n'
    assert house.question_docstrings(repository(tmp_path, {"a.py": text})) == ["detector/a.py:3"]


@pytest.mark.parametrize(
    ("text", "is_counted"),
    [
        ('raise ValueError(f"scale wants to be {a}, found {b}")', True),
        ('f"a folder is wanted" f", found {x}"', True),
        ('"one configuration; found none"', True),
        ("x = 1  # as the encoder wants it", True),
        ('def f():\n    """Wants a folder."""', True),
        ('"the file was not found"', False),
        ('"objects found in the image"', False),
        ("found, wanted = 1, 2", False),
        ('f"expected {wanted}, got {found}"', False),
    ],
)
def test_messages_with_wants_and_found_are_counted_once_each(tmp_path, text, is_counted):
    assert len(house.translated_messages(repository(tmp_path, {"a.py": text}))) == is_counted


def test_any_and_ignored_types_are_counted(tmp_path):
    text = (
        '"""Any text."""\nfrom typing import Any\n\nArrays = "list[Any]"\nx: Any = 1  # type: ignore[misc]\n'
        'y = "Any file", "type: ignore"\n'
    )
    root = repository(tmp_path, {"a.py": text})
    assert sorted(house.any_types(root)) == ["detector/a.py:4", "detector/a.py:5"]
    assert house.type_ignores(root) == ["detector/a.py:5"]


@pytest.mark.parametrize(
    ("text", "is_counted"),
    [
        ('config.get("task") == "classify"', True),
        ('config.task != "detect"', True),
        ("isinstance(a, ExperimentConfig) and isinstance(b, ExperimentConfig)", True),
        ("isinstance(metrics, (CocoMetrics, ClassificationMetrics))", True),
        ("is_classifier(file)", True),
        ("is_classification = bool(rows)", True),
        ('match task:\n    case "classify": pass', True),
        ("isinstance(result, Detections)", False),
        ('command == "train"', False),
        ('find_task("classify")', False),
    ],
)
def test_questions_for_the_task_are_counted_once_a_line(tmp_path, text, is_counted):
    root = repository(tmp_path, {"workflows/a.py": text, "tasks/b.py": text})
    places = house.task_branches(root)
    assert [place.startswith("detector/workflows/a.py") for place in places] == [True] * is_counted


def test_imports_inside_functions_of_the_command_line_are_counted(tmp_path):
    text = "import sys\ndef run():\n    import os\n    def inner():\n        from a import b, c\n"
    root = repository(tmp_path, {"cli/train.py": text, "api.py": text})
    assert house.local_imports(root) == ["detector/cli/train.py:3", "detector/cli/train.py:5"]


def test_names_that_are_used_twice_are_counted(tmp_path):
    text = "class A:\n    class Config: ...\nclass _B: ...\n"
    files = {"data/report.py": text, "export/report.py": text, "cli/train.py": "", "train.py": "class B: ...\n"}
    root = repository(tmp_path, files)
    assert house.repeated_file_names(root) == ["detector/data/report.py", "detector/export/report.py"]
    assert house.repeated_class_names(root) == ["detector/data/report.py:1: A", "detector/export/report.py:1: A"]


def test_long_files_and_lines_are_counted(tmp_path):
    root = repository(tmp_path, {"a.py": "x = 1\n" * 501, "b.py": "x = 1\n" * 500})
    assert house.long_files(root) == ["detector/a.py: 501 lines"]
    assert house.package_lines(root) == 1001


def test_the_command_prints_values_and_places(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(house, "FIGURES", [figure for figure in house.FIGURES if figure.key in ("long", "training")])
    root = repository(tmp_path, {"a.py": "def long():\n" + "    x = 1\n" * 60})
    assert house.main(["--root", str(root)]) == 1
    printed = capsys.readouterr().out
    assert "functions over 60 lines                          1" in printed
    assert "not measured without --trace" in printed
    assert house.main(["--root", str(root), "--list", "long"]) == 0
    assert capsys.readouterr().out == "detector/a.py:1: long, 61 lines\n"
    (root / "detector" / "a.py").write_text("")
    source_tree.modules.cache_clear()
    assert house.main(["--root", str(root)]) == 0
