"""Runtimes that compute the boxes of a batch of canvases: a torch model here, exported files in `detector.export`."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from detector.errors import ConfigError
from detector.models.contracts import DetectionModel
from detector.models.folding import fold
from detector.models.packing import pack
from detector.models.precision import Precision, PrecisionName, has_native_bf16, keep_freed_memory, on_device
from detector.structures.selection import SelectConfig
from detector.structures.transfer import sent_aside

# Canvases (..., H, W, C): uint8, or float32 in 0..1 as Darknet's arithmetic makes them.
Canvases: TypeAlias = "npt.NDArray[np.uint8] | npt.NDArray[np.float32]"
Network: TypeAlias = Callable[[Tensor], "tuple[Tensor, ...]"]  # images to raw maps


class Runtime(Protocol):
    """Detection network ready to run, of any origin.

    Attributes:
        num_classes: number of classes.
        notes: remarks about the network for the user, a sentence each.
        precision: the number format of its arithmetic: fp32, bf16, fp16 or int8.
        selection: the rule by which it selects boxes itself, or None if it gives all of them.
    """

    num_classes: int
    notes: tuple[str, ...]
    precision: str
    selection: SelectConfig | None

    def check_image_hw(self, image_hw: tuple[int, int]) -> None:
        """Raise a `ValueError` if a canvas size does not suit the network."""

    def boxes(self, canvases: Canvases) -> tuple[Tensor, Tensor]:
        """Return all boxes of a batch, before selection.

        Args:
            canvases: (B, H, W, C), contiguous: uint8, or float32 in 0..1 as Darknet's arithmetic makes them.

        Returns:
            Boxes float32 (B, A, 4) in canvas pixels, not clipped, and scores float32 (B, A, classes) in 0..1.
        """


@dataclass(frozen=True)
class RuntimeConfig:
    """Settings for running a network in evaluation and prediction.

    They do not apply to training: its evaluations run in fp32, its steps as `train` says.

    Attributes:
        precision: number format of the convolutions: fp32; bf16; fp16, on CUDA devices; or auto, which is bf16 where
            that is faster, fp16 on other CUDA devices and fp32 elsewhere. Boxes and scores are
            computed in fp32 from the outputs of the network.
        compile: whether torch compiles the network at its first pass, which takes seconds to minutes.
        cuda_graph: whether a pass on a CUDA device is recorded once for each shape of canvases and then replayed.
    """

    precision: PrecisionName = "fp32"
    compile: bool = False
    cuda_graph: bool = False


class TorchRuntime:
    """Torch model, folded, in channels_last; on the CPU with packed weights.

    Attributes:
        model: the copy of the model that runs.
        device: its device.
        num_classes: number of classes.
        notes: remarks about its description for the user, a sentence each.
        precision: fp32, bf16 or fp16.
        selection: None; the runtime gives all boxes.
    """

    selection: SelectConfig | None = None

    def __init__(self, model: DetectionModel, device: torch.device, config: RuntimeConfig | None = None) -> None:
        """Copy the model to the device with its batch norms folded; without a config it runs in fp32.

        Raises:
            ConfigError: the device does not have the precision, or a CUDA graph is requested on another device.
        """
        config = config or RuntimeConfig()
        if config.cuda_graph and device.type != "cuda":
            raise ConfigError(f"runtime.cuda_graph: expected a CUDA device, got {device}; leave it out")
        self._precision = Precision(config.precision, device)
        if device.type == "cpu" and self._precision.name == "bf16" and not has_native_bf16(device):
            warnings.warn(
                "precision bf16: this processor, or a limit set to its libraries, has no instructions for it, so that "
                "it is emulated and slower than fp32; choose precision auto or fp32",
                RuntimeWarning,
                stacklevel=2,
            )
        folded = fold(copy.deepcopy(model))
        self.model = on_device(folded, device)
        for part in self.model.modules():
            # Autocast would make this copy in every pass; biases stay in fp32 for the fused epilogue.
            if isinstance(part, nn.Conv2d):
                part.weight.data = part.weight.data.to(self._precision.dtype)
        self._network: Network = self.model
        if config.compile:
            self._network = _Compiled(self.model)
        elif device.type == "cpu":
            pack(self.model)
        if device.type == "cpu":
            keep_freed_memory()
        if config.cuda_graph:
            self._network = _Recorded(self._network)
        self.device, self.num_classes, self.notes = device, model.num_classes, model.notes
        self.precision: str = self._precision.name

    def check_image_hw(self, image_hw: tuple[int, int]) -> None:
        """Raise a `ValueError` if a canvas size does not suit the strides of the model."""
        self.model.check_image_hw(image_hw)

    @torch.inference_mode()
    def boxes(self, canvases: Canvases) -> tuple[Tensor, Tensor]:
        """Return all boxes of a batch, as `Runtime` defines it, on the device."""
        # (B, H, W, C) memory seen as (B, C, H, W) is channels_last already.
        images = sent_aside(torch.from_numpy(canvases).permute(0, 3, 1, 2), self.device)
        with self._precision.autocast():
            raw_maps = self._network(images)
        canvas_xyxy, scores = self.model.decode(raw_maps)
        return canvas_xyxy, scores


class _Compiled:
    """Network compiled for each shape of images."""

    def __init__(self, model: nn.Module) -> None:
        self._compiled = torch.compile(model, dynamic=False)

    def __call__(self, images: Tensor) -> tuple[Tensor, ...]:
        from torch._dynamo.exc import BackendCompilerFailed  # takes half a second to import

        try:
            raw_maps: tuple[Tensor, ...] = self._compiled(images)
            return raw_maps
        except BackendCompilerFailed as error:
            reason = " ".join(str(error.inner_exception).split())[:200]  # may hold a compiler's whole output
            raise ConfigError(
                f"runtime.compile: expected a compiler that torch can use, got the error {reason!r}; leave it out"
            ) from error


class _Recorded:
    """Network whose pass is recorded as a CUDA graph, one for each shape of images, and replayed."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self._passes: dict[tuple[torch.Size, torch.dtype], tuple[torch.cuda.CUDAGraph, Tensor, tuple[Tensor, ...]]] = {}

    def __call__(self, images: Tensor) -> tuple[Tensor, ...]:
        key = images.shape, images.dtype
        if key not in self._passes:
            with torch.cuda.device(images.device):
                self._passes[key] = self._record(images)
        graph, inputs, raw_maps = self._passes[key]
        inputs.copy_(images)
        graph.replay()
        return tuple(raw_map.clone() for raw_map in raw_maps)  # the next replay overwrites them

    def _record(self, images: Tensor) -> tuple[torch.cuda.CUDAGraph, Tensor, tuple[Tensor, ...]]:
        inputs, stream = images.clone(), torch.cuda.Stream()  # type: ignore[no-untyped-call]  # untyped in torch
        # Warm-up on a stream of its own, as the torch manual says: it loads kernels and chooses convolution algorithms.
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                self._network(inputs)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            raw_maps = self._network(inputs)
        return graph, inputs, raw_maps
