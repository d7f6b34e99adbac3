"""The definition of a study: an experiment, axes of settings, seeds, and the axis that is tested."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from detector.config import name_suggestions
from detector.config.nodes import Mistakes, Node, Where, find_config, presets_dir, read_nodes
from detector.config.schema import load_config
from detector.errors import ConfigError
from detector.tasks.task import load_experiment

_OWN_KEYS = ("train.seed", "train.project", "train.run_name")
COSTS = ("step_ms", "peak_mb")  # the metrics of a study of costs
_VARIABLES = (
    "OMP_NUM_THREADS",
    "OMP_WAIT_POLICY",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "ATEN_CPU_CAPABILITY",
    "ONEDNN_MAX_CPU_ISA",
)
_VARIABLE = re.compile("|".join((r"DETECTOR_[A-Z0-9_]+", *_VARIABLES)))
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class StudyConfig:
    """Everything that a study is a function of.

    Attributes:
        title: the question of the study.
        experiment: the experiment that is varied, a preset or a file.
        overrides: overrides for all runs, as on the command line.
        axes: the values of each axis by name, and the overrides that each value stands for.
        compare: the axis whose values are tested against `baseline`, at every combination of the other axes.
        baseline: the value of that axis that the others are tested against.
        seeds: runs of each combination, with the seeds 0, 1, ...
        measure: `training` compares evaluations; `cost` compares the time and memory of steps, made in turns, with the
            metrics step_ms and peak_mb (in units of 2^20 bytes).
        environment: environment variables of the processes, by value of an axis: DETECTOR_* and those for threads and
            instruction sets. Others could start programs.
        metric: the metric that is tested, such as AP or top1.
        judged: the evaluation that counts, the final one or the best one of the run.
        diverged: the value that a diverged run counts as, or null to leave its pairs out.
        keep_weights: whether finished runs keep their weights.
        seconds_per_run: time of a run on one core, for the estimate of a dry run.
    """

    title: str
    experiment: str
    axes: dict[str, dict[str, tuple[str, ...]]]
    compare: str
    baseline: str
    overrides: tuple[str, ...] = ()
    seeds: int = 6
    measure: Literal["training", "cost"] = "training"
    environment: dict[str, dict[str, str]] = field(default_factory=dict)
    metric: str = "AP"
    judged: Literal["final", "best"] = "final"
    diverged: float | None = None
    keep_weights: bool = False
    seconds_per_run: float = 60.0

    def __post_init__(self) -> None:
        if mistakes := list(_mistakes_of(self)):
            raise ValueError("\n".join(mistakes))


def _mistakes_of(study: StudyConfig) -> Iterator[str]:
    """Yield the mistakes in a study, a sentence each."""
    names = [*study.axes, *(value for values in study.axes.values() for value in values)]
    if bad := [name for name in names if not _NAME.fullmatch(name)]:
        yield f"names of axes and values: expected letters, digits and . _ - only, got {', '.join(bad)}"
    if "seed" in study.axes:
        yield "an axis: expected another name than seed, which identifies runs; rename it"
    if stray := set(study.environment) - set(names):
        yield f"environment: expected values of an axis, got {', '.join(sorted(stray))}"
    variables = {variable for given in study.environment.values() for variable in given}
    if bad := sorted(name for name in variables if not _VARIABLE.fullmatch(name)):
        yield (
            f"environment: expected variables of detector or of its threads, got {', '.join(bad)}; allowed are "
            f"DETECTOR_*, {', '.join(_VARIABLES)}"
        )
    if study.compare not in study.axes:
        yield f"compare: expected the name of an axis, got {study.compare!r}{_nearest(study.compare, study.axes)}"
    elif study.baseline not in (values := study.axes[study.compare]):
        yield (
            f"baseline: expected a value of the axis {study.compare}, got {study.baseline!r}"
            f"{_nearest(study.baseline, values)}"
        )
    for (first, ours), (second, theirs) in itertools.combinations(study.axes.items(), 2):
        if both := sorted(_keys_of(ours) & _keys_of(theirs)):
            yield f"axes: expected each key on one axis, got {', '.join(both)} on {first} and on {second}; keep one"
    texts = (*study.overrides, *(t for values in study.axes.values() for each in values.values() for t in each))
    if own := [text for text in texts if text.partition("=")[0] in _OWN_KEYS]:
        yield f"overrides: a study sets {', '.join(_OWN_KEYS)} itself, got {own[0]!r}; use seeds and --out"
    if study.measure == "cost" and study.metric not in COSTS:
        yield f"metric of a study of costs: expected {' or '.join(COSTS)}, got {study.metric!r}"
    if not all(study.axes.values()) or study.seeds < 1 or study.seconds_per_run <= 0:
        yield "a study: expected a value on every axis, seeds >= 1 and seconds_per_run > 0"


def _keys_of(values: Mapping[str, Sequence[str]]) -> set[str]:
    """Return the keys that an axis sets."""
    return {text.partition("=")[0] for texts in values.values() for text in texts}


@dataclass(frozen=True)
class PlannedRun:
    """One run of a study.

    Attributes:
        cell: its value on each axis.
        seed: its seed.
        experiment: the experiment that is varied.
        overrides: all overrides, those of the cell last.
    """

    cell: dict[str, str]
    seed: int
    experiment: str
    overrides: tuple[str, ...]

    @property
    def key(self) -> str:
        """Name of the run and of its files."""
        return ",".join(f"{axis}={value}" for axis, value in {**self.cell, "seed": str(self.seed)}.items())


def _nearest(name: str, known: Mapping[str, object]) -> str:
    return name_suggestions.nearest(name, known)


def find_study(name: str) -> Path:
    """Find a study by path or by the name of a shipped one.

    Raises:
        ConfigError: there is no such study.
    """
    if os.path.isfile(name):
        return Path(name).resolve()
    shipped = {path.stem: path for path in (presets_dir() / "studies").glob("*.yaml")}
    if Path(name).name == name and Path(name).stem in shipped:
        return shipped[Path(name).stem]
    raise ConfigError(f"no study file or shipped study is named {name!r}{_nearest(Path(name).stem, shipped)}")


def load_study(
    name: str, overrides: Sequence[str] = (), only: Sequence[str] = (), seeds: int | None = None
) -> StudyConfig:
    """Load a study from a file or by the name of a shipped one, restricted and changed by options of the command line.

    Args:
        name: a path, or the name of a shipped study.
        overrides: more overrides of the experiment, for all runs.
        only: texts such as `activation=relu,mish`: the values of an axis to keep.
        seeds: the number of seeds, or None for that of the study.

    Raises:
        ConfigError: every mistake found, including those in the experiment of any combination.
    """
    path = find_study(name)
    study = load_config(StudyConfig, str(path))
    for text in only:
        study = _restricted(study, text)
    if seeds is not None and seeds < 1:
        raise ConfigError(f"--seeds: expected at least 1, got {seeds}")
    _require_free_keys(study, overrides)
    places = _places_of(read_nodes(path))
    study = replace(
        study,
        experiment=found_experiment(study.experiment, path.parent, places),
        overrides=(*study.overrides, *overrides),
        seeds=seeds or study.seeds,
    )
    mistakes = Mistakes()
    for planned in runs_of(replace(study, seeds=1)):
        try:
            load_experiment(planned.experiment, planned.overrides)
        except ConfigError as error:
            mistakes += (_placed(line, places) for line in str(error).splitlines())
    mistakes.raise_any()
    return study


def found_experiment(experiment: str, beside: Path, places: Mapping[str, Where]) -> str:
    """Return the path of an experiment in a folder, or the name of a preset unchanged; `places` is for messages."""
    if experiment.endswith(".cfg"):
        return str(beside / experiment) if os.path.isfile(beside / experiment) else experiment
    try:
        path = find_config(experiment, beside)
    except ConfigError as error:
        raise ConfigError(f"{places.get(experiment, beside)}: experiment: {error}") from error
    return experiment if presets_dir() in path.parents else str(path)


def _places_of(node: Node) -> dict[str, Where]:
    """Return the place of each text of a study."""
    if isinstance(node.value, str):
        return {node.value: node.where}
    children: Iterable[Node] = ()
    if isinstance(node.value, (dict, list)):
        children = node.value.values() if isinstance(node.value, dict) else node.value
    return {text: where for child in children for text, where in _places_of(child).items()}


def _placed(mistake: str, places: Mapping[str, Where]) -> str:
    """Return a mistake in an override with the place of that override in the study, if it is there."""
    where = next((where for text, where in places.items() if mistake.startswith(f"override {text!r}:")), None)
    return mistake if where is None else f"{where}: {mistake}"


def _restricted(study: StudyConfig, text: str) -> StudyConfig:
    axis, equals, listed = text.partition("=")
    asked = [value for value in listed.split(",") if value]
    if not equals or not asked or axis not in study.axes:
        raise ConfigError(f"--only: expected AXIS=VALUE,VALUE with an axis of {', '.join(study.axes)}, got {text!r}")
    values = study.axes[axis]
    for value in asked:
        if value not in values:
            raise ConfigError(f"--only {text}: the axis {axis} has no value {value!r}{_nearest(value, values)}")
    if axis == study.compare and study.baseline not in asked:
        asked.insert(0, study.baseline)  # what all others are tested against
    return replace(study, axes={**study.axes, axis: {value: values[value] for value in values if value in asked}})


def _require_free_keys(study: StudyConfig, overrides: Sequence[str]) -> None:
    """Refuses an override that an axis would override again, and those that a study makes itself."""
    for override in overrides:
        key = override.partition("=")[0]
        for axis, values in study.axes.items():
            if any(f"{key}.".startswith(f"{own}.") or own.startswith(f"{key}.") for own in _keys_of(values)):
                raise ConfigError(
                    f"override {override!r}: the axis {axis} sets that; use --only to choose among its values"
                )
        if key in _OWN_KEYS:
            raise ConfigError(f"override {override!r}: a study sets that itself; use --seeds and --out")


def runs_of(study: StudyConfig) -> list[PlannedRun]:
    """Return every run of a study, seed by seed, so that an interrupted study has complete pairs."""
    return [
        PlannedRun(
            cell=dict(zip(study.axes, values, strict=True)),
            seed=seed,
            experiment=study.experiment,
            overrides=(
                *study.overrides,
                *(text for axis, value in zip(study.axes, values, strict=True) for text in study.axes[axis][value]),
            ),
        )
        for seed in range(study.seeds)
        for values in itertools.product(*study.axes.values())
    ]
