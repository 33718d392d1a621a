"""The moving average of weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from latentkit.training.ema import WeightAverage, warmed_decay


def test_the_decay_warms_up_to_its_limit() -> None:
    expected = [1 / 10, 2 / 11, 3 / 12, 4 / 13, 5 / 14, 6 / 15, 7 / 16, 8 / 17, 0.5, 0.5]
    assert [warmed_decay(0.5, n) for n in range(10)] == expected


def test_weights_and_float_buffers_are_averaged_and_counters_copied() -> None:
    module = nn.BatchNorm1d(1)
    average = WeightAverage(module, decay=0.9)
    with torch.no_grad():
        module.weight.fill_(3.0)
    module.running_mean = torch.tensor([10.0])
    module.num_batches_tracked = torch.tensor(7)
    average.update(module)
    assert average.tensors["weight"].item() == torch.tensor(0.1 * 1.0 + 0.9 * 3.0).item()
    assert average.tensors["running_mean"].item() == 9.0
    assert average.tensors["num_batches_tracked"].item() == 7


def test_what_does_not_change_stays_what_it_was_bit_for_bit() -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    module[0].requires_grad_(False)
    for tensor in (module[0].weight, module[1].running_mean):
        tensor.data.fill_(-0.0)
    average = WeightAverage(module, decay=0.9)
    for _ in range(3):
        average.update(module)
    for name in ("0.weight", "1.running_mean"):
        assert average.tensors[name].signbit().all()


def test_the_average_is_not_the_weights_themselves() -> None:
    module = nn.Linear(1, 1)
    average = WeightAverage(module, decay=0.9)
    before = average.tensors["weight"].clone()
    with torch.no_grad():
        module.weight.add_(1)
    assert torch.equal(average.tensors["weight"], before)


def test_the_average_is_swapped_in_and_out_again_bit_for_bit() -> None:
    module = nn.BatchNorm1d(3)
    average = WeightAverage(module, decay=0.9)
    with torch.no_grad():
        module.weight.add_(torch.rand(3))
    module.num_batches_tracked.fill_(7)  # type: ignore[operator, union-attr]
    average.update(module)
    own = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    mean = {name: tensor.clone() for name, tensor in average.tensors.items()}
    with pytest.raises(RuntimeError, match="stop"), average.swapped_in(module):
        assert all(torch.equal(tensor, mean[name]) for name, tensor in module.state_dict().items())
        raise RuntimeError("stop")
    assert all(torch.equal(tensor, own[name]) for name, tensor in module.state_dict().items())
    assert all(torch.equal(tensor, mean[name]) for name, tensor in average.tensors.items())


def test_a_loaded_average_goes_on_as_the_one_that_was_saved() -> None:
    module = nn.Linear(2, 2)
    first = WeightAverage(module, decay=0.99)
    first.update(module)
    second = WeightAverage(nn.Linear(2, 2), decay=0.99)
    second.load(first.tensors, first.num_updates)
    with torch.no_grad():
        module.weight.add_(1)
    for average in (first, second):
        average.update(module)
    assert torch.equal(first.tensors["weight"], second.tensors["weight"])
