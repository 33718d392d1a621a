"""What a plugin implements: the protocols, and the dataclasses that pass between them.

Loads no torch.

Shape letters used throughout: N batch, C channels, T frames, H rows, W columns, L audio samples;
lower case (h, w) in latent space.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from latentkit.contracts.encoder_description import InputSpec, LatentLayout, Normalization
from latentkit.contracts.samples import Entry, Sample, Shard

if TYPE_CHECKING:
    import numpy.typing as npt
    from torch import Tensor, nn

# ---------------------------------------------------------------- rows


@dataclass(frozen=True)
class Prepared:
    """One view of one sample, ready for an encoder.

    Args:
        view: name of the view, such as "plain" or "hflip".
        bucket: the shape it was prepared to, such as "256x256"; a batch holds one bucket.
        tensor: one row without the batch axis, in the encoder's `InputSpec` (images: (C, H, W)
            float32 in its range); or a dict of such tensors with "mask", 1 where a value counts,
            which covers the first axes after the channels: (L,) of audio (C, L), (T,) of a video
            (C, T, H, W).
        geometry: how the view was cut from the media (original size, resize, crop box); JSON-like
            scalars or lists.
        remarks: what a user should know of how it was prepared, such as "enlarged"; one line each,
            the same for all rows of its kind, so that they can be counted. They are kept with the
            row, as `remarks` of its geometry.
    """

    view: str
    bucket: str
    tensor: Tensor | Mapping[str, Tensor]
    geometry: Mapping[str, Any] = field(default_factory=dict)
    remarks: Sequence[str] = ()


@dataclass(frozen=True)
class Moments:
    """Raw posterior of a batch: `mean` and `logvar` (natural log of the variance), same shape,
    unscaled.
    """

    mean: Tensor
    logvar: Tensor


# ---------------------------------------------------------------- protocols


@runtime_checkable
class Source(Protocol):
    """Samples in a fixed order, by position. Picklable, and safe to read from several threads.

    An optional method `remarks() -> Iterable[Remark]` says what it found and does not use; a stream
    may have one too.
    """

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


class RowMemory(Protocol):
    """Where prepared tensors go: the rows that a sample has in its batch, or a `BufferPool`."""

    def get(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """Return a C-contiguous array whose content is undefined, of its own at each call."""
        ...


@runtime_checkable
class Modality(Protocol):
    """How media becomes a tensor, and a tensor something a person can look at or hear.

    An optional attribute `prepare_in = "processes"` asks for processes instead of threads, for work
    that holds Python's lock; the modality and the source are then pickled, and tensors come back by
    value. `takes_paths = True` asks for files as paths, where small ones would be read already; a
    sample whose file changes meanwhile is prepared again. An optional method `without_seeking() ->
    Modality` gives one that prepares the same rows with each file decoded from its start; `verify
    --deep` and repairs use it, so that a row that a wrong seek made is found. An optional
    parameter of `prepare`, `memory: RowMemory | None = None`, is asked for an array for the tensor
    of each view, in their order: what was prepared in its place in a batch needs no copy. An
    optional attribute `preview_suffix`, such as ".mp4", says what `render` writes; without it,
    ".png". `ignores_sizes = True` says that what it prepares doesn't depend on `InputSpec.sizes`,
    which are only checked; encoders that differ in nothing else then share one pass over the
    source. A property `media_attribute` of its config, such as "text", makes that attribute of
    samples their media; a sample then changes when that text does.
    """

    metrics: Sequence[str]
    """Names of the metrics that need to know it and make sense for it, such as "psnr"; a metric of
    another plugin names its modalities itself, see `MetricSpec.modalities`.
    """

    def prepare(self, sample: Sample) -> Iterator[Prepared]:
        """Every view of the sample from one decode, on the CPU.

        Called from several threads at once.

        Raises:
            SampleError: the media is not usable; the reason goes into the ledger.
            OSError: the media can't be reached; retried by the caller.
        """
        ...

    def render(self, tensors: Sequence[Sequence[Tensor]], path: Path) -> None:
        """Write an image, audio or video at `path`: a row per inner sequence, its tensors side by
        side, each in the input range.
        """
        ...


@runtime_checkable
class Encoder(Protocol):
    """A batch of prepared tensors to raw latents.

    An optional method `remarks() -> Iterable[Remark]` says what a user should know before a run.
    """

    modality: str
    """Name of the modality whose tensors it takes."""
    input: InputSpec
    layout: LatentLayout

    @property
    def normalization(self) -> Normalization:
        """Raw latents to what a trainer sees."""
        ...

    def encode(self, batch: Tensor) -> dict[str, Tensor]:
        """Unscaled latents, batch axis first: "mean" and "logvar" (gaussian), "latent"
        (deterministic) or "indices" (quantized).

        An encoder that knows better than `layout.downscale` which positions count may add "mask",
        bool or 1 and 0.
        """
        ...

    def fingerprint(self) -> dict[str, str]:
        """Everything of its own that decides a latent's value, by name: hash of the tensors
        `encode` uses, compute dtype, tiling.

        A key that starts with "decoder" or "hub_commit" is recorded, but not part of the
        fingerprint.
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
    """An encoder whose weights can be trained.

    An optional method `set_statistics(mean, std)` is called after training, before `save`, with
    mean and standard deviation of raw latents per channel, each (C,) float64: for what `save`
    writes, so that `normalization` of the loaded model suits the new latents. Without it the model
    keeps the normalization that it had.
    """

    module: nn.Module
    """Its forward takes a batch in the input's range and gives a `Reconstruction`. To be evaluated
    while it trains, and for losses that call `LossBatch.decode`, it also has a method `decode`: raw
    latents (N, C, h, w) to a batch in the input's range, with a gradient.
    """

    def last_layer(self) -> nn.Parameter:
        """The weight of the decoder's last layer, where adaptive loss weights are measured."""
        ...

    def save(self, folder: Path) -> None:
        """Write a folder that the same plugin (and, for diffusers models, any `from_pretrained`)
        loads.
        """
        ...


