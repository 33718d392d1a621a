"""What has to be known of each diffusers autoencoder class and can't be measured on it or read from
its config: one row per class.

`docs/autoencoders.md` is this table in words. A class without a row is tried as `UNLISTED` says,
and driven when its `encode` takes one tensor and gives a `latent_dist`, `latent`, `latents` or a
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
    """One class of autoencoder.

    Sizes aren't here: they are measured (`diffusers_measuring`), as attributes of the classes can
    be wrong.

    Args:
        modalities: whose tensors it takes, the usual one first. A video class that takes pictures
            sees clips of one frame; a picture class that takes videos sees every frame as a
            picture.
        axes: of one input, as the class itself has them, without the batch.
        kind: of its continuous latents, as in `LatentLayout`.
        channels: of the input, where its config doesn't tell.
        patched: the config's channels are those of patches of its `patch_size`, which the class
            makes of the input.
        range: of the input.
        pixel_mean, pixel_std: the network takes (input - mean) / std; one number, or one per
            channel; empty for the input as it is.
        frames: (a, b): frame counts are a * k + b, k from 0, as far as the model gives as many
            back.
        pads_front: the first frame is repeated in front until the count divides by the
            down-scaling, as the class's own `forward` does.
        tiles: it only ever computes whole tiles: sizes are those that tiles cover.
        side: attribute of the one height and width taken; empty where every multiple is.
        mel: of the sound it takes instead of a waveform, but for what its config says.
        decodes_frames_first: `decode` gives (N, T, C, H, W).
        one_by_one: a batch can't be encoded, or its rows would change each other.
        recover: method that repairs the model after `encode` failed.
        statistics: where its pipelines take shift and scale of a latent from; "scale" is the
            config's scaling_factor alone, "inside" means that `encode` has applied them already.
        fold: factors of the latent's axes that are moved into channels before; 0 stands for the
            whole axis.
        codebook: attribute that turns latents into indices and back.
        gives_indices: into the codebook, unless the recipe wants continuous latents.
        decoder: modules that `encode` doesn't use.
        last_layer: end of the name of the decoder's last weight, where that isn't the decoder's
            last of two axes or more.
        variants: (config key, value) to what is different where the config has that value.
        needs: package beside diffusers that it can't be built without.
        refused: why it can't be driven; empty where it can.
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
    """A class that takes clips, and pictures as clips of one frame."""
    return replace(ModelTraits(("video", "image"), "CTHW", frames=frames), **different)


def audio(**different: Any) -> ModelTraits:
    """A class that takes waveforms."""
    return replace(ModelTraits(("audio",), "CL"), **different)


IMAGENET: Mapping[str, Any] = {
    "range": (0.0, 1.0),
    "pixel_mean": (0.485, 0.456, 0.406),
    "pixel_std": (0.229, 0.224, 0.225),
}
OF_128: Mapping[str, Any] = {"pixel_mean": (128 / 127.5 - 1,), "pixel_std": (128 / 127.5,)}
"""Pixels / 128 - 1, from pixels / 127.5 - 1."""

LOG_MEL = MelSpec(bins=64, n_fft=1024, hop=160)

DETERMINISTIC: Mapping[str, Any] = {"kind": "deterministic"}
UNLISTED = (ModelTraits(), video((8, 1)), audio())
"""How a class without a row is tried, in this order; its kind is what it gives."""

NOT_ONE_TENSOR = (
    "its encode takes about ten aligned tensors (coordinates, masks, token types, conditioning)"
    " instead of one tensor per sample, and its decode the C-alpha coordinates too"
)

TRAITS: Mapping[str, ModelTraits] = {
    # pictures
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
    "Kandinsky6SRVAE": video((4, 1), **OF_128),
    # sound
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
    """The row of a class as its config has it; for a class without a row, those that may fit."""
    if class_name not in TRAITS:
        patched = tuple(replace(traits, patched=True) for traits in UNLISTED)
        return UNLISTED + patched if patch_area(config) > 1 else UNLISTED
    traits = TRAITS[class_name]
    for (key, value), different in traits.variants.items():
        if config.get(key) == value:
            traits = replace(traits, **different)
    return (traits,)


def patch_area(config: Mapping[str, Any]) -> int:
    """Pixels of a square patch of the config's `patch_size`; 1 where it has none."""
    side = config.get("patch_size")
    return side * side if isinstance(side, int) else 1


NORMALIZATION_KEYS = ("scaling_factor", "shift_factor", "latents_mean", "latents_std")

NOT_COMPUTED_WITH = frozenset(
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
NOT_COMPUTED_WITH_STARTS = ("_", "decode", "up")
"""Config keys, and their starts, that no encoder looks at."""


def computing_config(
    config: Mapping[str, Any], traits: ModelTraits, tiling: bool
) -> dict[str, Any]:
    """The part of a complete config (defaults filled in) that the encoder's values depend on."""
    left_out = set(NOT_COMPUTED_WITH)
    if traits.statistics != "inside":
        left_out.update(NORMALIZATION_KEYS)
    if not (tiling or traits.tiles):
        left_out.add("sample_size")  # of a tile
    return {
        key: value
        for key, value in sorted(config.items())
        if not key.startswith(NOT_COMPUTED_WITH_STARTS) and key not in left_out
    }
