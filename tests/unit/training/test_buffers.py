"""Buffers that three processes average. Run as a script, this file is one of them."""

from __future__ import annotations

import os

import torch
from accelerate import PartialState
from launching import launch
from torch import nn

from latentkit.runtime.processes import average_buffers
from latentkit.training.start import join_processes


def test_equal_values_stay_bit_for_bit_and_others_are_averaged() -> None:
    """A third of three times a number is seldom that number: frozen statistics would drift from
    step to step.
    """
    done = launch(__file__, num_processes=3)
    assert done.returncode == 0, done.stderr


def main() -> None:
    rank = int(os.environ["RANK"])
    join_processes()
    frozen = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    frozen[0] = -torch.inf  # as in a mask
    exact = torch.rand(100, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    module = nn.Module()
    for name, values in {
        "frozen": frozen,
        "exact": exact,
        "running": torch.full((3,), float(rank)),
    }.items():
        module.register_buffer(name, values.clone())
    average_buffers([module])
    assert torch.equal(module.frozen, frozen)
    assert torch.equal(module.exact, exact)
    assert torch.equal(module.running, torch.ones(3))
    PartialState().destroy_process_group()  # its threads must not outlive the interpreter


if __name__ == "__main__":
    main()
