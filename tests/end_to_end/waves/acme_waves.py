"""A plugin of sounds of different length, nothing like pictures: source, modality and encoder
`waves`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field

from latentkit.contracts import (
    BuildContext,
    Config,
    EncoderSpec,
    Entry,
    InputSpec,
    LatentLayout,
    ModalitySpec,
    Normalization,
    Prepared,
    Sample,
    SourceSpec,
)
from latentkit.errors import SampleError
from latentkit.hooks import hookimpl

if TYPE_CHECKING:
    import torch

DOWNSCALE = 4
CHANNELS = 3
BAD = 5
"""Number of the sample that can't be used, and every tenth from there."""


def length_of(number: int) -> int:
    """Values of a wave."""
    return 6 + (number * 7) % 31


def wave_of(number: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """(L,) float32 in [-1, 1]."""
    return np.random.default_rng(number).uniform(-1, 1, length_of(number)).astype(np.float32)


class WavesConfig(Config):
    """Source `waves`."""

    count: int = Field(12, description="number of waves")


class Waves:
    def __init__(self, config: WavesConfig, context: BuildContext) -> None:
        self.count = config.count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Sample:
        media = b"" if index % 10 == BAD else wave_of(index).tobytes()
        return Sample(f"{index:03d}", media, {"text": f"wave {index}"}, str(index))

    def entries(self) -> Iterator[Entry]:
        return (
            Entry(f"{index:03d}", str(index), {"text": f"wave {index}"})
            for index in range(self.count)
        )


class WaveConfig(Config):
    """Modality `waves`."""

    pad: Literal["none", "16", "all"] = Field(
        "16",
        description="to what a wave is padded with sevens: not, a multiple of 16, or 48 values",
    )
    prepare_in: Literal["threads", "processes"] = Field(
        "threads", description="where waves are prepared"
    )


class Wave:
    metrics: Sequence[str] = ()
    preview_suffix = ".npz"

    def __init__(self, config: WaveConfig, context: BuildContext) -> None:
        self.pad, self.prepare_in = config.pad, config.prepare_in

    def prepare(self, sample: Sample) -> Iterator[Prepared]:
        import torch

        wave = torch.from_numpy(np.frombuffer(sample.read(), np.float32).copy())
        if not len(wave):
            raise SampleError("a wave without values")
        if self.pad == "none":
            yield Prepared("plain", f"1x{len(wave)}", wave[None], {"length": len(wave)})
            return
        longest = 48 if self.pad == "all" else -(-len(wave) // 16) * 16
        padded = torch.full((1, longest), 7.0)
        padded[0, : len(wave)] = wave
        row = {"wave": padded, "mask": (torch.arange(longest) < len(wave)).to(torch.int64)}
        yield Prepared("plain", f"1x{longest}", row, {"length": len(wave)})

    def render(self, tensors: Sequence[Sequence[torch.Tensor]], path: Path) -> None:
        with path.open("wb") as file:
            np.savez(file, *[tensor.numpy() for row in tensors for tensor in row])


class EncoderConfig(Config):
    """Encoder `waves`."""

    kind: Literal["gaussian", "deterministic", "quantised"] = Field(
        "gaussian", description="of the latents"
    )
    ragged: bool = Field(True, description="whether rows keep their own length")
    takes_mask: bool = Field(False, description="whether it is given the mask, and gives its own")
    defect: Literal["", "nan", "empty", "size", "mask"] = Field(
        "", description="what it does wrong"
    )
    name: str = Field("wave-latent", description="of the tensor")


class WaveEncoder:
    """Means of four values times 1, 2, 3; logvar is the mean's negative."""

    modality = "waves"

    def __init__(self, config: EncoderConfig, context: BuildContext) -> None:
        self.config = config
        assert context.modality == "waves"
        self.input = InputSpec(channels=1, axes="CL", takes_mask=config.takes_mask)
        axes = "L" if config.kind == "quantised" else "CL"
        downscale = 2 if config.defect == "size" else DOWNSCALE
        self.layout = LatentLayout(
            config.name, config.kind, axes, CHANNELS, downscale, "L" if config.ragged else None
        )
        self.normalization = Normalization(shift=[0.5, 0.25, 0.125], scale=[2.0, 4.0, 8.0])

    def encode(self, batch: torch.Tensor | Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        import torch

        given = {"wave": batch} if isinstance(batch, torch.Tensor) else batch
        wave = given["wave"] * (given["mask"][:, None] if "mask" in given else 1)
        wave = torch.nn.functional.pad(wave, (0, -wave.shape[-1] % DOWNSCALE))
        means = wave.reshape(len(wave), -1, DOWNSCALE).mean(2)
        mean = means[:, None] * torch.arange(1.0, CHANNELS + 1, device=means.device)[None, :, None]
        if self.config.defect == "nan":
            mean[wave[:, 0, 0] > 0.5, 0, 0] = torch.nan
        latents = (
            {"mean": mean, "logvar": -mean} if self.config.kind == "gaussian" else {"latent": mean}
        )
        if self.config.kind == "quantised":
            latents = {"indices": (mean[:, 0] * 100).long()}
        if "mask" in given:
            mask = torch.nn.functional.pad(given["mask"], (0, -given["mask"].shape[1] % DOWNSCALE))
            latents["mask"] = mask.reshape(len(mask), -1, DOWNSCALE).any(2)
            if self.config.defect == "empty":
                latents["mask"][wave[:, 0, 0] > 0.5] = False
            if self.config.defect == "mask":
                latents["mask"] = latents["mask"][:, 1:]
        return latents

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        import torch

        return torch.repeat_interleave(latents[:, :1], DOWNSCALE, dim=2)

    def fingerprint(self) -> dict[str, str]:
        return {"weights": "means"}


@hookimpl
def latentkit_sources() -> SourceSpec:
    return SourceSpec("waves", "waves", WavesConfig, Waves)


@hookimpl
def latentkit_modalities() -> ModalitySpec:
    return ModalitySpec("waves", "waves", WaveConfig, Wave)


@hookimpl
def latentkit_encoders() -> EncoderSpec:
    return EncoderSpec("waves", "means of waves", EncoderConfig, WaveEncoder)
