"""Targets of the kernels on a GPU, and whether the results of `gpu_report.py` meet them.

They were set before any measurement, from instruction counts and memory traffic, for bfloat16 in channels_last and
tensors of at least 64 MB on an H200. Ratios are times of the other variant divided by ours.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Row = dict[str, Any]
Results = Mapping[str, Mapping[str, Any]]
LARGE = ("16x32x608x608 bfloat16", "16x64x304x304 bfloat16", "16x128x152x152 bfloat16")
SMALL = ("16x128x76x76 bfloat16", "16x256x38x38 bfloat16", "16x512x19x19 bfloat16", "1x512x19x19 bfloat16")
OURS = ("ours", "ours, in place")


@dataclass(frozen=True)
class Target:
    """A target, the least value that meets it, and the function that measures it.

    Attributes:
        text: what is measured.
        least: the least value that meets the target; the largest one if `is_most`.
        measure: from the results to the value, NaN where it was not measured.
        is_most: whether smaller values are better.
    """

    text: str
    least: float
    measure: Callable[[Results], float]
    is_most: bool = False


def rows(results: Results, part: str, table: str) -> Sequence[Row]:
    """Return the rows of a table, none where it was not measured."""
    found: Sequence[Row] = results.get(part, {}).get("tables", {}).get(table, ())
    return found


def lowest(values: Iterable[float]) -> float:
    """Return the lowest value, NaN without any: a target holds for every tensor."""
    return min(values, default=math.nan)


def share(part: str, table: str, column: str, tensors: Sequence[str] = LARGE) -> Callable[[Results], float]:
    """Return a function to the lowest share of our variant in a column, in percent of the bandwidth of a copy."""

    def measure(results: Results) -> float:
        own = [row for row in rows(results, part, table) if row["variant"] in OURS and _is_of(row, tensors)]
        return lowest(row[column] for row in own if isinstance(row.get(column), float))

    return measure


def ratio(
    part: str, table: str, other: str, column: str, tensors: Sequence[str] = LARGE, suffixes: Sequence[str] = ("",)
) -> Callable[[Results], float]:
    """Return a function to the lowest ratio of another variant to ours in a column of times."""

    def measure(results: Results) -> float:
        found = rows(results, part, table)
        names = {f"{tensor}{suffix}" for tensor in tensors for suffix in suffixes}
        timed = [row for row in found if isinstance(row.get(column), float)]
        ours = {row["tensor"]: row[column] for row in timed if row["variant"] in OURS and row["tensor"] in names}
        others = {row["tensor"]: row[column] for row in timed if row["variant"] == other}
        return lowest(others[tensor] / time for tensor, time in ours.items() if tensor in others)

    return measure


def _is_of(row: Row, tensors: Sequence[str]) -> bool:
    return row["tensor"].partition(" + ")[0] in tensors


def network_ratio(other: str, column: str) -> Callable[[Results], float]:
    """Return a function to the ratio of another network to ours in a column of the CSP-Darknet53."""

    def measure(results: Results) -> float:
        by_name = {row["network"]: row.get(column) for row in rows(results, "network", "stack")}
        ours, theirs = by_name.get("ours"), by_name.get(other)
        return theirs / ours if isinstance(ours, float) and isinstance(theirs, float) else math.nan

    return measure


def cell(table: str, key: str, name: str, column: str) -> Callable[[Results], float]:
    """Return a function to one cell of the part `kernels`, in the row whose `key` is `name`."""

    def measure(results: Results) -> float:
        found = [row[column] for row in rows(results, "kernels", table) if row.get(key) == name]
        return found[0] if found and isinstance(found[0], float) else math.nan

    return measure


_BOTH = ("", " + shortcut")
TARGETS = (
    Target("Mish forward, % of a copy", 90, share("kernels", "act", "% copy")),
    Target("Mish backward, % of a copy", 88, share("kernels", "act", "% copy #2")),
    Target("Mish forward against F.mish", 1.7, ratio("kernels", "act", "F.mish", "fwd us")),
    Target("Mish backward against F.mish", 1.7, ratio("kernels", "act", "F.mish", "bwd us")),
    Target("Mish forward against compile(F.mish)", 1.6, ratio("kernels", "act", "compile(F.mish)", "fwd us")),
    Target("Mish backward against compile(F.mish)", 1.6, ratio("kernels", "act", "compile(F.mish)", "bwd us")),
    Target("Mish float32 against F.mish", 1.0, ratio("kernels", "act", "F.mish", "fwd us", ["16x64x304x304 float32"])),
    Target("BN + Mish forward, % of a copy", 80, share("norm", "bn", "% copy")),
    Target("BN + Mish backward, % of a copy", 75, share("norm", "bn", "% copy #2")),
    Target("BN + Mish forward against eager", 2.5, ratio("norm", "bn", "BN, F.mish", "fwd us", LARGE, _BOTH)),
    Target("BN + Mish backward against eager", 2.0, ratio("norm", "bn", "BN, F.mish", "bwd us", LARGE, _BOTH)),
    Target("BN + Mish forward against compile(F.mish)", 1.4, ratio("norm", "bn", "compile(BN, F.mish)", "fwd us")),
    Target("BN + Mish forward against compile(one exp)", 0.95, ratio("norm", "bn", "compile(BN, one exp)", "fwd us")),
    Target(
        "BN + Mish forward in NCHW against eager",
        5.0,
        ratio("norm", "bn", "BN, F.mish", "fwd us", [f"{tensor} NCHW" for tensor in LARGE[:2]]),
    ),
    Target("BN + Mish of small tensors against eager", 1.5, ratio("norm", "bn", "BN, F.mish", "fwd us", SMALL, _BOTH)),
    Target("Peak memory of a step, eager against ours", 1.33, network_ratio("BN, F.mish", "peak GiB")),
    Target("Step of CSP-Darknet53 against eager F.mish", 1.3, network_ratio("BN, F.mish", "train ms")),
    Target("Step of CSP-Darknet53 against LeakyReLU", 1.0, network_ratio("BN, LeakyReLU", "train ms")),
    Target("Folded inference, batch 16, against eager F.mish", 1.35, network_ratio("BN, F.mish", "infer 16 ms")),
    Target("Bias + Mish, % of a copy", 90, share("norm", "infer", "% copy")),
    Target("Bias + Mish against eager", 2.0, ratio("norm", "infer", "add, F.mish", "us")),
    Target(
        "Bias + Mish + shortcut against eager", 2.3, ratio("norm", "infer", "add, F.mish", "us", LARGE[1:], _BOTH[1:])
    ),
    Target("CPU time of a call without gradient, us", 6, cell("queueing", "call", "ours", "no_grad us"), True),
    Target("CPU time of a call with gradient, us", 12, cell("queueing", "call", "ours", "with grad us"), True),
    Target("First use, s", 2.0, cell("first use", "kernels", "without cache", "seconds"), True),
    Target("First use from the cache, s", 0.05, cell("first use", "kernels", "from the cache", "seconds"), True),
)


def judged(results: Results) -> list[Row]:
    """Return each target with its measurement and whether it was met."""
    found = []
    for target in TARGETS:
        value = target.measure(results)
        is_met = value <= target.least if target.is_most else value >= target.least
        verdict = "not measured" if math.isnan(value) else "yes" if is_met else "no"
        sign = "at most" if target.is_most else "at least"
        shown = "" if math.isnan(value) else value
        found.append({"measured": target.text, "target": f"{sign} {target.least:g}", "value": shown, "met": verdict})
    tests = rows(results, "tests", "tests")
    verdict = "not measured" if not tests else "yes" if tests[0]["status"] == 0 else "no"
    return [*found, {"measured": "Accuracy: `make gpu` passes", "target": "", "value": "", "met": verdict}]
