"""The contract kit on a video, a sound, a mel and a codebook model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

import pytest

from latentkit import builtin
from latentkit.contracts import Encoder, EncoderSpec
from latentkit.encoders.options import DiffusersConfig
from latentkit.testing import EncoderContract
from latentkit.testing.latents import flip_bit

MODELS = json.loads(Path(__file__).with_name("models.json").read_text())


class OfDiffusers(EncoderContract):
    spec = next(spec for spec in builtin.latentkit_encoders() if spec.name == "diffusers")
    spec_type: ClassVar[type[Any]] = EncoderSpec
    name: ClassVar[str]

    @pytest.fixture(autouse=True)
    def _models(self, tiny: Any) -> None:
        self.tiny = tiny

    def make_config(self, tmp_path: Path) -> DiffusersConfig:
        return DiffusersConfig(
            model=str(self.tiny.folder(self.name)), indices=True if self.name == "VQModel" else None
        )

    def perturb(self, encoder: Any) -> Encoder:
        flip_bit(next(iter(encoder.encoding_half.encoder.parameters())).data)
        return encoder


class TestWan(OfDiffusers):
    name = "AutoencoderKLWan"


class TestOobleck(OfDiffusers):
    name = "AutoencoderOobleck"
    stores_statistics = False  # its config has no field for them, and no pipeline applies any


class TestLTX2Audio(OfDiffusers):
    name = "AutoencoderKLLTX2Audio"


class TestFlux2(OfDiffusers):
    name = "AutoencoderKLFlux2"
