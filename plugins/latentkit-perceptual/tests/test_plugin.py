"""The plugin is found, and its loss keeps the contract."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from latentkit_perceptual.plugin import PerceptualConfig, latentkit_losses
from pydantic import ValidationError

from latentkit.kit import discover
from latentkit.testing import LossContract


class PerceptualContract(LossContract):
    """Of one kind of network; its convolutions see the seams of a picture, and a mask's border."""

    spec = latentkit_losses()
    side = 32
    per_value = False
    honours_mask = False
    net: str

    @pytest.fixture(autouse=True)
    def _use_weights(self, whole_file: Callable[[str], Path]) -> None:
        self.weights = whole_file(self.net)

    def make_config(self, tmp_path: Path) -> PerceptualConfig:
        return PerceptualConfig.model_validate({"net": self.net, "model": str(self.weights)})


class TestLpipsAlex(PerceptualContract):
    net = "lpips-alex"


class TestShiftTolerantAlex(PerceptualContract):
    net = "st-lpips-alex"


class TestLpipsVgg(PerceptualContract):
    net = "lpips-vgg"


def test_installed_plugin_is_found() -> None:
    registry = discover()
    assert registry.find("loss", "perceptual").distribution == "latentkit-perceptual"
    assert not [
        problem for problem in registry.problems if problem.distribution == "latentkit-perceptual"
    ]


def test_a_network_that_is_not_known_is_refused() -> None:
    with pytest.raises(
        ValidationError, match="'lpips-vgg', 'lpips-alex', 'st-lpips-vgg' or 'st-lpips-alex'"
    ):
        PerceptualConfig.model_validate({"net": "squeeze"})
