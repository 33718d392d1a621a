"""What plugins see: samples, prepared tensors, specs, protocols. Importing this loads no torch.

Shape letters used throughout: N batch, C channels, T frames, H rows, W columns, L audio samples; lower case (h, w) in
latent space.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, runtime_checkable

from pydantic import BaseModel, ConfigDict, Field

if TYPE_CHECKING:
    from torch import Tensor, nn

HASH_CHUNK_BYTES = 1 << 20

# ---------------------------------------------------------------- samples


@dataclass(frozen=True)
class Entry:
    """What a source knows about a sample without opening its media.

    Args:
        key: unique and stable name of the sample within its source, such as its full relative path.
        stamp: changes when the media changes (size and modification time, an etag, a row hash).
        attributes: caption, label and so on: JSON-like scalars or lists of them.
    """

    key: str
    stamp: str = ""
    attributes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Sample:
    """One item of a source.

    Args:
        key: unique and stable name within the source.
        media: undecoded: `bytes`, a path (`os.PathLike`), or a `str` that *is* the media (a text).
        attributes: caption, label and so on: JSON-like scalars or lists of them.
        stamp: changes when the media changes.
    """

    key: str
    media: object
    attributes: Mapping[str, Any] = field(default_factory=dict)
    stamp: str = ""

    def read(self) -> bytes:
        """The media's bytes; a path is read from disk on every call.

        Raises:
            OSError: the file can't be reached.
            TypeError: the media is of another kind.
        """
        if isinstance(self.media, bytes):
            return self.media
        if isinstance(self.media, os.PathLike):
            return Path(self.media).read_bytes()
        if isinstance(self.media, str):
            return self.media.encode("utf-8", "surrogateescape")
        raise TypeError(f"sample {self.key!r}: media is {type(self.media).__name__}, not bytes, a path or a text")

    def content(self) -> str:
        """sha256 of the media, 64 hexadecimal digits; a file is hashed without holding it in memory.

        Raises:
            OSError: the file can't be reached.
        """
        digest = hashlib.sha256()
        if isinstance(self.media, os.PathLike):
            with open(self.media, "rb") as file:
                while chunk := file.read(HASH_CHUNK_BYTES):
                    digest.update(chunk)
        else:
            digest.update(self.read())
        return digest.hexdigest()


@dataclass(frozen=True)
class Shard:
    """A piece of a stream that is read from its start to its end, such as one tar file."""

    name: str
    stamp: str = ""


@dataclass(frozen=True)
class Prepared:
    """One view of one sample, ready for an encoder.

    Args:
        view: name of the view, such as "plain" or "hflip".
        bucket: the shape it was prepared to, such as "256x256"; a batch holds one bucket.
        tensor: one row without the batch axis, in the encoder's `InputSpec` (images: (C, H, W) float32 in its range); or a dict of
            such tensors with "mask".
        geometry: how the view was cut from the media (original size, resize, crop box); JSON-like scalars or lists.
    """

    view: str
    bucket: str
    tensor: Tensor | Mapping[str, Tensor]
    geometry: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Moments:
    """Raw posterior of a batch: `mean` and `logvar` (natural log of the variance), same shape, unscaled."""

    mean: Tensor
    logvar: Tensor


# ---------------------------------------------------------------- what an encoder says of itself


@dataclass(frozen=True)
class SizeRule:
    """Sizes allowed on one axis: `multiple * k + offset`, between `minimum` and `maximum` (None: no limit)."""

    multiple: int = 1
    offset: int = 0
    minimum: int = 1
    maximum: int | None = None

    def allows(self, size: int) -> bool:
        """Whether `size` fits the rule."""
        fits = size >= self.minimum and (self.maximum is None or size <= self.maximum)
        return fits and (size - self.offset) % self.multiple == 0

    def __str__(self) -> str:
        text = f"{self.multiple} * k + {self.offset}" if self.offset else f"a multiple of {self.multiple}"
        return text + (f", at most {self.maximum}" if self.maximum is not None else "")


@dataclass(frozen=True)
class InputSpec:
    """What an encoder takes.

    Args:
        channels: of the input (3 for RGB).
        range: lowest and highest value, such as (-1.0, 1.0).
        sizes: rule per axis letter ("H", "W", "T", "L"); an axis left out is free.
        sample_rate_hz: of audio; None elsewhere.
    """

    channels: int
    range: tuple[float, float] = (-1.0, 1.0)
    sizes: Mapping[str, SizeRule] = field(default_factory=dict)
    sample_rate_hz: int | None = None


@dataclass(frozen=True)
class LatentLayout:
    """Shape and kind of an encoder's latents.

    Args:
        name: of the tensor when datasets are joined, such as "latent" or "text-embedding".
        kind: "gaussian" (mean and logvar), "deterministic" ("latent") or "quantised" ("indices").
        axes: one letter per axis of one latent, without the batch: "CHW", "CTHW", "CL".
        channels: C of the latent.
        downscale: input size over latent size, one number for all axes but C, or one per axis but C, in their order.
        ragged_axis: letter of the axis whose length differs from row to row; None when there is none.
    """

    name: str
    kind: Literal["gaussian", "deterministic", "quantised"]
    axes: str
    channels: int
    downscale: int | tuple[int, ...]
    ragged_axis: str | None = None


# ---------------------------------------------------------------- specs


class Config(BaseModel):
    """Base of every plugin's config: unknown keys are errors, values can't be changed, every field has a description."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def neutral(default: Any, *, description: str, **constraints: Any) -> Any:
    """A config field that can't change a value of a latent (a path, a cache size); it stays out of the fingerprint."""
    return Field(default, description=description, json_schema_extra={"neutral": True}, **constraints)


