"""Configs of published autoencoders by name, and recognition of the one that a weights file
fits.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from latentkit.encoders.diffusers_building import build_shapes
from latentkit.encoders.diffusers_table import NORMALIZATION_KEYS, find_traits
from latentkit.encoders.weight_fitting import Fit, find_fits, refuse_fp8_scales
from latentkit.errors import EncoderError

FOLDER = Path(__file__).with_name("published")
"""Contains one NAME.json each; its README.md says where each config comes from."""

ALIASES = {
    "chroma": "flux1",
    "dc-ae-f32c32-sana": "sana",
    "flux": "flux1",
    "flux2-klein": "flux2",
    "hunyuan-dit": "sdxl",
    "kl-f8": "sd15",
    "kolors": "sdxl",
    "ltx-0.9": "ltx-0.9.0",
    "ltx-0.9.7": "ltx-0.9.5",
    "ltx-0.9.8": "ltx-0.9.5",
    "lumina2": "flux1",
    "oobleck": "stable-audio",
    "pixart-sigma": "sdxl",
    "sd-ft-ema": "sd15",
    "sd-ft-mse": "sd15",
    "sd1": "sd15",
    "sd14": "sd15",
    "sd2": "sd15",
    "sd21": "sd15",
    "sd35": "sd3",
    "sdxl-fp16-fix": "sdxl",
    "taesd3": "taef1",
    "taesdxl": "taesd",
    "wan2.2-14b": "wan2.1",
    "wan2.2-5b": "wan2.2",
    "z-image": "flux1",
}

PARTS = (
    ("edm_mean", "playground-2.5"),
    ("conditioner.embedders.", "sdxl"),
    ("cond_stage_model.", "sd15"),
    ("model.diffusion_model.input_blocks.4.1.transformer_blocks.1.", "sdxl"),
    ("model.diffusion_model.input_blocks.1.1.transformer_blocks.0.", "sd15"),
    ("model.diffusion_model.joint_blocks.", "sd3"),
    ("model.diffusion_model.double_blocks.", "flux1"),
    ("model.diffusion_model.cap_embedder.", "flux1"),
)
"""Starts of names that only a whole pipeline's file contains, and the autoencoder of that
pipeline.
"""

ARCHITECTURES = (
    ("stable-diffusion-xl", "sdxl"),
    ("stable-diffusion-v1", "sd15"),
    ("stable-diffusion-v2", "sd15"),
    ("stable-diffusion-v3", "sd3"),
    ("stable-diffusion-3", "sd3"),
    ("flux-1", "flux1"),
    ("flux.1", "flux1"),
)
"""Starts of `modelspec.architecture` in a safetensors file (Stability AI's ModelSpec), and the
autoencoder.
"""


def list_published() -> list[str]:
    """Return the names of all configs, without aliases."""
    return sorted(file.stem for file in FOLDER.glob("*.json"))


def find_published(name: str) -> Path | None:
    """Return the config file of a name or alias, or None."""
    known = ALIASES.get(name.lower(), name.lower())
    return FOLDER / f"{known}.json" if known in list_published() else None


def recognize_config(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], modality: str
) -> list[Path]:
    """Return the published config that fits a file's names and shapes, followed by others that
    would give the same latents.

    Args:
        path: path of the file, for messages.
        tensors: all tensors of the file, by full names.
        metadata: texts stored in the file.
        modality: the recipe's modality; of several networks in a file, those that accept it are
            preferred.

    Raises:
        EncoderError: no config fits, or several fit that scale latents differently and nothing in
            the file decides.
    """
    fits = {name: found for name in list_published() if (found := _fits(name, tensors))}
    whole = {name: fit for name, fit in fits.items() if not fit.lacks_decoder} or fits
    names = [name for name in whole if _accepts_modality(name, modality)] or list(whole)
    if not names:
        refuse_fp8_scales(path, tensors)
        raise EncoderError(
            f"{path}: its weights fit none of the published autoencoders that latentkit knows. Put"
            " the model's config.json beside the file, or set the option config to a path or one"
            f" of {', '.join(list_published())}"
        )
    named = _named_in_file(tensors, metadata)
    if named in names:
        names = [named]
    if len({_scaling(name) for name in names}) == 1:  # they give the same latents
        return [FOLDER / f"{name}.json" for name in reversed(names)]
    raise EncoderError(
        f"{path}: its weights fit {', '.join(names)}, which {_differences(names)}. Say which it is:"
        f" --set encoder.with.config={names[-1]} (or another of these)"
    )


def _fits(name: str, tensors: Mapping[str, Tensor]) -> Fit | None:
    """Return how the tensors fit a published config, or None if they don't."""
    model = _build(
        json.dumps(
            {key: value for key, value in _read(name).items() if key not in NORMALIZATION_KEYS}
        )
    )
    best = find_fits(tensors, model)[0] if model is not None else None
    return best if best is not None and best.is_good else None


@functools.cache
def _build(config: str) -> Any:
    """Build a model without weights; None if the installed diffusers lacks its class or options."""
    read = json.loads(config)
    try:
        return build_shapes(read)
    except (EncoderError, AttributeError):
        return None


@functools.cache
def _read(name: str) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    return config


def _accepts_modality(name: str, modality: str) -> bool:
    config = _read(name)
    return any(
        modality in traits.modalities for traits in find_traits(config["_class_name"], config)
    )


def _named_in_file(names: Iterable[str], metadata: Mapping[str, str]) -> str:
    """Return the config that the file's metadata or other tensors point to; empty if nothing
    does.
    """
    for text in metadata.values():
        if (published := find_published(text)) is not None:
            return published.stem
    architecture = metadata.get("modelspec.architecture", "").lower()
    for start, name in ARCHITECTURES:
        if architecture.startswith(start):
            return name
    starts = tuple(names)
    return next((name for start, name in PARTS if any(one.startswith(start) for one in starts)), "")


def _scaling(name: str) -> tuple[str, ...]:
    config = _read(name)
    return tuple(str(config.get(key)) for key in (*NORMALIZATION_KEYS, "invert_scale_latents"))


def _differences(names: Sequence[str]) -> str:
    """Return a text on how the configs' normalizations differ."""
    keys = [
        key
        for key in (*NORMALIZATION_KEYS, "invert_scale_latents")
        if len({str(_read(name).get(key)) for name in names}) > 1
    ]
    shown = [
        key for key in keys if not any(isinstance(_read(name).get(key), list) for name in names)
    ]
    values = [f"{key} ({', '.join(str(_read(name).get(key)) for name in names)})" for key in shown]
    return f"differ in {' and '.join(values + [key for key in keys if key not in shown])}"
