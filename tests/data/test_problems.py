from __future__ import annotations

import numpy as np
import pytest

from detector.data.problems import NUM_EXAMPLES, Findings, Problem, num_accepted, num_skipped, shown
from detector.errors import DatasetError


def test_problems_keep_a_few_examples_and_all_counts() -> None:
    findings = Findings("file.json")
    for i in range(100):
        findings.skip("bad box", f"annotation {i}")
    findings.accept("odd box", "annotation 7")
    many, one = findings.problems
    assert many == Problem("bad box", "skipped", 100, tuple(f"annotation {i}" for i in range(NUM_EXAMPLES)))
    assert str(many).startswith("100 x bad box, skipped (annotation 0, ")
    assert str(many).endswith("annotation 4, ...)")
    assert str(one) == "1 x odd box, accepted (annotation 7)"


def test_no_faults_raise_no_error() -> None:
    findings = Findings("file.json")
    findings.raise_refusals()
    findings.raise_if_too_many_skipped("boxes", 0, 0)
    assert findings.problems == ()


def test_many_faults_are_counted_at_once_and_only_examples_are_named() -> None:
    findings, asked = Findings("file.json"), list[int]()

    def place_of(row: int) -> str:
        asked.append(row)
        return f"row {row}"

    findings.skip("bad box", "row 1")
    findings.count("bad box", "skipped", np.arange(10, 1000, 10), place_of)
    findings.count("good box", "noted", np.array([], dtype=np.int64), place_of)
    assert findings.problems == (Problem("bad box", "skipped", 100, ("row 1", *(f"row {r}" for r in asked))),)
    assert asked == [10, 20, 30, 40]


def test_outcomes_are_counted_separately() -> None:
    findings = Findings("file.json")
    for number, add in enumerate((findings.skip, findings.accept, findings.note), start=1):
        for _ in range(number):
            add("kind", "place")
    assert [problem.outcome for problem in findings.problems] == ["skipped", "accepted", "noted"]
    assert (num_skipped(findings.problems), num_accepted(findings.problems)) == (1, 2)


def test_text_of_a_file_is_shown_on_one_printable_line() -> None:
    assert shown("é图 a.png") == "é图 a.png"
    assert shown("a\nb\t\0\ud800\u202e") == r"a\nb\t\x00\ud800\u202e"
    assert len(shown("x" * 10**6)) < 300
    findings = Findings("file.json")
    findings.skip("kind", "a\nb")
    findings.refuse("c\nd")
    assert findings.problems[0].examples == (r"a\nb",)
    with pytest.raises(DatasetError, match=r"1 error: c\\nd$"):
        findings.raise_refusals()


def test_a_hint_is_in_the_error_about_too_many_skipped_entries() -> None:
    findings = Findings("file.json")
    findings.skip("bad box", "row 1")
    with pytest.raises(DatasetError, match=r"bad box, skipped \(row 1\); they look odd; correct the file"):
        findings.raise_if_too_many_skipped("boxes", 1, 9, "they look odd")
    findings.raise_if_too_many_skipped("boxes", 1, 10, "they look odd")
