"""Check that a latent dataset has what a format needs, before the first file is written."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from latentkit.contracts import ExportNeeds, Normalization
from latentkit.errors import StoreError
from latentkit.reading.dataset import LatentDataset

CLOSE = 1e-5
"""Largest relative difference of equal constants, one of which is written with fewer digits."""


def check_needs(
    needs: ExportNeeds,
    dataset: LatentDataset,
    to: str,
    posterior: str = "mean",
    allow_other_scale: bool = False,
) -> None:
    """Check that a dataset has what an exporter needs.

    Args:
        to: the exporter's name.
        posterior: "draw" or "mean", as the user set it.
        allow_other_scale: whether another normalization than the trainer's is exported.

    Raises:
        StoreError: the dataset lacks something; names all that is missing, and how to encode it.
    """
    problems = [
        *_find_layout_problems(needs, dataset, posterior),
        *_find_row_problems(needs, dataset),
    ]
    if needs.normalization is not None and not allow_other_scale:
        problems += _find_scale_problems(needs.normalization, dataset.normalization)
    if problems:
        raise StoreError(
            f"{dataset.folder} can't be exported to {to}: " + f"; {to}: ".join(problems)
        )


def _find_layout_problems(
    needs: ExportNeeds, dataset: LatentDataset, posterior: str
) -> Iterator[str]:
    """Yield what is wrong with axes, channels, downscale or kind of the latents."""
    layout = dataset.layout
    ragged = f" of various lengths along {layout.ragged_axis}" if layout.ragged_axis else ""
    if needs.axes == layout.axes and layout.ragged_axis:
        yield (
            f"it takes latents of one length, and these are{ragged}; encode again with rows of one"
            " length, of audio with modality.with.on_short: pad"
        )
    elif needs.axes and needs.axes != layout.axes:
        yield (
            f"it takes latents of axes {needs.axes}, and these have {layout.axes}{ragged}; export"
            " to a format for their modality, or to safetensors"
        )
    elif needs.channels not in (None, layout.channels) or needs.downscale not in (
        None,
        *_downscales(layout.downscale),
    ):
        wanted = [
            f"{number} {what}"
            for number, what in ((needs.channels, "channels"), (needs.downscale, "x downscale"))
            if number is not None
        ]
        yield (
            f"it takes latents of {' and '.join(wanted)}, and these have {layout.channels} channels"
            f" and {layout.downscale} x downscale; encode with that trainer's autoencoder"
        )
    if (needs.moments or posterior == "draw") and layout.kind == "gaussian":
        if not dataset.has_moments:
            yield (
                "it takes mean and logvar, and only one latent of each posterior is stored; encode"
                " again with output.store: moments"
                + ("" if needs.moments else ", or export what is stored with posterior=mean")
            )
    elif needs.moments or (layout.kind == "quantised" and needs.per == "sample"):
        yield (
            f"it takes {'mean and logvar' if needs.moments else 'latents that are numbers'}, and"
            f" the encoder is {layout.kind}; encode with a KL autoencoder"
        )


def _downscales(downscale: Any) -> Sequence[Any]:
    """Return the factor of all axes, alone; empty where axes have different factors."""
    if isinstance(downscale, tuple):
        return downscale[:1] if len(set(downscale)) == 1 else ()
    return (downscale,)


def _find_row_problems(needs: ExportNeeds, dataset: LatentDataset) -> Iterator[str]:
    """Yield what is wrong with views, labels or sizes of the rows."""
    missing = [view for view in needs.views if view not in dataset.views]
    if missing:
        views = ", ".join(dict.fromkeys((*dataset.views, *missing)))
        yield (
            f"it needs the view {missing[0]}, and the dataset has {', '.join(dataset.views)};"
            f" encode again with modality.with.views: [{views}]"
        )
    if needs.label and needs.label not in dataset.columns:
        yield (
            f"it needs the attribute {needs.label!r} of every sample, and the dataset has"
            f" {list(dataset.columns)}; use a source with that attribute, such as a folder with a"
            " sub-folder for each class, or choose another attribute with label=NAME"
        )
    if needs.one_size or needs.square or needs.sizes or needs.size_multiple > 1:
        yield from _find_size_problems(needs, sorted(set(dataset.bucket_names(slice(None)))))


def _find_size_problems(needs: ExportNeeds, buckets: Sequence[str]) -> Iterator[str]:
    """Yield what is wrong with the sizes of the encoded images."""
    if needs.one_size and len(buckets) > 1:
        yield (
            f"it takes latents of one size, and the dataset has {len(buckets)}"
            f" ({', '.join(buckets[:4])}); encode again with modality.with.size"
        )
    for bucket in buckets:
        sides = [int(side) for side in bucket.split("x")[-2:]]
        if needs.square and len(set(sides)) > 1:
            yield (
                f"it takes square latents, and the dataset has {bucket}; encode again with one"
                " number as modality.with.size"
            )
            return
        if needs.sizes and tuple(sides) not in needs.sizes:
            near = sorted(needs.sizes, key=lambda size: math.dist(size, sides))[:4]
            shapes = ", ".join(f"[{height}, {width}]" for height, width in near)
            yield (
                f"it takes other sizes than {bucket}; encode again with"
                f" modality.with.buckets.shapes from among {shapes}"
                + (f" (and {len(needs.sizes) - len(near)} more)" if needs.sizes[4:] else "")
            )
            return
        if any(side % needs.size_multiple for side in sides):
            step = needs.size_multiple
            yield (
                f"it takes sizes that are multiples of {step}, and the dataset has {bucket}; encode"
                f" again with such a modality.with.size, or with buckets.step: {step}"
            )
            return


def _find_scale_problems(wanted: Normalization, found: Normalization) -> Iterator[str]:
    """Yield a problem if the trainer normalizes latents in another way than the dataset."""
    if wanted.fold == found.fold and all(
        _are_close(getattr(wanted, name), getattr(found, name)) for name in ("shift", "scale")
    ):
        return
    yield (
        f"its trainer always normalizes by {_describe(wanted)}, and these latents need"
        f" {_describe(found)}; encode with that trainer's autoencoder, or export them anyway with"
        " allow_other_scale=true"
    )


def _are_close(first: Any, second: Any) -> bool:
    """Return whether two shifts or scales are equal; a single number stands for every channel."""
    try:
        left, right = np.broadcast_arrays(np.asarray(first, float), np.asarray(second, float))
    except ValueError:
        return False
    return bool(np.allclose(left, right, rtol=CLOSE, atol=CLOSE))


def _describe(normalization: Normalization) -> str:
    """Return the shift, scale and fold of a normalization as text for a message."""
    parts = []
    for name in ("shift", "scale"):
        values = np.asarray(getattr(normalization, name), float).ravel()
        rest = f" (and {len(values) - 1} more)" if len(values) > 1 else ""
        if name == "scale" or not math.isclose(values[0], 0.0) or rest:
            parts.append(f"{name} {values[0]:g}{rest}")
    return ", ".join(parts) + (f", fold {dict(normalization.fold)}" if normalization.fold else "")
