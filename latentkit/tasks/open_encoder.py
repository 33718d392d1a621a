"""Opens an encoder by the name that `latentkit encode --encoder` takes, for direct use."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latentkit.contracts import BuildContext, Encoder, Modality
from latentkit.contracts.encoder_description import readable_input
from latentkit.errors import RecipeError
from latentkit.plugins.registry import discover
from latentkit.recipe.overrides import make_paths_absolute
from latentkit.tasks.build_parts import EncoderOpener, encoder_parts
from latentkit.tasks.check_recipe import ConfiguredPlugin
from latentkit.tasks.encode_task import print_remark
from latentkit.tasks.recipe_from_arguments import encoder_from_word

if TYPE_CHECKING:
    from latentkit.encoding.latent_encoder import LatentEncoder


def open_encoder(
    word: str, options: Mapping[str, Any], modality: str | None, device: str
) -> LatentEncoder:
    """Return the encoder that a word names, on a device.

    Args:
        word: name of an encoder plugin, a path, or a hub id.
        options: options of the plugin, as under `encoder.with`; relative paths start from the
            working directory.
        modality: for an encoder that accepts several; None is its first.
        device: "auto", a kind such as "cuda", or one device such as "cuda:1".

    Raises:
        RecipeError: the encoder or the option doesn't exist, or the encoder takes another modality.
        PluginError, EncoderError, DeviceError: the encoder can't be opened.
    """
    from latentkit.encoding.latent_encoder import LatentEncoder
    from latentkit.runtime.device import choose_device

    remarks: list[str] = []
    plugin = _configured(encoder_from_word(word, remarks), options)
    opener = EncoderOpener(plugin, 0, Path.cwd(), modality or "")
    found = choose_device(device)
    encoder = opener(found)
    if modality not in (None, encoder.modality):
        raise RecipeError(
            f"the encoder {word} takes the modality {encoder.modality}, got {modality}"
        )
    for remark in [*remarks, *(one.text for one in getattr(encoder, "remarks", tuple)())]:
        print_remark(remark)
    float32 = opener.in_float32() or opener
    return LatentEncoder(
        word,
        encoder,
        found,
        str(getattr(plugin.config, "dtype", "")),
        functools.partial(float32, found),
        functools.partial(_open_modality, encoder),
        functools.partial(encoder_parts, plugin, encoder),
        _takes_texts(encoder.modality),
    )


def _configured(use: Mapping[str, Any], options: Mapping[str, Any]) -> ConfiguredPlugin:
    registry, name = discover(), use["use"]
    given = {**use.get("with", {}), **make_paths_absolute(options, ("encoder", "with"), Path.cwd())}
    config = registry.configure("encoder", name, given, "encoder")
    return ConfiguredPlugin("encoder", "encoder", registry.find("encoder", name), config)


def _open_modality(encoder: Encoder, size: Any) -> Modality:
    """Return the modality that prepares files for an encoder, as `latentkit encode` would."""
    registry, name = discover(), encoder.modality
    given = {} if size is None else {"size": size}
    taken = readable_input(encoder.input, encoder.layout, encoder.normalization)
    config = registry.configure("modality", name, given, "modality")
    fitted = config.fitted(taken) if hasattr(config, "fitted") else {}
    settled = config.for_new_dataset() if hasattr(config, "for_new_dataset") else {}
    if fitted or settled:
        config = registry.configure("modality", name, {**given, **fitted, **settled}, "modality")
    context = BuildContext(recipe_dir=Path.cwd(), input=taken, modality=name)
    modality: Modality = registry.find("modality", name).spec.build(config, context)
    return modality


def _takes_texts(modality: str) -> bool:
    """Return whether texts are the media of a modality: whether its options name an attribute with
    the text.
    """
    found = [row for row in discover().provided if row.spec.name == modality]
    return any(hasattr(one.spec.config, "media_attribute") for one in found)
