"""The plugin is found, and its loss keeps the contract."""

from __future__ import annotations

import pytest
import torch
from latentkit.contracts import BuildContext, LossBatch, Reconstruction
from latentkit.kit import discover
from latentkit.testing import LossContract

from latentkit_charbonnier.plugin import CharbonnierConfig, latentkit_losses


class TestCharbonnier(LossContract):
    spec = latentkit_losses()


def test_an_error_of_four_with_a_width_of_three_costs_two() -> None:
    loss = latentkit_losses().build(CharbonnierConfig(width=3), BuildContext())
    inputs = torch.zeros(1, 3, 4, 4)
    batch = LossBatch(
        inputs, Reconstruction(inputs - 4, inputs), None, 0, lambda one: one, lambda one: one
    )
    assert loss(batch).tolist() == pytest.approx([2.0])


def test_the_installed_plugin_is_found() -> None:
    registry = discover()
    assert registry.find("loss", "charbonnier").distribution == "latentkit-charbonnier"
    assert not [
        problem for problem in registry.problems if problem.distribution == "latentkit-charbonnier"
    ]
