"""The export target `tensorrt`: engines of TensorRT, built from the ONNX graph on the GPU where they run.

    detector export best.safetensors --to tensorrt
    detector predict best.engine photos/

An engine holds programs for one model of GPU and one version of TensorRT, which runs them: open only engines that you
built. The metadata and a digest follow the engine in the file; the digest finds damage, not malice.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from detector.config.registry import register
from detector.errors import CheckpointError, ConfigError, DetectorError
from detector.export.export_runtime import Array, ExportRuntime
from detector.export.export_target import Contents, Encode, ExportJob, ExportTarget, ExportTargetConfig, FileVariant
from detector.export.graph import INPUT
from detector.export.metadata import MAX_DOCUMENT_BYTES, Description
from detector.export.onnx import convert_job, read_bounded, with_outputs
from detector.structures.transfer import sent

if TYPE_CHECKING:
    from onnx import ModelProto

_MAGIC = b"detector tensorrt 1\n"
_BATCHES = (1, 8, 32)  # smallest, fastest and largest batch of an engine; larger ones are cut into several
_DAMAGED = "is truncated, damaged or was changed after its export; export the model again"


@register("tensorrt")
class TensorRtTarget(ExportTarget):
    """Engines of TensorRT in NAME.engine."""

    suffix = ".engine"
    write_libraries = ("onnx", "onnxscript", "tensorrt")
    open_libraries = ("tensorrt",)
    install_command = (
        'on a machine with an NVIDIA GPU: pip install tensorrt "detector-toolkit[export]"; else export to onnx'
    )
    precisions = ("fp32", "fp16")
    fastest_mish = "sigmoid"

    @dataclass(frozen=True)
    class Config(ExportTargetConfig):
        """No settings."""

    def convert(self, job: ExportJob) -> Encode:
        """Convert a network by way of ONNX, and return a function that builds an engine of each variant.

        Raises:
            ConfigError: the canvas may have any size.
            DetectorError: there is no GPU.
        """
        if job.dynamic:
            raise ConfigError("--dynamic: an engine has one size of canvas; leave it out, or export to onnx")
        device = _gpu()
        network, num_classes = convert_job(job), job.graph.model.num_classes
        shape = (*job.canvas_hw, job.graph.model.image_channels)

        def encode(variant: FileVariant) -> Contents:
            model = with_outputs(network, variant, num_classes)
            made = {"names": [output.name for output in model.graph.output], **_built_for(device)}
            body = built(_with_cast_first(model), shape) + variant.document.encode()
            tail = json.dumps({**made, "document_bytes": len(variant.document.encode())}).encode()
            digest = hashlib.sha256(body + tail).digest()
            return (body + tail + len(tail).to_bytes(4, "little") + digest + _MAGIC,)

        return encode

    def open_file(self, path: Path) -> ExportRuntime:
        """Open an engine that this target wrote, on a GPU of the same model with the same TensorRT.

        Raises:
            CheckpointError: the file is missing, damaged, changed, from another program or for another GPU or version.
            DetectorError: there is no GPU.
        """
        engine, document, made = _parts(path, read_bounded(path))
        device = _gpu()
        wrong = {key: (made[key], here) for key, here in _built_for(device).items() if made[key] != here}
        if wrong:
            told = " and ".join(f"{key} {built_for}, got {here}" for key, (built_for, here) in wrong.items())
            raise CheckpointError(f"{path}: expected {told}; export the model again on this machine")
        return ExportRuntime(Description.of_json(document, str(path)), _Engine(path, engine, made["names"], device))


def _gpu() -> torch.device:
    """Return the current GPU.

    Raises:
        DetectorError: there is none.
    """
    if not torch.cuda.is_available():
        raise DetectorError("tensorrt: expected an NVIDIA GPU, on which engines are built and run, got none; use onnx")
    return torch.device("cuda", torch.cuda.current_device())


def _built_for(device: torch.device) -> dict[str, str]:
    """Return what an engine is tied to."""
    import tensorrt

    return {"GPU": torch.cuda.get_device_name(device), "TensorRT": str(tensorrt.__version__)}


def _with_cast_first(model: ModelProto) -> ModelProto:
    """Return a copy that begins with a conversion to float32: TensorRT has no other operator on uint8."""
    import onnx

    copied, name = onnx.ModelProto(), f"{INPUT}_float"
    copied.CopyFrom(model)
    for node in copied.graph.node:
        node.input[:] = [name if given == INPUT else given for given in node.input]
    copied.graph.node.insert(0, onnx.helper.make_node("Cast", [INPUT], [name], to=onnx.TensorProto.FLOAT))
    return copied


def built(model: ModelProto, canvas_shape: tuple[int, int, int]) -> bytes:
    """Return the engine of an ONNX model for canvases of one shape (H, W, C), in batches of 1 to 32.

    Raises:
        ConfigError: TensorRT cannot build it.
    """
    import tensorrt as trt

    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(model.SerializeToString()):
        raise ConfigError(f"TensorRT {trt.__version__} cannot read the network: {parser.get_error(0).desc()[:200]}")
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)  # has ten bits of a fraction, float32 twenty-three
    profile = builder.create_optimization_profile()
    profile.set_shape(INPUT, *((batch, *canvas_shape) for batch in _BATCHES))
    config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise ConfigError(f"TensorRT {trt.__version__} cannot build an engine of this network; export to onnx instead")
    return bytes(plan)


def _parts(path: Path, content: bytes) -> tuple[bytes, str, dict[str, Any]]:
    """Return engine, document and description of a file whose digest fits.

    Raises:
        CheckpointError: it is damaged, or another program wrote it.
    """
    if not content.endswith(_MAGIC):
        raise CheckpointError(f"{path} does not describe its model; give a whole file that `detector export` wrote")
    end = len(content) - len(_MAGIC) - 32
    size = int.from_bytes(content[end - 4 : end], "little")
    if end < 4 + size or hashlib.sha256(content[: end - 4]).digest() != content[end : end + 32]:
        raise CheckpointError(f"{path} {_DAMAGED}")
    made: dict[str, Any] = json.loads(content[end - 4 - size : end - 4])
    body = content[: end - 4 - size]
    length = min(int(made["document_bytes"]), MAX_DOCUMENT_BYTES)
    return body[: len(body) - length], body[len(body) - length :].decode(), made


class _Engine:
    """Engine on a GPU: canvases (B, H, W, C) in, outputs in the order of the names out."""

    def __init__(self, path: Path, plan: bytes, names: Sequence[str], device: torch.device) -> None:
        import tensorrt as trt

        self._names, self._device = names, device
        self._runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))  # the engine needs it as long as it lives
        self._engine = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            raise CheckpointError(f"{path}: TensorRT {trt.__version__} cannot open the engine; export the model again")
        self._context = self._engine.create_execution_context()
        dtypes = {trt.float32: torch.float32, trt.float16: torch.float16}
        self._dtypes = {name: dtypes[self._engine.get_tensor_dtype(name)] for name in names}

    def __call__(self, canvases: Array) -> Sequence[Array]:
        most = _BATCHES[-1]
        parts = [self._run(torch.from_numpy(canvases[i : i + most])) for i in range(0, len(canvases), most)]
        return [np.concatenate([part.cpu().numpy() for part in column]) for column in zip(*parts, strict=True)]

    def _run(self, canvases: Tensor) -> list[Tensor]:
        images, context = sent(canvases.contiguous(), self._device), self._context
        context.set_input_shape(INPUT, tuple(images.shape))
        context.set_tensor_address(INPUT, images.data_ptr())
        outputs = []
        for name in self._names:
            shape = tuple(context.get_tensor_shape(name))
            outputs.append(torch.empty(shape, dtype=self._dtypes[name], device=self._device))
            context.set_tensor_address(name, outputs[-1].data_ptr())
        if not context.execute_async_v3(torch.cuda.current_stream(self._device).cuda_stream):
            raise DetectorError("TensorRT could not run the engine; export the model again on this machine")
        return outputs
