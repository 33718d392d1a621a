"""Sizes of a diffusers autoencoder, measured on a model without memory: attributes of the classes
are missing or wrong.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from latentkit.contracts import InputSpec, LatentLayout, SizeRule
from latentkit.encoders.diffusers_adapter import ModelAdapter
from latentkit.encoders.diffusers_loading import build_model, quiet
from latentkit.encoders.diffusers_table import TRAITS, ModelTraits, find_traits, patch_area
from latentkit.errors import EncoderError

META_SIDE = 256
CPU_SIDE = 64
"""Pixels of the picture that down-scaling is measured with, without memory and with."""

LENGTH = 2**12 * 3 * 5**2
"""Samples of the sound: divisible by every hop in use."""

MOST_FRAMES = 64
CHANNEL_KEYS = (
    "input_channels",
    "audio_channels",
    "num_channels",
    "in_channels",
    "encoder_in_channels",
)
RATE_KEYS = ("sample_rate", "sampling_rate")


@dataclass(frozen=True)
class Measured:
    """What is known of a model without its weights.

    Args:
        config: with its defaults filled in.
        modality: whose tensors it takes here.
        input, layout: as the contract `Encoder` has them.
    """

    driver: ModelAdapter
    config: Mapping[str, Any]
    modality: str
    input: InputSpec
    layout: LatentLayout


def measure_model(
    config: Mapping[str, Any], modality: str, indices: bool | None, tiling: bool
) -> Measured:
    """What a model of this config takes and gives.

    Args:
        config: as config.json has it.
        modality: the recipe's; the class's usual one where it doesn't take that.
        indices: into the codebook instead of continuous latents; None: as is usual for the class.
        tiling: whether it is to encode in tiles.

    Raises:
        EncoderError: the class can't be driven, the config doesn't fit it, or an option doesn't;
            says which.
    """
    name = config["_class_name"]
    candidates = find_traits(name, config)
    if candidates[0].refused:
        raise EncoderError(f"{name} can't be an encoder: {candidates[0].refused}")
    if candidates[0].needs and find_spec(candidates[0].needs) is None:
        raise EncoderError(
            f"{name} needs the package {candidates[0].needs}, which isn't installed: pip install"
            f" {candidates[0].needs}"
        )
    reasons = []
    for traits in candidates:
        for device, side in (("meta", META_SIDE), ("cpu", CPU_SIDE)):
            with _alone(device):
                try:
                    model = build_model(config)
                except EncoderError:
                    if device == "cpu":
                        raise
                    continue
                prepare_model(model, traits, tiling)
                try:
                    return _measure(model, traits, modality, indices, side)
                except EncoderError:
                    raise
                except Exception as error:  # noqa: BLE001 (the boundary to a class that may be any)
                    reasons.append(
                        f"{traits.axes} on {device}: {type(error).__name__}:"
                        f" {str(error).strip()[:200]}"
                    )
    raise EncoderError(f"{name} can't be driven; tried as {'; '.join(reasons)}")


def prepare_model(model: Any, traits: ModelTraits, tiling: bool) -> None:
    """Put a model into the state it encodes in.

    Raises:
        EncoderError: its class can't tile.
    """
    model.eval()
    if tiling or traits.tiles:
        try:
            model.enable_tiling()
        except (
            AttributeError,
            NotImplementedError,
        ) as error:  # a mixin gives the method to classes that can't
            raise EncoderError(
                f"option tiling: {type(model).__name__} can't encode in tiles; leave it out"
            ) from error


@contextmanager
def _alone(device: str) -> Iterator[None]:
    """Build and call models on a device, random numbers and warnings unmoved."""
    with quiet(), torch.random.fork_rng(devices=[]), torch.device(device), torch.no_grad():
        yield


def _measure(
    model: Any, traits: ModelTraits, modality: str, indices: bool | None, side: int
) -> Measured:
    name, config = type(model).__name__, dict(model.config)
    driver = ModelAdapter(traits, traits.axes, _wants_indices(name, traits, indices))
    channels = traits.channels or _count_channels(config, traits)
    sizes = {axis: _first_size(axis, model, traits, side) for axis in traits.axes[1:]}
    latents = driver.encode(model, torch.empty(1, channels, *sizes.values()))
    latent = next(iter(latents.values()))
    if name not in TRAITS:
        driver = replace(
            driver,
            traits=replace(traits, kind="gaussian" if "mean" in latents else "deterministic"),
        )
        _check_decoding(name, driver.decode(model, latent), sizes)
    modality = modality if modality in traits.modalities else traits.modalities[0]
    axes = {"image": "CHW", "video": "CTHW"}.get(modality, traits.axes)
    factors = {
        axis: Fraction(sizes[axis], size)
        for axis, size in zip(sizes, latent.shape[-len(sizes) :], strict=True)
    }
    rules = {
        axis: _rule(axis, factors[axis], sizes[axis], model, traits)
        for axis in sizes
        if axis != "T"
    }
    if "T" in sizes and "T" in axes:
        factors["T"], rules["T"] = _measure_frames(
            model, driver, channels, sizes, latent.shape[-len(sizes)]
        )
    driver = replace(driver, axes=axes)
    rate = next((int(config[key]) for key in RATE_KEYS if key in config), None)
    mel = traits.mel and replace(traits.mel, bins=config["mel_bins"], hop=config["mel_hop_length"])
    taken = InputSpec(
        channels,
        traits.range,
        {axis: rules[axis] for axis in axes if axis in rules},
        rate,
        axes,
        mel,
    )
    downscale = tuple(_whole(factors.get(axis, Fraction(1))) for axis in axes[1:])
    layout = LatentLayout(
        "latent",
        driver.kind,
        axes[1:] if driver.indices else axes,
        1 if driver.indices else int(latent.shape[1]),
        downscale[0] if len(set(downscale)) == 1 else downscale,
    )
    return Measured(driver, config, modality, taken, layout)


def _count_channels(config: Mapping[str, Any], traits: ModelTraits) -> int:
    """Channels of the input: the config's, over the area of its patches where they are those."""
    channels = int(next((config[key] for key in CHANNEL_KEYS if key in config), 3))
    return channels // patch_area(config) if traits.patched else channels


