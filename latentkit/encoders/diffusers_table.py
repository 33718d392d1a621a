"""What has to be known of each diffusers autoencoder class and can't be read from its config: one row per class."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from latentkit.contracts import Normalization


@dataclass(frozen=True)
class Traits:
    """One class of autoencoder.

    Args:
        kind: of its latents, as in `LatentLayout`.
        modality: whose tensors it takes.
        axes: of one input and one latent, without the batch.
        decoder: prefixes of tensors that `encode` doesn't use.
        last_layer: name of the weight of the decoder's last layer.
    """

    kind: Literal["gaussian", "deterministic", "quantised"]
    modality: str
    axes: str
    decoder: tuple[str, ...]
    last_layer: str


TRAITS: Mapping[str, Traits] = {
    "AutoencoderKL": Traits("gaussian", "image", "CHW", ("decoder.", "post_quant_conv."), "decoder.conv_out.weight"),
    "AutoencoderTiny": Traits("deterministic", "image", "CHW", ("decoder.",), "decoder.layers.{last}.weight"),
}


def read_latents(output: Any) -> dict[str, Tensor]:
    """What `encode` of any class gave, under our names: "mean" and "logvar", or "latent"."""
    posterior = getattr(output, "latent_dist", None)
    if posterior is not None:
        return {"mean": posterior.mean, "logvar": posterior.logvar}
    return {"latent": output.latents}


NORMALIZATION_KEYS = ("scaling_factor", "shift_factor", "latents_mean", "latents_std")


def read_normalization(config: Mapping[str, Any]) -> Normalization:
    """What the model's own pipelines do before the transformer, by the fields of its config that are set.

    (z - latents_mean) * scaling_factor / latents_std per channel (`StableDiffusionXLImg2ImgPipeline`), else (z - shift_factor) *
    scaling_factor (`FluxImg2ImgPipeline`), else z * scaling_factor (`StableDiffusionImg2ImgPipeline`).
    """
    scaling, shift, mean, std = (config.get(key) for key in NORMALIZATION_KEYS)
    scale = 1.0 if scaling is None else float(scaling)
    if mean is not None and std is not None:
        return Normalization([float(m) for m in mean], [scale / float(s) for s in std])
    return Normalization(0.0 if shift is None else float(shift), scale)


NOT_COMPUTED_WITH = frozenset({
    *NORMALIZATION_KEYS,
    "decoder_block_out_channels",
    "force_upcast",
    "num_decoder_blocks",
    "out_channels",
    "sample_size",
    "up_block_types",
    "upsample_fn",
    "upsampling_scaling_factor",
    "use_post_quant_conv",
})
"""Config keys that no encoder looks at."""


def computing_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a complete config (defaults filled in) that the encoder's values depend on."""
    return {key: value for key, value in sorted(config.items()) if not key.startswith("_") and key not in NOT_COMPUTED_WITH}


