"""Export settings, and the target that the suffix of a path names."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from detector.errors import ConfigError
from detector.export.export_target import (
    MAX_OPSET,
    MIN_OPSET,
    ExportPrecision,
    export_targets,
    find_export_target,
)
from detector.export.graph import MISH_FORMS, MishForm


@dataclass(frozen=True)
class ExportSettings:
    """Settings of an export.

    Attributes:
        target: registered name of the target, such as `onnx`, `openvino`, `torchscript` or `pt2` (of `torch.export`).
        nms: whether score filter and non-maximum suppression, as `predict` of the experiment has them, are part of the
            file.
        dynamic: whether the canvas may have any size that suits the model's strides; the batch size is always free.
        raw_maps: whether the raw maps are outputs too.
        opset: version of the ONNX operators, 18 to 23 (onnx and openvino).
        mish_form: how Mish is written: `mish`, torch's own operator; `softplus`, x * tanh(softplus(x)); `sigmoid`,
            x * n / (2 - n) with n = s * (2 - s) and s = sigmoid(x), which has one exponential; None for the fastest.
        precision: number format of the weights and of the network's arithmetic. With openvino, `fp16` halves the
            weights alone. `int8` quantises weights and activations of the convolutions; the ranges of the activations
            are taken from images.
        runner: whether the program `run.py`, which runs the file without this package, is written beside it.
        max_ap_loss: largest share of its AP on the split `val` that a model may lose by int8, 0..1; a file that loses
            more is not written. 1 writes it in any case.
    """

    target: str
    nms: bool = False
    dynamic: bool = False
    raw_maps: bool = False
    opset: int = MIN_OPSET
    mish_form: MishForm | None = None
    precision: ExportPrecision = "fp32"
    max_ap_loss: float = 0.1
    runner: bool = False

    def __post_init__(self) -> None:
        target = find_export_target(self.target)
        if self.nms and not target.can_select:
            able = [name for name, other in export_targets().items() if other.can_select]
            raise ConfigError(
                f"--nms: a file of {self.target} cannot hold a suppression; leave it out, or export to "
                f"{' or '.join(able)}"
            )
        if self.runner and not target.has_runner:
            able = [name for name, other in export_targets().items() if other.has_runner]
            raise ConfigError(f"--runner is for {' and '.join(able)}, got {self.target}; leave it out")
        if self.nms and self.raw_maps:
            raise ConfigError("--nms and --raw-maps exclude one another; leave one of them out")
        if self.precision not in target.precisions:
            raise ConfigError(
                f"--precision: expected one of {', '.join(target.precisions)} for {self.target}, got {self.precision!r}"
            )
        if not 0 <= self.max_ap_loss <= 1:
            raise ConfigError(f"--max-ap-loss: expected a share within 0..1, got {self.max_ap_loss:g}")
        if not MIN_OPSET <= self.opset <= MAX_OPSET:
            raise ConfigError(f"--opset: expected a version within {MIN_OPSET}..{MAX_OPSET}, got {self.opset}")
        if self.opset != MIN_OPSET and not target.has_opset:
            able = [name for name, other in export_targets().items() if other.has_opset]
            raise ConfigError(f"--opset is for {' and '.join(able)}, got {self.target}; leave it out")
        if self.mish_form is not None and self.mish_form not in MISH_FORMS:
            raise ConfigError(f"--mish-form: expected one of {', '.join(MISH_FORMS)}, got {self.mish_form!r}")

    @property
    def written_mish(self) -> MishForm:
        """The form of Mish that is written."""
        return self.mish_form or find_export_target(self.target).fastest_mish


def export_suffixes() -> list[str]:
    """Return the suffix of every export target, in the order of their names."""
    return [target.suffix for target in export_targets().values()]


def target_of(path: Path) -> str | None:
    """Return the name of the target that recognises a path by its suffix, or None.

    Raises:
        ConfigError: several targets recognise it.
    """
    names = [name for name, target in export_targets().items() if target.recognises(path)]
    if len(names) > 1:
        raise ConfigError(
            f"{path}: expected one export target with this suffix, got {', '.join(names)}; change the suffix of one"
        )
    return names[0] if names else None