@dataclass(frozen=True)
class LossBatch:
    """What a loss may look at.

    Args:
        inputs: (N, C, ...) float32 in the encoder's range.
        reconstruction: the model's forward on them, in float32.
        mask: (N, 1, ...) 1 where a value counts; None when all do.
        step: optimizer steps done, from 0.
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
    """One value per sample, unweighted, per input value.

    Weighting, reducing and logging are the loop's.
    """

    def __call__(self, batch: LossBatch) -> Tensor: ...


@runtime_checkable
class HasModule(Protocol):
    """A loss with parameters of its own, trained and saved with the model's."""

    module: nn.Module


@runtime_checkable
class Adversarial(Protocol):
    """A loss with a discriminator, which has an optimizer of its own."""

    discriminator: nn.Module

    def __call__(self, batch: LossBatch) -> Tensor: ...

    def discriminator_loss(self, batch: LossBatch) -> Tensor:
        """What the discriminator is trained on, (N,)."""
        ...


@dataclass(frozen=True)
class Unit:
    """A run of samples encoded, committed and lost or kept as one.

    `start` and `stop` are rows of the plan.
    """

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
    """What became of one unit: rows stored and skipped, seconds it took, seconds of those in which
    the encoder waited, and the rows that its batches had room for (0: not counted).
    """

    unit: Unit
    num_ok: int
    num_skipped: int
    seconds: float
    waited_seconds: float
    num_slots: int = 0


Worker = Callable[[Iterator[Unit]], Iterator[UnitResult]]


@runtime_checkable
class Executor(Protocol):
    """What runs units."""

    def run(
        self, units: Sequence[Unit], make_worker: Callable[[str], Worker]
    ) -> Iterable[UnitResult]:
        """Give every unit to a worker made by `make_worker(device)` (picklable), and yield results
        as they come.

        A worker leaves out units that another process committed or is working on, so handing one
        unit to two workers is waste, not damage.
        """
        ...


@runtime_checkable
class Exporter(Protocol):
    """Writes a latent dataset in the format of somebody's trainer."""

    def export(self, dataset: Any, folder: Path) -> None: ...
