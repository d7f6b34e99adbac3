from __future__ import annotations

from detector.data.problems import NUM_EXAMPLES, Findings, Problem


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


def test_nothing_found_raises_nothing() -> None:
    findings = Findings("file.json")
    findings.raise_refusals()
    findings.raise_if_too_many_skipped("boxes", 0, 0)
    assert findings.problems == ()
