"""What training asks of the numbers that a measurement finds, whatever the task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Protocol


class Metrics(Protocol):
    """The numbers of one measurement. A number that nothing could be measured for is NaN.

    Attributes:
        first_columns: the columns that `results.csv` begins with, in this order; all others follow as they come.
    """

    first_columns: ClassVar[Sequence[str]]

    @property
    def stats(self) -> Mapping[str, float]:
        """The main numbers by name."""

    @property
    def headline(self) -> float:
        """The number by which one model is better than another: higher is better, below 0 there is none."""

    def columns(self) -> dict[str, float]:
        """The numbers of a row of `results.csv` by column."""

    def to_plain(self) -> dict[str, Any]:
        """All numbers as plain data for JSON; a number that does not exist is None."""

    def to_text(self) -> str:
        """Return the numbers as text for people."""
