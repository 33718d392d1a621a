"""Builds the recipe of `latentkit import PATH OUT` from what the first latents of a cache are."""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latentkit.contracts import (
    BuildContext,
    Encoder,
    KnownLatents,
    Normalization,
    Source,
    SourceSpec,
)
from latentkit.errors import PluginError, RecipeError
from latentkit.plugins import discover
from latentkit.recipe.overrides import Overrides, apply_override, split_overrides
from latentkit.tasks.encode_task import print_remark
from latentkit.tasks.recipe_from_arguments import encoder_from_word

if TYPE_CHECKING:
    from torch import Tensor

DEFAULT_FORMAT = "latent-files"
BATCH_SIZE = 64
"""Nothing is computed; a batch is a copy."""
AXES = {2: "CL", 3: "CHW", 4: "CTHW"}
"""Of latents by their number of axes."""
MOST_PROBED = 1000


@dataclass(frozen=True)
class ToldLatents:
    """What the user says of a cache; None where nothing was said.

    Args:
        encoder: name of an encoder plugin, a path or a hub id: what made the latents.
        is_normalized: whether they are normalized already.
        shift, scale: a trainer's latent is (raw - shift) * scale; numbers, or one per channel.
        downscale: input size over latent size, one number or one per axis.
    """

    encoder: str | None = None
    is_normalized: bool | None = None
    shift: float | tuple[float, ...] | None = None
    scale: float | tuple[float, ...] | None = None
    downscale: int | tuple[int | float, ...] | None = None


def import_recipe(
    path: str,
    output: str,
    source: str = DEFAULT_FORMAT,
    told: ToldLatents | None = None,
    overrides: Overrides = (),
) -> dict[str, Any]:
    """Return the encode recipe that makes a latent dataset of a cache.

    Args:
        path: folder of the cache.
        output: folder of the latent dataset.
        source: name of a source whose modality is `latents`.
        overrides: other values of the recipe, such as options of the source.

    Raises:
        PluginError: there is no such source.
        RecipeError: an option is wrong, or contradicts the latents.
        SourceError: the cache isn't there, or no sample of it can be read.
    """
    told = told or ToldLatents()
    spec = _find_format(source)
    values: dict[str, Any] = {"source": {"use": source, "with": {"path": os.path.abspath(path)}}}
    for key, value in split_overrides(overrides):
        if key.startswith("source."):
            apply_override(values, key, value)
    config = discover().configure("source", source, values["source"]["with"], "source")
    opened = spec.build(config, BuildContext(recipe_dir=Path.cwd()))
    views = _first_views(opened)
    known: KnownLatents = getattr(opened, "known", KnownLatents())
    encoder = _describe(next(iter(views.values())), known, told)
    names = sorted(views, key=lambda view: (view != "plain", view))
    dtype = _dtype_of(itertools.chain.from_iterable(one.values() for one in views.values()))
    downscale = encoder.get("downscale")
    return {
        "task": "encode",
        **values,
        "modality": {
            "use": "latents",
            "with": {"views": names} | ({} if downscale is None else {"downscale": downscale}),
        },
        "encoder": {"use": "unknown", "with": encoder},
        "output": {"path": output, "dtype": dtype},
        "batch_size": BATCH_SIZE,
        "compile": False,
        "preview": 0,
    }


def list_formats() -> list[tuple[str, str]]:
    """Return name and summary of each format that can be imported."""
    specs = [one.spec for one in discover().provided]
    return [
        (spec.name, spec.summary)
        for spec in specs
        if isinstance(spec, SourceSpec) and spec.modality == "latents"
    ]


def _find_format(name: str) -> SourceSpec:
    formats = [known for known, _ in list_formats()]
    if name not in formats:
        raise PluginError(
            f"--from {name}: no format of that name can be imported; known: {', '.join(formats)}."
            " Those of trainers come with the plugin latentkit-trainers"
        )
    spec = discover().find("source", name).spec
    assert isinstance(spec, SourceSpec)
    return spec


def _first_views(source: Source) -> Mapping[str, Mapping[str, Tensor]]:
    """Return the latents of the first sample that can be read, by view.

    Raises:
        SourceError: none can.
    """
    from latentkit.preparing.sample_trier import SampleTrier
    from latentkit.runtime.bad_samples import refuse_all
    from latentkit.runtime.packed_latents import unpack_latents

    trier, reasons = SampleTrier(source), dict[str, str]()
    for index in range(min(len(source), MOST_PROBED)):
        tried = trier.try_sample(index, lambda sample: [unpack_latents(sample.read())[0]])
        if not tried.reason:
            return tried.views[0]
        reasons[tried.key] = tried.reason
    refuse_all(reasons, f"first {len(reasons)} samples")


