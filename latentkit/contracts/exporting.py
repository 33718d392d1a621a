"""The input of an exporter, and what it declares about its format. Loads no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

from pydantic import Field

from latentkit.contracts.plugin_specs import Config

if TYPE_CHECKING:
    import pyarrow as pa
    from torch import Tensor

    from latentkit.contracts.encoder_description import LatentLayout, Normalization

# ---------------------------------------------------------------- options


class ExportConfig(Config):
    """Options of every `ItemExporter`."""

    views: tuple[str, ...] | None = Field(
        None, min_length=1, description="views to export; null: all that the dataset has"
    )
    limit: int | None = Field(
        None, ge=1, description="samples to export, the first ones; null: all"
    )


class DrawConfig(ExportConfig):
    """Options of an exporter whose format holds one latent of each posterior."""

    posterior: Literal["draw", "mean"] = Field(
        "draw",
        description=(
            "draw: mean + exp(logvar / 2) * noise, drawn once and frozen in the files; mean: the"
            " posterior's mean"
        ),
    )
    seed: int = Field(
        0,
        ge=0,
        description="seed of the draws; a row's draw depends on seed, key and view alone",
    )


class OtherScaleConfig(Config):
    """The option of an exporter whose trainer normalizes by fixed constants."""

    allow_other_scale: bool = Field(
        False,
        description=(
            "export although the trainer will normalize latents by other constants than those of"
            " their autoencoder"
        ),
    )


# ---------------------------------------------------------------- what is needed


@dataclass(frozen=True)
class ExportNeeds:
    """What a format needs of a latent dataset. `latentkit export` refuses a dataset without it
    before it writes a file.

    Args:
        per: what an item is: a "sample" with all its views, or each "row".
        axes: axes of a latent, such as "CHW"; all rows then have the same length. Empty: any.
        views: views that every item must have; samples without one of them are left out.
        moments: whether mean and logvar must be stored.
        channels: channels of a latent; None: any.
        downscale: input size over latent size; None: any.
        normalization: the trainer's own normalization of raw latents, which must equal the
            dataset's; None: any.
        one_size: whether all rows must be of one bucket.
        square: whether the encoded images must be as high as wide.
        size_multiple: number of which the images' height and width must be multiples.
        sizes: (height, width) of all images that the trainer takes; empty: any.
        label: name of the attribute that every sample must have as its class; empty: none.
        text: whether the option `text` must name a latent dataset of text embeddings that has
            every key.
        text_one_length: whether text embeddings must all have the same number of tokens.
        media: whether the samples' media are needed, for which the source must still exist.
    """

    per: Literal["sample", "row"] = "sample"
    axes: str = ""
    views: Sequence[str] = ()
    moments: bool = False
    channels: int | None = None
    downscale: int | None = None
    normalization: Normalization | None = None
    one_size: bool = False
    square: bool = False
    size_multiple: int = 1
    sizes: Sequence[tuple[int, int]] = ()
    label: str = ""
    text: bool = False
    text_one_length: bool = False
    media: bool = False


# ---------------------------------------------------------------- what is given


@dataclass(frozen=True)
class ExportRow:
    """One view of one sample, its tensors on the CPU and without batch axis.

    Args:
        view: name of the view, such as "plain" or "hflip".
        bucket: shape that the view was prepared to, such as "256x320".
        geometry: how the modality cut the view from the media; for images `height`, `width`,
            `crop` (top, left, height, width) and `flip`.
        stored: raw, in the stored dtype, float32 where int8 is stored: "mean" and "logvar",
            "latent" or "indices", each (C, h, w).
        mask: bool, which positions count, where rows have a mask.
        layout, normalization: layout and normalization of the dataset.
        noise: returns this row's standard normal float32 noise, (C, h, w); None where the mean is
            exported.
    """

    view: str
    bucket: str
    geometry: Mapping[str, Any]
    stored: Mapping[str, Tensor]
    mask: Tensor | None
    layout: LatentLayout
    normalization: Normalization
    noise: Callable[[], Tensor] | None = None

    @property
    def size(self) -> tuple[int, ...]:
        """Size that was encoded, from the bucket's name: (height, width) of an image."""
        return tuple(int(part) for part in self.bucket.split("x"))

    @property
    def original_size(self) -> tuple[int, int]:
        """Height and width of the media in pixels; those of the bucket where they aren't known."""
        if self.geometry.get("height") and self.geometry.get("width"):
            return int(self.geometry["height"]), int(self.geometry["width"])
        return self.size[-2], self.size[-1]

    @property
    def seconds(self) -> float | None:
        """Length of what was encoded, of audio; None where its modality doesn't say."""
        start, end = self.geometry.get("start"), self.geometry.get("end")
        return None if start is None or end is None else float(end) - float(start)

    @property
    def padding_mask(self) -> list[int]:
        """A number for each position along the last axis: 1, or 0 where it is padding."""
        if self.mask is None:
            return [1] * self.mean.shape[-1]
        return [int(is_counted) for is_counted in self.mask.tolist()]

    @property
    def mean(self) -> Tensor:
        """The posterior's mean, or the latent of an encoder that has none; raw, float32."""
        stored = self.stored
        return (stored["mean"] if "mean" in stored else stored["latent"]).float()

    @property
    def logvar(self) -> Tensor:
        """Natural logarithm of the posterior's variance, raw, float32."""
        return self.stored["logvar"].float()

    @cached_property
    def raw(self) -> Tensor:
        """The draw or the mean, as the option `posterior` says; raw, float32."""
        if self.noise is None:
            return self.mean
        return self.mean + (self.logvar / 2).exp() * self.noise()

    @cached_property
    def latent(self) -> Tensor:
        """`raw` normalized, as a trainer sees it, float32."""
        return self.normalization.apply(self.raw, self.layout.axes)


