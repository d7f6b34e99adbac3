"""Detector: a YOLO-style object detection toolkit. CSP-Mish networks, COCO first, numbers that reproduce.

`from detector import Detector` is the whole Python interface; importing the package alone loads nothing else.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["Classifier", "Detections", "Detector", "DetectorError", "__version__", "register"]

if TYPE_CHECKING:
    from detector.api import Classifier, Detector
    from detector.config.registry import register
    from detector.errors import DetectorError
    from detector.structures.types import Detections

_HOMES = {
    "Classifier": "detector.api",
    "Detector": "detector.api",
    "Detections": "detector.structures.types",
    "DetectorError": "detector.errors",
    "register": "detector.config.registry",
}

# Idle threads of libgomp, which computes for torch on Linux, spin for many milliseconds by default. With other work on
# the cores they take the time of the threads they wait for. 30,000 spins, 0.5 to 2 ms, bridge the gap of two operators;
# then they sleep (tools/benchmark_waiting.py). libgomp reads this when torch is first imported. The user's choice wins.
if not os.environ.keys() & {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"}:
    os.environ["GOMP_SPINCOUNT"] = "30000"


def __getattr__(name: str) -> Any:
    """Load a public name, and with it torch, on first use."""
    if name not in _HOMES:
        raise AttributeError(f"module 'detector' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)
