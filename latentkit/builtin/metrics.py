"""The metrics of an evaluation: names, config classes, and what each needs.

Loads no torch; `build` opens what does the work.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from latentkit.contracts.plugin_specs import BuildContext, Config, MetricSpec, Need
from latentkit.errors import RecipeError
from latentkit.metrics.options import (
    ActiveUnitsConfig,
    ElboConfig,
    IwaeConfig,
    LossMetricConfig,
    PictureConfig,
    PlainConfig,
    RfidConfig,
    SpectrumConfig,
)
from latentkit.runtime.key_errors import suggest, validate

# ---------------------------------------------------------------- declarations


def _build_mse(config: PlainConfig, context: BuildContext) -> Any:
    from latentkit.metrics.pixels import mse

    return mse()


def _build_l1(config: PlainConfig, context: BuildContext) -> Any:
    from latentkit.metrics.pixels import l1

    return l1()


def _build_psnr(config: PictureConfig, context: BuildContext) -> Any:
    from latentkit.metrics.pixels import psnr

    return psnr(config.rounding == "uint8")


def _build_ssim(config: PictureConfig, context: BuildContext) -> Any:
    from latentkit.metrics.structure import ssim

    return ssim(config.rounding == "uint8")


def _build_ms_ssim(config: PictureConfig, context: BuildContext) -> Any:
    from latentkit.metrics.structure import ms_ssim

    return ms_ssim(config.rounding == "uint8")


def _build_kl(config: PlainConfig, context: BuildContext) -> Any:
    from latentkit.metrics.likelihood import Kl

    return Kl()


def _build_elbo(config: ElboConfig, context: BuildContext) -> Any:
    from latentkit.metrics.likelihood import Elbo

    return Elbo(
        config.likelihood, None if config.scale == "optimal" else float(config.scale), config.draws
    )


def _build_iwae(config: IwaeConfig, context: BuildContext) -> Any:
    from latentkit.metrics.likelihood import Iwae

    return Iwae(config.likelihood, config.scale, config.draws, config.chunk)


def _build_active_units(config: ActiveUnitsConfig, context: BuildContext) -> Any:
    from latentkit.metrics.latents import ActiveUnits

    return ActiveUnits(config.threshold)


def _build_latent_statistics(config: PlainConfig, context: BuildContext) -> Any:
    from latentkit.metrics.latents import LatentStatistics

    return LatentStatistics()


def _build_latent_spectrum(config: SpectrumConfig, context: BuildContext) -> Any:
    from latentkit.metrics.spectrum import LatentSpectrum

    return LatentSpectrum(config.bins)


def _build_rfid(config: RfidConfig, context: BuildContext) -> Any:
    from latentkit.metrics.feature_networks import open_features
    from latentkit.metrics.frechet import Rfid

    return Rfid(open_features(config, context))


def _build_loss(config: LossMetricConfig, context: BuildContext) -> Any:
    from latentkit.metrics.from_loss import open_loss

    return open_loss(config, context)


_ON_PICTURES: tuple[Need, ...] = ("decoder", "modality")
_BOUND: tuple[Need, ...] = ("decoder", "posterior")

METRICS = {
    spec.name: spec
    for spec in (
        MetricSpec(
            "psnr",
            "peak signal-to-noise ratio",
            PictureConfig,
            _build_psnr,
            1,
            _ON_PICTURES,
            "higher",
        ),
        MetricSpec(
            "ssim",
            "structural similarity (Wang et al. 2004)",
            PictureConfig,
            _build_ssim,
            1,
            _ON_PICTURES,
            "higher",
        ),
        MetricSpec(
            "ms-ssim",
            "structural similarity at five scales (Wang et al. 2003)",
            PictureConfig,
            _build_ms_ssim,
            1,
            _ON_PICTURES,
            "higher",
        ),
        MetricSpec(
            "mse",
            "mean squared error, in squared units of the input",
            PlainConfig,
            _build_mse,
            1,
            ("decoder",),
            "lower",
        ),
        MetricSpec(
            "l1",
            "mean absolute error, in units of the input",
            PlainConfig,
            _build_l1,
            1,
            ("decoder",),
            "lower",
        ),
        MetricSpec(
            "rfid",
            "Fréchet distance of reconstructions from inputs",
            RfidConfig,
            _build_rfid,
            1,
            _ON_PICTURES,
            "lower",
        ),
        MetricSpec(
            "loss",
            "a loss plugin, such as perceptual (LPIPS)",
            LossMetricConfig,
            _build_loss,
            1,
            ("decoder",),
            "lower",
        ),
        MetricSpec(
            "kl",
            "KL to N(0, I), nats per sample and bits per input value",
            PlainConfig,
            _build_kl,
            1,
            ("posterior",),
            "lower",
        ),
        MetricSpec(
            "elbo",
            "evidence lower bound, nats per sample",
            ElboConfig,
            _build_elbo,
            1,
            _BOUND,
            "higher",
        ),
        MetricSpec(
            "iwae",
            "importance-weighted negative log likelihood, nats per sample",
            IwaeConfig,
            _build_iwae,
            1,
            _BOUND,
            "lower",
        ),
        MetricSpec(
            "active-units",
            "latent values that depend on the input",
            ActiveUnitsConfig,
            _build_active_units,
            1,
            ("continuous",),
        ),
        MetricSpec(
            "latent-statistics",
            "mean and deviation per channel, and what a model's config wants of them",
            PlainConfig,
            _build_latent_statistics,
            1,
            ("continuous",),
        ),
        MetricSpec(
            "latent-spectrum",
            "radially averaged power of latents",
            SpectrumConfig,
            _build_latent_spectrum,
            1,
            ("continuous",),
        ),
    )
}
"""By name, in the order that the README has them in."""


def configure_metric(name: str, options: Mapping[str, Any]) -> Config:
    """The validated options of a metric.

    Raises:
        RecipeError: there is no such metric, or it refuses its options; one line per problem, which
            starts at the metric's own keys.
    """
    if name not in METRICS:
        raise RecipeError(
            f"use: no metric {name!r}{suggest(name, METRICS) or '; known: ' + ', '.join(METRICS)}"
        )
    config = validate(METRICS[name].config, options, where="with")
    assert isinstance(config, Config)
    return config


def label_metrics(uses: Sequence[tuple[str, Mapping[str, Any]]]) -> list[str]:
    """What the figures of each metric (its name and options) are called: its name, or its loss's;
    numbered where that comes twice.
    """
    names = [str(options["use"]) if name == "loss" else name for name, options in uses]
    return [
        name if names.count(name) == 1 else f"{name}-{names[: number + 1].count(name)}"
        for number, name in enumerate(names)
    ]
