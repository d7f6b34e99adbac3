"""Keyword arguments of the Python interface with their types, which editors complete and type checkers check."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal, TypedDict, TypeVar

from detector.config.key_table import key_table
from detector.config.name_suggestions import unknown_key
from detector.config.schema import config_from_plain
from detector.errors import ConfigError
from detector.export.export_target import ExportPrecision
from detector.export.graph import MishForm
from detector.inference.prediction_run import PredictionOptions
from detector.structures.selection import NmsKind, SelectConfig

Function = TypeVar("Function", bound=Callable[..., object])
Section = Mapping[str, object]


class SelectionKeywords(TypedDict, total=False):
    """Keys of `SelectConfig`: confidence may be `best` or `best-overall`, and a class may be given by its name."""

    confidence: float | Literal["best", "best-overall"]
    iou: float
    max_detections: int
    class_agnostic: bool
    classes: Sequence[str | int] | str | int | None
    nms: NmsKind
    nms_beta: float
    class_confidence: Sequence[float] | None
    best_class: bool


class RunKeywords(SelectionKeywords, total=False):
    """Keys of `SelectConfig` and of `PredictionOptions`."""

    save_dir: str | Path | None
    formats: Sequence[str]
    crops: bool
    pictures: bool
    fps: float | None
    stride: int
    every_frame: bool
    max_reconnect: int
    codec: str
    track: bool
    lines: Sequence[Sequence[float]]
    zones: Sequence[Sequence[float]]
    untracked: bool
    camera_motion: bool
    track_match: float | None
    track_enlarge: float | None
    track_buffer_s: float | None


class _TrainingKeywords(TypedDict, total=False):
    """Sections that the experiments of every task have; a part may be given by its name alone."""

    model: str | Section
    loss: str | Section
    input: Section
    augment: Section
    loader: Section
    optimizer: str | Section
    schedule: str | Section
    train: Section
    evaluate: Section
    device: str


class DetectionKeywords(_TrainingKeywords, total=False):
    """Sections of an experiment of detection, such as `train={"epochs": 50}`."""

    predict: Section
    views: Section
    runtime: Section


class ClassificationKeywords(_TrainingKeywords, total=False):
    """Sections of an experiment of classification, such as `train={"epochs": 5}`."""


class ExportKeywords(DetectionKeywords, total=False):
    """Keys of `ExportSettings`, and sections of an experiment of detection."""

    nms: bool
    dynamic: bool
    raw_maps: bool
    opset: int
    mish_form: MishForm | None
    precision: ExportPrecision
    max_ap_loss: float
    runner: bool


def with_keywords(keywords: type) -> Callable[[Function], Function]:
    """Show the keys of a typed dictionary in the signature of a function, for `help` and notebooks.

    Editors and type checkers read the annotation of `**settings`; `inspect` does not.
    """

    def shown(function: Function) -> Function:
        signature = inspect.signature(function)
        named = [p for p in signature.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
        known = {parameter.name for parameter in named}
        added = [
            inspect.Parameter(
                key,
                inspect.Parameter.KEYWORD_ONLY,
                default=...,  # as in a stub: there is a default, and it is not a value of its own
                annotation=getattr(annotation, "__forward_arg__", annotation),
            )
            for key, annotation in keywords.__annotations__.items()
            if key not in known
        ]
        function.__dict__["__signature__"] = signature.replace(parameters=[*named, *added])
        return function

    return shown


def split_keywords(given: Mapping[str, object], who: str) -> tuple[PredictionOptions, dict[str, object]]:
    """Split keywords into the options of a prediction run and the settings of a selection.

    Raises:
        ConfigError: a key is neither, or an option is wrong.
    """
    own = {f.name for f in dataclasses.fields(PredictionOptions)}
    known = own | {f.name for f in dataclasses.fields(SelectConfig)}
    for key in given:
        if key not in known:
            hint = unknown_key(key, known, key_table().paths())
            own_words = [word.removeprefix("predict.") for word in hint.split() if word.startswith("predict.")]
            raise ConfigError(f"{who}: unknown key {key!r}{f'; here it is {own_words[0]}' if own_words else hint}")
    options = {key: value for key, value in given.items() if key in own}
    settings = {key: value for key, value in given.items() if key not in own}
    return config_from_plain(PredictionOptions, options, who), settings
