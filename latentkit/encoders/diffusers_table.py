"""The table of diffusers' autoencoder classes: one row per class, with everything that can't be
measured or read from its config.

`docs/autoencoders.md` is this table in words. A class without a row is tried as each of `UNLISTED`,
and accepted if its `encode` takes one tensor and returns a `latent_dist`, `latent`, `latents` or a
tuple.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from latentkit.contracts import MelSpec

Statistics = Literal["config", "scale", "buffers", "batch-norm", "inside", "none"]


@dataclass(frozen=True)
class ModelTraits:
    """Description of one autoencoder class.

    Sizes are missing here because they are measured (`diffusers_sizes`).

    Args:
        modalities: modalities it accepts, the default first. A video class that accepts images sees
            clips of one frame; an image class that accepts videos sees every frame as an image.
        axes: axes of one input, as the class has them, without the batch.
        kind: kind of its continuous latents, as in `LatentLayout`.
        channels: channels of the input, if its config doesn't contain them.
        patched: whether the config counts channels after the class has turned patches of
            `patch_size` into channels.
        range: range of the input's values.
        pixel_mean, pixel_std: the network takes (input - mean) / std, with one number or one per
            channel; empty leaves the input unchanged.
        frames: (a, b): accepted frame counts are a * k + b for k = 0, 1, 2 and so on.
        pads_front: whether the first frame is repeated at the start until the count divides by the
            downscale factor, as the class's own `forward` does.
        tiles: whether it only computes whole tiles, so that sizes must be those that tiles cover.
        side: attribute with the only accepted height and width; empty if every multiple is
            accepted.
        mel: mel spectrogram that it takes instead of a waveform, except for what its config states.
        encode_options: further arguments for `encode`.
        decode_options: further arguments for `decode`.
        decodes_frames_first: whether `decode` returns (N, T, C, H, W).
        one_by_one: whether samples must be encoded one at a time, because a batch fails or its rows
            change each other.
        recover: method that repairs the model after `encode` has failed.
        statistics: where its pipelines read the shift and scale of latents; "scale" means the
            config's scaling_factor alone, "inside" that `encode` has already applied them.
        fold: factors by which latent axes are folded into channels before normalization; 0 means
            the whole axis.
        codebook: attribute that converts latents to indices and back.
        gives_indices: whether it returns indices into the codebook unless the recipe asks for
            continuous latents.
        decoder: modules that `encode` doesn't use.
        last_layer: end of the name of the decoder's last weight, if that isn't the decoder's last
            weight with at least two axes.
        variants: (config key, value) to the traits that differ if the config has that value.
        needs: package, in addition to diffusers, without which it can't be built.
        refused: why it isn't supported; empty if it is.
    """

    modalities: tuple[str, ...] = ("image", "video")
    axes: str = "CHW"
    kind: Literal["gaussian", "deterministic"] = "gaussian"
    channels: int | None = None
    patched: bool = False
    range: tuple[float, float] = (-1.0, 1.0)
    pixel_mean: tuple[float, ...] = ()
    pixel_std: tuple[float, ...] = ()
    frames: tuple[int, int] = (1, 0)
    pads_front: bool = False
    tiles: bool = False
    side: str = ""
    mel: MelSpec | None = None
    encode_options: Mapping[str, Any] = field(default_factory=dict)
    decode_options: Mapping[str, Any] = field(default_factory=dict)
    decodes_frames_first: bool = False
    one_by_one: bool = False
    recover: str = ""
    statistics: Statistics = "config"
    fold: Mapping[str, int] = field(default_factory=dict)
    codebook: str = ""
    gives_indices: bool = False
    decoder: tuple[str, ...] = ("decoder", "post_quant_conv")
    last_layer: str = ""
    variants: Mapping[tuple[str, Any], Mapping[str, Any]] = field(default_factory=dict)
    needs: str = ""
    refused: str = ""


def video(frames: tuple[int, int], **different: Any) -> ModelTraits:
    """Return the traits of a class that accepts clips, and images as clips of one frame."""
    return replace(ModelTraits(("video", "image"), "CTHW", frames=frames), **different)


def audio(**different: Any) -> ModelTraits:
    """Return the traits of a class that accepts waveforms."""
    return replace(ModelTraits(("audio",), "CL"), **different)


IMAGENET: Mapping[str, Any] = {
    "range": (0.0, 1.0),
    "pixel_mean": (0.485, 0.456, 0.406),
    "pixel_std": (0.229, 0.224, 0.225),
}
PIXELS_BY_128: Mapping[str, Any] = {"pixel_mean": (128 / 127.5 - 1,), "pixel_std": (128 / 127.5,)}
"""Converts pixels / 127.5 - 1 to pixels / 128 - 1."""

LOG_MEL = MelSpec(bins=64, n_fft=1024, hop=160)

DETERMINISTIC: Mapping[str, Any] = {"kind": "deterministic"}
UNLISTED = (ModelTraits(), video((8, 1)), audio())
"""Traits with which a class without a row is tried, in this order; the kind is then read from its
output.
"""

NOT_ONE_TENSOR = (
    "its encode takes about ten aligned tensors (coordinates, masks, token types, conditioning)"
    " instead of one tensor per sample, and its decode the C-alpha coordinates too"
)

TRAITS: Mapping[str, ModelTraits] = {
    # image
    "AsymmetricAutoencoderKL": ModelTraits(),
    "AutoencoderDC": ModelTraits(**DETERMINISTIC),
    "AutoencoderKL": ModelTraits(),
    "AutoencoderKLFlux2": ModelTraits(statistics="batch-norm", fold={"H": 2, "W": 2}),
    "AutoencoderKLHunyuanImage": ModelTraits(),
    "AutoencoderKLKVAE": ModelTraits(),
    "AutoencoderKLTemporalDecoder": ModelTraits(decode_options={"num_frames": 1}),
    "AutoencoderRAE": ModelTraits(
        range=(0.0, 1.0),
        side="decoder_image_size",
        statistics="inside",
        needs="transformers",
        **DETERMINISTIC,
    ),
    "AutoencoderTiny": ModelTraits(**DETERMINISTIC),
    "ConsistencyDecoderVAE": ModelTraits(decoder=("decoder_unet",)),
    "VQModel": ModelTraits(
        statistics="none",
        codebook="quantize",
        decoder=("decoder", "post_quant_conv", "quantize"),
        **DETERMINISTIC,
    ),
    # video
    "AutoencoderKLAllegro": video(
        (16, 24), modalities=("video",), tiles=True, one_by_one=True, decodes_frames_first=True
    ),
    "AutoencoderKLCogVideoX": video((8, 1), statistics="scale"),
    "AutoencoderKLCosmos": video((8, 1), **DETERMINISTIC),
    "AutoencoderKLHunyuanImageRefiner": video((1, 1), modalities=("image", "video")),
    "AutoencoderKLHunyuanVideo": video((4, 1)),
    "AutoencoderKLHunyuanVideo15": video((4, 1), one_by_one=True),
    "AutoencoderKLKVAEVideo": video((4, 1), **DETERMINISTIC),
    "AutoencoderKLLTX2Video": video((8, 1), statistics="buffers"),
    "AutoencoderKLLTXVideo": video((8, 1), statistics="buffers"),
    "AutoencoderKLMagvit": video((4, 1), recover="_clear_conv_cache"),
    "AutoencoderKLMiniMaxH3": video((17, 5), modalities=("video",), **IMAGENET),
    "AutoencoderKLMochi": video((6, 1), channels=3),
    "AutoencoderKLQwenImage": video((4, 1), modalities=("image", "video")),
    "AutoencoderKLQwenImage21": video((1, 1), modalities=("image",), patched=True),
    "AutoencoderKLWan": video((4, 1), patched=True),
    "AutoencoderVidTok": video(
        (4, 1),
        pads_front=True,
        variants={
            ("is_causal", False): {
                "frames": (16, 16),
                "pads_front": False,
                "modalities": ("video",),
            },
            ("regularizer", "fsq"): {
                "kind": "deterministic",
                "codebook": "regularization",
                "gives_indices": True,
            },
        },
    ),
    "Kandinsky6SRVAE": video((4, 1), **PIXELS_BY_128),
    # audio
    "AutoencoderKLKVAEAudio": audio(decoder=("decoder", "out_proj")),
    "AutoencoderKLLTX2Audio": audio(
        axes="CTM",
        range=(-11.5, 3.0),
        frames=(4, 1),
        mel=LOG_MEL,
        statistics="buffers",
        fold={"M": 0},
    ),
    "AutoencoderKLMiniMaxH3Audio": audio(channels=1, decoder=("decoder", "dec_in_proj")),
    "AutoencoderOobleck": audio(),
    "AutoencoderSAME": audio(last_layer="mapping.weight_v", **DETERMINISTIC),
    "Cosmos3AVAEAudioTokenizer": audio(
        channels=2, one_by_one=True, variants={("stereo", False): {"channels": 1}}
    ),
    "LongCatAudioDiTVae": audio(encode_options={"sample_posterior": False}, **DETERMINISTIC),
    # neither
    "RFD4ProteinaAutoencoder": ModelTraits(modalities=(), refused=NOT_ONE_TENSOR),
}


def find_traits(class_name: str, config: Mapping[str, Any]) -> tuple[ModelTraits, ...]:
    """Return the row of a class, adapted to its config; for a class without a row, all rows that
    may fit.
    """
    if class_name not in TRAITS:
        patched = tuple(replace(traits, patched=True) for traits in UNLISTED)
        return UNLISTED + patched if patch_area(config) > 1 else UNLISTED
    traits = TRAITS[class_name]
    for (key, value), different in traits.variants.items():
        if config.get(key) == value:
            traits = replace(traits, **different)
    return (traits,)


def patch_area(config: Mapping[str, Any]) -> int:
    """Return the pixels in a square patch of the config's `patch_size`, or 1 if it has none."""
    side = config.get("patch_size")
    return side * side if isinstance(side, int) else 1


