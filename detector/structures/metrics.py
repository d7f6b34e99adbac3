"""The metrics of an evaluation as training uses them, for any task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Protocol


class Metrics(Protocol):
    """The metrics of one evaluation. A metric without data is NaN.

    Attributes:
        first_columns: the first columns of `results.csv`, in this order; the others follow in their own order.
    """

    first_columns: ClassVar[Sequence[str]]

    @property
    def stats(self) -> Mapping[str, float]:
        """The main metrics by name."""

    @property
    def headline(self) -> float:
        """The metric that compares models: higher is better, below 0 means there is none."""

    def columns(self) -> dict[str, float]:
        """Return the metrics of a row of `results.csv` by column."""

    def to_plain(self) -> dict[str, Any]:
        """Return all metrics as plain data for JSON; a metric without data is None."""

    def to_text(self) -> str:
        """Return the metrics as text for people."""
