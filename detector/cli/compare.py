"""`detector compare`."""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import asdict
from pathlib import Path

from detector.evaluation.coco_metrics import as_plain
from detector.evaluation.number_text import columns, number_text
from detector.evaluation.resampling import PairedTest
from detector.evaluation.run_comparison import Comparison, compare, read_run
from detector.io.nouns import plural

_MAX_CLASSES = 40


def run(arguments: argparse.Namespace) -> int:
    """Compare runs; return the exit code."""
    runs = [read_run(Path(word)) for word in arguments.words]
    comparison = compare(runs, arguments.annotations, num_resamples=arguments.resamples, seed=arguments.seed)
    print(json.dumps(as_plain(_plain(comparison))) if arguments.json else _text(comparison))
    return 0


def _plain(comparison: Comparison) -> dict[str, object]:
    headline = comparison.runs[0].headline
    of_class = f"class_{headline.lower()}"
    return {
        "runs": [
            {"name": r.name, **r.stats, of_class: r.of_class, "ground_truth_sha256": r.truth_sha256}
            for r in comparison.runs
        ],
        "tests": {name: asdict(test) for name, test in comparison.tests.items()},
        "untested": comparison.untested,
        "seeds": [{"runs": list(names), headline: asdict(numbers)} for names, numbers in comparison.seeds],
    }


def _text(comparison: Comparison) -> str:
    headline = comparison.runs[0].headline
    names = [name for name in comparison.runs[0].stats if any(not math.isnan(r.stats[name]) for r in comparison.runs)]
    lines = columns([("run", *names), *((r.name, *(number_text(r.stats[n]) for n in names)) for r in comparison.runs)])
    truths = {r.truth_sha256 for r in comparison.runs} - {None}
    if len(truths) > 1:
        lines += ["", "the ground truths differ: the numbers cannot be compared"]
    classes = list(dict.fromkeys(name for r in comparison.runs for name in r.of_class))[:_MAX_CLASSES]
    if classes:
        heads = [f"({n})" for n in range(1, len(comparison.runs) + 1)]
        rows = [(c, *(number_text(r.of_class.get(c, math.nan)) for r in comparison.runs)) for c in classes]
        lines += ["", *columns([(f"{headline} of class", *heads), *rows])]
    first = comparison.runs[0].name
    for name, test in comparison.tests.items():
        lines += ["", f"{name} against {first}", *_test_lines(test)]
    lines += [f"\n{name} is not tested: {reason}" for name, reason in comparison.untested.items()]
    for runs, numbers in comparison.seeds:
        lines += ["", f"one recipe, {plural(numbers.num_runs, 'seed')}: {', '.join(runs)}", f"  {headline} {numbers}"]
    return "\n".join(lines)


def _test_lines(test: PairedTest) -> list[str]:
    difference = test.difference
    if math.isnan(difference.value):
        return ["  nothing to test: no ground truth"]
    sign = "better" if difference.low > 0 else "worse" if difference.high < 0 else "no evidence of a difference"
    return [
        f"  AP {difference.value:+.4f} ({difference.low:+.4f} .. {difference.high:+.4f}, 95 % over images), {sign}",
        f"  p = {test.p_value:.3g} (permutation of images, {test.num_resamples} draws); "
        f"better in {test.share_better:.1%} of the resampled sets",
    ]
