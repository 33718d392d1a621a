"""The protocols that plugins implement, and the dataclasses that they exchange.

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
        bucket: shape that the view was prepared to, such as "256x256"; a batch holds one bucket.
        tensor: one row without the batch axis, in the encoder's `InputSpec` (images: (C, H, W)
            float32 in its range); or a dict of such tensors with "mask", 1 where a value counts,
            which covers the first axes after the channels: (L,) of audio (C, L), (T,) of a video
            (C, T, H, W).
        geometry: how the view was cut from the media (original size, resize, crop box); JSON-like
            scalars or lists.
        remarks: notes for the user on how the view was prepared, such as "enlarged"; one line each.
            Rows with the same note have the same text, so that they can be counted. Remarks are
            stored with the row, as `remarks` of its geometry.
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

    An optional method `remarks() -> Iterable[Remark]` says what the source found but doesn't use; a
    `StreamSource` may have it too.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Sample: ...

    def entries(self) -> Iterator[Entry]:
        """Return one entry per sample in the order of `__getitem__`, with no media opened."""
        ...


@runtime_checkable
class StreamSource(Protocol):
    """Samples that can only be read shard by shard."""

    def shards(self) -> list[Shard]:
        """Return all shards, in a fixed order."""
        ...

    def read(self, shard: Shard) -> Iterator[Sample]:
        """Yield the samples of one shard, always in the same order."""
        ...


class RowMemory(Protocol):
    """Memory for prepared tensors: the sample's rows of a batch, or a `BufferPool`."""

    def get(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """Return a new C-contiguous array, with undefined content, at each call."""
        ...


@runtime_checkable
class Modality(Protocol):
    """Converts media to tensors, and tensors to files that a person can look at or listen to.

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
        """Yield every view of the sample, all from one decoding, on the CPU.

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
    """Encodes a batch of prepared tensors to raw latents.

    An optional method `remarks() -> Iterable[Remark]` says what a user should know before a run.
    """

    modality: str
    """Name of the modality whose tensors the encoder takes."""
    input: InputSpec
    layout: LatentLayout

    @property
    def normalization(self) -> Normalization:
        """How raw latents are normalized when they are read."""
        ...

    def encode(self, batch: Tensor) -> dict[str, Tensor]:
        """Return unscaled latents, batch axis first: "mean" and "logvar" (gaussian), "latent"
        (deterministic) or "indices" (quantized).

        The result may have "mask", bool or 1 and 0, if `layout.downscale` isn't enough to tell
        which positions count.
        """
        ...

    def fingerprint(self) -> dict[str, str]:
        """Return everything in the encoder that decides a latent's value, by name: the hash of the
        tensors that `encode` uses, compute dtype, tiling.

        A key that starts with "decoder" or "hub_commit" is recorded, but not part of the
        fingerprint.
        """
        ...


@runtime_checkable
class Decodes(Protocol):
    """An encoder that can also decode."""

    def decode(self, latents: Tensor) -> Tensor:
        """Decode *raw* latents, (N, C, h, w), to a batch in the input's range, (N, 3, H, W)."""
        ...


@dataclass(frozen=True)
class Reconstruction:
    """The result of a trainable model's forward pass.

    Args:
        output: same shape and range as the input.
        latents: the draw (or the latents) that was decoded.
        moments: the posterior; None for a model that has none.
        extra_losses: the model's own losses, name to (N,), unweighted.
    """

    output: Tensor
    latents: Tensor
    moments: Moments | None = None
    extra_losses: Mapping[str, Tensor] = field(default_factory=dict)


@runtime_checkable
class Trainable(Protocol):
    """An encoder whose weights can be trained.

    An optional method `set_statistics(mean, std)` is called after training, before `save`, with
    mean and standard deviation of raw latents per channel, each (C,) float64. `save` can write
    them, so that `normalization` of the loaded model fits the new latents. Without this method the
    model keeps its normalization.
    """

    module: nn.Module
    """The network. Its forward takes a batch in the input's range and returns a `Reconstruction`.
    Evaluations during training, and losses that call `LossBatch.decode`, also need its method
    `decode`: raw latents (N, C, h, w) to a batch in the input's range, with a gradient.
    """

    def last_layer(self) -> nn.Parameter:
        """Return the weight of the decoder's last layer, where adaptive loss weights are measured.
        """
        ...

    def save(self, folder: Path) -> None:
        """Write a folder that the same plugin (and, for diffusers models, any `from_pretrained`)
        loads.
        """
        ...


@dataclass(frozen=True)
class LossBatch:
    """The input of a loss.

    Args:
        inputs: (N, C, ...) float32 in the encoder's range.
        reconstruction: the model's forward on them, in float32.
        mask: (N, 1, ...), 1 where a value counts, else 0; None when all do.
        step: optimizer steps done, from 0.
        encode: encodes a batch to `Reconstruction.moments`, or to latents if there are none,
            through the wrapped model.
        decode: decodes raw latents to a batch, through the wrapped model.
    """

    inputs: Tensor
    reconstruction: Reconstruction
    mask: Tensor | None
    step: int
    encode: Callable[[Tensor], Any]
    decode: Callable[[Tensor], Tensor]


@runtime_checkable
class Loss(Protocol):
    """Returns one value per sample, (N,): unweighted, per input value.

    The training loop weights, reduces and logs the values.
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
        """Return the loss that the discriminator is trained on, (N,)."""
        ...


@dataclass(frozen=True)
class Unit:
    """A run of samples that is encoded and committed as one: it is stored whole or not at all.

    `start` and `stop` are rows of the plan.
    """

    plan: int
    number: int
    start: int
    stop: int

    @property
    def name(self) -> str:
        """Name of the unit's file without suffix, such as "000-000012"."""
        return f"{self.plan:03d}-{self.number:06d}"


@dataclass(frozen=True)
class UnitResult:
    """Result of one unit: rows stored and skipped, seconds it took, seconds of these in which the
    encoder waited, and rows that its batches had room for (0: not counted).
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
    """Runs units, in this process or in others."""

    def run(
        self, units: Sequence[Unit], make_worker: Callable[[str], Worker]
    ) -> Iterable[UnitResult]:
        """Give every unit to a worker made by `make_worker(device)` (picklable), and yield results
        as they come.

        A worker leaves out units that another process has committed or is working on, so a unit
        that two workers get costs time but does no damage.
        """
        ...


@runtime_checkable
class Exporter(Protocol):
    """Writes a latent dataset in the format of a trainer."""

    def export(self, dataset: Any, folder: Path) -> None: ...
