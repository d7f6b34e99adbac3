"""What a reader of annotation files found wrong: what it skipped, what it accepted, what it refuses.

A reader goes through a whole file, notes every fault in one `Findings` and asks at the end: refusals become one error
that lists them all, the rest is handed on as a tuple of `Problem`, so that nothing is left out without being counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

from detector.errors import DatasetError

# A data set that loses more than this share of its images or boxes is not the one the user meant: refuse it.
MAX_SKIPPED_SHARE = 0.10
NUM_EXAMPLES = 5  # enough to find a fault in the file, few enough to read
NUM_LISTED_REFUSALS = 10
_MAX_SHOWN = 200  # characters of a place in a file

Outcome = Literal["skipped", "accepted", "noted"]


@dataclass(frozen=True)
class Problem:
    """One kind of fault in a data set.

    Attributes:
        kind: what is wrong, as a noun ("box wholly outside the image").
        outcome: `skipped` (left out of the data set), `accepted` (odd, but kept, if need be corrected) or `noted` (as
            it should be, and counted all the same).
        count: how often it occurs, at least 1.
        examples: where it occurs, at most `NUM_EXAMPLES` places.
    """

    kind: str
    outcome: Outcome
    count: int
    examples: tuple[str, ...]

    def __str__(self) -> str:
        more = ", ..." if self.count > len(self.examples) else ""
        return f"{self.count} x {self.kind}, {self.outcome} ({', '.join(self.examples)}{more})"


def num_skipped(problems: Iterable[Problem]) -> int:
    """Images and boxes that were left out of a data set."""
    return sum(problem.count for problem in problems if problem.outcome == "skipped")


def num_accepted(problems: Iterable[Problem]) -> int:
    """Images and boxes that are odd and were kept."""
    return sum(problem.count for problem in problems if problem.outcome == "accepted")


def shown(text: str) -> str:
    """A text from a file as a message can hold it: on one line, printable, not too long."""
    text = text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}..."
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


@dataclass
class _Tally:
    count: int = 0
    examples: list[str] = field(default_factory=list)


class Findings:
    """The faults found in one annotation file.

    Args:
        source: the file, as error messages name it.
    """

    def __init__(self, source: str) -> None:
        self._source = source
        self._tallies: dict[tuple[str, Outcome], _Tally] = {}
        self._refusals: list[str] = []
        self._num_refusals = 0

    def skip(self, kind: str, place: str) -> None:
        """Count something that is left out of the data set."""
        self._count(kind, "skipped", place)

    def accept(self, kind: str, place: str) -> None:
        """Count something that is odd and kept."""
        self._count(kind, "accepted", place)

    def note(self, kind: str, place: str) -> None:
        """Count something that is as it should be."""
        self._count(kind, "noted", place)

    def refuse(self, reason: str) -> None:
        """Note a fault that makes the file unusable."""
        self._num_refusals += 1
        if len(self._refusals) < NUM_LISTED_REFUSALS:
            self._refusals.append(shown(reason))

    def count(self, kind: str, outcome: Outcome, rows: npt.NDArray[np.int64], place_of: Callable[[int], str]) -> None:
        """Count many of one kind at once: only the places of the examples are asked for."""
        if len(rows):
            tally = self._tallies.setdefault((kind, outcome), _Tally())
            tally.count += len(rows)
            room = NUM_EXAMPLES - len(tally.examples)
            tally.examples += [shown(place_of(row)) for row in rows[: max(room, 0)].tolist()]

    def _count(self, kind: str, outcome: Outcome, place: str) -> None:
        tally = self._tallies.setdefault((kind, outcome), _Tally())
        tally.count += 1
        if len(tally.examples) < NUM_EXAMPLES:
            tally.examples.append(shown(place))

    @property
    def problems(self) -> tuple[Problem, ...]:
        """What was skipped and accepted, in the order of first occurrence."""
        return tuple(
            Problem(kind, outcome, tally.count, tuple(tally.examples))
            for (kind, outcome), tally in self._tallies.items()
        )

    def raise_refusals(self) -> None:
        """Raise all refusals as one `DatasetError`, if there are any."""
        if not self._refusals:
            return
        rest = self._num_refusals - len(self._refusals)
        more = f"; and {rest} more" if rest else ""
        errors = "1 error" if self._num_refusals == 1 else f"{self._num_refusals} errors"
        raise DatasetError(f"{self._source} cannot be used, {errors}: {'; '.join(self._refusals)}{more}")

    def raise_if_too_many_skipped(self, what: str, num_skipped: int, num_all: int, hint: str = "") -> None:
        """Refuse a data set that loses more than `MAX_SKIPPED_SHARE` of its `what` ("images", "boxes").

        Args:
            what: images or boxes.
            num_skipped: how many are lost.
            num_all: how many there are.
            hint: what may be behind it, or nothing.

        Raises:
            DatasetError: with the count of every kind of problem.
        """
        if num_skipped > MAX_SKIPPED_SHARE * num_all:
            skipped = "; ".join(str(problem) for problem in self.problems if problem.outcome == "skipped")
            raise DatasetError(
                f"{self._source} would lose {num_skipped} of {num_all} {what}, more than the {MAX_SKIPPED_SHARE:.0%} "
                f"allowed: {skipped}; {hint + '; ' if hint else ''}correct the file or the folder"
            )
