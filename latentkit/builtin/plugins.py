"""Core's own sources, modalities, encoders and executors. Loads no torch."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from latentkit.builtin import latents
from latentkit.contracts import (
    BuildContext,
    EncoderSpec,
    ExecutorSpec,
    ModalitySpec,
    SourceSpec,
)
from latentkit.contracts.plugin_specs import NoOptions
from latentkit.encoders.options import DiffusersConfig, TinyKLConfig
from latentkit.executors.options import LocalConfig
from latentkit.hooks import hookimpl
from latentkit.modalities.options import ImageConfig
from latentkit.runtime.file_endings import IMAGE_SUFFIXES
from latentkit.sources.options import DatasetsConfig, FolderConfig


def _build_folder(config: FolderConfig, context: BuildContext) -> Any:
    from latentkit.sources.folder import FolderSource

    return FolderSource(config, context)


def _build_datasets(config: DatasetsConfig, context: BuildContext) -> Any:
    from latentkit.sources.datasets import open_datasets

    return open_datasets(config, context)


def _build_sample_photos(config: NoOptions, context: BuildContext) -> Any:
    from latentkit.sources.sample_photos import open_sample_photos

    return open_sample_photos()


def _build_image(config: ImageConfig, context: BuildContext) -> Any:
    from latentkit.modalities.image import ImageModality

    return ImageModality(config, context)


def _build_diffusers(config: DiffusersConfig, context: BuildContext) -> Any:
    from latentkit.encoders.diffusers import open_diffusers

    return open_diffusers(config, context)


def _build_tiny_kl(config: TinyKLConfig, context: BuildContext) -> Any:
    from latentkit.encoders.tiny_kl import open_tiny_kl

    return open_tiny_kl(config, context)


def _build_tiny_kl_16(config: TinyKLConfig, context: BuildContext) -> Any:
    from latentkit.encoders.tiny_kl import open_tiny_kl

    return open_tiny_kl(config, context, "tiny-kl-16")


def _build_local(config: LocalConfig, context: BuildContext) -> Any:
    from latentkit.executors.local import LocalExecutor
    from latentkit.runtime.device import choose_device, list_devices

    if config.devices is not None:
        return LocalExecutor(*map(choose_device, config.devices))
    # Of a launcher's processes each has a device of its own; `--cpu` leaves "auto" the CPU.
    is_sole = (
        config.device == "auto"
        and context.device in list_devices()
        and "LOCAL_RANK" not in os.environ
    )
    return LocalExecutor(*list_devices() if is_sole else [context.device])


def _build_accelerate(config: NoOptions, context: BuildContext) -> Any:
    from latentkit.executors.accelerate import AccelerateExecutor

    return AccelerateExecutor(context.device)


@hookimpl
def latentkit_sources() -> Iterator[SourceSpec]:
    yield SourceSpec("folder", "files below a folder, with captions", FolderConfig, _build_folder)
    yield SourceSpec(
        "datasets", "anything the library datasets opens", DatasetsConfig, _build_datasets
    )
    yield SourceSpec(
        "sample-photos", "photographs inside scikit-image", NoOptions, _build_sample_photos
    )
    yield from latents.SOURCES


@hookimpl
def latentkit_modalities() -> Iterator[ModalitySpec]:
    # Version 2: the white and the colors of formats that Pillow reads otherwise; before, such files
    # came out wrong.
    yield ModalitySpec(
        "image",
        "images, in sRGB",
        ImageConfig,
        _build_image,
        version=2,
        suffixes=IMAGE_SUFFIXES,
    )
    yield latents.MODALITY


@hookimpl
def latentkit_encoders() -> Iterator[EncoderSpec]:
    yield EncoderSpec("diffusers", "a diffusers autoencoder", DiffusersConfig, _build_diffusers)
    yield EncoderSpec(
        "tiny-kl",
        "small KL autoencoder inside latentkit (f8, 4 channels)",
        TinyKLConfig,
        _build_tiny_kl,
    )
    yield EncoderSpec(
        "tiny-kl-16",
        "tiny-kl with 16 channels: sharper, but harder to model",
        TinyKLConfig,
        _build_tiny_kl_16,
    )
    yield latents.ENCODER


@hookimpl
def latentkit_executors() -> Iterator[ExecutorSpec]:
    yield ExecutorSpec(
        "local", "this machine, a process for each device", LocalConfig, _build_local
    )
    yield ExecutorSpec(
        "accelerate", "every process of an accelerate launch", NoOptions, _build_accelerate
    )