@dataclass(frozen=True)
class BuildContext:
    """What `build` is told besides its config.

    Args:
        device: torch device to build on, such as "cpu" or "cuda:0".
        seed: the recipe's.
        recipe_dir: folder that relative paths in the config start from.
        input: the encoder's `InputSpec`, for a modality; None elsewhere.
    """

    device: str = "cpu"
    seed: int = 0
    recipe_dir: Path = field(default_factory=Path)
    input: InputSpec | None = None


NAME_PATTERN = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")


@dataclass(frozen=True)
class PluginSpec:
    """A declaration returned by a hook. Checks itself when made.

    Args:
        name: kebab-case name used by recipes.
        summary: one line for `latentkit plugins`.
        config: subclass of `Config` that validates `with:`.
        build: called with the validated config and a `BuildContext`; heavy imports belong inside it.
        version: raised when the values it makes change for the same config.

    Raises:
        ValueError: a name that is not kebab-case, a summary of several lines, a version below 1, a config field without a description.
        TypeError: a part of the wrong type.
    """

    name: str
    summary: str
    config: type[BaseModel]
    build: Callable[[Any, BuildContext], Any]
    version: int = 1

    kind: ClassVar[str] = "plugin"

    def __post_init__(self) -> None:
        where = f"{type(self).__name__}({self.name!r})"
        if not isinstance(self.name, str) or not NAME_PATTERN.fullmatch(self.name):
            raise ValueError(f"{where}: name must be kebab-case, such as 'my-{self.kind}'")
        if not isinstance(self.summary, str) or not self.summary.strip() or "\n" in self.summary:
            raise ValueError(f"{where}: summary must be one line of text, got {self.summary!r}")
        if not callable(self.build):
            raise TypeError(f"{where}: build must be callable, got {type(self.build).__name__}")
        if isinstance(self.version, bool) or not isinstance(self.version, int) or self.version < 1:
            raise ValueError(f"{where}: version must be a whole number from 1, got {self.version!r}")
        self._check_config(where)

    def _check_config(self, where: str) -> None:
        if not (isinstance(self.config, type) and issubclass(self.config, BaseModel)):
            raise TypeError(f"{where}: config must be a subclass of latentkit.contracts.Config, got {self.config!r}")
        options = self.config.model_config
        if options.get("extra") != "forbid" or not options.get("frozen"):
            raise ValueError(f"{where}: config must have extra='forbid' and frozen=True; subclass Config")
        bare = [name for name, info in self.config.model_fields.items() if not info.description]
        if bare:
            raise ValueError(f"{where}: config fields without a description: {', '.join(bare)}")


