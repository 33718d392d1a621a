"""A plugin as it could be written against the first version of the contract.

It stays as it is: whatever latentkit becomes, it works.

It uses what there was then, and all of what a plugin of its kinds needs: every protocol, spec and
argument."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from latentkit.contracts import (
    BuildContext,
    Config,
    EncoderSpec,
    Entry,
    InputSpec,
    LatentLayout,
    LossBatch,
    LossSpec,
    ModalitySpec,
    Moments,
    Normalization,
    Prepared,
    Reconstruction,
    Sample,
    Shard,
    SizeRule,
    SourceSpec,
    neutral,
)
from latentkit.errors import SampleError, SourceError
from latentkit.hooks import hookimpl

# ---------------------------------------------------------------- sources


class RampConfig(Config):
    """Sources `first-ramp` and `first-shards`."""

    count: int = Field(4, ge=0, description="number of samples")
    captions: list[str] = Field([], description="of the samples, from the first on")
    cache: str | None = neutral(None, description="folder that is never used")

    @model_validator(mode="after")
    def _no_more_captions_than_samples(self) -> RampConfig:
        if len(self.captions) > self.count:
            raise ValueError("more captions than samples")
        return self


def draw(number: int, captions: Sequence[str]) -> Sample:
    """Bytes that rise, and fall over at 256."""
    media = bytes((7 * number + place) % 256 for place in range(3 * 32 * 32))
    attributes: Mapping[str, Any] = {
        "text": captions[number] if number < len(captions) else "",
        "number": number,
    }
    return Sample(key=f"{number:03d}", media=media, attributes=attributes, stamp=str(number))


class RampSource:
    def __init__(self, config: RampConfig) -> None:
        if not config.count:
            raise SourceError("first-ramp: count is 0; expected at least 1")
        self.config = config

    def __len__(self) -> int:
        return self.config.count

    def __getitem__(self, index: int) -> Sample:
        return draw(range(len(self))[index], self.config.captions)

    def entries(self) -> Iterator[Entry]:
        samples = (draw(number, self.config.captions) for number in range(len(self)))
        return (
            Entry(key=sample.key, stamp=sample.stamp, attributes=sample.attributes)
            for sample in samples
        )


class ShardSource:
    def __init__(self, config: RampConfig) -> None:
        self.config = config

    def shards(self) -> list[Shard]:
        return [Shard(name=f"shard-{number}", stamp="1") for number in range(2)]

    def read(self, shard: Shard) -> Iterator[Sample]:
        first = int(shard.name.removeprefix("shard-"))
        return (draw(number, self.config.captions) for number in range(first, self.config.count, 2))


@hookimpl
def latentkit_sources() -> Iterator[SourceSpec]:
    yield SourceSpec(
        "first-ramp", "bytes that rise", RampConfig, lambda config, context: RampSource(config)
    )
    yield SourceSpec(
        name="first-shards",
        summary="the same in two shards",
        config=RampConfig,
        build=build_shards,
        version=3,
    )


def build_shards(config: RampConfig, context: BuildContext) -> ShardSource:
    return ShardSource(config)


# ---------------------------------------------------------------- modality


class BytesConfig(Config):
    """Modality `first-bytes`."""

    side: int = Field(32, description="height and width, in values")
    views: list[str] = Field(["plain", "hflip"], description="plain, hflip")


class BytesModality:
    metrics = ("psnr",)
    prepare_in = "threads"

    def __init__(self, config: BytesConfig, wanted: InputSpec) -> None:
        self.config, self.wanted = config, wanted

    def prepare(self, sample: Sample) -> Iterator[Prepared]:
        import torch

        media, side = sample.read(), self.config.side
        if len(media) != 3 * side * side:
            raise SampleError(f"{len(media)} bytes, expected {3 * side * side}")
        low, high = self.wanted.range
        rows = (
            torch.frombuffer(bytearray(media), dtype=torch.uint8).reshape(3, side, side)
            / 255
            * (high - low)
            + low
        )
        for view in self.config.views:
            yield Prepared(
                view, f"{side}x{side}", rows.flip(-1) if view == "hflip" else rows, {"side": side}
            )

    def render(self, tensors: Sequence[Sequence[Any]], path: Path) -> None:
        low, high = self.wanted.range
        values = [
            ((tensor - low) / (high - low) * 255).round().clamp(0, 255).byte()
            for row in tensors
            for tensor in row
        ]
        path.write_bytes(b"".join(value.numpy().tobytes() for value in values))


def build_bytes(config: BytesConfig, context: BuildContext) -> BytesModality:
    return BytesModality(
        config, context.input if context.input is not None else InputSpec(channels=3)
    )


@hookimpl
def latentkit_modalities() -> ModalitySpec:
    return ModalitySpec("first-bytes", "bytes as pictures", BytesConfig, build_bytes)


# ---------------------------------------------------------------- encoder


class PatchConfig(Config):
    """Encoder `first-patch`."""

    channels: int = Field(2, ge=1, description="of a latent")


def build_patch(config: PatchConfig, context: BuildContext) -> Any:
    import torch
    from torch import Tensor, nn

    class PatchNetwork(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            with torch.random.fork_rng():
                torch.manual_seed(context.seed)
                self.down = nn.Conv2d(3, 2 * config.channels, 8, stride=8)
                self.up = nn.ConvTranspose2d(config.channels, 3, 8, stride=8)

        def forward(self, batch: Tensor) -> Reconstruction:
            mean, logvar = self.down(batch).chunk(2, 1)
            return Reconstruction(self.up(mean), mean, Moments(mean, logvar.clamp(-30, 20)))

    class PatchEncoder:
        modality = "first-bytes"
        input = InputSpec(
            channels=3,
            range=(-1.0, 1.0),
            sizes={axis: SizeRule(8, 0, 8, 64) for axis in "HW"},
            sample_rate_hz=None,
        )
        layout = LatentLayout("latent", "gaussian", "CHW", config.channels, 8, ragged_axis=None)
        normalization = Normalization(shift=0.5, scale=2.0)

        def __init__(self) -> None:
            self.module = PatchNetwork().to(context.device)

        @torch.inference_mode()
        def encode(self, batch: Tensor) -> dict[str, Tensor]:
            if batch.shape[2] % 8 or batch.shape[3] % 8:
                raise ValueError(f"sides must be multiples of 8, got {tuple(batch.shape[2:])}")
            found = self.module(batch).moments
            return {"mean": found.mean, "logvar": found.logvar}

        @torch.inference_mode()
        def decode(self, latents: Tensor) -> Tensor:
            decoded: Tensor = self.module.up(latents.float()).clamp(-1, 1)
            return decoded

        def fingerprint(self) -> dict[str, str]:
            import hashlib

            weights = b"".join(
                value.numpy().tobytes() for value in self.module.down.state_dict().values()
            )
            return {"weights": hashlib.sha256(weights).hexdigest(), "decoder": "not part of it"}

        def last_layer(self) -> nn.Parameter:
            return self.module.up.weight

        def save(self, folder: Path) -> None:
            (folder / "nothing.txt").write_text("nothing")

    return PatchEncoder()


@hookimpl
def latentkit_encoders() -> EncoderSpec:
    return EncoderSpec("first-patch", "a convolution", PatchConfig, build_patch)


# ---------------------------------------------------------------- loss


class QuarticConfig(Config):
    """Loss `first-quartic`."""


def quartic(batch: LossBatch) -> Any:
    errors = (batch.reconstruction.output - batch.inputs).float().pow(4)
    if batch.mask is None:
        return errors.flatten(1).mean(1)
    mask = batch.mask.expand_as(errors)
    return (errors * mask).flatten(1).sum(1) / mask.flatten(1).sum(1)


@hookimpl
def latentkit_losses() -> LossSpec:
    return LossSpec(
        "first-quartic",
        "mean of the fourth power",
        QuarticConfig,
        lambda config, context: quartic,
        role="reconstruction",
    )
