"""What a trainer reads is what the model's own pipeline feeds its transformer: by calling that
pipeline, or by its formula.

Paths are below diffusers/, lines those of diffusers 0.42.1. Where a pipeline only ever decodes, its
formula is turned round.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from latentkit.encoders.diffusers_table import TRAITS

MODELS = json.loads(Path(__file__).with_name("models.json").read_text())

# ---------------------------------------------------------------- formulas, for pipelines whose
# method needs more than the autoencoder


def by_scale(vae: Any, z: Tensor) -> Tensor:
    return z * vae.config.scaling_factor


def by_shift_and_scale(vae: Any, z: Tensor) -> Tensor:
    return (z - vae.config.shift_factor) * vae.config.scaling_factor


def by_channel(vae: Any, z: Tensor) -> Tensor:
    mean, std = (
        torch.tensor(values).view(1, -1, *[1] * (z.ndim - 2))
        for values in (vae.config.latents_mean, vae.config.latents_std)
    )
    return (z - mean) * (getattr(vae.config, "scaling_factor", None) or 1.0) / std


def by_channel_and_frame(vae: Any, z: Tensor) -> Tensor:
    shape = (1, vae.config.latent_channels, -1, 1, 1)
    mean, std = (
        torch.tensor(values).view(shape)[:, :, : z.size(2)]
        for values in (vae.config.latents_mean, vae.config.latents_std)
    )
    return (z - mean) / std  # times the sigma_data of its scheduler, which isn't the autoencoder's


def by_inverted_scale(vae: Any, z: Tensor) -> Tensor:
    return 1 / vae.config.scaling_factor * z


def as_it_is(vae: Any, z: Tensor) -> Tensor:
    return z


# Where each stands is said in models.json.
FORMULAS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "AsymmetricAutoencoderKL": by_scale,
    "AutoencoderDC": by_scale,
    "AutoencoderKL": by_shift_and_scale,
    "AutoencoderKL-per-channel": by_channel,
    "AutoencoderKL-scale-only": by_scale,
    "AutoencoderKLAllegro": by_scale,
    "AutoencoderKLCogVideoX": by_scale,
    "AutoencoderKLCogVideoX-inverted": by_inverted_scale,
    "AutoencoderKLCosmos": by_channel_and_frame,
    "AutoencoderKLHunyuanImage": by_scale,
    "AutoencoderKLHunyuanImageRefiner": by_scale,
    "AutoencoderKLHunyuanVideo": by_scale,
    "AutoencoderKLHunyuanVideo15": by_scale,
    "AutoencoderKLKVAE": as_it_is,
    "AutoencoderKLKVAEAudio": as_it_is,
    "AutoencoderKLKVAEVideo": as_it_is,
    "AutoencoderKLMagvit": by_scale,
    "AutoencoderKLMiniMaxH3Audio": by_channel,
    "AutoencoderKLMochi": by_channel,
    "AutoencoderKLQwenImage21-patches": by_channel,
    "AutoencoderKLTemporalDecoder": by_scale,
    "AutoencoderKLWan": by_channel,
    "AutoencoderKLWan-patches": by_channel,
    "AutoencoderOobleck": as_it_is,
    "AutoencoderRAE": as_it_is,
    "AutoencoderSAME": as_it_is,
    "AutoencoderTiny": as_it_is,
    "AutoencoderVidTok": as_it_is,
    "ConsistencyDecoderVAE": by_scale,
    "Cosmos3AVAEAudioTokenizer": as_it_is,
    "Cosmos3AVAEAudioTokenizer-mono": as_it_is,
    "LongCatAudioDiTVae": as_it_is,
    "VQModel": as_it_is,
}
CALLED = {
    "AutoencoderKLFlux2",
    "AutoencoderKLLTX2Audio",
    "AutoencoderKLLTX2Video",
    "AutoencoderKLLTXVideo",
    "AutoencoderKLMiniMaxH3",
} | {
    "AutoencoderKLQwenImage",
    "AutoencoderKLQwenImage21",
    "Kandinsky6SRVAE",
}
INDICES = {"AutoencoderVidTok-fsq", "AutoencoderVidTok-fsq-causal"}


@pytest.fixture(autouse=True)
def _quiet_imports() -> Iterator[None]:
    """Pipelines import parts of transformers that warn of packages they could do without."""
    with warnings.catch_warnings(action="ignore"):
        yield


def normalized(encoder: Any, raw: Tensor) -> Tensor:
    return encoder.normalization.apply(raw, encoder.layout.axes)


def assert_fed(encoder: Any, raw: Tensor, expected: Tensor, tolerance: float = 2e-6) -> None:
    """Within rounding of what the pipeline gives, and back by `invert`."""
    got = normalized(encoder, raw)
    torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(
        encoder.normalization.invert(got, encoder.layout.axes), raw, rtol=1e-5, atol=1e-5
    )


def test_every_class_is_held_to_its_pipeline() -> None:
    assert set(FORMULAS) | CALLED | INDICES == set(MODELS)


@pytest.mark.parametrize("name", sorted(FORMULAS))
def test_normalized_latents_follow_the_formula_of_the_pipeline(name: str, tiny: Any) -> None:
    encoder = tiny.encoder(name)
    raw = next(iter(encoder.encode(tiny.batch(name, rows=1)).values()))
    formula = FORMULAS[name]
    expected = formula(tiny.model(name), raw)
    assert_fed(encoder, raw, expected)
    assert torch.equal(expected, raw) == (formula is as_it_is)


def test_flux_img2img(tiny: Any) -> None:
    """pipelines/flux/pipeline_flux_img2img.py:464, called; it samples, as do we with the same
    noise.
    """
    from diffusers import FluxImg2ImgPipeline

    encoder, batch = tiny.encoder("AutoencoderKL"), tiny.batch("AutoencoderKL")
    pipeline = SimpleNamespace(vae=tiny.model("AutoencoderKL"))
    expected = FluxImg2ImgPipeline._encode_vae_image(
        pipeline, batch, torch.Generator().manual_seed(3)
    )
    moments = encoder.encode(batch)
    noise = torch.randn(moments["mean"].shape, generator=torch.Generator().manual_seed(3))
    assert_fed(encoder, moments["mean"] + (0.5 * moments["logvar"]).exp() * noise, expected, 1e-5)


def test_flux2(tiny: Any) -> None:
    """pipelines/flux2/pipeline_flux2.py:606, called: batch-norm statistics of 2 x 2 patches, eps of
    the config.
    """
    from diffusers import Flux2Pipeline

    name = "AutoencoderKLFlux2"
    encoder, batch = tiny.encoder(name), tiny.batch(name)
    pipeline = SimpleNamespace(
        vae=tiny.model(name), _patchify_latents=Flux2Pipeline._patchify_latents
    )
    expected = Flux2Pipeline._encode_vae_image(pipeline, batch, None)
    assert expected.shape[1] == 4 * encoder.layout.channels
    assert_fed(encoder, encoder.encode(batch)["mean"], expected, 1e-5)


@pytest.mark.parametrize(
    ("name", "pipeline_name"),
    [
        ("AutoencoderKLQwenImage", "QwenImageEditPipeline"),
        ("AutoencoderKLQwenImage21", "QwenImage21Pipeline"),
    ],
)
def test_qwen_image(name: str, pipeline_name: str, tiny: Any) -> None:
    """pipelines/qwenimage/pipeline_qwenimage_edit.py:405,
    pipelines/qwenimage21/pipeline_qwenimage21.py:428, called.
    """
    import diffusers

    encoder, batch = tiny.encoder(name), tiny.batch(name)
    pipeline = SimpleNamespace(vae=tiny.model(name), latent_channels=encoder.layout.channels)
    expected = getattr(diffusers, pipeline_name)._encode_vae_image(
        pipeline, batch[:, :, None], None
    )
    assert_fed(encoder, encoder.encode(batch)["mean"], expected[:, :, 0])


@pytest.mark.parametrize("pipeline_name", ["LTXImageToVideoPipeline", "LTX2ImageToVideoPipeline"])
def test_ltx(pipeline_name: str, tiny: Any) -> None:
    """pipelines/ltx/pipeline_ltx_image2video.py:551,
    pipelines/ltx2/pipeline_ltx2_image2video.py:846, called: statistics are buffers.
    """
    import diffusers

    name = "AutoencoderKLLTX2Video" if "LTX2" in pipeline_name else "AutoencoderKLLTXVideo"
    vae, encoder = tiny.model(name), tiny.encoder(name)
    raw = encoder.encode(tiny.batch(name))["mean"]
    expected = getattr(diffusers, pipeline_name)._normalize_latents(
        raw, vae.latents_mean, vae.latents_std
    )
    assert not torch.equal(expected, raw)
    assert_fed(encoder, raw, expected)


def test_ltx2_audio(tiny: Any) -> None:
    """modular_pipelines/echo/encoders.py:212 and pipelines/ltx2/pipeline_ltx2.py:828, called:
    statistics per channel and mel bin.
    """
    from diffusers import LTX2Pipeline
    from diffusers.modular_pipelines.echo.encoders import _normalize_audio_latents

    name = "AutoencoderKLLTX2Audio"
    vae, encoder = tiny.model(name), tiny.encoder(name)
    raw = encoder.encode(tiny.batch(name))["mean"]
    expected = _normalize_audio_latents(raw, vae.latents_mean, vae.latents_std)
    packed = expected.transpose(1, 2).flatten(
        2
    )  # (N, frames, channels x bins), as the transformer takes them
    back = LTX2Pipeline._denormalize_audio_latents(packed, vae.latents_mean, vae.latents_std)
    torch.testing.assert_close(back, raw.transpose(1, 2).flatten(2))
    assert_fed(encoder, raw, packed.transpose(1, 2)[..., None])


def test_minimax_h3(tiny: Any) -> None:
    """modular_pipelines/minimax_h3/encoders.py:103, called: from bytes, with ImageNet's pixels; it
    rounds a sample to fp16.
    """
    from diffusers.modular_pipelines.minimax_h3.encoders import encode_vae_condition

    name = "AutoencoderKLMiniMaxH3"
    encoder = tiny.encoder(name)
    assert encoder.input.range == (0.0, 1.0)
    pixels = torch.randint(
        0,
        256,
        (1, *tiny.batch(name).shape[1:]),
        generator=torch.Generator().manual_seed(0),
        dtype=torch.uint8,
    )
    expected = encode_vae_condition(
        tiny.model(name), pixels, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), encode_seed=5
    )
    moments = encoder.encode(pixels / 255)
    noise = torch.randn(moments["mean"].shape, generator=torch.Generator().manual_seed(5))
    assert_fed(encoder, moments["mean"] + (0.5 * moments["logvar"]).exp() * noise, expected, 4e-3)


def test_kandinsky6_sr(tiny: Any) -> None:
    """pipelines/kandinsky6/pipeline_kandinsky6_sr.py:214, called: pixels are / 128 - 1; and its
    decode_latents gives what ours gives.
    """
    from diffusers import Kandinsky6SRPipeline

    name = "Kandinsky6SRVAE"
    encoder, batch = tiny.encoder(name), tiny.batch(name)
    pipeline = SimpleNamespace(vae=tiny.model(name))
    expected = Kandinsky6SRPipeline.encode_video(pipeline, batch)
    raw = encoder.encode(batch)["mean"]
    assert_fed(encoder, raw, expected, 2e-5)
    decoded = Kandinsky6SRPipeline.decode_latents(pipeline, expected)
    torch.testing.assert_close(encoder.decode(raw).clamp(-1, 1), decoded, rtol=1e-4, atol=1e-4)


def test_statistics_of_every_kind_are_tested() -> None:
    assert {TRAITS[name.split("-")[0]].statistics for name in MODELS} == {
        "config",
        "scale",
        "buffers",
        "batch-norm",
        "inside",
        "none",
    }
