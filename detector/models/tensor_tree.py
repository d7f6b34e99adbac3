"""Nested plain data with tensors, as a JSON document and a flat mapping of tensors, for files that hold only those.

Each tuple, mapping and tensor becomes an object with one key that names its kind, because JSON has lists, text keys and
no tensors: `{"tuple": [...]}`, `{"mapping": [[key, value], ...]}` and `{"tensor": name, "order": [...]}`. The order
lists the dimensions from the largest stride to the smallest, so that a tensor comes back with its memory format.
"""

from __future__ import annotations

import json

import torch
from torch import Tensor


def flatten(tree: object) -> tuple[str, dict[str, Tensor]]:
    """Return the JSON document of a tree and its tensors by name, contiguous copies on the CPU.

    Args:
        tree: dicts with text or whole numbers as keys, lists, tuples, text, numbers, None and dense tensors.
    """
    tensors: dict[str, Tensor] = {}

    def encoded(value: object, name: str) -> object:
        if isinstance(value, Tensor):
            while name in tensors:  # keys "a.b" and "c" make the same name as "a" and "b.c"
                name += "_"
            order = sorted(range(value.ndim), key=value.stride, reverse=True)
            tensors[name] = value.permute(order).cpu().clone(memory_format=torch.contiguous_format)
            return {"tensor": name, "order": order}
        if isinstance(value, dict):
            return {
                "mapping": [
                    [key, encoded(content, f"{name}.{key}" if name else str(key))] for key, content in value.items()
                ]
            }
        if isinstance(value, (list, tuple)):
            items = [encoded(item, f"{name}.{index}" if name else str(index)) for index, item in enumerate(value)]
            return {"tuple": items} if isinstance(value, tuple) else items
        return value

    return json.dumps(encoded(tree, "")), tensors


def unflatten(document: str, tensors: dict[str, Tensor]) -> object:
    """Return the tree that `flatten` was given.

    Raises:
        ValueError: the document is not JSON of such a tree, or the tensors are not those that it names.
    """
    left = dict(tensors)

    def decoded(value: object) -> object:
        if isinstance(value, list):
            return [decoded(item) for item in value]
        if not isinstance(value, dict):
            return value
        kind = next(iter(value), None)
        content = value.get(kind) if isinstance(kind, str) else None
        if set(value) == {"tensor", "order"} and isinstance(value["tensor"], str):
            return _ordered(left.pop(value["tensor"]), value["order"])
        if kind == "tuple" and len(value) == 1 and isinstance(content, list):
            return tuple(decoded(item) for item in content)
        if kind == "mapping" and len(value) == 1 and isinstance(content, list):
            return {_key(key): decoded(item) for key, item in content}
        raise ValueError(f"unknown object {str(value)[:60]}")

    try:
        tree = decoded(json.loads(document))
    except (LookupError, TypeError, RecursionError) as error:
        raise ValueError(f"not a tree of tensors ({error})") from error
    if left:
        raise ValueError(f"tensors that its document does not name ({', '.join(sorted(left)[:3])[:80]})")
    return tree


def _ordered(tensor: Tensor, order: object) -> Tensor:
    if not isinstance(order, list) or sorted(order) != list(range(tensor.ndim)):
        raise ValueError(f"an order of dimensions that a tensor of {tensor.ndim} does not have")
    return tensor.permute([order.index(dimension) for dimension in range(tensor.ndim)])


def _key(key: object) -> str | int:
    if type(key) is str or type(key) is int:
        return key
    raise ValueError(f"key {str(key)[:40]!r}")
