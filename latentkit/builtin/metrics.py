"""The metrics of an evaluation: names, config classes, and what each needs.

Loads no torch; `build` opens what does the work.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from latentkit.contracts import BuildContext, MetricSpec
from latentkit.contracts.plugin_specs import Need, NoOptions
from latentkit.hooks import hookimpl
from latentkit.metrics.options import (
    ActiveUnitsConfig,
    ElboConfig,
    IwaeConfig,
    LossMetricConfig,
    RfidConfig,
    SpectrumConfig,
)

if TYPE_CHECKING:
    from latentkit.contracts import Metric

# ---------------------------------------------------------------- declarations


def _build_mse(config: NoOptions, context: BuildContext) -> Metric:
    from latentkit.metrics.pixels import mse

    return mse()


def _build_l1(config: NoOptions, context: BuildContext) -> Metric:
    from latentkit.metrics.pixels import l1

    return l1()


def _build_psnr(config: NoOptions, context: BuildContext) -> Metric:
    from latentkit.metrics.pixels import psnr

    return psnr()


def _build_ssim(config: NoOptions, context: BuildContext) -> Metric:
    from latentkit.metrics.structure import ssim

    return ssim()


def _build_ms_ssim(config: NoOptions, context: BuildContext) -> Metric:
    from latentkit.metrics.structure import ms_ssim

    return ms_ssim()


def _build_kl(config: NoOptions, context: BuildContext) -> Metric:
    from latentkit.metrics.likelihood import Kl

    return Kl()


def _build_elbo(config: ElboConfig, context: BuildContext) -> Metric:
    from latentkit.metrics.likelihood import Elbo

    return Elbo(
        config.likelihood, None if config.scale == "optimal" else float(config.scale), config.draws
    )


def _build_iwae(config: IwaeConfig, context: BuildContext) -> Metric:
    from latentkit.metrics.likelihood import Iwae

    return Iwae(config.likelihood, config.scale, config.draws)


def _build_active_units(config: ActiveUnitsConfig, context: BuildContext) -> Metric:
    from latentkit.metrics.latents import ActiveUnits

    return ActiveUnits(config.threshold)


def _build_latent_statistics(config: NoOptions, context: BuildContext) -> Metric:
    from latentkit.metrics.latents import LatentStatistics

    return LatentStatistics()


def _build_latent_spectrum(config: SpectrumConfig, context: BuildContext) -> Metric:
    from latentkit.metrics.spectrum import LatentSpectrum

    return LatentSpectrum(config.bins)


def _build_rfid(config: RfidConfig, context: BuildContext) -> Metric:
    from latentkit.metrics.feature_networks import open_features
    from latentkit.metrics.frechet import Rfid

    return Rfid(open_features(config, context))


def _build_loss(config: LossMetricConfig, context: BuildContext) -> Metric:
    from latentkit.metrics.from_loss import open_loss

    return open_loss(config, context)


_ON_IMAGES: tuple[Need, ...] = ("decoder", "modality")
_BOUND: tuple[Need, ...] = ("decoder", "posterior")

METRICS = {
    spec.name: spec
    for spec in (
        MetricSpec(
            "psnr",
            "peak signal-to-noise ratio",
            NoOptions,
            _build_psnr,
            1,
            _ON_IMAGES,
            "higher",
        ),
        MetricSpec(
            "ssim",
            "structural similarity (Wang et al. 2004)",
            NoOptions,
            _build_ssim,
            1,
            _ON_IMAGES,
            "higher",
        ),
        MetricSpec(
            "ms-ssim",
            "structural similarity at five scales (Wang et al. 2003)",
            NoOptions,
            _build_ms_ssim,
            1,
            _ON_IMAGES,
            "higher",
        ),
        MetricSpec(
            "mse",
            "mean squared error, in squared units of the input",
            NoOptions,
            _build_mse,
            1,
            ("decoder",),
            "lower",
        ),
        MetricSpec(
            "l1",
            "mean absolute error, in units of the input",
            NoOptions,
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
            _ON_IMAGES,
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
            NoOptions,
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
            NoOptions,
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
"""The metrics by name, in the order of the README."""


@hookimpl
def latentkit_metrics() -> list[MetricSpec]:
    """Return all metrics of core."""
    return list(METRICS.values())
