"""The contract of export targets: a target writes a network to files of a runtime and opens such files again.

A target is one file in this folder, or a file given with `--import`; `detector export --to NAME` uses it.
CONTRIBUTING.md leads to an example.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, TypeAlias

import torch

from detector.config import registry
from detector.config.registry import PartConfig
from detector.errors import ConfigError, DetectorError
from detector.export.export_runtime import Array, ExportRuntime
from detector.export.graph import DetectionGraph, MishForm
from detector.export.private_import import import_privately
from detector.structures.selection import SelectConfig

ExportPrecision = Literal["fp32", "fp16", "int8"]
MIN_OPSET, MAX_OPSET = 18, 23  # Mish is an ONNX operator since version 18


@dataclass(frozen=True)
class ExportTargetConfig(PartConfig["ExportTarget"]):
    """Base class of the configs of export targets."""

    folders: ClassVar[tuple[str, ...]] = ("export",)


@dataclass(frozen=True)
class ExportJob:
    """A network to convert, and the settings of the conversion.

    Attributes:
        graph: the network with its decoding. With fp16 its arithmetic is float16 where the target has
            `halves_network`, else float32.
        canvas_hw: height and width of a canvas in pixels.
        canvas_dtype: type of a canvas: uint8, or float32 in 0..1.
        dynamic: whether the canvas may have any size that suits the model's strides.
        opset: version of the ONNX operators.
        precision: number format of the network.
        calibration_canvases: canvases (H, W, C) that the ranges of activations are taken from; empty unless the
            precision is int8.
    """

    graph: DetectionGraph
    canvas_hw: tuple[int, int]
    canvas_dtype: torch.dtype
    dynamic: bool = False
    opset: int = MIN_OPSET
    precision: ExportPrecision = "fp32"
    calibration_canvases: Sequence[Array] = ()

    def require_one_size(self, target: str) -> None:
        """Reject canvases of any size, for a target that fixes their size.

        Raises:
            ConfigError: canvases of any size are asked for.
        """
        if self.dynamic:
            raise ConfigError(f"--dynamic: {target} takes canvases of one size; leave it out")


@dataclass(frozen=True)
class FileVariant:
    """The outputs and metadata of one file of a converted network.

    Attributes:
        document: JSON text to store in the file, which `Description.of_json` reads when the file is opened.
        with_raw_maps: whether the raw maps are outputs too.
        selection: the score filter and non-maximum suppression that become part of the file, or None.
    """

    document: str
    with_raw_maps: bool
    selection: SelectConfig | None = None


Contents: TypeAlias = "tuple[bytes, ...]"  # of the file, then of each file beside it
Encode: TypeAlias = "Callable[[FileVariant], Contents]"


class ExportTarget(abc.ABC):
    """File format of a runtime: it converts a network and opens the files that were written.

    Attributes:
        suffix: suffix of the file, in lower case and with its dot.
        companion_suffixes: suffixes of the files that are written beside it under the same name.
        write_libraries: modules that writing imports.
        open_libraries: modules that opening imports.
        install_command: the command that installs these libraries.
        precisions: the precisions that a file can have.
        fastest_mish: the form of Mish that the runtime computes fastest.
        can_select: whether score filter and non-maximum suppression can be part of a file.
        has_opset: whether `ExportJob.opset` has an effect.
        has_runner: whether the program `run.py` runs a file.
        halves_network: whether fp16 is a network that computes in float16; else only its weights are halved.
    """

    suffix: ClassVar[str]
    companion_suffixes: ClassVar[tuple[str, ...]] = ()
    write_libraries: ClassVar[tuple[str, ...]] = ()
    open_libraries: ClassVar[tuple[str, ...]] = ()
    install_command: ClassVar[str] = 'pip install "detector-toolkit[export]"'
    precisions: ClassVar[tuple[ExportPrecision, ...]] = ("fp32",)
    fastest_mish: ClassVar[MishForm] = "mish"
    can_select: ClassVar[bool] = False
    has_opset: ClassVar[bool] = False
    has_runner: ClassVar[bool] = False
    halves_network: ClassVar[bool] = True

    def __init__(self, config: ExportTargetConfig) -> None:
        self.config = config

    @abc.abstractmethod
    def convert(self, job: ExportJob) -> Encode:
        """Convert a network, and return a function that encodes a variant of it as the bytes of its files.

        The function is called twice: with boxes, scores and raw maps, which are compared with the model, and with the
        variant that the user asked for.

        Raises:
            CheckpointError: the network does not fit the format.
            ConfigError: the network cannot be converted with these settings.
        """

    @abc.abstractmethod
    def open_file(self, path: Path) -> ExportRuntime:
        """Open a file that was written with this target.

        Raises:
            CheckpointError: the file is missing, damaged, changed or from another program.
        """

    def recognises(self, path: Path) -> bool:
        """Return whether a path names a file of this target."""
        return path.suffix.lower() == self.suffix

    def files_of(self, path: Path) -> tuple[Path, ...]:
        """Return the files that an export to a path writes: the file itself, then those beside it."""
        return (path, *(path.with_suffix(suffix) for suffix in self.companion_suffixes))

    def require_libraries(self, libraries: Iterable[str]) -> None:
        """Reject a missing library.

        Raises:
            DetectorError: one of the modules cannot be imported.
        """
        for library in libraries:
            try:
                import_privately(library)
            except ImportError as error:
                raise DetectorError(
                    f"an export to {registry.name_of(self.config)} needs the library {error.name or library}, which is "
                    f"not installed; {self.install_command}"
                ) from error


def export_targets() -> dict[str, ExportTarget]:
    """Return every registered target by name, sorted by name."""
    return {name: find_export_target(name) for name in registry.names(ExportTargetConfig)}


def find_export_target(name: str) -> ExportTarget:
    """Return the target of a name.

    Raises:
        ConfigError: no target has this name; the message gives the nearest one.
    """
    config: ExportTargetConfig = registry.find_config_class(ExportTargetConfig, name)()
    return registry.build(config)
