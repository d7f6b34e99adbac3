"""A search for better settings, and a study of the best ones against the given ones on images it has not seen.

The best of many settings looks better than it is on the images that it was chosen on (Cawley and Talbot 2010, "On
over-fitting in model selection"). The validation images are therefore divided: evaluations of the search use one share,
and a study with other seeds compares the best settings with the given ones on the other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from detector.config.schema import config_to_plain, config_to_yaml, load_config
from detector.errors import ConfigError
from detector.io.atomic import write_atomically
from detector.tasks.task import load_experiment
from detector.training.train_config import TrainConfig
from detector.workflows.studies.optuna_sampler import OptunaSampler
from detector.workflows.studies.plan import StudyConfig
from detector.workflows.studies.records import FALLING, StudyFolder
from detector.workflows.studies.runner import Outcome, Shard, make_runs, write_study
from detector.workflows.studies.search_space import SearchedKey, require_searchable, values_text
from detector.workflows.studies.summary import StudySummary, summarise
from detector.workflows.studies.trials import Budget, Sampler, Trial, make_trials

_SEARCH_FILE = "tune.yaml"


@dataclass(frozen=True)
class SearchConfig:
    """Everything that the trials of a search are a function of.

    Attributes:
        experiment: the experiment, a preset or a file.
        overrides: overrides for all runs.
        search: the searched keys with their values, as texts.
        metric: the metric to improve, such as AP or top1.
        held_out: share of the validation images that the search does not use.
        seed: seed of the search.
    """

    experiment: str
    overrides: tuple[str, ...]
    search: tuple[str, ...]
    metric: str = "AP"
    held_out: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0.1 <= self.held_out <= 0.9:
            raise ValueError(f"--held-out: expected a share within 0.1..0.9, got {self.held_out}")
        if not self.search:
            raise ValueError("--search: expected at least one key, got none; give KEY=LOW..HIGH or KEY=[A, B, C]")

    def overrides_on(self, start: float, end: float) -> tuple[str, ...]:
        """Return the overrides of runs whose evaluations use a part of the validation images."""
        return (*self.overrides, f"train.val_share=[{start:g}, {end:g}]")


@dataclass(frozen=True)
class Tuning:
    """A search and its result.

    Attributes:
        config: the search.
        trials: the trials; the first has the given settings.
        best: the best of them on the search share.
        summary: the study on the held-out share; None if no settings were better than the given ones.
        folder: the folder of the files.
    """

    config: SearchConfig
    trials: tuple[Trial, ...]
    best: Trial
    summary: StudySummary | None
    folder: Path

    def sentences(self) -> list[str]:
        """Return the result in sentences."""
        return list(_sentences(self))

    def to_plain(self) -> dict[str, object]:
        """Return the result as plain data for JSON; an undefined number is None."""
        return {
            "search": config_to_plain(self.config),
            "trials": [
                {
                    "number": trial.number,
                    "values": trial.values,
                    "state": trial.record.state,
                    self.config.metric: None if math.isnan(trial.score) else trial.score,
                    "total_s": trial.record.total_s,
                }
                for trial in self.trials
            ],
            "best": self.best.number,
            "held_out": None if self.summary is None else self.summary.to_plain(),
            "sentences": self.sentences(),
        }


def tune(
    config: SearchConfig,
    budget: Budget,
    folder: Path,
    *,
    imports: Sequence[Path] = (),
    told: Callable[[str], None] = lambda line: None,
    sampler: Sampler | None = None,
) -> Tuning:
    """Make or continue a search in a folder, then measure its best settings on the held-out images.

    Args:
        config: the search.
        budget: its limits; a larger one continues a search that has ended.
        folder: the folder of all files.
        imports: Python files that register parts.
        told: receives a line about each run.
        sampler: the choice of settings; None for Optuna.

    Raises:
        ConfigError: a mistake in the search, another search in the folder, or too small a budget.
        DetectorError: the given settings cannot be trained, or Optuna is not installed.
    """
    keys = require_possible(config, folder)
    sampler = sampler or OptunaSampler(keys, config.seed, is_falling=config.metric in FALLING)
    write_atomically(folder / _SEARCH_FILE, lambda file: file.write(config_to_yaml(config).encode()))
    search = _search_study(config)
    store = StudyFolder(folder / "search")
    write_study(search, store)
    plain = config_to_plain(load_experiment(config.experiment, config.overrides))
    given = {key.key: value for key in keys if (value := key.given(plain)) is not None}
    trials = make_trials(search, store, keys, given, sampler, budget, imports, told)
    sign = -1 if config.metric in FALLING else 1
    best = max((t for t in trials if not math.isnan(t.score)), key=lambda t: (sign * t.score, -t.number))
    texts = tuple(key.override(best.values[key.key]) for key in keys) if best.number else ()
    experiment = config_to_yaml(load_experiment(config.experiment, [*config.overrides, *texts]))
    write_atomically(folder / "best.yaml", lambda file: file.write(experiment.encode()))
    summary = _measured(config, budget, best, texts, folder, imports, told) if best.number else None
    return Tuning(config, tuple(trials), best, summary, folder)


def require_possible(config: SearchConfig, folder: Path) -> list[SearchedKey]:
    """Return the keys of a search, after everything that can be checked without a run was checked.

    Raises:
        ConfigError: every mistake found in the keys and their values, or another search in the folder.
    """
    keys = [SearchedKey.parse(text) for text in config.search]
    require_searchable(keys, config.experiment, config.overrides)
    given = load_experiment(config.experiment, config.overrides)
    if given.data is not None and given.train.fold is None and not given.has_val:
        raise ConfigError("data: expected a split val for the search to divide, got none; see detector dataset split")
    share = given.train.val_share
    if share != TrainConfig().val_share or any(key.key == "train.val_share" for key in keys):
        raise ConfigError(
            f"train.val_share: expected all validation images, since the search divides them, got {list(share)}; "
            f"remove the key"
        )
    _search_study(config)
    path = folder / _SEARCH_FILE
    if path.is_file():
        before = config_to_plain(load_config(SearchConfig, str(path)))
        changed = [key for key, value in config_to_plain(config).items() if before[key] != value]
        if changed:
            raise ConfigError(
                f"{path}: expected the search that the folder began with, got another {' and '.join(changed)}; give "
                f"the same words again, or another folder with --out"
            )
    return keys


def _search_study(config: SearchConfig) -> StudyConfig:
    """Return the study that the processes of the trials read."""
    return StudyConfig(
        title="trials of a search",
        experiment=config.experiment,
        overrides=config.overrides_on(0, 1 - config.held_out),
        axes={"trial": {"given": ()}},
        compare="trial",
        baseline="given",
        seeds=1,
        metric=config.metric,
    )


def _measured(
    config: SearchConfig,
    budget: Budget,
    best: Trial,
    texts: tuple[str, ...],
    folder: Path,
    imports: Sequence[Path],
    told: Callable[[str], None],
) -> StudySummary:
    """Compare the best settings with the given ones on the held-out images; return the summary."""
    study = StudyConfig(
        title=f"Settings of trial {best.number} against the given ones, on held-out images",
        experiment=config.experiment,
        overrides=config.overrides_on(1 - config.held_out, 1),
        axes={"settings": {"given": (), "tuned": texts}},
        compare="settings",
        baseline="given",
        seeds=budget.seeds,
        metric=config.metric,
    )

    def report(outcome: Outcome) -> None:
        value = outcome.record.number(config.metric, "final")
        how = f"{config.metric} {value:.4f}" if outcome.record.state == "finished" else outcome.record.state
        told(f"held-out images, {outcome.number}/{outcome.count} {outcome.planned.key}: {how}")

    store = held_out_folder(folder, best)
    make_runs(study, store, Shard(), imports, report)
    return summarise(study, store)


def held_out_folder(folder: Path, best: Trial) -> StudyFolder:
    """Return the folder of the study on held-out images: each trial that was once the best has its own."""
    return StudyFolder(folder / f"held-out-{best.number:03d}")


def _sentences(tuning: Tuning) -> Iterator[str]:
    metric, first, best = tuning.config.metric, tuning.trials[0], tuning.best
    states = [trial.record.state for trial in tuning.trials]
    others = [f"{states.count(state)} {state}" for state in ("pruned", "diverged", "failed") if state in states]
    minutes = sum(trial.record.total_s or 0.0 for trial in tuning.trials) / 60
    yield f"{len(states)} trials in {minutes:.1f} min" + (f": {', '.join(others)}." if others else ".")
    if tuning.summary is None:
        yield f"No settings did better than the given ones ({metric} {first.score:.4f} on the search share): keep them."
        return
    yield (
        f"Best on the search share: trial {best.number}, {values_text(best.values)}: {metric} {best.score:.4f}, the "
        f"given settings {first.score:.4f}. The best of many trials looks better than it is; the next line counts."
    )
    [comparison] = tuning.summary.comparisons
    effect = comparison.effect
    if not effect.num_pairs:
        yield "No pair of runs on the held-out share was completed."
        return
    interval = f"95 % interval {effect.low:+.4f} to {effect.high:+.4f}, " if effect.num_pairs > 1 else ""
    seeds = f"{effect.num_pairs} seeds" if effect.num_pairs > 1 else "1 seed"
    luck = (best.score - first.score) - effect.difference
    yield (
        f"On the held-out share, with other seeds: {metric} {effect.difference:+.4f} ({interval}{seeds}). The gain on "
        f"the search share was {best.score - first.score:+.4f}, so {luck:+.4f} of it was the choice itself."
    )
    if effect.num_pairs > 1 and effect.low <= 0 <= effect.high:
        yield "The interval contains 0: the settings are not shown to differ."
