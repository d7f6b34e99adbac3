"""Choice of the next settings of a search by Optuna, as a function of the trials before.

A study of Optuna is built anew from the trials for each question and lives in memory only: the records of the trials
are the one place where a search is stored, so that an interrupted search continues as if it had not been.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from detector.errors import DetectorError
from detector.workflows.studies.search_space import SearchedKey, Value
from detector.workflows.studies.trials import Trial

if TYPE_CHECKING:
    import optuna

# Trials with random settings before the sampler models the results, and finished trials before any is pruned.
_NUM_RANDOM, _NUM_UNPRUNED = 5, 4
_SEEDS_APART = 100_003  # a prime, so that the trials of two searches do not share a seed


class OptunaSampler:
    """Tree-structured Parzen estimator (Bergstra et al. 2011) with pruning below the median (Golovin et al. 2017)."""

    def __init__(self, keys: Sequence[SearchedKey], seed: int, *, is_falling: bool = False) -> None:
        """Prepare the distributions of the keys.

        Args:
            keys: the keys.
            seed: seed of the search.
            is_falling: whether the lowest value of the metric is the best.

        Raises:
            DetectorError: Optuna is not installed.
        """
        try:
            import optuna
        except ImportError as error:
            raise DetectorError(
                f"the search needs Optuna, which cannot be imported ({error}); install it with: pip install "
                f"'detector-toolkit[tune]'"
            ) from error
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._optuna, self._keys, self._seed = optuna, {key.key: key for key in keys}, seed
        self._direction: Literal["minimize", "maximize"] = "minimize" if is_falling else "maximize"
        self._distributions = {key.key: self._distribution(key) for key in keys}

    def _distribution(self, key: SearchedKey) -> optuna.distributions.BaseDistribution:
        kinds = self._optuna.distributions
        found: optuna.distributions.BaseDistribution
        if key.choices:
            found = kinds.CategoricalDistribution(key.choices)
        elif key.is_whole:
            found = kinds.IntDistribution(int(key.low), int(key.high), log=key.is_log)
        else:
            found = kinds.FloatDistribution(key.low, key.high, log=key.is_log)
        return found

    def ask(self, trials: Sequence[Trial]) -> dict[str, Value]:
        """Return the settings to try after some trials."""
        params: dict[str, Value] = self._study(trials).ask(self._distributions).params
        return {name: self._keys[name].rounded(value) for name, value in params.items()}

    def is_hopeless(self, trials: Sequence[Trial], values: Sequence[float]) -> bool:
        """Return whether a running trial with these values of its evaluations should end."""
        running = self._study(trials).ask()
        for step, value in enumerate(values):
            running.report(value, step)
        return bool(running.should_prune())

    def _study(self, trials: Sequence[Trial]) -> optuna.Study:
        sampler = self._optuna.samplers.TPESampler(
            n_startup_trials=_NUM_RANDOM, seed=(self._seed * _SEEDS_APART + len(trials)) % 2**32
        )
        pruner = self._optuna.pruners.MedianPruner(n_startup_trials=_NUM_UNPRUNED, n_warmup_steps=1)
        study = self._optuna.create_study(direction=self._direction, sampler=sampler, pruner=pruner)
        for trial in trials:
            if trial.values.keys() == self._distributions.keys():  # the given settings may lie outside of the ranges
                study.add_trial(self._frozen(trial))
        return study

    def _frozen(self, trial: Trial) -> optuna.trial.FrozenTrial:
        """Return a trial as Optuna's; one without a result counts as worse than all others."""
        is_complete = not math.isnan(trial.score)
        states = self._optuna.trial.TrialState
        return self._optuna.trial.create_trial(
            state=states.COMPLETE if is_complete else states.PRUNED,
            value=trial.score if is_complete else None,
            params=trial.values,
            distributions=self._distributions,
            intermediate_values={step: value for step, value in enumerate(trial.curve) if not math.isnan(value)},
        )
