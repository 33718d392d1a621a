"""Converts the names that authors gave their weights to the names of diffusers' classes."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from diffusers.loaders.single_file_model import SINGLE_FILE_LOADABLE_CLASSES
from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint
from torch import Tensor

Tensors = Mapping[str, Tensor]

LDM = "encoder.down.0.block.0."
"""A name in the files of everybody who trains latent-diffusion's networks."""
LDM_PARTS = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.")
"""Starts of the network's names. A trainer's file also contains losses and averages."""
LDM_ATTENTION = {
    "norm": "group_norm",
    "q": "to_q",
    "k": "to_k",
    "v": "to_v",
    "proj_out": "to_out.0",
}

WAN_RESIDUAL = {
    "residual.0": "norm1",
    "residual.2": "conv1",
    "residual.3": "norm2",
    "residual.6": "conv2",
    "shortcut": "conv_shortcut",
}


def to_diffusers_names(tensors: Tensors, config: Mapping[str, Any]) -> dict[str, Tensor]:
    """Rename a network's tensors to the names of its diffusers class. Unknown names stay.

    Args:
        tensors: tensors of one network, without a prefix.
        config: complete config, with the class's defaults.
    """
    convert = CONVERSIONS.get(config["_class_name"], _convert_as_diffusers)
    try:
        return convert(tensors, config)
    except (KeyError, ValueError, IndexError, AttributeError):
        return dict(tensors)  # unknown names; messages will show them


def _convert_as_diffusers(tensors: Tensors, config: Mapping[str, Any]) -> dict[str, Tensor]:
    """Convert with diffusers' own function for the class, if there is one."""
    known: Mapping[str, Any] = SINGLE_FILE_LOADABLE_CLASSES
    convert = known.get(config["_class_name"], {}).get("checkpoint_mapping_fn")
    return convert(checkpoint=dict(tensors), config=config) if convert else dict(tensors)


def _convert_ldm(tensors: Tensors, config: Mapping[str, Any]) -> dict[str, Tensor]:
    """Convert latent-diffusion's names with diffusers' function, which skips attention between the
    convolutions and unknown names; these are added here.
    """
    if not any(name.startswith(LDM) for name in tensors):
        return dict(tensors)
    parts = {name: tensor for name, tensor in tensors.items() if name.startswith(LDM_PARTS)}
    convert: Callable[..., dict[str, Tensor]] = convert_ldm_vae_checkpoint
    converted = {
        _ldm_attention(name, config): tensor for name, tensor in convert(parts, config).items()
    }
    for name, tensor in converted.items():
        if (
            ".attentions." in name and tensor.ndim == 4
        ):  # a 1 x 1 convolution that is a linear layer in diffusers
            converted[name] = tensor[:, :, 0, 0]
    used = {tensor.data_ptr() for tensor in converted.values()}
    return converted | {
        name: tensor for name, tensor in parts.items() if tensor.data_ptr() not in used
    }


def _ldm_attention(name: str, config: Mapping[str, Any]) -> str:
    """Return diffusers' name of an attention layer of latent-diffusion's; other names unchanged."""
    found = re.fullmatch(
        r"(encoder\.down|decoder\.up)\.(\d+)\.attn\.(\d+)\.(\w+)\.(weight|bias)", name
    )
    if not found:
        return name
    half, level, index, part, kind = found.groups()
    number = (
        int(level) if half == "encoder.down" else len(config["up_block_types"]) - 1 - int(level)
    )
    return f"{half}_blocks.{number}.attentions.{index}.{LDM_ATTENTION[part]}.{kind}"


def _convert_flux2(tensors: Tensors, config: Mapping[str, Any]) -> dict[str, Tensor]:
    """Convert FLUX.2's own file: latent-diffusion's names, with quant_conv inside the halves, and
    statistics.
    """
    named = {
        re.sub(r"^(encoder|decoder)\.((?:post_)?quant_conv)\.", r"\2.", name): tensor
        for name, tensor in tensors.items()
    }
    return _convert_ldm(named, config) | {
        name: tensor for name, tensor in named.items() if name.startswith("bn.")
    }


