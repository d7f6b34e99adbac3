"""Summaries and reports of studies: numbers, tests and sentences."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace

import numpy as np
import pytest

from detector.workflows.studies.plan import StudyConfig, load_study, runs_of
from detector.workflows.studies.records import RunEvaluation, RunRecord, StudyFolder
from detector.workflows.studies.study_report import write_report
from detector.workflows.studies.summary import StudySummary, summarise


@pytest.fixture
def study(small_study) -> StudyConfig:
    """Load a study of two sizes, two activations and six seeds."""
    return load_study(str(small_study), seeds=6)


def write(study: StudyConfig, folder: StudyFolder, value_of, **settings) -> StudySummary:
    """Write a record of each run for which `value_of(cell, seed)` is not None, and return the summary."""
    for planned in runs_of(study):
        value = value_of(planned.cell, planned.seed)
        if value is not None:
            state = settings.get("state", lambda cell, seed: "finished")(planned.cell, planned.seed)
            evaluations = (RunEvaluation(2, {"top1": value + 0.01}), RunEvaluation(4, {"top1": value}))
            record = RunRecord(
                planned.cell, planned.seed, planned.experiment, planned.overrides, state=state,
                error=None if state == "finished" else f"ended: <b>{state}</b> | here",
                evaluations=evaluations if state == "finished" else (),
                num_steps=100, num_epochs=10.0, step_s=0.02, total_s=3.0, peak_bytes=2**30, machine="a <machine>",
            )  # fmt: skip
            folder.write(planned.key, record)
    return summarise(study, folder)


NOISE = np.random.default_rng(5).normal(0, 0.01, (2, 2, 50))


def noisy(cell, seed) -> float:
    size, activation = cell["size"] == "large", cell["activation"] == "mish"
    return 0.5 + 0.2 * size + 0.1 * (size and activation) + float(NOISE[int(size), int(activation), seed])


def test_numbers_of_a_combination_are_computed_from_its_runs(study, tmp_path):
    summary = write(study, StudyFolder(tmp_path), noisy)
    cell = summary.cells[3]
    values = [noisy(cell.cell, seed) for seed in range(6)]
    assert cell.cell == {"size": "large", "activation": "mish"}
    assert cell.mean == pytest.approx(np.mean(values), rel=1e-12)
    assert cell.deviation == pytest.approx(np.std(values, ddof=1), rel=1e-9)
    assert cell.best == pytest.approx(cell.mean + 0.01)
    assert (cell.step_s, cell.epoch_s, cell.peak_bytes) == (0.02, 0.2, 2**30)
    assert summary.num("runs") == summary.num_planned == 24


def test_values_are_compared_with_the_baseline_at_equal_other_settings(study, tmp_path):
    small, large = write(study, StudyFolder(tmp_path), noisy).comparisons
    assert (small.place, large.place) == ("size small", "size large")
    differences = [NOISE[0, 1, seed] - NOISE[0, 0, seed] for seed in range(6)]
    assert small.effect.difference == pytest.approx(np.mean(differences), rel=1e-9)
    assert not small.effect.is_claimed
    assert large.effect.is_claimed
    assert large.effect.corrected_p == pytest.approx(2 * large.effect.p_value)


def test_sentences_state_supported_and_unsupported_differences(study, tmp_path):
    said = " ".join(write(study, StudyFolder(tmp_path), noisy).sentences())
    assert "At size large, mish has higher top1 than relu" in said
    assert "Not shown to differ from relu in top1: mish at size small." in said
    assert "does not prove equality" in said
    assert "among 2 comparisons is at most 5 %" in said


def test_report_does_not_claim_equality(study, tmp_path):
    summary = write(study, StudyFolder(tmp_path), noisy)
    write_report(summary, StudyFolder(tmp_path))
    rows = [
        line for line in (tmp_path / "report.md").read_text().splitlines() if line.startswith("| mish against relu")
    ]
    assert [row.rsplit("|", 2)[1].strip() for row in rows] == ["nothing", "a higher value"]


def test_single_comparison_is_counted_in_the_singular(small_study, tmp_path):
    study = load_study(str(small_study), only=["size=small"], seeds=6)
    said = " ".join(write(study, StudyFolder(tmp_path), noisy).sentences())
    assert "among 1 comparison is at most" in said


def test_lower_value_is_called_lower(study, tmp_path):
    said = write(study, StudyFolder(tmp_path), lambda cell, seed: -noisy(cell, seed)).sentences()
    assert any("mish has lower top1 than relu" in sentence for sentence in said)


def test_seeds_missing_on_one_side_are_excluded_on_both(study, tmp_path):
    def lacking(cell, seed):
        return None if (cell["activation"], seed) == ("relu", 2) else noisy(cell, seed)

    summary = write(study, StudyFolder(tmp_path), lacking)
    differences = [NOISE[0, 1, seed] - NOISE[0, 0, seed] for seed in range(6) if seed != 2]
    assert summary.comparisons[0].effect.difference == pytest.approx(np.mean(differences), rel=1e-9)
    assert (summary.comparisons[0].effect.num_pairs, summary.comparisons[0].num_unpaired) == (5, 1)
    assert summary.sentences()[0] == "22 of 24 runs are done; the results cover these only."


def test_report_with_few_seeds_is_descriptive_only(small_study, tmp_path):
    study = load_study(str(small_study), seeds=3)
    summary = write(study, StudyFolder(tmp_path), lambda cell, seed: noisy(cell, seed) + (cell["activation"] == "mish"))
    said = summary.sentences()
    assert not any(" has higher " in sentence or " has lower " in sentence for sentence in said)
    assert any(sentence.startswith("Descriptive only: fewer than 5 pairs") for sentence in said)
    page = write_report(summary, StudyFolder(tmp_path)).read_text()
    assert "nothing: descriptive only" in page


@pytest.mark.parametrize("stands_for", [None, 0.1])
def test_diverged_runs_are_excluded_or_count_as_the_given_value(study, tmp_path, stands_for):
    def state(cell, seed):
        return "diverged" if (cell["activation"], seed) == ("mish", 0) else "finished"

    summary = write(replace(study, diverged=stands_for), StudyFolder(tmp_path), noisy, state=state)
    assert summary.num("diverged") == 2
    assert summary.comparisons[0].effect.num_pairs == (5 if stands_for is None else 6)
    assert summary.cells[1].values.get(0) == stands_for
    counted = "left out" if stands_for is None else "counted as top1 0.1"
    assert any(s.startswith(f"2 runs diverged; each is {counted}") for s in summary.sentences())
    others = [noisy(summary.cells[1].cell, seed) for seed in range(1, 6)]
    best = [value + 0.01 for value in others] + ([] if stands_for is None else [stands_for])
    assert summary.cells[1].best == pytest.approx(np.mean(best))


def test_failed_runs_are_counted_named_and_excluded(study, tmp_path):
    def state(cell, seed):
        return "failed" if (cell["activation"], seed) == ("mish", 0) else "finished"

    folder = StudyFolder(tmp_path)
    summary = write(study, folder, noisy, state=state)
    assert (summary.num("failed"), summary.num("runs")) == (2, 22)
    page = write_report(summary, folder).read_text()
    assert "size=small,activation=mish,seed=0" in page
    assert "ended: &lt;b&gt;failed&lt;/b&gt;" in page
    assert "\\| here" in (tmp_path / "report.md").read_text()


def test_study_without_runs_has_a_report(study, tmp_path):
    summary = summarise(study, StudyFolder(tmp_path))
    assert summary.sentences() == ["None of 24 runs is done yet."]
    assert write_report(summary, StudyFolder(tmp_path)).is_file()
    assert "NaN" not in (tmp_path / "summary.json").read_text()


def test_page_is_self_contained_and_markdown_links_its_charts(study, tmp_path):
    summary = write(study, StudyFolder(tmp_path), noisy)
    page = write_report(summary, StudyFolder(tmp_path)).read_text()
    assert not re.search(r"(src|href)='(?!data:)", page)
    assert "<script" not in page
    assert "a &lt;machine&gt;" in page
    assert page.count("data:image/png;base64,") == 3
    markdown = (tmp_path / "report.md").read_text()
    pictures = re.findall(r"!\[.*\]\((.*)\)", markdown)
    assert sorted(pictures) == ["effects.png", "trend.png", "values.png"]
    assert all((tmp_path / picture).read_bytes().startswith(b"\x89PNG") for picture in pictures)
    assert markdown.index("## Effects") < markdown.index("## Numbers")
    for sentence in summary.sentences():
        assert f"- {sentence}" in markdown
    numbers = json.loads((tmp_path / "summary.json").read_text())
    assert numbers["comparisons"][1]["effect"]["is_claimed"] is True


def test_studies_of_equal_runs_rarely_claim_a_difference(study, tmp_path):
    """This covers the path from records to sentences; `test_effect_sizes.py` counts the errors of the test itself."""
    rng, claims = np.random.default_rng(11), 0
    for draw in range(15):
        values = rng.normal(0.5, 0.02, (4, 6))
        cells = iter(range(10_000))
        summary = write(
            study, StudyFolder(tmp_path / str(draw)), lambda cell, seed, v=values, c=cells: float(v.flat[next(c) % 24])
        )
        claimed = sum(comparison.effect.is_claimed for comparison in summary.comparisons)
        said = sum(" has higher " in s or " has lower " in s for s in summary.sentences())
        assert said == claimed
        claims += bool(claimed)
    assert claims <= 3  # of 15, at 5 %; the probability of more is 1 in 180
    assert not math.isnan(summary.comparisons[0].effect.p_value)
