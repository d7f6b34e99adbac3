"""Import of the libraries of export targets without their telemetry.

ONNX Runtime 1.32 for Linux writes a device id into the user's cache and sends events of every session. OpenVINO 2026
reports its import to Google Analytics through the package `openvino_telemetry`, under a client id that it writes into
the user's home. Neither asks first.
"""

from __future__ import annotations

import importlib
import os
import sys

_VARIABLE = "ORT_DISABLE_TELEMETRY"  # read by ONNX Runtime when it is imported
_OPENVINO_TELEMETRY = "openvino_telemetry"


def import_privately(library: str) -> None:
    """Import a library; ONNX Runtime and OpenVINO then send nothing for the rest of the process.

    `ORT_DISABLE_TELEMETRY=0` keeps the telemetry of ONNX Runtime; a library that is already imported stays as it is.

    Raises:
        ImportError: the library, or one that it needs, is missing.
    """
    os.environ.setdefault(_VARIABLE, "1")
    if library.partition(".")[0] != "openvino" or _OPENVINO_TELEMETRY in sys.modules:
        importlib.import_module(library)
        return
    sys.modules[_OPENVINO_TELEMETRY] = None  # type: ignore[assignment]  # the import system's mark of a missing module
    try:
        importlib.import_module(library)  # takes the stub that it has for a missing telemetry package
    finally:
        del sys.modules[_OPENVINO_TELEMETRY]
