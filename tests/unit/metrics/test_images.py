"""Picture metrics against scikit-image on its own photographs, and what an evaluation leaves alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from scipy.ndimage import gaussian_filter
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor, nn

from latentkit.builtin.metrics import METRICS
from latentkit.contracts import BuildContext, InputSpec, LatentLayout, Moments, Reconstruction
from latentkit.errors import EncoderError, RecipeError, SourceError
from latentkit.evaluation.evaluate import (
    EvaluateSettings,
    Evaluation,
    ModuleCodec,
    NamedMetric,
    check_metrics,
    evaluate_model,
)
from latentkit.evaluation.output import summarize
from latentkit.modalities.image import ImageModality
from latentkit.modalities.options import ImageConfig
from latentkit.plugins import discover
from latentkit.sources.sample_photos import open_sample_photos

SIDE = 192
Pixels = npt.NDArray[Any]


class Halving:
    """Pictures at half their size, and back with too much contrast, so that clamping and rounding
    matter.
    """

    input = InputSpec(channels=3)
    layout = LatentLayout("latent", "deterministic", "CHW", 3, 2)

    def encode(self, batch: Tensor) -> dict[str, Tensor]:
        return {"latent": nn.functional.avg_pool2d(batch, 2)}

    def decode(self, latents: Tensor) -> Tensor:
        return 1.2345 * nn.functional.interpolate(latents, scale_factor=2, mode="nearest")


def named(*uses: str, **options: Any) -> list[NamedMetric]:
    context = BuildContext(input=InputSpec(channels=3))
    return [
        NamedMetric(
            use,
            METRICS[use].build(discover().configure("metric", use, options, "metric"), context),
            METRICS[use].needs,
            METRICS[use].name,
        )
        for use in uses
    ]


def evaluate(
    metrics: Sequence[NamedMetric], model: Any = None, side: int = SIDE, **settings: Any
) -> Evaluation:
    source = open_sample_photos()
    modality = ImageModality(ImageConfig(size=side), BuildContext(input=InputSpec(channels=3)))
    return evaluate_model(
        model or Halving(), source, modality, metrics, EvaluateSettings(**settings)
    )


def pairs(side: int = SIDE) -> Iterator[tuple[Pixels, Pixels]]:
    """Every photograph and its reconstruction as 8-bit pictures, computed without the package's
    metrics.
    """
    modality = ImageModality(ImageConfig(size=side), BuildContext(input=InputSpec(channels=3)))
    source = open_sample_photos()
    for index in range(len(source)):
        (view,) = modality.prepare(source[index])
        assert isinstance(view.tensor, Tensor)
        values = view.tensor.numpy().transpose(1, 2, 0)
        small = values.reshape(side // 2, 2, side // 2, 2, 3).mean(axis=(1, 3))
        output = 1.2345 * small.repeat(2, axis=0).repeat(2, axis=1)
        yield tuple(np.round((np.clip(picture, -1, 1) + 1) * 127.5).astype(np.uint8) for picture in (values, output))  # type: ignore[misc]


def ssim(a: Pixels, b: Pixels) -> float:
    return float(
        structural_similarity(
            a,
            b,
            data_range=255,
            channel_axis=2,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
    )


def test_psnr_is_scikit_images() -> None:
    found = evaluate(named("psnr"))
    expected = [peak_signal_noise_ratio(a, b, data_range=255) for a, b in pairs()]
    np.testing.assert_allclose(found.per_sample["psnr"], expected, atol=1e-4)
    assert found.values() == {"psnr": pytest.approx(np.mean(expected), abs=1e-4)}


def test_ssim_is_scikit_images() -> None:
    found = evaluate(named("ssim"))
    np.testing.assert_allclose(
        found.per_sample["ssim"], [ssim(a, b) for a, b in pairs()], atol=1e-4
    )


def test_ms_ssim_is_that_of_wang_2003() -> None:
    """A transcription of its equation 7 with scipy's filter."""

    def factors(a: Pixels, b: Pixels) -> tuple[float, float]:
        def blur(values: Pixels) -> Pixels:
            filtered: Pixels = gaussian_filter(values, 1.5, truncate=3.5)[5:-5, 5:-5]
            return filtered

        mean_a, mean_b = blur(a), blur(b)
        contrast = (2 * (blur(a * b) - mean_a * mean_b) + 58.5225) / (
            blur(a * a) - mean_a**2 + blur(b * b) - mean_b**2 + 58.5225
        )
        luminance = (2 * mean_a * mean_b + 6.5025) / (mean_a**2 + mean_b**2 + 6.5025)
        return float(contrast.mean()), float((luminance * contrast).mean())

    def halve(a: Pixels) -> Pixels:
        a = a[: len(a) // 2 * 2, : a.shape[1] // 2 * 2]
        halved: Pixels = a.reshape(len(a) // 2, 2, -1, 2).mean(axis=(1, 3))
        return halved

    expected = []
    for pair in pairs():
        channels = []
        for channel in range(3):
            a, b = (picture[:, :, channel].astype(np.float64) for picture in pair)
            product = 1.0
            for weight in (0.0448, 0.2856, 0.3001, 0.2363):
                product *= factors(a, b)[0] ** weight
                a, b = halve(a), halve(b)
            channels.append(product * factors(a, b)[1] ** 0.1333)
        expected.append(np.mean(channels))
    np.testing.assert_allclose(
        evaluate(named("ms-ssim")).per_sample["ms-ssim"], expected, atol=1e-4
    )


def test_a_perfect_copy_has_infinite_psnr_and_an_ssim_of_one() -> None:
    class Copy(Halving):
        def encode(self, batch: Tensor) -> dict[str, Tensor]:
            return {"latent": batch}

        def decode(self, latents: Tensor) -> Tensor:
            return latents

    found = evaluate(named("psnr", "ssim"), Copy())
    assert found.values() == {"psnr": np.inf, "ssim": pytest.approx(1)}
    written = summarize(found)["metrics"]["psnr"]  # JSON has no number for it
    assert (written["value"], written["min"], written["std"]) == ("inf", "inf", "nan")


def test_the_protocol_says_what_was_done() -> None:
    figures = evaluate(named("psnr", "mse")).figures
    assert "rounded to 8 bits" in figures["psnr"].protocol
    assert "clamped, not rounded" in figures["mse"].protocol
    assert figures["psnr"].protocol.endswith("data range 255; decoded from the latents")


def test_a_loss_plugin_is_a_metric() -> None:
    found = evaluate(named("l1", "mse")).values()
    assert evaluate(named("loss", use="l1")).values()["loss"] == pytest.approx(
        found["l1"], rel=1e-5
    )
    assert evaluate(named("loss", use="mse")).values()["loss"] == pytest.approx(
        found["mse"], rel=1e-5
    )


def test_a_loss_that_compares_nothing_is_refused() -> None:
    with pytest.raises(
        RecipeError,
        match="expected a loss that compares output and input, but 'kl' has the role latent",
    ):
        named("loss", use="kl")


@pytest.mark.parametrize(("use", "side"), [("ssim", 8), ("ms-ssim", 96)])
def test_pictures_too_small_for_a_window_are_refused(use: str, side: int) -> None:
    with pytest.raises(
        SourceError, match=rf"'{use}' needs images of at least .* got {side} x {side}"
    ):
        evaluate(named(use), side=side)


def test_metrics_that_the_model_cant_have_are_refused_together() -> None:
    modality = ImageModality(ImageConfig(), BuildContext(input=InputSpec(channels=3)))
    with pytest.raises(RecipeError) as caught:
        check_metrics(named("psnr", "kl"), Halving.layout, "sample", False, modality)
    assert str(caught.value).splitlines() == [
        "posterior: sample needs a posterior, but there is none; set posterior: mean",
        "metric 'psnr' needs a model that can decode, but this one can't; leave it out",
        (
            "metric 'kl' needs a posterior, but these latents are deterministic, without mean and"
            " logvar; leave it out"
        ),
    ]


class Training(nn.Module):
    """A network in the middle of a training run, with batch norm that would learn from an
    evaluation in train mode.
    """

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.down, self.norm, self.up = (
            nn.Conv2d(3, 4, 2, 2),
            nn.BatchNorm2d(4),
            nn.ConvTranspose2d(2, 3, 2, 2),
        )

    def forward(self, batch: Tensor) -> Reconstruction:
        mean, logvar = self.norm(self.down(batch)).chunk(2, dim=1)
        latents = mean + torch.exp(0.5 * logvar) * torch.randn_like(mean)
        return Reconstruction(self.decode(latents), latents, Moments(mean, logvar))

    def decode(self, latents: Tensor) -> Tensor:
        decoded: Tensor = self.up(latents)
        return decoded


def codec(module: nn.Module) -> ModuleCodec:
    return ModuleCodec(
        module, InputSpec(channels=3), LatentLayout("latent", "gaussian", "CHW", 2, 2)
    )


def test_an_evaluation_leaves_weights_modes_and_random_numbers_as_they_were() -> None:
    module = Training().train()
    module.norm.eval()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    state = torch.get_rng_state()
    evaluate(named("psnr", "kl"), codec(module), posterior="sample")
    assert torch.equal(torch.get_rng_state(), state)
    assert module.training
    assert not module.norm.training
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


@pytest.mark.parametrize("posterior", ["mean", "sample"])
def test_batch_size_changes_nothing(posterior: str) -> None:
    metrics = [*named("psnr", "kl", "elbo"), *named("iwae", scale=0.5, draws=12)]
    one, many = (
        evaluate(metrics, codec(Training()), side=32, posterior=posterior, batch_size=size)
        for size in (1, 4)
    )
    assert one.values() == pytest.approx(many.values(), rel=1e-5)


def test_another_seed_draws_others() -> None:
    one, other = (
        evaluate(named("psnr"), codec(Training()), posterior="sample", seed=seed).values()
        for seed in (0, 1)
    )
    assert one != other


def test_a_module_without_decode_is_refused() -> None:
    class Blind(nn.Module):
        def forward(self, batch: Tensor) -> Reconstruction:
            return Reconstruction(batch, batch)

    with pytest.raises(EncoderError, match="its module has no method decode"):
        evaluate(named("psnr"), codec(Blind()))
