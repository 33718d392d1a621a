"""The contract kit on latentkit's own losses."""

from __future__ import annotations

from pathlib import Path

import pytest

from latentkit import builtin
from latentkit.contracts import LossSpec
from latentkit.losses.options import (
    AnnealConfig,
    EquivarianceConfig,
    FeatureAlignmentConfig,
    KlConfig,
    LikelihoodConfig,
    PatchGanConfig,
    WaveletConfig,
)
from latentkit.testing import LossContract

LOSSES: dict[str, LossSpec] = {spec.name: spec for spec in builtin.latentkit_losses()}


class TestL1(LossContract):
    spec = LOSSES["l1"]


class TestMse(LossContract):
    spec = LOSSES["mse"]


# ---------------------------------------------------------------- likelihoods


class LikelihoodContract(LossContract):
    """A density's logarithm isn't zero where the error is."""

    zero_when_perfect = False
    config: LikelihoodConfig

    def make_config(self, tmp_path: Path) -> LikelihoodConfig:
        return self.config


class TestLaplaceNll(LikelihoodContract):
    spec = LOSSES["laplace-nll"]
    config = LikelihoodConfig(scale=0.1)


class TestLaplaceNllLearned(LikelihoodContract):
    spec = LOSSES["laplace-nll"]
    config = LikelihoodConfig(scale="learned", initial_scale=0.3)


class TestLaplaceNllOptimal(LikelihoodContract):
    spec = LOSSES["laplace-nll"]
    config = LikelihoodConfig()
    independent = False


class TestGaussianNll(LikelihoodContract):
    spec = LOSSES["gaussian-nll"]
    config = LikelihoodConfig(scale=0.1)


class TestGaussianNllLearned(LikelihoodContract):
    spec = LOSSES["gaussian-nll"]
    config = LikelihoodConfig(scale="learned")


class TestGaussianNllOptimal(LikelihoodContract):
    spec = LOSSES["gaussian-nll"]
    config = LikelihoodConfig()
    independent = False


class TestWavelet(LossContract):
    spec = LOSSES["wavelet"]


class TestWaveletOfThreeLevels(LossContract):
    spec = LOSSES["wavelet"]

    def make_config(self, tmp_path: Path) -> WaveletConfig:
        return WaveletConfig(levels=3)


# ---------------------------------------------------------------- latents


class TestKl(LossContract):
    spec = LOSSES["kl"]


class TestKlWithFreeBits(LossContract):
    spec = LOSSES["kl"]

    def make_config(self, tmp_path: Path) -> KlConfig:
        return KlConfig(free_bits=0.2, anneal=AnnealConfig(kind="cyclic", steps=100))


class TestKlWithTarget(LossContract):
    spec = LOSSES["kl"]
    per_value = False  # its target is a rate per sample

    def make_config(self, tmp_path: Path) -> KlConfig:
        return KlConfig(target=20.0, anneal=AnnealConfig(steps=100))


class TestEquivariance(LossContract):
    spec = LOSSES["equivariance"]
    per_value = False  # interpolation sees the seams

    def make_config(self, tmp_path: Path) -> EquivarianceConfig:
        return EquivarianceConfig(p=1.0)


class TestFeatureAlignment(LossContract):
    spec = LOSSES["feature-alignment"]
    per_value = False  # so do convolutions

    @pytest.fixture(autouse=True)
    def _use_network(self, kl_folder: Path) -> None:
        self.network = kl_folder

    def make_config(self, tmp_path: Path) -> FeatureAlignmentConfig:
        return FeatureAlignmentConfig(
            channels=3,
            encoder="diffusers",
            options={"model": str(self.network)},
            matrix_margin=0.05,
            cosine_margin=0.1,
        )


# ---------------------------------------------------------------- adversarial


class TestPatchGan(LossContract):
    spec = LOSSES["patch-gan"]
    side = 24

    def make_config(self, tmp_path: Path) -> PatchGanConfig:
        return PatchGanConfig(width=8, lecam=0.1)


class TestPatchGanVanilla(LossContract):
    spec = LOSSES["patch-gan"]

    def make_config(self, tmp_path: Path) -> PatchGanConfig:
        return PatchGanConfig(width=8, num_layers=2, objective="vanilla", norm="none")


class TestPatchGanWithBatchNorm(LossContract):
    spec = LOSSES["patch-gan"]
    side = 32
    independent = False

    def make_config(self, tmp_path: Path) -> PatchGanConfig:
        return PatchGanConfig(width=8, num_layers=2, norm="batch")