def _convert_wan(tensors: Tensors, config: Mapping[str, Any]) -> dict[str, Tensor]:
    """Convert Wan's names, which other networks share: 2.1 with diffusers' function, the nested
    blocks of 2.2 here.
    """
    if any(name.startswith("encoder.downsamples.0.downsamples.") for name in tensors):
        tensors = {_wan22_block(name): tensor for name, tensor in tensors.items()}
    return _convert_as_diffusers(tensors, {**config, "_class_name": "AutoencoderKLWan"})


def _wan22_block(name: str) -> str:
    """Return diffusers' name of a layer in a nested block of Wan 2.2."""
    found = re.fullmatch(
        r"(encoder\.down|decoder\.up)samples\.(\d+)\.(down|up)samples\.(\d+)\.(.+)", name
    )
    if not found:
        return name
    half, block, way, layer, rest = found.groups()
    if rest.startswith(("resample.", "time_conv.")):
        return f"{half}_blocks.{block}.{way}sampler.{rest}"
    for original, own in WAN_RESIDUAL.items():
        if rest.startswith(f"{original}."):
            rest = own + rest.removeprefix(original)
            break
    return f"{half}_blocks.{block}.resnets.{layer}.{rest}"


def _convert_ltx(tensors: Tensors, config: Mapping[str, Any]) -> dict[str, Tensor]:
    """Convert LTX-Video's names, which diffusers' function only knows under a prefix."""
    if not any(".res_blocks." in name for name in tensors):
        return dict(tensors)
    return _convert_as_diffusers(
        {f"vae.{name}": tensor for name, tensor in tensors.items()}, config
    )


def _convert_ltx2(tensors: Tensors, config: Mapping[str, Any]) -> dict[str, Tensor]:
    """Convert LTX-2's names with diffusers' function. The additional blocks of 2.3 follow the same
    pattern.
    """
    further = {
        "decoder.up_blocks.7.": "decoder.up_blocks.3.upsamplers.0.",
        "decoder.up_blocks.8.": "decoder.up_blocks.3.",
    }
    if not any(".res_blocks." in name for name in tensors):
        return dict(tensors)
    converted = _convert_as_diffusers(tensors, config)
    for original, own in further.items():
        converted = {name.replace(original, own): tensor for name, tensor in converted.items()}
    return converted


def _convert_tiny(tensors: Tensors, _: Mapping[str, Any]) -> dict[str, Tensor]:
    """Convert TAESD's numbered layers. The decoder's numbers start with a layer that has no
    weights.
    """
    named = {}
    for name, tensor in tensors.items():
        found = re.fullmatch(r"(?:\w*_)?(encoder|decoder)\.(\d+)\.(.+)", name)
        half, layer, rest = found.groups() if found else ("", "", "")
        named[f"{half}.layers.{int(layer) - (half == 'decoder')}.{rest}" if found else name] = (
            tensor
        )
    return named


def _ldm_to_diffusers_names(name: str) -> str:
    """Return a level's name in diffusers, for classes that keep latent-diffusion's order of
    levels.
    """
    name = re.sub(
        r"\.mid\.block_(\d)\.", lambda found: f".mid_block.resnets.{int(found[1]) - 1}.", name
    )
    name = re.sub(r"\.mid\.attn_1\.([qkv])\.", r".mid_block.attentions.0.to_\1.", name)
    name = name.replace(".mid.attn_1.", ".mid_block.attentions.0.").replace(
        "nin_shortcut", "conv_shortcut"
    )
    name = re.sub(r"\.(down|up)\.(\d+)\.block\.(\d+)\.", r".\1_blocks.\2.resnets.\3.", name)
    return re.sub(r"\.(down|up)\.(\d+)\.(?:down|up)sample\.", r".\1_blocks.\2.\1samplers.0.", name)