def _wants_indices(name: str, traits: ModelTraits, indices: bool | None) -> bool:
    if indices and not traits.codebook:
        raise EncoderError(f"option indices: {name} has no codebook; leave it out")
    return traits.gives_indices if indices is None else indices


def _first_size(axis: str, model: Any, traits: ModelTraits, side: int) -> int:
    """A size of the axis that every model of the class takes."""
    if axis == "T":
        return traits.frames[1]
    if axis == "L":
        return LENGTH
    if axis == "M":
        return int(model.config.mel_bins)
    if traits.tiles:
        return int(model.kernel["THW".index(axis)])
    return int(getattr(model, traits.side)) if traits.side else side


def _rule(axis: str, factor: Fraction, size: int, model: Any, traits: ModelTraits) -> SizeRule:
    if axis == "M" or traits.side:
        return SizeRule(multiple=size, minimum=size, maximum=size)
    if traits.tiles:
        return SizeRule(int(model.stride["THW".index(axis)]), size, size)
    if factor.denominator != 1:
        raise EncoderError(
            f"{type(model).__name__}: {size} along {axis} gave {size / factor} latents, so no size"
            " is sure to be kept"
        )
    return SizeRule(multiple=int(factor), minimum=int(factor))


def _measure_frames(
    model: Any, driver: ModelAdapter, channels: int, sizes: Mapping[str, int], before: int
) -> tuple[Fraction, SizeRule]:
    """Return the frames that one more latent stands for, and the frame counts allowed."""
    step, first = driver.traits.frames
    while step <= MOST_FRAMES:
        batch = torch.empty(
            1, channels, *(size + step if axis == "T" else size for axis, size in sizes.items())
        )
        after = next(iter(driver.encode(model, batch).values())).shape[-len(sizes)]
        if after > before:
            return Fraction(step, after - before), SizeRule(step, first if step > 1 else 0, first)
        step *= 2
    raise EncoderError(f"{type(model).__name__}: {MOST_FRAMES} more frames gave no further latent")


def _check_decoding(name: str, decoded: Tensor, sizes: Mapping[str, int]) -> None:
    if tuple(decoded.shape[2:]) != tuple(sizes.values()):
        raise EncoderError(
            f"{name}: decode gave sizes {tuple(decoded.shape[2:])} for an input of"
            f" {tuple(sizes.values())}"
        )


def _whole(factor: Fraction) -> Any:
    """The factor as an int; a float where it is none, as 17 frames for 5 latents."""
    return int(factor) if factor.denominator == 1 else float(factor)