class SourceSpec(PluginSpec):
    """A source; `build` gives a `Source` or a `StreamSource`. Returned by the hook `latentkit_sources`."""

    kind = "source"


class ModalitySpec(PluginSpec):
    """A modality; `build` gives a `Modality`. Returned by the hook `latentkit_modalities`."""

    kind = "modality"


class EncoderSpec(PluginSpec):
    """An encoder; `build` gives an `Encoder`, often also `Decodes`, `Trainable`. Hook `latentkit_encoders`."""

    kind = "encoder"


LossRole = Literal["reconstruction", "latent", "adversarial"]


@dataclass(frozen=True)
class LossSpec(PluginSpec):
    """A loss; `build` gives a `Loss`. Returned by the hook `latentkit_losses`.

    Args:
        role: "reconstruction" (compares output and input), "latent" (looks at moments) or "adversarial".
    """

    role: LossRole = "reconstruction"

    kind: ClassVar[str] = "loss"


class ExecutorSpec(PluginSpec):
    """An executor; `build` gives an `Executor`. Returned by the hook `latentkit_executors`."""

    kind = "executor"


class ExporterSpec(PluginSpec):
    """An exporter; `build` gives an `Exporter`. Returned by the hook `latentkit_exporters`."""

    kind = "exporter"


# ---------------------------------------------------------------- protocols


@runtime_checkable
class Source(Protocol):
    """Samples in a fixed order, by position. Picklable, and safe to read from several threads."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Sample: ...

    def entries(self) -> Iterator[Entry]:
        """One entry per sample in the order of `__getitem__`, with no media opened."""
        ...


@runtime_checkable
class StreamSource(Protocol):
    """Samples that can only be read shard by shard."""

    def shards(self) -> list[Shard]:
        """All shards, in a fixed order."""
        ...

    def read(self, shard: Shard) -> Iterator[Sample]:
        """The samples of one shard, always in the same order."""
        ...


@runtime_checkable
class Modality(Protocol):
    """How media becomes a tensor, and a tensor something a person can look at or hear."""

    metrics: Sequence[str]
    """Names of the metrics that make sense for it, such as "psnr"."""

    def prepare(self, sample: Sample) -> Iterator[Prepared]:
        """Every view of the sample from one decode, on the CPU. Called from several threads at once.

        Raises:
            SampleError: the media is not usable; the reason goes into the ledger.
            OSError: the media can't be reached; retried by the caller.
        """
        ...

    def render(self, tensors: Sequence[Sequence[Tensor]], path: Path) -> None:
        """Write a picture, sound or clip at `path`: a row per inner sequence, its tensors side by side, each in the input range."""
        ...


@runtime_checkable
class Encoder(Protocol):
    """A batch of prepared tensors to raw latents."""

    modality: str
    """Name of the modality whose tensors it takes."""
    input: InputSpec
    layout: LatentLayout

    @property
    def normalization(self) -> Normalization:
        """Raw latents to what a trainer sees."""
        ...

    def encode(self, batch: Tensor) -> dict[str, Tensor]:
        """Unscaled latents, batch axis first: "mean" and "logvar" (gaussian), "latent" (deterministic) or "indices" (quantised)."""
        ...

    def fingerprint(self) -> dict[str, str]:
        """Everything of its own that decides a latent's value, by name: hash of the tensors `encode` uses, compute dtype, tiling.

        A key that starts with "decoder" is recorded, but not part of the fingerprint.
        """
        ...


@runtime_checkable
class Decodes(Protocol):
    """An encoder that also goes back."""

    def decode(self, latents: Tensor) -> Tensor:
        """*Raw* latents, (N, C, h, w), to a batch in the input's range, (N, 3, H, W)."""
        ...


@dataclass(frozen=True)
class Reconstruction:
    """What a trainable model's forward gives.

    Args:
        output: same shape and range as the input.
        latents: the draw (or the latents) that was decoded.
        moments: the posterior; None for a model that has none.
        extra_losses: of the model's own, name to (N,), unweighted.
    """

    output: Tensor
    latents: Tensor
    moments: Moments | None = None
    extra_losses: Mapping[str, Tensor] = field(default_factory=dict)


