"""The keys that a search varies, each with a range or a list of values."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from detector.config.nodes import Mistakes, override_nodes, plain_of
from detector.errors import ConfigError
from detector.tasks.task import load_experiment

Value = float | int | str  # of a range a number, of a list the text of one of its values
_LOG, _RANGE = ",log", ".."
_EXAMPLE = "give KEY=LOW..HIGH, KEY=LOW..HIGH,log or KEY=[A, B, C], such as optimizer.lr=1e-4..1e-2,log"


@dataclass(frozen=True)
class SearchedKey:
    """A key of an experiment and the values that a search tries.

    Attributes:
        key: the key, such as optimizer.lr.
        low: lower end of a range.
        high: upper end of the range.
        is_log: whether the range is searched on a logarithmic scale.
        is_whole: whether it has whole numbers only.
        choices: the values of a list, as texts; empty for a range.
    """

    key: str
    low: float = 0.0
    high: float = 0.0
    is_log: bool = False
    is_whole: bool = False
    choices: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str) -> SearchedKey:
        """Parse a key with its range or its list of values.

        Raises:
            ConfigError: the text has another form, or a range is empty.
        """
        key, equals, values = text.partition("=")
        if not equals or not all(part.isidentifier() for part in key.split(".")):
            raise ConfigError(f"--search {text}: expected a key and its values, got {text!r}; {_EXAMPLE}")
        if values.startswith("["):
            choices = tuple(dict.fromkeys(_listed(values)))
            if len(choices) < 2:
                raise ConfigError(f"--search {text}: expected at least two different values, got {values}; {_EXAMPLE}")
            return cls(key, choices=choices)
        is_log = values.endswith(_LOG)
        ends = values.removesuffix(_LOG).split(_RANGE)
        try:
            low, high = (float(end) for end in ends)
        except ValueError:
            raise ConfigError(f"--search {text}: expected a range or a list, got {values!r}; {_EXAMPLE}") from None
        if not (math.isfinite(low) and math.isfinite(high) and low < high) or (is_log and low <= 0):
            above = " above 0" if is_log else ""
            raise ConfigError(f"--search {text}: expected LOW < HIGH{above}, got {values}; {_EXAMPLE}")
        return cls(key, low, high, is_log, all(end.strip().lstrip("+-").isdecimal() for end in ends))

    def override(self, value: Value) -> str:
        """Return the override that sets the key to a value."""
        return f"{self.key}={value!r}" if isinstance(value, float) else f"{self.key}={value}"

    def value_of(self, text: str) -> Value:
        """Return the value of an override that `override` made."""
        value = text.removeprefix(f"{self.key}=")
        if self.choices:
            return value
        return int(value) if self.is_whole else float(value)

    def rounded(self, value: Value) -> Value:
        """Return a number with four significant digits, within the range; other values unchanged."""
        if not isinstance(value, float):
            return value
        return min(max(float(f"{value:.4g}"), self.low), self.high)

    def given(self, plain: Mapping[str, object]) -> Value | None:
        """Return the value of the key in a plain configuration, or None if the search cannot try it."""
        value: object = plain
        for part in self.key.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        if self.choices:
            text = value if isinstance(value, str) else json.dumps(value, default=str)
            return text if text in self.choices else None
        if isinstance(value, bool) or not isinstance(value, int | float) or not self.low <= value <= self.high:
            return None
        return float(value) if not self.is_whole else int(value) if value == int(value) else None

    def probes(self) -> tuple[str, ...]:
        """Return overrides that must be valid for the whole search to be."""
        if self.choices:
            return tuple(map(self.override, self.choices))
        return tuple(self.override(int(end) if self.is_whole else end) for end in (self.low, self.high))


def _listed(text: str) -> list[str]:
    """Return the values of a YAML list, each as the text of an override."""
    plain = plain_of(override_nodes(f"values={text}"))
    values = plain["values"] if isinstance(plain, dict) else None
    return [value if isinstance(value, str) else json.dumps(value, default=str) for value in values or ()]


def require_searchable(keys: Sequence[SearchedKey], experiment: str, overrides: Sequence[str]) -> None:
    """Reject keys that occur twice or that the overrides set, and values that the experiment does not take.

    Raises:
        ConfigError: every mistake found.
    """
    mistakes = Mistakes()
    fixed = [text.partition("=")[0] for text in overrides]
    for number, key in enumerate(keys):
        others = [other.key for other in keys[:number]] + fixed
        if clash := [other for other in others if f"{other}.".startswith(f"{key.key}.") or other == key.key]:
            mistakes += [f"--search {key.key}: expected a key that nothing else sets, got also {clash[0]}; keep one"]
        for probe in key.probes():
            try:
                config = load_experiment(experiment, [*overrides, probe])
                bounded = config if config.train.weights is None else config.for_fine_tuning()
                if key.key == "optimizer.lr" and bounded != config:
                    raise ConfigError(
                        f"expected rates up to optimizer.fine_tuning_lr={bounded.optimizer.lr:g}, the bound of a run "
                        f"from given weights, got {config.optimizer.lr:g}; search optimizer.fine_tuning_lr, or set it "
                        f"to null"
                    )
            except ConfigError as error:
                mistakes += (f"--search {key.key}: {line}" for line in str(error).splitlines())
    mistakes.raise_any()


def values_text(values: Mapping[str, Value]) -> str:
    """Return the values of keys for people, numbers with four significant digits."""
    shown = {key: f"{value:.4g}" if isinstance(value, float) else str(value) for key, value in values.items()}
    return ", ".join(f"{key}={value}" for key, value in shown.items()) or "the given settings"