@dataclass(frozen=True)
class ExportItem:
    """One sample with its views, or a row alone, as `ExportNeeds.per` says.

    Args:
        number: from 0 on, in the order of the dataset.
        key: key of the sample; any text.
        name: a path without suffix, relative and safe, that no other item has; letters differ by
            more than their case.
        rows: rows by the name of their view.
        attributes: attributes of the sample, such as "text" and "label".
        label: class number of the sample; None where no label is needed.
        text: text embedding of the sample, as its dataset returns it: "latent" (C, L) float32, and
            "latent_mask" (L,) bool where there is one; None without the option `text`.
        find_media: returns `media`.
    """

    number: int
    key: str
    name: str
    rows: Mapping[str, ExportRow]
    attributes: Mapping[str, Any]
    label: int | None = None
    text: Mapping[str, Tensor] | None = None
    find_media: Callable[[], Any] | None = None

    @property
    def row(self) -> ExportRow:
        """The first view: "plain", where there is one."""
        return self.rows.get("plain") or next(iter(self.rows.values()))

    @property
    def media(self) -> Any:
        """The sample's media as its source gives it, such as a path or bytes.

        Raises:
            ValueError: `ExportNeeds.media` is False.
        """
        if self.find_media is None:
            raise ValueError("media are given to an exporter whose needs have media=True")
        return self.find_media()


@dataclass(frozen=True)
class Export:
    """The properties that all items of an export share.

    Args:
        folder: where the files will lie in the end, absolute; while they are written they lie
            elsewhere.
        num_items: number of items.
        layout, normalization, statistics, fingerprint: those of the dataset.
        views: views of each item.
        buckets: buckets of the dataset's rows, such as "256x320", sorted.
        label_names: class names by class number.
        attribute_types: the Arrow type of each attribute.
    """

    folder: Path
    num_items: int
    layout: LatentLayout
    normalization: Normalization
    statistics: Mapping[str, Any] | None
    fingerprint: str
    views: Sequence[str] = ()
    buckets: Sequence[str] = ()
    label_names: Sequence[str] = field(default_factory=tuple)
    attribute_types: Mapping[str, pa.DataType] = field(default_factory=dict)


@runtime_checkable
class ItemExporter(Protocol):
    """Writes a latent dataset in the format of a trainer, a run of items at a time.

    Runs of items are written from several threads at once, in any order, and once more where an
    export was stopped in their middle: the same items must give the same files. Optional
    attributes: `items_per_part`, items of one run (1,024); `closing_suffix`, of the file beside the
    export that holds what `finish` returns (".txt"). An optional method `name_of(key) -> str` gives
    an item's name if the trainer has its own rules; equal names get a number.
    """

    needs: ExportNeeds

    def write(self, items: Iterable[ExportItem], folder: Path, export: Export) -> Sequence[Any]:
        """Write the files of some items that follow each other, below `folder`.

        Returns:
            Records of the items for `finish`, in order; JSON-like.
        """
        ...

    def finish(self, records: Iterable[Any], folder: Path, export: Export) -> str:
        """Write the files about all items together, such as a listing.

        Args:
            records: the records that `write` returned, of all items in their order.

        Returns:
            The lines to put into the trainer's configuration; empty for none.
        """
        ...