NORMALIZATION_KEYS = ("scaling_factor", "shift_factor", "latents_mean", "latents_std")

UNUSED_BY_ENCODE = frozenset(
    {
        "batch_norm_eps",
        "batch_norm_momentum",
        "force_upcast",
        "invert_scale_latents",
        "layers_per_up_block",
        "num_dec_blocks",
        "num_decoder_blocks",
        "out_ch",
        "out_channels",
        "output_channels",
        "temporal_upsample_blocks",
        "timestep_conditioning",
        "use_post_quant_conv",
    }
)
UNUSED_BY_ENCODE_PREFIXES = ("_", "decode", "up")
"""Config keys, and starts of config keys, that no encoder uses."""


def encode_config(config: Mapping[str, Any], traits: ModelTraits, tiling: bool) -> dict[str, Any]:
    """Return the part of a complete config (defaults filled in) that the encoder's values depend
    on.
    """
    left_out = set(UNUSED_BY_ENCODE)
    if traits.statistics != "inside":
        left_out.update(NORMALIZATION_KEYS)
    if not (tiling or traits.tiles):
        left_out.add("sample_size")  # of a tile
    return {
        key: value
        for key, value in sorted(config.items())
        if not key.startswith(UNUSED_BY_ENCODE_PREFIXES) and key not in left_out
    }