def _convert_hunyuan_video15(tensors: Tensors, _: Mapping[str, Any]) -> dict[str, Tensor]:
    return {_ldm_to_diffusers_names(name): tensor for name, tensor in tensors.items()}


def _convert_hunyuan_image(tensors: Tensors, config: Mapping[str, Any]) -> dict[str, Tensor]:
    """Convert names as latent-diffusion's, with blocks numbered across all levels."""
    layers = config["layers_per_block"]

    def count(found: re.Match[str]) -> str:
        way, level, block = found[1], int(found[2]), found[3]
        blocks = layers + (way == "up")
        return f".{way}_blocks.{level * (blocks + 1) + (blocks if block is None else int(block))}."

    named = {}
    for name, tensor in tensors.items():
        name = re.sub(r"\.(down|up)\.(\d+)\.(?:block\.(\d+)|(?:down|up)sample)\.", count, name)
        named[
            _ldm_to_diffusers_names(name).replace(".attentions.0.proj_out.", ".attentions.0.proj.")
        ] = tensor
    return named


def _convert_cogvideox(tensors: Tensors, config: Mapping[str, Any]) -> dict[str, Tensor]:
    """Convert names as latent-diffusion's, which numbers the decoder's levels from the last."""
    last = len(config["up_block_types"]) - 1

    def turn(found: re.Match[str]) -> str:
        return f"decoder.up.{last - int(found[1])}."

    return {
        _ldm_to_diffusers_names(re.sub(r"^decoder\.up\.(\d+)\.", turn, name)): tensor
        for name, tensor in tensors.items()
    }


def _convert_oobleck(tensors: Tensors, config: Mapping[str, Any]) -> dict[str, Tensor]:
    """Convert stable-audio-tools' numbered layers, which are nested three levels deep."""
    last = len(config["downsampling_ratios"]) + 1
    ends = {0: "conv1", last: "snake1", last + 1: "conv2"}
    inner = {
        "encoder": ("res_unit1", "res_unit2", "res_unit3", "snake1", "conv1"),
        "decoder": ("snake1", "conv_t1", "res_unit1", "res_unit2", "res_unit3"),
    }
    unit = ("snake1", "conv1", "snake2", "conv2")
    named = {}
    for name, tensor in tensors.items():
        found = re.fullmatch(
            r"(encoder|decoder)\.layers\.(\d+)(?:\.layers\.(\d+))?(?:\.layers\.(\d+))?\.(\w+)", name
        )
        if found:
            half, layer = found[1], int(found[2])
            parts = (
                [half, ends[layer]]
                if found[3] is None
                else [half, "block", str(layer - 1), inner[half][int(found[3])]]
            )
            parts += [unit[int(found[4])]] if found[4] is not None else []
            name = ".".join([*parts, found[5]])
            tensor = (
                tensor[None, :, None]
                if found[5] in ("alpha", "beta") and tensor.ndim == 1
                else tensor
            )
        named[name] = tensor
    return named


CONVERSIONS: Mapping[str, Callable[[Tensors, Mapping[str, Any]], dict[str, Tensor]]] = {
    "AutoencoderKL": _convert_ldm,
    "AutoencoderKLCogVideoX": _convert_cogvideox,
    "AutoencoderKLFlux2": _convert_flux2,
    "AutoencoderKLHunyuanImage": _convert_hunyuan_image,
    "AutoencoderKLHunyuanVideo15": _convert_hunyuan_video15,
    "AutoencoderKLLTX2Video": _convert_ltx2,
    "AutoencoderKLLTXVideo": _convert_ltx,
    "AutoencoderKLQwenImage": _convert_wan,
    "AutoencoderKLWan": _convert_wan,
    "AutoencoderOobleck": _convert_oobleck,
    "AutoencoderTiny": _convert_tiny,
}
"""Conversion by class. All other classes use diffusers' own."""
