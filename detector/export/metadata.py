"""Metadata of an exported file: one JSON document, the same in every format."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from detector.config.schema import config_from_plain, config_to_plain
from detector.errors import CheckpointError, ConfigError
from detector.models.checkpoint import FORMAT_VERSION, ModelFile, check_version, checked_model_file
from detector.structures.canvas import InputConfig
from detector.structures.letterbox import ARITHMETICS
from detector.structures.selection import SelectConfig

DOCUMENT_KEY = "detector"  # of the metadata of every format
MAX_DOCUMENT_BYTES = 64 << 20  # class names and a Darknet .cfg of a few megabytes at the most


@dataclass(frozen=True)
class Description:
    """Metadata of an exported file.

    Attributes:
        file: description of the model it came from; no tensors.
        target: name of the export target.
        precision: number format of the network.
        max_stride: both sides of a canvas are multiples of it.
        channels: channels of a canvas.
        dtype: type of a canvas: uint8, or float32 in 0..1.
        canvas_hw: height and width of a canvas in pixels, or None for any.
        nms: the selection that is part of the file, or None.
        written: further settings of the export: the form of Mish, the version of the operators and of torch.
    """

    file: ModelFile
    target: str
    precision: str
    max_stride: int
    channels: int
    dtype: Literal["uint8", "float32"]
    canvas_hw: tuple[int, int] | None
    nms: SelectConfig | None
    written: dict[str, object] = field(default_factory=dict)

    @property
    def num_classes(self) -> int:
        """The number of classes."""
        return len(self.file.class_names)

    def to_json(self) -> str:
        """Return the JSON document."""
        file = self.file
        export = {
            "target": self.target,
            "precision": self.precision,
            "max_stride": self.max_stride,
            "channels": self.channels,
            "dtype": self.dtype,
            "canvas_hw": self.canvas_hw,
            "nms": None if self.nms is None else config_to_plain(self.nms),
            "written": self.written,
        }
        return json.dumps(
            {
                "format_version": FORMAT_VERSION,
                "config": file.config,
                "class_names": file.class_names,
                "category_ids": file.category_ids,
                "metrics": file.metrics,
                "operating_point": file.operating_point,
                "provenance": file.provenance,
                "export": export,
            }
        )

    @classmethod
    def of_json(cls, text: str | None, who: str) -> Description:
        """Read a JSON document.

        Args:
            text: the document, or None where the file has none.
            who: name of the file, for messages.

        Raises:
            CheckpointError: there is no document, or `to_json` did not write it.
        """
        if not text or len(text) > MAX_DOCUMENT_BYTES:
            raise CheckpointError(f"{who} does not describe its model; give a file that `detector export` wrote")
        damaged = f"{who} is damaged or of another program (its description is not as written); export it again"
        try:
            document = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise CheckpointError(damaged) from error
        check_version(document, who)
        file = checked_model_file(document, {}, who)
        export = document.get("export")
        if not isinstance(export, dict):
            raise CheckpointError(damaged)
        try:
            nms = None if export["nms"] is None else config_from_plain(SelectConfig, export["nms"], who)
            hw = None if export["canvas_hw"] is None else (int(export["canvas_hw"][0]), int(export["canvas_hw"][1]))
            stride, channels, dtype = int(export["max_stride"]), int(export["channels"]), export["dtype"]
            target, precision, written = str(export["target"]), str(export["precision"]), dict(export["written"])
        except (KeyError, TypeError, ValueError, IndexError, OverflowError, ConfigError) as error:
            raise CheckpointError(damaged) from error
        if dtype not in ("uint8", "float32") or min(stride, channels, *(hw or (1,))) < 1:
            raise CheckpointError(damaged)
        return cls(file, target, precision, stride, channels, dtype, hw, nms, written)

    def require_input(self, config: InputConfig) -> None:
        """Reject an input that the file does not take.

        Raises:
            ConfigError: its size, channels or arithmetic differ from those of the export.
        """
        try:
            self.check_image_hw(config.canvas_hw)
        except ValueError as error:
            raise ConfigError(f"input.size: {error}") from error
        if config.channels != self.channels:
            raise ConfigError(f"input.channels: the export takes {self.channels}, got {config.channels}; leave it out")
        if np.dtype(ARITHMETICS[config.arithmetic].dtype).name != self.dtype:
            raise ConfigError(
                f"input.arithmetic: the export takes canvases of {self.dtype}, got {config.arithmetic!r}, which makes "
                "canvases of another type; leave it out, or export the model with it"
            )

    def check_image_hw(self, image_hw: tuple[int, int]) -> None:
        """Reject a canvas size that the file does not take.

        Raises:
            ValueError: the size is not the one that was exported, or does not suit the strides.
        """
        if self.canvas_hw is not None and image_hw != self.canvas_hw:
            raise ValueError(
                f"the export takes canvases of {self.canvas_hw}, got {image_hw}; leave the size, or export the model "
                "with --dynamic or with that input.size"
            )
        # torch.export distinguishes a size of 1 from larger ones, so the smallest grid has 2 cells on a side.
        if any(side < 2 * self.max_stride or side % self.max_stride for side in image_hw) and self.canvas_hw is None:
            raise ValueError(
                f"the export takes canvases with both sides a multiple of {self.max_stride} and at least "
                f"{2 * self.max_stride}, got {image_hw}"
            )
