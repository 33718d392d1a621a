"""The plugin keeps latentkit's contracts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from latentkit_text.encoder import TextEncoder
from latentkit_text.loading import open_text_encoder
from latentkit_text.plugin import (
    TextConfig,
    TextEncoderConfig,
    latentkit_encoders,
    latentkit_modalities,
)
from torch import Tensor

from latentkit.contracts import BuildContext, Config, Encoder, EncoderSpec, ModalitySpec, Sample
from latentkit.testing import EncoderContract, ModalityContract


class TestText(ModalityContract):
    spec: ModalitySpec = latentkit_modalities()
    axes = "L"

    @pytest.fixture(autouse=True)
    def _of_clip(self, clip_folder: Path) -> None:
        encoder = open_text_encoder(TextEncoderConfig(model=str(clip_folder)), BuildContext())
        self.input = encoder.input

    def make_config(self, tmp_path: Path) -> Config:
        return TextConfig(column=None)

    def make_samples(self, tmp_path: Path) -> Sequence[Sample]:
        return [Sample("short", "a cat"), Sample("long", "two dogs on a beach at dusk")]


class TestTextEncoder(EncoderContract):
    spec: EncoderSpec = latentkit_encoders()

    @pytest.fixture(autouse=True)
    def _in_a_folder(self, clip_folder: Path) -> None:
        self._folder = clip_folder

    def make_config(self, tmp_path: Path) -> Config:
        return TextEncoderConfig(model=str(self._folder))

    def make_batch(
        self, encoder: Encoder, sizes: tuple[int, ...], num_rows: int
    ) -> dict[str, Tensor]:
        tokens = torch.randint(
            1, 40, (num_rows, *sizes), generator=torch.Generator().manual_seed(num_rows)
        )
        return {"tokens": tokens, "mask": torch.ones(tokens.shape)}

    def perturb(self, encoder: Encoder) -> Encoder:
        assert isinstance(encoder, TextEncoder)
        weight = next(encoder.network.parameters())
        weight.view(torch.int32)[0] ^= 1
        return encoder