@runtime_checkable
class Trainable(Protocol):
    """An encoder whose weights can be trained."""

    module: nn.Module
    """Its forward takes a batch in the input's range and gives a `Reconstruction`."""

    def last_layer(self) -> nn.Parameter:
        """The weight of the decoder's last layer, where adaptive loss weights are measured."""
        ...

    def save(self, folder: Path) -> None:
        """Write a folder that the same plugin (and, for diffusers models, any `from_pretrained`) loads."""
        ...


@dataclass(frozen=True)
class LossBatch:
    """What a loss may look at.

    Args:
        inputs: (N, C, ...) float32 in the encoder's range.
        reconstruction: the model's forward on them, in float32.
        mask: (N, 1, ...) 1 where a value counts; None when all do.
        step: optimiser steps done, from 0.
        encode: batch to `Reconstruction.moments` or latents, through the wrapped model.
        decode: raw latents to a batch, through the wrapped model.
    """

    inputs: Tensor
    reconstruction: Reconstruction
    mask: Tensor | None
    step: int
    encode: Callable[[Tensor], Any]
    decode: Callable[[Tensor], Tensor]


@runtime_checkable
class Loss(Protocol):
    """One value per sample, unweighted, per input value. Weighting, reducing and logging are the loop's."""

    def __call__(self, batch: LossBatch) -> Tensor: ...


@runtime_checkable
class HasModule(Protocol):
    """A loss with parameters of its own, trained and saved with the model's."""

    module: nn.Module


@runtime_checkable
class Adversarial(Protocol):
    """A loss with a discriminator, which has an optimiser of its own."""

    discriminator: nn.Module

    def __call__(self, batch: LossBatch) -> Tensor: ...

    def discriminator_loss(self, batch: LossBatch) -> Tensor:
        """What the discriminator is trained on, (N,)."""
        ...


@dataclass(frozen=True)
class Unit:
    """A run of samples encoded, committed and lost or kept as one. `start` and `stop` are rows of the plan."""

    plan: int
    number: int
    start: int
    stop: int

    @property
    def name(self) -> str:
        """Stem of its file, such as "000-000012"."""
        return f"{self.plan:03d}-{self.number:06d}"


@dataclass(frozen=True)
class UnitResult:
    """What became of one unit: rows stored and skipped, seconds it took, seconds of those in which the encoder waited."""

    unit: Unit
    num_ok: int
    num_skipped: int
    seconds: float
    waited_seconds: float


Worker = Callable[[Iterator[Unit]], Iterator[UnitResult]]


@runtime_checkable
class Executor(Protocol):
    """What runs units."""

    def run(self, units: Sequence[Unit], make_worker: Callable[[str], Worker]) -> Iterable[UnitResult]:
        """Give every unit to a worker made by `make_worker(device)` (picklable), and yield results as they come.

        A worker leaves out units that another process committed or is at work on, so handing one unit to two workers is waste, not
        damage.
        """
        ...


@runtime_checkable
class Exporter(Protocol):
    """Writes a latent dataset in the format of somebody's trainer."""

    def export(self, dataset: Any, folder: Path) -> None: ...


# ---------------------------------------------------------------- normalisation


@dataclass(frozen=True)
class Normalization:
    """latent = (fold(z) - shift) * scale, applied when latents are read, never when they are stored.

    Args:
        shift: a number, one per folded channel, or a nested list shaped like one folded latent.
        scale: the same.
        fold: factor per latent axis letter that is moved into channels first, such as {"H": 2, "W": 2}; empty for none.
    """

    shift: float | Sequence[Any] = 0.0
    scale: float | Sequence[Any] = 1.0
    fold: Mapping[str, int] = field(default_factory=dict)

    def apply(self, latents: Tensor, axes: str = "CHW") -> Tensor:
        """Raw latents, (..., C, h, w) in any float dtype, to what a trainer sees, in the same dtype."""
        from latentkit.normalize import apply

        return apply(self, latents, axes)

    def invert(self, latents: Tensor, axes: str = "CHW") -> Tensor:
        """What a trainer sees back to raw latents, in the same dtype."""
        from latentkit.normalize import invert

        return invert(self, latents, axes)
