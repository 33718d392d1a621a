"""Every class: what latentkit stores is what diffusers gives, bit for bit, of the shape the layout
says, and decodes to what went in.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from latentkit.encoders.diffusers_table import TRAITS
from latentkit.encoding.batch_tensors import check_latents
from latentkit.encoding.encode_source import encode_source
from latentkit.encoding.make_plan import EncodeInputs, EncodeSettings
from latentkit.executors.local import LocalExecutor
from latentkit.store.local_folder import LocalFolder

MODELS = json.loads(Path(__file__).with_name("models.json").read_text())
OF_PICTURES = sorted(name for name in MODELS if TRAITS[name.split("-")[0]].axes == "CHW")
VIDEO_OF_PICTURES = sorted(
    name
    for name in MODELS
    if TRAITS[name.split("-")[0]].axes == "CTHW"
    and "image" in TRAITS[name.split("-")[0]].modalities
    and name != "AutoencoderVidTok-fsq"
)

# Name in models.json to latent sizes, worked out by hand from the released code: input sizes over
# strides, clips with their first frame.
LATENT_SIZES: dict[str, tuple[int, ...]] = {
    "AsymmetricAutoencoderKL": (4, 16, 24),
    "AutoencoderDC": (4, 16, 24),
    "AutoencoderKL": (4, 8, 12),
    "AutoencoderKL-per-channel": (4, 8, 12),
    "AutoencoderKL-scale-only": (4, 8, 12),
    "AutoencoderKLAllegro": (4, 6, 16, 16),
    "AutoencoderKLCogVideoX": (4, 3, 2, 3),
    "AutoencoderKLCogVideoX-inverted": (4, 3, 2, 3),
    "AutoencoderKLCosmos": (4, 2, 2, 3),
    "AutoencoderKLFlux2": (4, 16, 24),
    "AutoencoderKLHunyuanImage": (4, 8, 12),
    "AutoencoderKLHunyuanImageRefiner": (4, 2, 3),
    "AutoencoderKLHunyuanVideo": (4, 2, 2, 3),
    "AutoencoderKLHunyuanVideo15": (4, 2, 2, 3),
    "AutoencoderKLKVAE": (4, 8, 12),
    "AutoencoderKLKVAEAudio": (8, 8),
    "AutoencoderKLKVAEVideo": (4, 2, 2, 3),
    "AutoencoderKLLTX2Audio": (4, 3, 4),
    "AutoencoderKLLTX2Video": (8, 2, 2, 3),
    "AutoencoderKLLTXVideo": (8, 2, 1, 2),
    "AutoencoderKLMagvit": (4, 2, 2, 3),
    "AutoencoderKLMiniMaxH3": (4, 7, 2, 3),
    "AutoencoderKLMiniMaxH3Audio": (8, 8),
    "AutoencoderKLMochi": (4, 2, 2, 3),
    "AutoencoderKLQwenImage": (4, 4, 6),
    "AutoencoderKLQwenImage21": (4, 2, 3),
    "AutoencoderKLQwenImage21-patches": (4, 2, 3),
    "AutoencoderKLTemporalDecoder": (4, 16, 24),
    "AutoencoderKLWan": (4, 2, 2, 3),
    "AutoencoderKLWan-patches": (4, 2, 2, 3),
    "AutoencoderOobleck": (4, 8),
    "AutoencoderRAE": (64, 2, 2),
    "AutoencoderSAME": (8, 4),
    "AutoencoderTiny": (4, 8, 12),
    "AutoencoderVidTok": (4, 2, 2, 3),
    "AutoencoderVidTok-fsq": (4, 2, 3),
    "AutoencoderVidTok-fsq-causal": (2, 2, 3),
    "ConsistencyDecoderVAE": (4, 16, 24),
    "Cosmos3AVAEAudioTokenizer": (4, 8),
    "Cosmos3AVAEAudioTokenizer-mono": (4, 8),
    "Kandinsky6SRVAE": (4, 2, 2, 3),
    "LongCatAudioDiTVae": (4, 16),
    "VQModel": (4, 16, 24),
}


def as_network_input(name: str, batch: Tensor) -> Tensor:
    """The batch as the class wants it, by what its own pipeline does."""
    if name == "AutoencoderKLMiniMaxH3":
        mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]]).reshape(
            2, 3, 1, 1, 1
        )
        return (batch - mean) / std
    if name == "Kandinsky6SRVAE":
        return (batch + 1) * (127.5 / 128) - 1
    if batch.ndim == 4 and TRAITS[name.split("-")[0]].axes == "CTHW":
        return batch[:, :, None]
    return (
        batch.contiguous(memory_format=torch.channels_last)
        if batch.ndim == 4 and name != "AutoencoderKLLTX2Audio"
        else batch
    )


def call_directly(name: str, model: Any, batch: Tensor) -> dict[str, Tensor]:
    """Latents by calling diffusers, without latentkit."""
    inputs = as_network_input(name, batch)
    if name.split("-")[0] in (
        "AutoencoderKLAllegro",
        "AutoencoderKLHunyuanVideo15",
        "Cosmos3AVAEAudioTokenizer",
    ):
        posteriors = [model.encode(row[None]).latent_dist for row in inputs]
        return {
            kind: torch.cat([getattr(posterior, kind) for posterior in posteriors])
            for kind in ("mean", "logvar")
        }
    if name == "AutoencoderVidTok":
        return {"mean": model(inputs, sample_posterior=False, encoder_mode=True)}
    if name.startswith("AutoencoderVidTok-fsq"):
        return {"indices": model(inputs, encoder_mode=True)[1]}
    if name == "LongCatAudioDiTVae":
        return {"latent": model.encode(inputs, sample_posterior=False).latents}
    output = model.encode(inputs)
    if name in ("AutoencoderDC", "AutoencoderRAE"):
        return {"latent": output.latent}
    if name in ("AutoencoderSAME", "AutoencoderTiny", "VQModel"):
        return {"latent": output.latents}
    if name in ("AutoencoderKLCosmos", "AutoencoderKLKVAEVideo"):
        return {"latent": output.latent_dist.mode()}
    if name == "AutoencoderKLMiniMaxH3Audio":
        return {"mean": output.latent_dist.mean, "logvar": 2 * output.latent_dist.std.log()}
    found = {"mean": output.latent_dist.mean, "logvar": output.latent_dist.logvar}
    return (
        {kind: tensor[:, :, 0] for kind, tensor in found.items()}
        if inputs.ndim > batch.ndim
        else found
    )


def assert_equal(name: str, got: Tensor, expected: Tensor) -> None:
    """Bit for bit; within rounding where pixels are converted from another range first, by a
    formula that can be written in two ways.
    """
    tolerance = 2e-5 if name == "Kandinsky6SRVAE" else 0.0
    torch.testing.assert_close(got, expected, rtol=0.0, atol=tolerance)


def store_and_read(encoder: Any, batch: Tensor, rows_of: Any, folder: Path) -> dict[str, Tensor]:
    """What a run keeps of a batch in one unit in float32, read back."""
    inputs = EncodeInputs(
        rows_of(batch), rows_of(batch), ["plain"], lambda _: encoder, {"encoder.name": "test"}
    )
    settings = EncodeSettings(
        dtype="float32",
        batch_size=len(batch),
        unit_size=len(batch),
        threads=torch.get_num_threads(),
        compile=False,
    )
    summary = encode_source(
        LocalFolder(folder), inputs, LocalExecutor("cpu"), "cpu", settings, "", show_progress=False
    )
    assert (summary.num_ok, summary.num_skipped) == (len(batch), 0)
    (unit,) = (folder / "units").glob("*.safetensors")
    stored = load_file(unit)
    if encoder.layout.kind == "gaussian":
        return dict(zip(("mean", "logvar"), stored["bucket/moments"].chunk(2, dim=1), strict=True))
    name = "indices" if encoder.layout.kind == "quantised" else "latent"
    return {name: stored[f"bucket/{name}"]}


def test_every_exported_autoencoder_is_here_or_refused() -> None:
    exported = {
        name
        for name in dir(diffusers)
        if name.startswith(("Autoencoder", "AsymmetricAutoencoder")) or name == "VQModel"
    }
    assert len(exported) == 31  # the 32nd is RFD4ProteinaAutoencoder
    tested = {name.split("-")[0] for name in MODELS}
    assert exported <= tested <= set(TRAITS)
    assert [name for name, traits in TRAITS.items() if traits.refused] == [
        "RFD4ProteinaAutoencoder"
    ]
    assert set(TRAITS) - tested == {"RFD4ProteinaAutoencoder"}
    assert set(LATENT_SIZES) == set(MODELS)


@pytest.mark.parametrize("name", sorted(MODELS))
def test_latents_and_what_is_stored_are_those_of_a_direct_call(
    name: str, tiny: Any, rows_of: Any, tmp_path: Path
) -> None:
    encoder, batch = tiny.encoder(name), tiny.batch(name)
    with torch.inference_mode():
        model = tiny.model(name)
        if name in OF_PICTURES:
            for half in (model.encoder, getattr(model, "quant_conv", None) or model.encoder):
                half.to(memory_format=torch.channels_last)
        expected = call_directly(name, model, batch)
    got = encoder.encode(batch)
    stored = store_and_read(encoder, batch, rows_of, tmp_path / "out")
    assert set(stored) == set(got)
    for kind, tensor in expected.items():
        assert_equal(name, got[kind], tensor)
        assert_equal(name, stored[kind], tensor)
        assert bool(tensor.isfinite().all())
        assert len(tensor.unique()) > 2, "the model is dead: perturb it"
    assert all(torch.equal(stored[kind], tensor) for kind, tensor in got.items())
    check_latents(got, encoder.layout, batch, encoder.input.axes)


@pytest.mark.parametrize("name", sorted(MODELS))
def test_latents_have_the_sizes_worked_out_by_hand(name: str, tiny: Any) -> None:
    for tensor in tiny.encoder(name).encode(tiny.batch(name, rows=1)).values():
        assert tuple(tensor.shape) == (1, *LATENT_SIZES[name])


@pytest.mark.parametrize("name", sorted(MODELS))
def test_decode_gives_what_went_in_its_shape(name: str, tiny: Any) -> None:
    encoder, batch = tiny.encoder(name), tiny.batch(name, rows=1)
    latents = next(iter(encoder.encode(batch).values()))
    decoded = encoder.decode(latents)
    assert decoded.shape == batch.shape
    assert decoded.dtype == torch.float32
    assert bool(decoded.isfinite().all())
    other = torch.zeros_like(latents)
    assert not torch.equal(encoder.decode(other), decoded), "decode looks at its latents"


@pytest.mark.parametrize("name", VIDEO_OF_PICTURES)
def test_pictures_through_a_video_class_are_clips_of_one_frame(name: str, tiny: Any) -> None:
    encoder, batch = tiny.encoder(name, "image"), tiny.batch(name, "image")
    assert (encoder.modality, encoder.input.axes) == ("image", "CHW")
    got = encoder.encode(batch)
    check_latents(got, encoder.layout, batch, "CHW")
    if TRAITS[name.split("-")[0]].modalities[0] != "image":
        with torch.inference_mode():
            expected = call_directly(name, tiny.model(name), batch[:, :, None])
        for kind, tensor in expected.items():
            time = 1 if kind == "indices" else 2
            assert_equal(name, got[kind].unsqueeze(time), tensor)
    assert encoder.decode(next(iter(got.values()))).shape == batch.shape


@pytest.mark.parametrize("name", OF_PICTURES)
def test_videos_through_a_picture_class_are_its_frames(name: str, tiny: Any) -> None:
    encoder, batch = tiny.encoder(name, "video"), tiny.batch(name, "video")
    assert batch.ndim == 5
    got = encoder.encode(batch)
    check_latents(got, encoder.layout, batch, "CTHW")
    for frame in range(batch.shape[2]):
        for kind, tensor in tiny.encoder(name).encode(batch[:, :, frame]).items():
            torch.testing.assert_close(got[kind][:, :, frame], tensor, rtol=1e-4, atol=1e-5)
    assert encoder.decode(next(iter(got.values()))).shape == batch.shape
