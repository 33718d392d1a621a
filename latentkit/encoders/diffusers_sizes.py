"""Measures what a diffusers autoencoder takes and returns, on a model without memory, because
attributes of the classes are missing or wrong.
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
"""Sides in pixels of the image that the downscale factor is measured with, on torch's meta device
and on the CPU.
"""

LENGTH = 2**12 * 3 * 5**2
"""Samples of the waveform for the measurement: divisible by the hop of every known class."""

MAX_EXTRA_FRAMES = 64
CHANNEL_KEYS = (
    "input_channels",
    "audio_channels",
    "num_channels",
    "in_channels",
    "encoder_in_channels",
)
RATE_KEYS = ("sample_rate", "sampling_rate")


@dataclass(frozen=True)
class MeasuredModel:
    """Facts about a model that need no weights.

    Args:
        adapter: how to call it.
        config: config with the class's defaults filled in.
        modality: the modality whose tensors it takes here.
        input, layout: as the contract `Encoder` has them.
    """

    adapter: ModelAdapter
    config: Mapping[str, Any]
    modality: str
    input: InputSpec
    layout: LatentLayout


def measure_model(
    config: Mapping[str, Any], modality: str, indices: bool | None, tiling: bool
) -> MeasuredModel:
    """Measure what a model of this config takes and returns.

    Args:
        config: content of config.json.
        modality: the recipe's modality; a class that doesn't accept it uses its first one.
        indices: whether to return indices into the codebook; None is the class's default.
        tiling: whether to encode in tiles.

    Raises:
        EncoderError: the class isn't supported, or the config or an option doesn't fit it.
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
            with _isolated(device):
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
    raise EncoderError(f"{name} isn't supported: calling it failed as {'; '.join(reasons)}")


def prepare_model(model: Any, traits: ModelTraits, tiling: bool) -> None:
    """Put a model into the state in which it encodes.

    Raises:
        EncoderError: its class can't encode in tiles.
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
def _isolated(device: str) -> Iterator[None]:
    """Build and call models on a device without changing torch's random numbers and without
    warnings.
    """
    with quiet(), torch.random.fork_rng(devices=[]), torch.device(device), torch.no_grad():
        yield


def _measure(
    model: Any, traits: ModelTraits, modality: str, indices: bool | None, side: int
) -> MeasuredModel:
    """Encode an empty input, with side `side` in pixels, and read all sizes and shapes from the
    result.
    """
    name, config = type(model).__name__, dict(model.config)
    adapter = ModelAdapter(traits, traits.axes, _wants_indices(name, traits, indices))
    channels = traits.channels or _count_channels(config, traits)
    sizes = {axis: _first_size(axis, model, traits, side) for axis in traits.axes[1:]}
    latents = adapter.encode(model, torch.empty(1, channels, *sizes.values()))
    latent = next(iter(latents.values()))
    if name not in TRAITS:
        adapter = replace(
            adapter,
            traits=replace(traits, kind="gaussian" if "mean" in latents else "deterministic"),
        )
        _check_decoding(name, adapter.decode(model, latent), sizes)
    modality = modality if modality in traits.modalities else traits.modalities[0]
    axes = {"image": "CHW", "video": "CTHW"}.get(modality, traits.axes)
    factors = {
        axis: Fraction(sizes[axis], size)
        for axis, size in zip(sizes, latent.shape[-len(sizes) :], strict=True)
    }
    rules = {
        axis: _size_rule(axis, factors[axis], sizes[axis], model, traits)
        for axis in sizes
        if axis != "T"
    }
    if "T" in sizes and "T" in axes:
        factors["T"], rules["T"] = _measure_frames(
            model, adapter, channels, sizes, latent.shape[-len(sizes)]
        )
    adapter = replace(adapter, axes=axes)
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
    downscale = tuple(_int_if_whole(factors.get(axis, Fraction(1))) for axis in axes[1:])
    layout = LatentLayout(
        "latent",
        adapter.kind,
        axes[1:] if adapter.indices else axes,
        1 if adapter.indices else int(latent.shape[1]),
        downscale[0] if len(set(downscale)) == 1 else downscale,
    )
    return MeasuredModel(adapter, config, modality, taken, layout)


def _count_channels(config: Mapping[str, Any], traits: ModelTraits) -> int:
    """Return the number of input channels. Configs of patched models give the number of channels
    after patching, which is divided by the patch's area.
    """
    channels = int(next((config[key] for key in CHANNEL_KEYS if key in config), 3))
    return channels // patch_area(config) if traits.patched else channels


def _wants_indices(name: str, traits: ModelTraits, indices: bool | None) -> bool:
    if indices and not traits.codebook:
        raise EncoderError(f"option indices: {name} has no codebook; leave it out")
    return traits.gives_indices if indices is None else indices


def _first_size(axis: str, model: Any, traits: ModelTraits, side: int) -> int:
    """Return a size of the axis that every model of the class accepts."""
    if axis == "T":
        return traits.frames[1]
    if axis == "L":
        return LENGTH
    if axis == "M":
        return int(model.config.mel_bins)
    if traits.tiles:
        return int(model.kernel["THW".index(axis)])
    return int(getattr(model, traits.side)) if traits.side else side


def _size_rule(axis: str, factor: Fraction, size: int, model: Any, traits: ModelTraits) -> SizeRule:
    """Return which sizes of an axis the model encodes without cropping or padding, given the
    downscale factor.
    """
    if axis == "M" or traits.side:
        return SizeRule(multiple=size, minimum=size, maximum=size)
    if traits.tiles:
        return SizeRule(int(model.stride["THW".index(axis)]), size, size)
    if factor.denominator != 1:
        raise EncoderError(
            f"{type(model).__name__}: {size} along {axis} gave {size / factor} latents. No size"
            " is certain to be encoded whole"
        )
    return SizeRule(multiple=int(factor), minimum=int(factor))


def _measure_frames(
    model: Any, adapter: ModelAdapter, channels: int, sizes: Mapping[str, int], before: int
) -> tuple[Fraction, SizeRule]:
    """Return how many frames one more latent stands for, and which frame counts are allowed: those
    at which the number of latents changes.
    """
    step, first = adapter.traits.frames
    while step <= MAX_EXTRA_FRAMES:
        batch = torch.empty(
            1, channels, *(size + step if axis == "T" else size for axis, size in sizes.items())
        )
        after = next(iter(adapter.encode(model, batch).values())).shape[-len(sizes)]
        if after > before:
            return Fraction(step, after - before), SizeRule(step, first if step > 1 else 0, first)
        step *= 2
    raise EncoderError(
        f"{type(model).__name__}: a video with {MAX_EXTRA_FRAMES} frames more has as many latent"
        " frames as before, so it is unknown which numbers of frames are encoded whole. Use the"
        " model with images, or report this class"
    )


def _check_decoding(name: str, decoded: Tensor, sizes: Mapping[str, int]) -> None:
    if tuple(decoded.shape[2:]) != tuple(sizes.values()):
        raise EncoderError(
            f"{name}: decode returned sizes {tuple(decoded.shape[2:])}, expected those of the"
            f" input, {tuple(sizes.values())}. Check the model's config"
        )


def _int_if_whole(factor: Fraction) -> Any:
    """Return the factor as an int if it is whole, else as a float, such as 17 frames for 5
    latents.
    """
    return int(factor) if factor.denominator == 1 else float(factor)
