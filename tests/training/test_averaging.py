from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from detector.training.averaging import MovingAverage


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1))


def shake(model: nn.Module, step: int) -> None:
    """Change every parameter and buffer, as a training step does."""
    generator = torch.Generator().manual_seed(step)
    for value in model.state_dict().values():
        if value.is_floating_point():
            value.add_(torch.randn(value.shape, generator=generator))
        else:
            value.add_(1 + step)


def flat(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.double().clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("horizon", [1.0, 3.0, 50.0, 0.4])
def test_average_equals_a_float64_reference_loop(horizon: float) -> None:
    model = network()
    averaged = MovingAverage(model, horizon)
    wanted = flat(model)
    for update in range(30):
        shake(model, update)
        averaged.update_parameters(model)
        look_back = min(horizon, update / 2)
        weight = 1 / (1 + look_back)  # 1 on the first update: the average starts at the model
        for name, value in flat(model).items():
            is_count = name.endswith("num_batches_tracked")
            wanted[name] = value if is_count else wanted[name] + weight * (value - wanted[name])
        found = flat(averaged.module)
        assert found.keys() == wanted.keys()
        for name, value in wanted.items():
            assert torch.allclose(found[name], value, rtol=1e-5, atol=1e-5), (update, name)


def test_early_updates_look_back_over_half_of_the_steps() -> None:
    """The average looks back over min(horizon, t / 2) steps after t updates."""
    model = nn.Linear(1, 1, bias=False)
    averaged = MovingAverage(model, 2.0)
    average = averaged.module
    assert isinstance(average, nn.Linear)
    moves: list[tuple[float, float]] = []
    for update in range(8):
        with torch.no_grad():
            model.weight.fill_(0.0 if update == 0 else 1.0)
            averaged.update_parameters(model)
            before = 0.0 if update == 0 else moves[-1][1]
            moves.append((average.weight.item() - before, average.weight.item()))
    remaining, value = [], 0.0
    for update in range(1, 8):
        value += (1 - value) / (1 + min(2.0, update / 2))
        remaining.append(value)
    assert [value for _, value in moves[1:]] == pytest.approx(remaining)
    assert moves[1][0] == pytest.approx(1 / 1.5)
    assert moves[7][0] == pytest.approx((1 - remaining[5]) / 3)


def test_counts_are_copied_not_averaged() -> None:
    model = network()
    averaged = MovingAverage(model, 10.0)
    for count in (1, 2, 7):
        model.get_buffer("1.num_batches_tracked").fill_(count)
        averaged.update_parameters(model)
        tracked = averaged.module.get_buffer("1.num_batches_tracked")
        assert tracked.item() == count
        assert tracked.dtype == torch.int64


def test_average_is_a_separate_copy_without_gradients() -> None:
    model = network()
    before = flat(model)
    averaged = MovingAverage(model, 10.0)
    assert not any(p.requires_grad for p in averaged.parameters())
    assert all(p.requires_grad for p in model.parameters())
    assert model.training
    assert not averaged.module.training
    averaged.update_parameters(model)
    shared = {p.data_ptr() for p in model.parameters()} & {p.data_ptr() for p in averaged.module.parameters()}
    assert not shared
    assert all(torch.equal(before[name], value) for name, value in flat(model).items())


def test_average_resumes_exactly_from_its_weights_and_number_of_updates() -> None:
    whole_model, model = network(), network()
    whole, first = MovingAverage(whole_model, 4.0), MovingAverage(model, 4.0)
    for step in range(3):
        shake(whole_model, step)
        whole.update_parameters(whole_model)
        shake(model, step)
        first.update_parameters(model)
    second = MovingAverage(model, 4.0)
    second.module.load_state_dict(first.module.state_dict())
    second.n_averaged.fill_(int(first.n_averaged))
    for step in range(3, 9):
        shake(whole_model, step)
        whole.update_parameters(whole_model)
        shake(model, step)
        second.update_parameters(model)
    assert flat(whole.module).keys() == flat(second.module).keys()
    assert all(torch.equal(v, flat(second.module)[name]) for name, v in flat(whole.module).items())
