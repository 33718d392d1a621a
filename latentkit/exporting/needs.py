"""What a format needs of a latent dataset, held against it before the first file is written."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from latentkit.contracts import ExportNeeds, Normalization
from latentkit.errors import StoreError
from latentkit.reading.dataset import LatentDataset

CLOSE = 1e-5
"""Relative difference of constants that are the same, written with fewer digits."""


def check_needs(
    needs: ExportNeeds,
    dataset: LatentDataset,
    to: str,
    posterior: str = "mean",
    allow_other_scale: bool = False,
) -> None:
    """Hold a dataset against what an exporter needs.

    Args:
        to: the exporter's name.
        posterior: "draw" or "mean", as the user set it.
        allow_other_scale: whether another normalization than the trainer's is exported.

    Raises:
        StoreError: it lacks something; names all of it, and what to encode again.
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
    layout = dataset.layout
    ragged = f" of various lengths along {layout.ragged_axis}" if layout.ragged_axis else ""
    if needs.axes and (needs.axes != layout.axes or layout.ragged_axis):
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
    """The one number by which all axes are divided, or nothing that fits."""
    if isinstance(downscale, tuple):
        return downscale[:1] if len(set(downscale)) == 1 else ()
    return (downscale,)


def _find_row_problems(needs: ExportNeeds, dataset: LatentDataset) -> Iterator[str]:
    missing = [view for view in needs.views if view not in dataset.views]
    if missing:
        views = ", ".join(dict.fromkeys((*dataset.views, *missing)))
        yield (
            f"it needs the view {missing[0]}, and the dataset has {', '.join(dataset.views)};"
            f" encode again with modality.with.views: [{views}]"
        )
    if needs.label and needs.label not in dataset.columns:
        yield (
            f"it needs the attribute {needs.label!r} of every sample, and there are"
            f" {list(dataset.columns)}; use a source that gives it, such as a folder with a"
            " sub-folder for each class, or name another with label=NAME"
        )
    if needs.one_size or needs.square or needs.sizes or needs.size_multiple > 1:
        yield from _find_size_problems(needs, sorted(set(dataset.bucket_names(slice(None)))))


def _find_size_problems(needs: ExportNeeds, buckets: Sequence[str]) -> Iterator[str]:
    if needs.one_size and len(buckets) > 1:
        yield (
            f"it takes latents of one size, and the dataset has {len(buckets)}"
            f" ({', '.join(buckets[:4])}); encode again with modality.with.size"
        )
    for bucket in buckets:
        sides = [int(side) for side in bucket.split("x")[-2:]]
        if needs.square and len(set(sides)) > 1:
            yield f"it takes squares, and there are {bucket}; encode again with one number as size"
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
                f"it takes sizes that are multiples of {step}, and there are {bucket}; encode again"
                f" with such a modality.with.size, or with buckets.step: {step}"
            )
            return


def _find_scale_problems(wanted: Normalization, found: Normalization) -> Iterator[str]:
    if wanted.fold == found.fold and all(
        _are_close(getattr(wanted, name), getattr(found, name)) for name in ("shift", "scale")
    ):
        return
    yield (
        f"its trainer normalizes by {_describe(wanted)}, whatever made the latents, and these need"
        f" {_describe(found)}; encode with that trainer's autoencoder, or insist with"
        " allow_other_scale=true"
    )


def _are_close(first: Any, second: Any) -> bool:
    """Whether two shifts or scales are the same; a number stands for every channel."""
    try:
        left, right = np.broadcast_arrays(np.asarray(first, float), np.asarray(second, float))
    except ValueError:
        return False
    return bool(np.allclose(left, right, rtol=CLOSE, atol=CLOSE))


def _describe(normalization: Normalization) -> str:
    parts = []
    for name in ("shift", "scale"):
        values = np.asarray(getattr(normalization, name), float).ravel()
        rest = f" (and {len(values) - 1} more)" if len(values) > 1 else ""
        if name == "scale" or not math.isclose(values[0], 0.0) or rest:
            parts.append(f"{name} {values[0]:g}{rest}")
    return ", ".join(parts) + (f", fold {dict(normalization.fold)}" if normalization.fold else "")
