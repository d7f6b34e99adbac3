"""What an export is asked to be, and the libraries that only exports need."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from detector.errors import ConfigError, DetectorError

TargetName = Literal["onnx", "openvino", "torchscript", "pt2"]
PrecisionName = Literal["fp32", "fp16", "int8"]
MishForm = Literal["mish", "softplus", "sigmoid"]

SUFFIXES: dict[TargetName, str] = {
    "onnx": ".onnx",
    "openvino": ".xml",
    "torchscript": ".torchscript",
    "pt2": ".pt2",
}
# Which form of Mish each runtime computes fastest; measured in docs/benchmarks/exports.md.
_FASTEST_MISH: dict[TargetName, MishForm] = {
    "onnx": "sigmoid",
    "openvino": "mish",
    "torchscript": "mish",
    "pt2": "mish",
}
MIN_OPSET, MAX_OPSET = 18, 23  # ONNX's Mish came with 18
_MADE_OF_ONNX: tuple[TargetName, ...] = ("onnx", "openvino")
_PRECISIONS: dict[TargetName, tuple[PrecisionName, ...]] = {
    "onnx": ("fp32", "fp16", "int8"),
    "openvino": ("fp32", "fp16", "int8"),
    "torchscript": ("fp32", "fp16"),
    "pt2": ("fp32", "fp16"),
}


@dataclass(frozen=True)
class ExportSettings:
    """What an export is asked to be.

    Attributes:
        target: `onnx`, `openvino`, `torchscript` or `pt2` (of `torch.export`).
        nms: whether score filter and non-maximum suppression, as `predict` of the experiment has them, are part of the
            file.
        dynamic: whether the canvas may have any size that suits the model's strides; the batch may always.
        raw_maps: whether the raw maps are outputs too.
        opset: version of the ONNX operators, 18 to 23 (onnx and openvino).
        mish_form: how Mish is written: `mish`, torch's own operator; `softplus`, x * tanh(softplus(x)); `sigmoid`,
            x * n / (2 - n) with n = s * (2 - s) and s = sigmoid(x), which has one exponential; None for the fastest.
        precision: of the weights and of what is computed with them. `fp16`: of OpenVINO the weights alone. `int8`:
            weights and activations of the convolutions, whose ranges are found on images.
    """

    target: TargetName
    nms: bool = False
    dynamic: bool = False
    raw_maps: bool = False
    opset: int = MIN_OPSET
    mish_form: MishForm | None = None
    precision: PrecisionName = "fp32"

    def __post_init__(self) -> None:
        if self.target not in SUFFIXES:
            raise ConfigError(f"an export wants a target of {', '.join(SUFFIXES)}, found {self.target!r}")
        if self.nms and self.target not in _MADE_OF_ONNX:
            raise ConfigError(
                f"a file of {self.target} holds no suppression, found --nms; leave it out, or export to "
                f"{' or '.join(_MADE_OF_ONNX)}"
            )
        if self.nms and self.raw_maps:
            raise ConfigError("--nms and --raw-maps exclude one another; leave one of them out")
        if self.precision not in _PRECISIONS[self.target]:
            raise ConfigError(
                f"{self.target} has the precisions {', '.join(_PRECISIONS[self.target])}, found {self.precision!r}"
            )
        if not MIN_OPSET <= self.opset <= MAX_OPSET:
            raise ConfigError(f"--opset wants to be within {MIN_OPSET}..{MAX_OPSET}, found {self.opset}")
        if self.opset != MIN_OPSET and self.target not in _MADE_OF_ONNX:
            raise ConfigError(f"--opset belongs to {' and '.join(_MADE_OF_ONNX)}, found {self.target}; leave it out")
        if self.mish_form not in (None, "mish", "softplus", "sigmoid"):
            raise ConfigError(f"--mish-form wants mish, softplus or sigmoid, found {self.mish_form!r}")

    @property
    def written_mish(self) -> MishForm:
        """The form of Mish that is written."""
        return self.mish_form or _FASTEST_MISH[self.target]


@contextmanager
def extra(what: str) -> Iterator[None]:
    """Turns a missing library of the extra `export` into one sentence.

    Raises:
        DetectorError: an import within the block failed.
    """
    try:
        yield
    except ImportError as error:
        raise DetectorError(
            f'{what} wants the library {error.name or error}, which is not installed; pip install "detector[export]"'
        ) from error


def files_of(path: Path) -> tuple[Path, ...]:
    """What an export to a path writes: the file, and of OpenVINO the weights beside it."""
    return (path, path.with_suffix(".bin")) if target_of(path) == "openvino" else (path,)


def target_of(path: Path) -> TargetName | None:
    """The target that a file's suffix names, or None."""
    return next((target for target, suffix in SUFFIXES.items() if path.suffix.lower() == suffix), None)
