"""`detector compare`."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detector.errors import ConfigError

if TYPE_CHECKING:
    from detector.evaluation.resampling import PairedTest
    from detector.evaluation.run_comparison import Comparison

_MAX_CLASSES = 40


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the command."""
    parser.add_argument(
        "words",
        nargs="*",
        metavar="RUN",
        help="folders of detector evaluate, or of training; the first is compared with",
    )
    parser.add_argument(
        "--annotations", type=Path, metavar="FILE", help="the COCO ground truth, where it has moved since"
    )
    parser.add_argument("--resamples", type=int, default=1000, metavar="N", help="of the paired test (default 1000)")
    parser.add_argument("--seed", type=int, default=0, help="of its draws (default 0)")
    parser.add_argument("--json", action="store_true", help="print the comparison as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Compares; returns the exit code."""
    if len(arguments.words) < 2 or len(set(arguments.words)) < len(arguments.words):
        raise ConfigError(f"two runs or more are wanted, each once, found {arguments.words}; give their folders")
    if arguments.resamples < 1 or arguments.seed < 0:
        raise ConfigError("--resamples wants at least 1 and --seed at least 0; correct them")

    from detector.evaluation.coco_metrics import as_plain
    from detector.evaluation.run_comparison import compare, read_run

    runs = [read_run(Path(word)) for word in arguments.words]
    found = compare(runs, arguments.annotations, num_resamples=arguments.resamples, seed=arguments.seed)
    print(json.dumps(as_plain(_plain(found))) if arguments.json else _text(found))
    return 0


def _plain(found: Comparison) -> dict[str, Any]:
    from dataclasses import asdict

    headline = found.runs[0].headline
    of_class = f"class_{headline.lower()}"
    return {
        "runs": [
            {"name": r.name, **r.stats, of_class: r.of_class, "ground_truth_sha256": r.truth_sha256} for r in found.runs
        ],
        "tests": {name: asdict(test) for name, test in found.tests.items()},
        "untested": found.untested,
        "seeds": [{"runs": list(names), headline: asdict(numbers)} for names, numbers in found.seeds],
    }


def _text(found: Comparison) -> str:
    from detector.cli.metrics_text import columns
    from detector.cli.progress import number

    headline = found.runs[0].headline
    names = [name for name in found.runs[0].stats if any(not math.isnan(r.stats[name]) for r in found.runs)]
    lines = columns([("run", *names), *((r.name, *(number(r.stats[n]) for n in names)) for r in found.runs)])
    truths = {r.truth_sha256 for r in found.runs} - {None}
    if len(truths) > 1:
        lines += ["", "not all on the same ground truth: the numbers do not compare"]
    classes = list(dict.fromkeys(name for r in found.runs for name in r.of_class))[:_MAX_CLASSES]
    if classes:
        heads = [f"({n})" for n in range(1, len(found.runs) + 1)]
        rows = [(c, *(number(r.of_class.get(c, math.nan)) for r in found.runs)) for c in classes]
        lines += ["", *columns([(f"{headline} of class", *heads), *rows])]
    first = found.runs[0].name
    for name, test in found.tests.items():
        lines += ["", f"{name} against {first}", *_test_lines(test)]
    lines += [f"\n{name} is not tested: {reason}" for name, reason in found.untested.items()]
    for runs, numbers in found.seeds:
        lines += ["", f"one recipe, {numbers.num_runs} seeds: {', '.join(runs)}", f"  {headline} {numbers}"]
    return "\n".join(lines)


def _test_lines(test: PairedTest) -> list[str]:
    difference = test.difference
    if math.isnan(difference.value):
        return ["  nothing to test: no ground truth"]
    sign = "better" if difference.value > 0 else "worse" if difference.value < 0 else "as good"
    return [
        f"  AP {difference.value:+.4f} ({difference.low:+.4f} .. {difference.high:+.4f}, 95 % over images), {sign}",
        f"  p = {test.p_value:.3g} (permutation of images, {test.num_resamples} draws); "
        f"better in {test.share_better:.1%} of the resampled sets",
    ]
