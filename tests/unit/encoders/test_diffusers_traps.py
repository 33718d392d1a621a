"""What goes wrong with diffusers' autoencoders unless somebody looks: each trap once, with the
proof that the bare class falls into it.
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor, nn

from latentkit.contracts import Moments
from latentkit.encoders.diffusers import DiffusersEncoder
from latentkit.encoders.diffusers_table import TRAITS
from latentkit.errors import EncoderError
from latentkit.losses.kl import kl_nats

MODELS = json.loads(Path(__file__).with_name("models.json").read_text())
CLASSES = sorted(name for name in MODELS if "-" not in name)
OF_CLIPS = [
    name
    for name in CLASSES
    if TRAITS[name].axes == "CTHW" and TRAITS[name].modalities[0] == "video"
]
NOT_BATCHED = ("AutoencoderKLAllegro", "AutoencoderKLHunyuanVideo15", "Cosmos3AVAEAudioTokenizer")


def open_folder(folder: Path, **options: Any) -> DiffusersEncoder:
    return DiffusersEncoder(
        folder,
        None,
        options.pop("dtype", torch.float32),
        options.pop("tiling", False),
        "cpu",
        **options,
    )


def first(latents: dict[str, Tensor]) -> Tensor:
    return next(iter(latents.values()))


# ---------------------------------------------------------------- sizes


@pytest.mark.parametrize("name", [*OF_CLIPS, "AutoencoderKLLTX2Audio"])
def test_frame_counts_off_the_rule_are_refused(name: str, tiny: Any) -> None:
    encoder, batch = tiny.encoder(name), tiny.batch(name, rows=1)
    rule = encoder.input.sizes["T"]
    assert rule.allows(batch.shape[2])
    for other in {batch.shape[2] + 1, batch.shape[2] - 1} - {1}:
        longer = torch.zeros(1, batch.shape[1], other, *batch.shape[3:])
        with pytest.raises(
            ValueError, match=f"T of the batch is {other}; the encoder accepts {rule.multiple} "
        ):
            encoder.encode(longer)


def test_bare_wan_drops_the_last_frames_without_a_word(tiny: Any) -> None:
    batch = tiny.batch("AutoencoderKLWan", rows=1)
    longer = torch.cat([batch, -batch[:, :, :3]], dim=2)
    with torch.no_grad():
        short, long = (
            tiny.model("AutoencoderKLWan").encode(clip).latent_dist.mean for clip in (batch, longer)
        )
    assert torch.equal(short, long)


@pytest.mark.parametrize("name", CLASSES)
def test_sizes_off_the_rule_are_refused(name: str, tiny: Any) -> None:
    encoder, batch = tiny.encoder(name), tiny.batch(name, rows=1)
    axis = encoder.input.axes[-1]
    with pytest.raises(
        ValueError,
        match=(
            f"{axis} of the batch is {batch.shape[-1] + 1}; the encoder accepts a multiple of|{axis}"
            " .* k"
        ),
    ):
        encoder.encode(torch.zeros(*batch.shape[:-1], batch.shape[-1] + 1))
    with pytest.raises(ValueError, match="expected a batch"):
        encoder.encode(batch[0])


def test_allegro_never_sees_less_than_a_tile(tiny: Any) -> None:
    encoder = tiny.encoder("AutoencoderKLAllegro")
    model = tiny.model("AutoencoderKLAllegro")
    with torch.no_grad():
        zeros, ones = (
            model.encode(torch.full((1, 3, 24, 64, 64), value)).latent_dist.mean
            for value in (0.0, 1.0)
        )
    assert torch.equal(zeros, ones), "below one tile the bare class ignores its input"
    with pytest.raises(ValueError, match="H of the batch is 64"):
        encoder.encode(torch.zeros(1, 3, 24, 64, 64))
    # tiles of sample_size (128 here), one every 8 rows and 48 columns: overlaps of 120 and 80 are
    # fixed
    assert [size for size in range(400) if encoder.input.sizes["W"].allows(size)] == [
        128,
        176,
        224,
        272,
        320,
        368,
    ]


def test_vidtok_encodes_the_first_frame_like_its_own_forward(tiny: Any) -> None:
    encoder, batch = tiny.encoder("AutoencoderVidTok"), tiny.batch("AutoencoderVidTok")
    with torch.no_grad():
        bare = tiny.model("AutoencoderVidTok").encode(batch).latent_dist.mean
    assert bare.shape[2] < encoder.encode(batch)["mean"].shape[2]


def test_attributes_that_lie_are_not_believed(tiny: Any) -> None:
    model = tiny.model("AutoencoderKLLTX2Video")
    assert (model.spatial_compression_ratio, model.temporal_compression_ratio) != (32, 8)
    assert tiny.encoder("AutoencoderKLLTX2Video").layout.downscale == (8, 32, 32)
    assert tiny.model("AutoencoderKLHunyuanImageRefiner").temporal_compression_ratio == 4
    assert tiny.encoder("AutoencoderKLHunyuanImageRefiner", "video").layout.downscale == (1, 16, 16)


# ---------------------------------------------------------------- batches, noise, state


@pytest.mark.parametrize("name", CLASSES)
def test_a_latent_does_not_depend_on_its_neighbors_nor_on_what_came_before(
    name: str, tiny: Any
) -> None:
    encoder, batch = tiny.encoder(name), tiny.batch(name)
    state = torch.random.get_rng_state()
    together = encoder.encode(batch)
    alone = encoder.encode(batch[1:])
    assert torch.equal(torch.random.get_rng_state(), state), "encode draws"
    for kind, tensor in together.items():
        torch.testing.assert_close(tensor[1:], alone[kind], rtol=1e-4, atol=1e-4)
    if name in NOT_BATCHED:
        assert torch.equal(first(together)[1:], first(alone))


def test_bare_cosmos3_audio_depends_on_the_loudest_of_its_batch(tiny: Any) -> None:
    batch = tiny.batch("Cosmos3AVAEAudioTokenizer") * torch.tensor([1.0, 0.1]).reshape(2, 1, 1)
    with torch.no_grad():
        bare = tiny.model("Cosmos3AVAEAudioTokenizer").encode(batch).latent_dist.mean[1:]
    encoder = tiny.encoder("Cosmos3AVAEAudioTokenizer")
    assert not torch.allclose(bare, encoder.encode(batch)["mean"][1:], atol=1e-3)


@pytest.mark.parametrize(
    "name",
    ["AutoencoderKLMagvit", "AutoencoderKLQwenImage", "AutoencoderKLWan", "AutoencoderVidTok"],
)
def test_a_failed_encode_leaves_the_encoder_usable(name: str, tiny: Any) -> None:
    encoder, batch = open_folder(tiny.folder(name)), tiny.batch(name)
    expected = first(encoder.encode(batch))
    layers = [
        layer
        for layer in encoder.encoding_half.encoder.modules()
        if isinstance(layer, nn.Conv3d | nn.Conv2d)
    ]

    def fail(*_: object) -> None:
        raise MemoryError("as when a batch is too large")

    hook = layers[-1].register_forward_hook(fail)
    with pytest.raises(MemoryError):
        encoder.encode(batch[..., :8, :8])
    hook.remove()
    assert torch.equal(first(encoder.encode(batch)), expected)


def test_dropout_is_off(tiny: Any) -> None:
    encoder = tiny.encoder("AutoencoderKLAllegro")
    encoder.encode(tiny.batch("AutoencoderKLAllegro", rows=1))
    assert not any(module.training for module in encoder.encoding_half.modules())


@pytest.mark.parametrize(
    "name",
    [
        "AutoencoderOobleck",
        "AutoencoderKLMiniMaxH3Audio",
        "Cosmos3AVAEAudioTokenizer",
        "AutoencoderKLWan",
    ],
)
def test_every_way_to_write_a_spread_becomes_a_logvar(name: str, tiny: Any) -> None:
    batch = tiny.batch(name, rows=1)
    with torch.no_grad():
        std = tiny.model(name).encode(batch).latent_dist.std
    torch.testing.assert_close(
        (0.5 * tiny.encoder(name).encode(batch)["logvar"]).exp(), std, rtol=1e-4, atol=1e-6
    )


def test_a_variance_that_is_always_one_is_not_stored(tiny: Any) -> None:
    batch = tiny.batch("AutoencoderKLKVAEVideo")
    with torch.no_grad():
        posterior = tiny.model("AutoencoderKLKVAEVideo").encode(batch).latent_dist
    assert torch.equal(posterior.std, torch.ones_like(posterior.std))
    assert tiny.encoder("AutoencoderKLKVAEVideo").layout.kind == "deterministic"


def test_kl_of_a_clip_is_one_number_per_sample_where_diffusers_gives_columns(tiny: Any) -> None:
    batch = tiny.batch("AutoencoderKLWan")
    with torch.no_grad():
        posterior = tiny.model("AutoencoderKLWan").encode(batch).latent_dist
    assert posterior.kl().ndim == 2
    moments = tiny.encoder("AutoencoderKLWan").encode(batch)
    by_hand = (
        torch.distributions.kl_divergence(
            torch.distributions.Normal(posterior.mean, posterior.std),
            torch.distributions.Normal(0.0, 1.0),
        )
        .flatten(1)
        .sum(1)
    )
    torch.testing.assert_close(kl_nats(Moments(moments["mean"], moments["logvar"])), by_hand)


# ---------------------------------------------------------------- dtype, tiling, halves


def test_modules_kept_in_float32_get_their_input_in_float32(tiny: Any) -> None:
    folder, batch = tiny.folder("AutoencoderKLMiniMaxH3"), tiny.batch(
        "AutoencoderKLMiniMaxH3", rows=1
    )
    in_half = open_folder(folder, dtype=torch.bfloat16).encode(batch)["mean"]
    torch.testing.assert_close(
        in_half, tiny.encoder("AutoencoderKLMiniMaxH3").encode(batch)["mean"], rtol=1e-5, atol=1e-5
    )


def test_other_dtypes_reach_the_network(tiny: Any) -> None:
    batch = tiny.batch("AutoencoderKLWan", rows=1)
    assert (
        open_folder(tiny.folder("AutoencoderKLWan"), dtype=torch.bfloat16)
        .encode(batch)["mean"]
        .dtype
        == torch.bfloat16
    )


def test_tiling_is_tried_rather_than_believed(tiny: Any) -> None:
    for name in (
        "AsymmetricAutoencoderKL",
        "AutoencoderKLLTX2Audio",
        "AutoencoderKLTemporalDecoder",
        "AutoencoderSAME",
        "VQModel",
    ):
        with pytest.raises(EncoderError, match=f"option tiling: {name} can't encode in tiles"):
            open_folder(tiny.folder(name), tiling=True)
    tiled = open_folder(tiny.folder("AutoencoderKLWan"), tiling=True)
    assert tiled.fingerprint()["tiling"] == "on"
    assert tiled.encoding_half.use_tiling
    tiny.encoder("AutoencoderKLMiniMaxH3").fingerprint()
    assert tiny.encoder(
        "AutoencoderKLMiniMaxH3"
    ).encoding_half.use_tiling, "tiling is a part of this model"


@pytest.mark.parametrize("name", CLASSES)
def test_no_weight_of_the_decoder_is_held_or_hashed(name: str, tiny: Any) -> None:
    encoder = tiny.encoder(name)
    parts = encoder.fingerprint()
    kept = {weight for weight, _ in encoder.encoding_half.named_parameters()}
    assert parts["weights"] != parts["decoder"]
    assert kept
    of_the_decoder = ("decoder", "post_quant_conv", "out_proj", "dec_in_proj", "quantize")
    assert not {weight for weight in kept if weight.startswith(of_the_decoder)}
    whole = {weight for weight, _ in tiny.model(name).named_parameters()}
    assert {weight for weight in whole if weight.startswith(("encoder.", "quant_conv."))} <= kept


def test_statistics_do_not_change_the_fingerprint(tiny: Any, tmp_path: Path) -> None:
    for name in ("AutoencoderKLFlux2", "AutoencoderKLLTXVideo"):
        encoder = open_folder(tiny.folder(name))
        encoder.set_statistics(
            torch.arange(1.0, encoder.layout.channels + 1),
            torch.full((encoder.layout.channels,), 2.0),
        )
        encoder.save(tmp_path / name)
        assert open_folder(tmp_path / name).fingerprint() == tiny.encoder(name).fingerprint()
        assert open_folder(tmp_path / name).normalization != tiny.encoder(name).normalization


# ---------------------------------------------------------------- classes and packages


def test_a_structure_is_refused_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "RFD4ProteinaAutoencoder"}))
    with pytest.raises(
        EncoderError, match=r"RFD4ProteinaAutoencoder can't be an encoder: .* ten aligned tensors"
    ):
        open_folder(tmp_path)


def test_missing_transformers_is_said(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny.folder("AutoencoderRAE")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(EncoderError, match=r"AutoencoderRAE needs the package transformers"):
        open_folder(folder)


def test_config_that_does_not_fit_its_class_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(
        json.dumps({"_class_name": "AutoencoderKL", "block_out_channels": [7]})
    )
    with pytest.raises(
        EncoderError, match=r"AutoencoderKL can't be built by its config: .*divisible"
    ):
        open_folder(tmp_path)


def save_with(folder: Path, name: str, **changes: Any) -> Path:
    """A model of random weights whose config is changed, as its class saves it."""
    config = MODELS[name]["config"] | changes
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings(action="ignore"):
        getattr(diffusers, config["_class_name"]).from_config(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        (
            "AutoencoderKLLTX2Audio",
            {"base_channels": 32},
            "latents_mean has 32 values for latents of 16 channels",
        ),
        (
            "AutoencoderKLFlux2",
            {"patch_size": [1, 1]},
            r"bn\.running_mean has 4 values for latents of 16 channels",
        ),
        (
            "AutoencoderKLWan",
            {"latents_std": [1.0, 2.0, 3.0]},
            "latents_std has 3 values for latents of 4 channels",
        ),
        (
            "AutoencoderKL",
            {"latents_mean": [0.0] * 8, "latents_std": [1.0] * 8},
            "latents_mean has 8 values for latents of 4 channels",
        ),
    ],
)
def test_statistics_of_another_length_are_refused_when_the_model_is_opened(
    name: str, changes: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(EncoderError, match=rf"config\.json: by it {said}"):
        open_folder(save_with(tmp_path / "model", name, **changes))


def test_decoder_of_other_latents_is_said_when_it_decodes(tiny: Any, tmp_path: Path) -> None:
    encoder = open_folder(
        save_with(tmp_path / "model", "AutoencoderOobleck", decoder_input_channels=6)
    )
    mean = encoder.encode(tiny.batch("AutoencoderOobleck"))["mean"]
    with pytest.raises(
        EncoderError,
        match=(
            r"decoder of AutoencoderOobleck can't take latents of shape \(2, 4, 8\).* have 4"
            r" channels.*config\.json"
        ),
    ):
        encoder.decode(mean)


def test_indices_where_there_is_a_codebook(tiny: Any) -> None:
    encoder, batch = open_folder(tiny.folder("VQModel"), indices=True), tiny.batch("VQModel")
    indices = encoder.encode(batch)["indices"]
    assert (encoder.layout.kind, encoder.layout.axes, indices.shape) == (
        "quantised",
        "HW",
        (2, 16, 24),
    )
    with torch.no_grad():
        model = tiny.model("VQModel")
        continuous = model.encode(batch).latents
        nearest = torch.cdist(
            continuous.movedim(1, -1).flatten(0, 2), model.quantize.embedding.weight
        ).argmin(1)
        expected = model.decode(continuous).sample
    assert torch.equal(indices.flatten(), nearest)
    torch.testing.assert_close(encoder.decode(indices), expected, rtol=1e-4, atol=1e-5)
    assert (
        open_folder(tiny.folder("AutoencoderVidTok-fsq"), indices=False).layout.kind
        == "deterministic"
    )
    with pytest.raises(EncoderError, match="option indices: AutoencoderTiny has no codebook"):
        open_folder(tiny.folder("AutoencoderTiny"), indices=True)