def _describe(
    tensors: Mapping[str, Tensor], known: KnownLatents, told: ToldLatents
) -> dict[str, Any]:
    """Return the options of the encoder `unknown`."""
    first = next(iter(tensors.values()))
    kind = "deterministic" if "latent" in tensors else "gaussian"
    axes = known.axes or AXES.get(first.ndim, "")
    if first.ndim != len(axes):
        raise RecipeError(
            f"latents of shape {tuple(first.shape)}: expected {len(axes) or '2 to 4'} axes, such as"
            " (C, h, w); name another tensor or format"
        )
    is_normalized = bool(known.is_normalized if told.is_normalized is None else told.is_normalized)
    if is_normalized and kind == "gaussian":
        raise RecipeError(
            "--normalized: these are mean and log-variance, which caches hold raw; leave it out"
        )
    decoder = None if told.encoder is None else _open_encoder(told.encoder)
    normalization = _normalization(known, told, decoder and decoder[1])
    if is_normalized and normalization is None:
        raise RecipeError(
            "the latents are normalized, by which scale isn't known: give --scale (and --shift),"
            " or --encoder"
        )
    options = _layout_options(first, kind, axes, normalization if is_normalized else None)
    downscale = told.downscale or known.downscale
    if decoder is not None:
        downscale = downscale or decoder[1].layout.downscale
        _check_decoder(decoder[1], options, told.encoder or "")
        options["decoder"] = decoder[0]
    if downscale is not None:
        options["downscale"] = list(downscale) if isinstance(downscale, tuple) else downscale
    if normalization is not None:
        constants = {"shift": normalization.shift, "scale": normalization.scale}
        options |= {name: _plain(value) for name, value in constants.items()}
        options |= {"fold": dict(normalization.fold)} if normalization.fold else {}
    return options | ({"normalized": True} if is_normalized else {})


def _layout_options(
    first: Tensor, kind: str, axes: str, folded_by: Normalization | None
) -> dict[str, Any]:
    """Return kind, axes and channels of raw latents."""
    channels = len(first)
    for factor in folded_by.fold.values() if folded_by else ():
        channels //= factor
    return {"kind": kind, "axes": axes, "channels": channels}


def _normalization(
    known: KnownLatents, told: ToldLatents, encoder: Encoder | None
) -> Normalization | None:
    """Return the user's, the format's or the encoder's; None where nobody says one."""
    if told.scale is not None:
        return Normalization(told.shift or 0.0, told.scale)
    if told.shift is not None:
        raise RecipeError("--shift: give --scale too")
    return known.normalization or (None if encoder is None else encoder.normalization)


def _plain(constant: Any) -> Any:
    return constant if isinstance(constant, int | float) else list(constant)


def _open_encoder(word: str) -> tuple[dict[str, Any], Encoder]:
    """Return the recipe's entry of an encoder, and the encoder on the CPU."""
    remarks: list[str] = []
    use = encoder_from_word(word, remarks)
    for remark in remarks:
        print_remark(remark)
    config = discover().configure("encoder", use["use"], use.get("with", {}), "--encoder")
    spec = discover().find("encoder", use["use"]).spec
    return use, spec.build(config, BuildContext(recipe_dir=Path.cwd()))


def _check_decoder(encoder: Encoder, options: Mapping[str, Any], word: str) -> None:
    layout = encoder.layout
    found = (layout.channels, layout.axes)
    if layout.kind == "quantised" or found != (options["channels"], options["axes"]):
        raise RecipeError(
            f"--encoder {word} makes latents of {layout.channels} channels, axes {layout.axes}; the"
            f" cache has {options['channels']} channels, axes {options['axes']}. Name the encoder"
            " that made them, or leave the option out"
        )


def _dtype_of(tensors: Sequence[Tensor] | Any) -> str:
    """Return the dtype that holds all values: the cache's own where it is one."""
    names = {str(tensor.dtype).removeprefix("torch.") for tensor in tensors}
    return names.pop() if names in ({"float16"}, {"bfloat16"}) else "float32"
