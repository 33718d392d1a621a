"""Normalization of latents as the pipelines of an autoencoder apply it: read from a model, and
written into one after training.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from latentkit.contracts import LatentLayout, Normalization
from latentkit.encoders.diffusers_table import NORMALIZATION_KEYS, ModelTraits

STATISTICS_NAMES = ("bn", "latents_mean", "latents_std")
"""Modules and buffers in which models store statistics that are applied after `encode`."""


def has_statistics(traits: ModelTraits) -> bool:
    """Return whether shift and scale are among the model's tensors instead of in its config."""
    return traits.statistics in ("buffers", "batch-norm")


def read_normalization(
    config: Mapping[str, Any],
    traits: ModelTraits,
    layout: LatentLayout,
    tensors: Mapping[str, Tensor] | None = None,
    whole: int = 0,
) -> Normalization:
    """Return what the model's own pipelines do to raw latents before the transformer.

    Per channel, (z - latents_mean) * scaling_factor / latents_std
    (`StableDiffusionXLImg2ImgPipeline`, `WanImageToVideoPipeline`; with buffers in
    `LTXImageToVideoPipeline`). Else (z - shift_factor) * scaling_factor (`FluxImg2ImgPipeline`).
    Else z * scaling_factor (`StableDiffusionImg2ImgPipeline`), or z / scaling_factor with newer
    configs of `CogVideoXImageToVideoPipeline`. `Flux2Pipeline` uses batch-norm statistics of 2 x 2
    patches.

    Args:
        config: config with the class's defaults filled in.
        traits: description of the model's class.
        layout: layout of its latents.
        tensors: the model's tensors named in `STATISTICS_NAMES`, if its class has them; None
            returns the fold alone, without shift and scale.
        whole: size of a latent along the axis that is folded as a whole.
    """
    if traits.statistics in ("inside", "none"):
        return Normalization()
    scaling, shift, mean, std = (config.get(key) for key in NORMALIZATION_KEYS)
    scale = 1.0 if scaling is None else float(scaling)
    fold = {axis: factor or whole for axis, factor in traits.fold.items()}
    if tensors is None and has_statistics(traits):
        return Normalization(fold=fold)
    if tensors is not None and traits.statistics == "batch-norm":
        variance = tensors["bn.running_var"].double() + config["batch_norm_eps"]
        return _normalization(tensors["bn.running_mean"], variance.sqrt(), 1.0, fold)
    if tensors is not None and traits.statistics == "buffers":
        return _normalization(tensors["latents_mean"], tensors["latents_std"], scale, fold)
    if traits.statistics != "scale" and mean is not None and std is not None:
        return Normalization(
            _per_frame(mean, layout), _per_frame([scale / float(s) for s in std], layout)
        )
    if traits.statistics == "scale":
        return Normalization(0.0, 1.0 / scale if config["invert_scale_latents"] else scale)
    return Normalization(0.0 if shift is None else float(shift), scale)


def _normalization(
    mean: Tensor, std: Tensor, scale: float, fold: Mapping[str, int]
) -> Normalization:
    return Normalization(mean.double().tolist(), (scale / std.double()).tolist(), fold)


def _per_frame(values: Sequence[float], layout: LatentLayout) -> list[Any]:
    """Return one value per channel, or (C, frames, 1, 1) if the config has values per channel and
    latent frame, as `CosmosVideoToWorldPipeline` reads them. Images use the first frame's.
    """
    frames = max(1, len(values) // layout.channels)
    rows = [
        [float(value) for value in values[start : start + frames]]
        for start in range(0, len(values), frames)
    ]
    if frames == 1 or "T" not in layout.axes:
        return [row[0] for row in rows]
    return [[[[value]] for value in row] for row in rows]


def put_statistics(model: Any, traits: ModelTraits, mean: Tensor, std: Tensor) -> None:
    """Store the mean and standard deviation of posterior draws, per channel, (C,) each, where the
    model's own pipelines look for them.

    If a config has a field for a shift, pipelines apply the per-channel fields *and*
    `scaling_factor`. One pair for all channels works in every pipeline, the oldest included, so the
    per-channel fields stay empty. A class that stores no statistics is left unchanged. In every
    case a training run writes the measured values of each channel to `latent_statistics.json` in
    the model's folder (`latentkit.training.result`).
    """
    mean, std = mean.double(), std.double()
    center = float(mean.mean())
    spread = float((std.square() + (mean - center).square()).mean().sqrt())
    if traits.statistics == "batch-norm":
        repeats = len(model.bn.running_mean) // len(mean)
        model.bn.running_mean.copy_(mean.repeat_interleave(repeats))
        model.bn.running_var.copy_(
            std.square().repeat_interleave(repeats) - model.config.batch_norm_eps
        )
    elif traits.statistics == "buffers":
        repeats = len(model.latents_mean) // len(mean)
        model.latents_mean.copy_(mean.repeat_interleave(repeats))
        model.latents_std.copy_(
            std.repeat_interleave(repeats) * model.config.get("scaling_factor", 1.0)
        )
    elif traits.statistics in ("config", "scale"):
        fields: dict[str, Any] = {
            "scaling_factor": 1.0 / spread,
            "shift_factor": center,
            "latents_mean": None,
            "latents_std": None,
        }
        if traits.statistics == "scale":
            fields = {"scaling_factor": 1.0 / spread, "invert_scale_latents": False}
        elif "latents_mean" in model.config and "shift_factor" not in model.config:
            fields = {
                "scaling_factor": 1.0,
                "latents_mean": mean.tolist(),
                "latents_std": std.tolist(),
            }
        model.register_to_config(
            **{name: value for name, value in fields.items() if name in model.config}
        )
