"""The compiled non-maximum suppression of torchvision, without the import of its Python package.

`import torchvision` loads every model that it has and torch's compiler with them, which takes longer than torch.
"""

from __future__ import annotations

import functools
import importlib.machinery
import importlib.util
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

_LIBRARIES = ("_C_stable", "_C")  # names of the library in newer and older versions of torchvision


def nms(boxes: Tensor, scores: Tensor, iou: float) -> Tensor:
    """Return the indices of the boxes that no better one overlaps by more than `iou`, best first.

    Args:
        boxes: float32 (K, 4) xyxy.
        scores: float32 (K,).
        iou: the bound.
    """
    return _operator()(boxes, scores, iou)


@functools.cache
def _operator() -> Callable[[Tensor, Tensor, float], Tensor]:
    specification = importlib.util.find_spec("torchvision")
    folders = (specification.submodule_search_locations if specification else None) or []
    names = [f"{name}{suffix}" for name in _LIBRARIES for suffix in importlib.machinery.EXTENSION_SUFFIXES]
    for path in (Path(folder) / name for folder in folders for name in names):
        if path.is_file():
            try:
                torch.ops.load_library(path)  # type: ignore[no-untyped-call]  # torch has no types for it
                operator: Callable[[Tensor, Tensor, float], Tensor] = torch.ops.torchvision.nms
                return operator
            except (OSError, AttributeError):  # the import below says what is wrong with the installation
                break
    import torchvision.ops

    imported: Callable[[Tensor, Tensor, float], Tensor] = torchvision.ops.nms
    return imported
