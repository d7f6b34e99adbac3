"""The target `litert`: a graph with its weights in NAME.tflite, which the converter litert-torch makes."""

from __future__ import annotations

import hashlib
import io
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from detector.config.registry import register
from detector.errors import CheckpointError
from detector.export.export_runtime import Array, ExportRuntime
from detector.export.export_target import Contents, Encode, ExportJob, ExportTarget, ExportTargetConfig, FileVariant
from detector.export.metadata import DOCUMENT_KEY, Description
from detector.export.onnx import read_bounded
from detector.export.pt2 import quietly
from detector.io.zip_entries import pack, read_entries

_INPUT, _OUTPUT = "args_0", "output_{}"  # the names that litert-torch gives
_DOCUMENT, _DIGEST = f"{DOCUMENT_KEY}.json", f"{DOCUMENT_KEY}.sha256"


@register("litert")
class LitertTarget(ExportTarget):
    """Files of LiteRT (TensorFlow Lite), which runs on phones and small boards.

    The input is one canvas (1, height, width, channels). The metadata is a zip archive behind the graph, as the
    associated files of TensorFlow Lite Metadata are; LiteRT does not read it.
    """

    suffix = ".tflite"
    write_libraries = ("litert_torch",)
    open_libraries = ("ai_edge_litert",)
    install_command = 'pip install "detector-toolkit[litert]"'

    @dataclass(frozen=True)
    class Config(ExportTargetConfig):
        """No settings."""

    def convert(self, job: ExportJob) -> Encode:
        """Return a function that converts each variant of a network.

        Raises:
            ConfigError: canvases of any size are asked for.
        """
        job.require_one_size("litert")

        def encode(variant: FileVariant) -> Contents:
            job.graph.with_raw_maps = variant.with_raw_maps
            graph = converted(job)
            document = variant.document.encode()
            digest = hashlib.sha256(graph + document).hexdigest().encode()
            return (graph + pack({_DOCUMENT: document, _DIGEST: digest}).getvalue(),)

        return encode

    def open_file(self, path: Path) -> ExportRuntime:
        """Open a file of an export.

        Raises:
            CheckpointError: the file is missing, damaged, changed or from another program.
        """
        from ai_edge_litert.interpreter import Interpreter

        graph, document = _parts(path)
        try:
            interpreter = Interpreter(model_content=graph, num_threads=torch.get_num_threads())
            network = interpreter.get_signature_runner()
        except (RuntimeError, ValueError) as error:
            raise CheckpointError(f"{path}: LiteRT cannot open it ({error}); export the model again") from error

        def run(canvases: Array) -> Sequence[Array]:
            found = [network(**{_INPUT: canvas[None]}) for canvas in canvases]
            return [np.concatenate([each[_OUTPUT.format(i)] for each in found]) for i in range(len(found[0]))]

        return ExportRuntime(Description.of_json(document, str(path)), run)


def converted(job: ExportJob) -> bytes:
    """Return the bytes of a network in LiteRT's format.

    Raises:
        CheckpointError: litert-torch cannot convert the network.
    """
    import litert_torch

    example = job.graph.canvases(job.canvas_hw, 1, job.canvas_dtype)
    with tempfile.TemporaryDirectory() as folder, quietly(), torch.no_grad():
        file = Path(folder) / "model.tflite"
        try:
            litert_torch.convert(job.graph, (example,)).export(str(file))
        except Exception as error:  # of torch, JAX and MLIR, without a common base class
            reason = " ".join(str(error).split()) or type(error).__name__
            raise CheckpointError(
                f"litert-torch cannot convert the network: {reason:.200}; choose another target"
            ) from error
        return file.read_bytes()


def _parts(path: Path) -> tuple[bytes, str]:
    """Return the graph and the metadata of a file whose digest fits.

    Raises:
        CheckpointError: the file is missing, damaged, changed or from another program.
    """
    content = read_bounded(path)
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            start = min((entry.header_offset for entry in archive.infolist()), default=0)
        entries = read_entries(content[start:])
        document, digest = entries[_DOCUMENT], entries[_DIGEST]
    except (zipfile.BadZipFile, LookupError) as error:
        raise CheckpointError(
            f"{path} does not describe its model; give a whole file that `detector export` wrote"
        ) from error
    if hashlib.sha256(content[:start] + document).hexdigest().encode() != digest:
        raise CheckpointError(f"{path} was damaged or changed after its export; export the model again")
    return content[:start], document.decode()
