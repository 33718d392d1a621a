"""What the simulated device does as a GPU does, and the mistakes that it finds. See tests/devices/README.md."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch


def on_sim(options: str = "1") -> Callable[[Callable[[], None]], Callable[..., None]]:
    """Let a test run in the process that has the simulated device with these options."""

    def wrap(function: Callable[[], None]) -> Callable[..., None]:
        def test(sim_worker: Callable[[str], Any]) -> None:
            problem = sim_worker(options).call(__file__, function.__name__)
            assert problem is None, problem

        test.__doc__ = function.__doc__
        test.on_sim = function  # type: ignore[attr-defined]
        return test

    return wrap


@on_sim()
def test_a_small_network_trains_and_the_loss_falls() -> None:
    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.GroupNorm(2, 8), torch.nn.SiLU(), torch.nn.Conv2d(8, 3, 3, padding=1)
    ).to("sim")
    images = torch.rand(4, 3, 16, 16).to("sim")
    optimizer = torch.optim.AdamW(network.parameters(), 1e-2)
    losses = []
    for _ in range(10):
        loss = (network(images) - images).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2


@pytest.mark.parametrize("device", [None, "sim:0"])
def test_torch_loads_the_device_by_itself(run_on_sim: Any, device: str | None) -> None:
    done = run_on_sim(f"import torch; print(torch.zeros(2, device={device!r} or 'sim').device)")
    assert (done.stdout, done.stderr) == ("sim:0\n", "")
