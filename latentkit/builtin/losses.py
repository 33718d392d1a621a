"""Core's own losses: config classes and declarations.

Loads no torch; `latentkit.builtin` hands its hook on.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from latentkit.contracts import BuildContext, LossSpec
from latentkit.contracts.plugin_specs import NoOptions
from latentkit.hooks import hookimpl
from latentkit.losses.options import (
    EquivarianceConfig,
    FeatureAlignmentConfig,
    KlConfig,
    LikelihoodConfig,
    PatchGanConfig,
    WaveletConfig,
)

# ---------------------------------------------------------------- declarations


def _build_l1(config: NoOptions, context: BuildContext) -> Any:
    from latentkit.losses.reconstruction import l1

    return l1


def _build_mse(config: NoOptions, context: BuildContext) -> Any:
    from latentkit.losses.reconstruction import mse

    return mse


def _build_laplace_nll(config: LikelihoodConfig, context: BuildContext) -> Any:
    from latentkit.losses.likelihood import LAPLACE, open_nll

    return open_nll(LAPLACE, config)


def _build_gaussian_nll(config: LikelihoodConfig, context: BuildContext) -> Any:
    from latentkit.losses.likelihood import GAUSSIAN, open_nll

    return open_nll(GAUSSIAN, config)


def _build_bernoulli_nll(config: NoOptions, context: BuildContext) -> Any:
    from latentkit.losses.bernoulli import BernoulliNll

    return BernoulliNll(context.input.range if context.input else (-1.0, 1.0))


def _build_wavelet(config: WaveletConfig, context: BuildContext) -> Any:
    from latentkit.losses.wavelet import Wavelet

    return Wavelet(config.levels)


def _build_kl(config: KlConfig, context: BuildContext) -> Any:
    from latentkit.losses.kl import Kl

    return Kl(config.free_bits, config.target, config.anneal)


def _build_equivariance(config: EquivarianceConfig, context: BuildContext) -> Any:
    from latentkit.losses.equivariance import Equivariance

    return Equivariance(config, context.seed)


def _build_feature_alignment(config: FeatureAlignmentConfig, context: BuildContext) -> Any:
    from latentkit.losses.feature_alignment import open_feature_alignment
    from latentkit.losses.features import EncoderFeatures, Features, open_transformers

    features: Features
    input_range = context.input.range if context.input else (-1.0, 1.0)
    if config.model is not None:
        features = open_transformers(config.model, context.recipe_dir, input_range)
    else:
        from latentkit.plugins import discover

        registry, name = discover(), config.encoder or ""
        options = registry.configure("encoder", name, config.options, "feature-alignment: encoder")
        features = EncoderFeatures(
            registry.find("encoder", name).spec.build(options, context), input_range
        )
    return open_feature_alignment(config, features, context.seed)


def _build_patch_gan(config: PatchGanConfig, context: BuildContext) -> Any:
    from latentkit.losses.patch_gan import open_patch_gan

    return open_patch_gan(config, context.input.channels if context.input else 3, context.seed)


@hookimpl
def latentkit_losses() -> Iterator[LossSpec]:
    yield LossSpec("l1", "mean absolute error", NoOptions, _build_l1)
    yield LossSpec("mse", "mean squared error", NoOptions, _build_mse)
    yield LossSpec(
        "laplace-nll",
        "nats per input value under Laplace errors",
        LikelihoodConfig,
        _build_laplace_nll,
    )
    yield LossSpec(
        "gaussian-nll",
        "nats per input value under Gaussian errors",
        LikelihoodConfig,
        _build_gaussian_nll,
    )
    yield LossSpec(
        "bernoulli-nll",
        "nats per input value of bits whose chance is decoded",
        NoOptions,
        _build_bernoulli_nll,
    )
    yield LossSpec(
        "wavelet", "mean absolute error of Haar wavelet coefficients", WaveletConfig, _build_wavelet
    )
    yield LossSpec("kl", "KL to N(0, I), nats per input value", KlConfig, _build_kl, role="latent")
    yield LossSpec(
        "equivariance",
        "decoding shrunk and turned latents gives shrunk and turned images",
        EquivarianceConfig,
        _build_equivariance,
        role="latent",
    )
    yield LossSpec(
        "feature-alignment",
        "latents arranged like a vision network's features",
        FeatureAlignmentConfig,
        _build_feature_alignment,
        role="latent",
    )
    yield LossSpec(
        "patch-gan",
        "a discriminator of patches",
        PatchGanConfig,
        _build_patch_gan,
        role="adversarial",
    )
