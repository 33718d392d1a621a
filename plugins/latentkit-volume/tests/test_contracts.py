"""The plugin is found, and its modality and encoder keep their contracts."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from latentkit_volume.encoder import VolumeKLEncoder, open_volume_kl
from latentkit_volume.plugin import (
    VolumeConfig,
    VolumeKLConfig,
    latentkit_encoders,
    latentkit_modalities,
)

from latentkit.contracts import BuildContext, Encoder, InputSpec, Sample, SizeRule
from latentkit.kit import discover
from latentkit.testing import EncoderContract, ModalityContract

OBLIQUE = np.array([[-0.9, 0.1, 0.3, 4], [0.2, 0.8, -0.9, 5], [0.1, 0.2, 2.8, -6], [0, 0, 0, 1]])


class VolumeContract(ModalityContract):
    """Of small patches, by every kind of view."""

    spec = latentkit_modalities()
    axes = "CDHW"
    input = InputSpec(channels=1, sizes={axis: SizeRule(multiple=4) for axis in "DHW"}, axes="CDHW")
    frames: tuple[int, ...] = ()

    @pytest.fixture(autouse=True)
    def _use_files(self, nifti: Callable[..., bytes], smooth: Callable[..., Any]) -> None:
        shapes = (18, 15, 9), (7, 21, 14)
        affines = np.diag([1.0, -1.2, 2.5, 1.0]), OBLIQUE
        self.files = [
            nifti(smooth((*shape, *self.frames), number), affine, zipped=bool(number))
            for number, (shape, affine) in enumerate(zip(shapes, affines, strict=True))
        ]

    def make_samples(self, tmp_path: Path) -> Sequence[Sample]:
        return [Sample(f"{number}.nii", content) for number, content in enumerate(self.files)]


class TestVolume(VolumeContract):
    def make_config(self, tmp_path: Path) -> VolumeConfig:
        return VolumeConfig(
            size=(8, 12, 16),
            spacing=(2.0, 1.0, 1.5),
            align="patient",
            views=["plain", "crop-1", "grid-1x2x2"],
        )


class TestRandomCropsOfChannels(VolumeContract):
    input = InputSpec(channels=2, range=(0.0, 1.0), axes="CDHW")
    frames = (2,)

    def make_config(self, tmp_path: Path) -> VolumeConfig:
        return VolumeConfig(
            size=6, align="patient", window=(-500, 700), frame="channels", crop="random"
        )

    def make_bad_sample(self, tmp_path: Path) -> Sample:
        return Sample("cut.nii.gz", self.files[1][:200])


class TestVolumeKL(EncoderContract):
    spec = latentkit_encoders()

    def make_config(self, tmp_path: Path) -> VolumeKLConfig:
        return VolumeKLConfig(init="random", widths=(4, 6), blocks=(1, 1))

    def make_renormalized(self, tmp_path: Path) -> Encoder:
        measured = self.make_encoder(tmp_path)
        assert isinstance(measured, VolumeKLEncoder)
        measured.set_statistics(
            *(torch.full((measured.layout.channels,), value) for value in (2.0, 0.5))
        )
        measured.save(tmp_path)
        return open_volume_kl(VolumeKLConfig(model=str(tmp_path)), BuildContext())


class TestVolumeKLAtAnEighth(TestVolumeKL):
    def make_config(self, tmp_path: Path) -> VolumeKLConfig:
        return VolumeKLConfig(
            init="random", widths=(3, 4), blocks=(1, 1), downscale=8, channels=2, latent_channels=6
        )


def test_installed_plugin_is_found() -> None:
    registry = discover()
    assert registry.find("modality", "volume").distribution == "latentkit-volume"
    assert registry.find("encoder", "volume-kl").distribution == "latentkit-volume"
    assert not [
        problem for problem in registry.problems if problem.distribution == "latentkit-volume"
    ]


def test_listing_plugins_opens_none_of_its_libraries() -> None:
    program = (
        "import sys; from latentkit.plugins import discover; discover(); print({'nibabel', 'scipy'}"
        " & sys.modules.keys())"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "set()"
