"""Waits of the CPU for a GPU: the fake GPU that finds them, and the forms of code without them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DynamicOutputShapeException

from detector.structures.transfer import constant, entries, padded_places, sent, sent_aside, unravelled

GPU = torch.device("cuda", 0)
WAITS: dict[str, Callable[[Tensor], object]] = {
    "item": lambda x: x.sum().item(),
    "if": lambda x: bool((x > 0).any()),
    "tolist": lambda x: x.tolist(),
    "cpu": lambda x: x.cpu(),
    "nonzero": lambda x: x.nonzero(),
    "unique": lambda x: x.unique(),
    "mask": lambda x: x[x > 0],
    "assigned mask": lambda x: x.index_put_((x > 0,), x),
    "tensor": lambda x: torch.tensor([1.0, 2.0], device=GPU),
    "new_tensor": lambda x: x.new_tensor(2.0),
    "index of the CPU": lambda x: x[torch.tensor([0, 1])],
    "copy that waits": lambda x: torch.ones(3).to(GPU),
}


@pytest.mark.parametrize("name", WAITS)
def test_fake_gpu_finds_waits(name: str, fake_gpu: Any) -> None:
    with fake_gpu:
        x = torch.ones(3, device=GPU)
        with pytest.raises(Exception) as found:  # noqa: PT011 (torch's own or that of the fixture)
            WAITS[name](x)
    assert type(found.value).__name__ == "HostWaitError" or isinstance(found.value, DynamicOutputShapeException)


def test_copies_constants_and_masks_do_not_wait(fake_gpu: Any) -> None:
    with fake_gpu:
        assert sent(torch.ones(3), GPU).device == sent_aside(torch.ones(3), GPU).device == GPU
        assert sent(sent(torch.ones(3), GPU), GPU).device == GPU
        assert constant([[1.0, 2.0], [3.0, 4.0]], GPU).shape == (2, 2)
        mask = sent(torch.tensor([[True, False, True]]), GPU)
        assert [index.shape for index in entries(mask)] == [(3,), (3,)]
        assert padded_places(mask.flatten(), 2)[0].device == GPU


@pytest.mark.parametrize("num_true", [0, 1, 5, 40])
def test_padded_places_begin_with_the_places(num_true: int) -> None:
    torch.manual_seed(num_true)
    mask = torch.zeros(40, dtype=torch.bool).index_fill_(0, torch.randperm(40)[:num_true], True)
    places, is_place = padded_places(mask, 40)
    assert places[:num_true].tolist() == mask.nonzero().flatten().tolist()
    assert is_place.tolist() == [True] * num_true + [False] * (40 - num_true)
    assert not places[num_true:].any()


def test_unravelled_places_are_those_of_torch() -> None:
    place = torch.arange(2 * 3 * 5)
    assert torch.equal(torch.stack(unravelled(place, (2, 3, 5))), torch.stack(torch.unravel_index(place, (2, 3, 5))))


def test_constant_on_the_cpu_has_shape_and_dtype() -> None:
    assert torch.equal(constant([[1, 2], [3, 4]], torch.device("cpu")), torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    assert constant([0.5], torch.device("cpu"), torch.float64).dtype == torch.float64
