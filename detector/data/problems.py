"""Faults in annotation files: entries that a reader skipped, accepted or refused.

A reader goes through a whole file and adds every fault to one `Findings`. At the end refusals become one error that
lists them all, and the other faults become a tuple of `Problem`, so that every skipped entry is counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

from detector.errors import DatasetError

# A data set that would lose more than this share of its images or boxes is refused.
MAX_SKIPPED_SHARE = 0.10
NUM_EXAMPLES = 5  # enough to locate a fault in the file, few enough to read
NUM_LISTED_REFUSALS = 10
_MAX_SHOWN = 200  # characters of a place in a file

Outcome = Literal["skipped", "accepted", "noted"]


@dataclass(frozen=True)
class Problem:
    """Kind of fault in a data set, with its count.

    Attributes:
        kind: the fault as a noun ("box wholly outside the image").
        outcome: `skipped` (left out of the data set), `accepted` (odd, but kept, corrected if necessary) or `noted`
            (correct, and only counted).
        count: number of occurrences, at least 1.
        examples: places of occurrences, at most `NUM_EXAMPLES`.
    """

    kind: str
    outcome: Outcome
    count: int
    examples: tuple[str, ...]

    def __str__(self) -> str:
        more = ", ..." if self.count > len(self.examples) else ""
        return f"{self.count} x {self.kind}, {self.outcome} ({', '.join(self.examples)}{more})"


def num_skipped(problems: Iterable[Problem]) -> int:
    """Return the number of images and boxes that were left out of a data set."""
    return sum(problem.count for problem in problems if problem.outcome == "skipped")


def num_accepted(problems: Iterable[Problem]) -> int:
    """Return the number of images and boxes that are odd and were kept."""
    return sum(problem.count for problem in problems if problem.outcome == "accepted")


def shown(text: str) -> str:
    """Return a text from a file as a message can show it: on one line, printable, not too long."""
    text = text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}..."
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


@dataclass
class _Tally:
    count: int = 0
    examples: list[str] = field(default_factory=list)


class Findings:
    """Faults in one annotation file.

    Args:
        source: name of the file in error messages.
    """

    def __init__(self, source: str) -> None:
        self._source = source
        self._tallies: dict[tuple[str, Outcome], _Tally] = {}
        self._refusals: list[str] = []
        self._num_refusals = 0

    def skip(self, kind: str, place: str) -> None:
        """Count an entry that is left out of the data set."""
        self._count(kind, "skipped", place)

    def accept(self, kind: str, place: str) -> None:
        """Count an entry that is odd and kept."""
        self._count(kind, "accepted", place)

    def note(self, kind: str, place: str) -> None:
        """Count an entry that is correct."""
        self._count(kind, "noted", place)

    def refuse(self, reason: str) -> None:
        """Add a fault that makes the file unusable."""
        self._num_refusals += 1
        if len(self._refusals) < NUM_LISTED_REFUSALS:
            self._refusals.append(shown(reason))

    def count(self, kind: str, outcome: Outcome, rows: npt.NDArray[np.int64], place_of: Callable[[int], str]) -> None:
        """Count many faults of one kind; `place_of` is called for the examples only."""
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
        """Kinds of faults that were skipped, accepted or noted, in the order of first occurrence."""
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
        """Reject a data set that would lose more than `MAX_SKIPPED_SHARE` of its `what` ("images", "boxes").

        Args:
            what: images or boxes.
            num_skipped: number of lost ones.
            num_all: number of all.
            hint: a possible cause, or an empty text.

        Raises:
            DatasetError: the share is exceeded; the message has the count of every kind of fault.
        """
        if num_skipped > MAX_SKIPPED_SHARE * num_all:
            skipped = "; ".join(str(problem) for problem in self.problems if problem.outcome == "skipped")
            raise DatasetError(
                f"{self._source} would lose {num_skipped} of {num_all} {what}, more than the {MAX_SKIPPED_SHARE:.0%} "
                f"allowed: {skipped}; {hint + '; ' if hint else ''}correct the file or the folder"
            )
