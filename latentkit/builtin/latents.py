"""Core's parts for latents that lie ready. Loads no torch; `builtin.plugins` hands them on."""

from __future__ import annotations

import functools
from typing import Any

from latentkit.contracts import BuildContext, EncoderSpec, ModalitySpec, SourceSpec
from latentkit.encoders.options import UnknownConfig
from latentkit.modalities.options import LatentsConfig
from latentkit.sources.latent_options import LatentFilesConfig, LatentTarsConfig


def _build_files(config: LatentFilesConfig, context: BuildContext) -> Any:
    from latentkit.sources.latent_files import LatentFiles

    return LatentFiles(config, context)


def _build_tars(config: LatentTarsConfig, context: BuildContext) -> Any:
    from latentkit.sources.latent_tars import LatentTars

    return LatentTars(config, context)


def _build_latents(config: LatentsConfig, context: BuildContext) -> Any:
    from latentkit.modalities.latents import LatentsModality

    return LatentsModality(config, context)


def _build_unknown(config: UnknownConfig, context: BuildContext) -> Any:
    from latentkit.encoders.unknown import UnknownEncoder

    return UnknownEncoder(config, functools.partial(_open_decoder, config, context))


def _open_decoder(config: UnknownConfig, context: BuildContext) -> Any:
    from latentkit.plugins import discover

    use, registry = config.decoder, discover()
    assert use is not None
    options = registry.configure("encoder", use.use, use.with_, "encoder.with.decoder")
    return registry.find("encoder", use.use).spec.build(options, context)


SOURCES = (
    SourceSpec(
        "latent-files",
        "latents as .npy, .npz, .pt or .safetensors, and exports to safetensors",
        LatentFilesConfig,
        _build_files,
        modality="latents",
    ),
    SourceSpec(
        "latent-tars",
        "latents in tars of the library webdataset, and exports to it",
        LatentTarsConfig,
        _build_tars,
        modality="latents",
    ),
)
MODALITY = ModalitySpec(
    "latents", "latents that lie ready, of latentkit import", LatentsConfig, _build_latents
)
ENCODER = EncoderSpec(
    "unknown", "hands on latents that another program made", UnknownConfig, _build_unknown
)
