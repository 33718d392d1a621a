"""A class that diffusers adds later works when it follows a known form, and says what it lacks when
it doesn't.
"""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import pytest
import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from latentkit.encoders.diffusers import DiffusersEncoder
from latentkit.errors import EncoderError


class New(ModelMixin, ConfigMixin):
    """One convolution there and one back, over two (pictures, clips) or one axes (sound)."""

    convolutions: tuple[Any, Any] = (nn.Conv2d, nn.ConvTranspose2d)
    kernel: Any = 4
    channels = 3

    @register_to_config
    def __init__(self, latent_channels: int = 2, scaling_factor: float = 0.5) -> None:
        super().__init__()
        there, back = self.convolutions
        self.encoder = there(self.channels, 2 * latent_channels, self.kernel, self.kernel)
        self.decoder = back(latent_channels, self.channels, self.kernel, self.kernel)

    def encode(self, x: Tensor) -> Any:
        return SimpleNamespace(latent_dist=DiagonalGaussianDistribution(self.encoder(x)))

    def decode(self, z: Tensor) -> Any:
        return SimpleNamespace(sample=self.decoder(z))


class NewDeterministic(New):
    def encode(self, x: Tensor) -> Any:
        return SimpleNamespace(latent=self.encoder(x).chunk(2, 1)[0])


class NewTuple(New):
    def encode(self, x: Tensor) -> Any:
        return (self.encoder(x).chunk(2, 1)[0],)


class NewVideo(New):
    """Clips of 4k + 1 frames: the first frame is repeated three times in front."""

    convolutions = (nn.Conv3d, nn.ConvTranspose3d)

    def encode(self, x: Tensor) -> Any:
        return super().encode(torch.cat([x[:, :, :1]] * 3 + [x], dim=2))

    def decode(self, z: Tensor) -> Any:
        return SimpleNamespace(sample=self.decoder(z)[:, :, 3:])


class NewAudio(New):
    convolutions = (nn.Conv1d, nn.ConvTranspose1d)


class NewPatched(New):
    """Its config counts the channels of patches of 2 x 2 pixels, as that of Wan 2.2 5B."""

    @register_to_config
    def __init__(
        self,
        in_channels: int = 12,
        patch_size: int = 2,
        latent_channels: int = 2,
        scaling_factor: float = 0.5,
    ) -> None:
        ModelMixin.__init__(self)
        self.encoder = nn.Conv2d(12, 2 * latent_channels, 2, 2)
        self.decoder = nn.ConvTranspose2d(latent_channels, 12, 2, 2)

    def encode(self, x: Tensor) -> Any:
        return super().encode(nn.functional.pixel_unshuffle(x, 2))

    def decode(self, z: Tensor) -> Any:
        return SimpleNamespace(sample=nn.functional.pixel_shuffle(self.decoder(z), 2))


class NewOdd(New):
    def encode(self, x: Tensor) -> Any:
        return SimpleNamespace(tokens=self.encoder(x))


class NewShrinking(New):
    def decode(self, z: Tensor) -> Any:
        return SimpleNamespace(sample=self.decoder(z)[..., 1:])


class NewMute(ModelMixin, ConfigMixin):
    def encode(self, x: Tensor) -> Tensor:
        return x


@pytest.fixture
def open_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    def build(new: type[Any]) -> DiffusersEncoder:
        monkeypatch.setattr(diffusers, new.__name__, new, raising=False)
        torch.manual_seed(0)
        new().save_pretrained(tmp_path / new.__name__)
        return DiffusersEncoder(tmp_path / new.__name__, None, torch.float32, False, "cpu")

    return build


@pytest.mark.parametrize(
    ("new", "modality", "kind", "downscale", "sizes"),
    [
        (New, "image", "gaussian", 4, (16, 24)),
        (NewDeterministic, "image", "deterministic", 4, (16, 24)),
        (NewTuple, "image", "deterministic", 4, (16, 24)),
        (NewVideo, "video", "gaussian", 4, (9, 16, 24)),
        (NewAudio, "audio", "gaussian", 4, (64,)),
        (NewPatched, "image", "gaussian", 4, (16, 24)),
    ],
)
def test_known_forms_work_without_a_row(
    new: type[Any], modality: str, kind: str, downscale: int, sizes: tuple[int, ...], open_new: Any
) -> None:
    encoder = open_new(new)
    assert (
        encoder.modality,
        encoder.layout.kind,
        encoder.layout.downscale,
        encoder.layout.channels,
    ) == (modality, kind, downscale, 2)
    assert encoder.normalization.scale == 0.5
    assert encoder.input.channels == 3
    batch = torch.rand(2, encoder.input.channels, *sizes)
    latents = next(iter(encoder.encode(batch).values()))
    assert latents.shape[2:] == tuple(-(-size // 4) for size in sizes)
    assert encoder.decode(latents).shape == batch.shape
    assert encoder.module(batch).output.shape == batch.shape


@pytest.mark.parametrize(
    ("new", "lacks"),
    [
        (
            NewOdd,
            (
                "encode returned SimpleNamespace, which has neither a latent_dist (with mean and std,"
                " or mode) nor latents nor latent"
            ),
        ),
        (NewShrinking, "NewShrinking: decode returned sizes (256, 255), expected those of the input, (256, 256)"),
        (NewMute, "_class_name is 'NewMute'; this version supports"),
    ],
)
def test_what_a_class_lacks_is_said(new: type[Any], lacks: str, open_new: Any) -> None:
    with pytest.raises(EncoderError, match=re.escape(lacks)):
        open_new(new)
