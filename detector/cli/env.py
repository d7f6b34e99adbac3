"""`detector env`."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import sys

import torch

from detector import __version__
from detector.models.precision import Precision, choose_device

PACKAGES = (
    "torch",
    "torchvision",
    "numpy",
    "opencv-python-headless",
    "opencv-python",
    "pycocotools",
    "albumentations",
    "pydantic",
    "safetensors",
)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def run(arguments: argparse.Namespace) -> int:
    """Show versions, devices and problems of this installation; return the exit code."""
    device = choose_device("auto")
    facts: dict[str, object] = {
        "detector": __version__,
        "python": sys.version.split()[0],
        **{package: _version(package) for package in PACKAGES},
        "cpu": f"{os.cpu_count()} cores, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}",
        "cuda": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "device": str(device),
        "precision": Precision("auto", device).name,
    }
    warnings = []
    if facts["opencv-python"] and facts["opencv-python-headless"]:
        warnings.append(
            "opencv-python and opencv-python-headless share the folder cv2/ and break each other; uninstall both, then "
            "install opencv-python-headless"
        )
    facts["warnings"] = warnings
    if arguments.json:
        print(json.dumps(facts))
        return 0
    for name, value in facts.items():
        if name != "warnings":
            print(f"{name:<24}{value if value not in (None, []) else '-'}")
    for warning in warnings:
        print(f"warning: {warning}")
    return 0
