"""Tables of classes as text."""

from __future__ import annotations

from detector.evaluation.number_text import class_table


def test_table_of_many_classes_ends_with_the_number_of_the_others() -> None:
    rows = [(f"class {number}", "0.5") for number in range(1500)]
    lines = class_table(("class", "AP"), rows)
    assert len(lines) == 202
    assert lines[200].split() == ["class", "199", "0.5"]
    assert lines[201] == "and 1300 more classes, which --json lists"
    assert len(class_table(("class", "AP"), rows[:200])) == 201
