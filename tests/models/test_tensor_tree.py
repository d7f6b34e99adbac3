"""Trees of plain data and tensors come back from a document and flat tensors as they were."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from detector.models.tensor_tree import flatten, unflatten


def same(left: Any, right: Any) -> bool:
    if isinstance(left, Tensor):
        is_alike = left.dtype == right.dtype and left.shape == right.shape and left.stride() == right.stride()
        return is_alike and bool(left.double().equal(right.double()))
    if isinstance(left, dict):
        return list(left) == list(right) and all(same(left[key], right[key]) for key in left)
    if isinstance(left, (list, tuple)):
        return type(left) is type(right) and len(left) == len(right) and all(map(same, left, right))
    return type(left) is type(right) and (left == right or (left != left and right != right))


@pytest.mark.parametrize(
    "tree",
    [
        {},
        [],
        (),
        {"a": [1, 2.5, None, True, "text", (3, [4])], 7: {"7": ()}},
        {"large": 10**40, "tiny": 5e-324, "third": 1 / 3, "nan": math.nan, "inf": -math.inf},
        {"tensor": "not a tensor", "mapping": [["a", 1]], "tuple": {"tuple": [1]}},
        torch.tensor(3),
        {"state": {0: {"momentum": torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)}}},
        [torch.empty(0, 3), torch.randn(3, 4).T, torch.ones(4, 1, 1, 2), torch.tensor(True)],
        [
            torch.arange(3).to(dtype)
            for dtype in (torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8)
        ],
        {"a.b": {"c": torch.ones(1)}, "a": {"b.c": torch.zeros(1), "b": {"c": torch.ones(2)}}},
    ],
)
def test_tree_comes_back_as_it_was(tree: object) -> None:
    document, tensors = flatten(tree)
    assert all(tensor.is_contiguous() for tensor in tensors.values())
    assert same(unflatten(document, tensors), tree)


def test_names_of_tensors_are_their_paths() -> None:
    document, tensors = flatten({"optimizer": {"state": {3: {"momentum": torch.ones(2)}}}, "random": [torch.ones(1)]})
    assert list(tensors) == ["optimizer.state.3.momentum", "random.0"]
    with pytest.raises(ValueError, match="not name"):
        unflatten(document, {**tensors, "extra": torch.ones(1)})
