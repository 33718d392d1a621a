"""Writes the preview of a dataset, such as preview.png: samples with their decoded latents, or
samples alone if the encoder can't decode.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from latentkit.contracts import Decodes, Encoder, Modality, Prepared, Sample, Source, StreamSource
from latentkit.errors import EncoderError, LatentkitError, PluginError, RecipeError, StoreError
from latentkit.reading.dataset import LatentDataset, open_dataset
from latentkit.runtime.masks import mask_of, without_mask
from latentkit.runtime.sample_faults import convert_faults
from latentkit.store.columns import escape
from latentkit.store.folder import Folder


def write_preview(
    folder: Folder,
    source: Source | StreamSource | None,
    modality: Modality,
    encoder: Encoder,
    path: Path,
    num_rows: int,
) -> bool:
    """Write a preview to `path`: up to `num_rows` samples, spread over the dataset, each with its
    decoded latents. Return whether it was written.

    Args:
        source: if it is None or a sample is no longer in it, only the decoded latents are shown.
        encoder: if it can't decode, only the prepared samples are shown; then without samples there
            is no preview. It should compute in float32, because half precision may overflow into
            black.
    """
    dataset = open_dataset(str(folder), posterior="mean")
    chosen = np.unique(np.linspace(0, len(dataset) - 1, num_rows).round().astype(int)).tolist()
    if isinstance(source, StreamSource):  # can only be read from its start
        chosen = list(range(min(num_rows, len(dataset))))
    items = [dataset[index] for index in chosen]
    prepared = prepare_by_key(source, modality, [item["key"] for item in items])
    rows = []
    for item in items:
        tensor = prepared.get((item["key"], item["view"]))
        row = [] if tensor is None else [tensor]
        if isinstance(encoder, Decodes):
            with convert_faults(PluginError, encoder, "no preview is written"):
                decoded = _decode(dataset, encoder, item[dataset.output_name])
            row.append(
                decoded
                if tensor is None
                else decoded[tuple(slice(size) for size in tensor.shape)]
            )  # without padding
        if row:
            rows.append(row)
    if not rows:
        return False
    part = path.with_name(f".{path.stem}.part{path.suffix}")
    try:
        with convert_faults(PluginError, modality, "no preview is written"):
            modality.render(rows, part)
        os.replace(part, path)
    except OSError as error:
        raise StoreError(f"{path} can't be written: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink()
    return True


def preview_suffix(modality: Modality) -> str:
    """Return the ending of a preview's name, such as ".png" or ".mp4"."""
    suffix: str = getattr(modality, "preview_suffix", ".png")
    return suffix


def store_preview(
    folder: Folder,
    source: Source | StreamSource,
    modality: Modality,
    encoder: Encoder,
    name: str,
    num_rows: int,
) -> bool:
    """Write a preview into the dataset's own folder as `name`. Return whether it was written."""
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / name
        made = write_preview(folder, source, modality, encoder, path, num_rows)
        if made:
            folder.replace(name, path.read_bytes())
        return made


def preview_dataset(path: str, output: Path, num_rows: int, device: str = "auto") -> bool:
    """Write the preview of a finished latent dataset, using the recipe inside it. Return whether it
    contains decoded latents.

    Raises:
        StoreError, RecipeError: the dataset or its encoder can't be opened, or `output` has another
            ending than the modality's previews.
        EncoderError: the encoder can't decode, and no sample can be read any more.
    """
    from latentkit.runtime.device import choose_device
    from latentkit.tasks.build_parts import configured_encode_of

    dataset = open_dataset(path)
    line = configured_encode_of(dataset.folder)
    opener = line.encoder_opener()
    encoder = (opener.in_float32() or opener)(choose_device(device))
    modality = line.open_modality(encoder)
    if output.suffix.lower() != (suffix := preview_suffix(modality)):
        name = line.modality.provided.spec.name
        raise RecipeError(
            f"{output}: previews of the modality {name!r} are {suffix} files; expected a name that"
            f" ends in {suffix}"
        )
    try:
        source = line.open_source()
    except LatentkitError:
        source = None
    if not write_preview(dataset.folder, source, modality, encoder, output, num_rows):
        name = line.encoder.provided.spec.name
        raise EncoderError(
            f"no preview: the encoder {name!r} can't decode, and none of the samples can be read"
            " from the source any more"
        )
    return isinstance(encoder, Decodes)


def _decode(dataset: LatentDataset, encoder: Decodes, latent: Tensor) -> Tensor:
    """Decode one normalized latent, clamped to the encoder's range."""
    is_raw = dataset.layout.kind == "quantised"
    raw = (
        latent[None] if is_raw else dataset.normalization.invert(latent[None], dataset.layout.axes)
    )
    low, high = encoder.input.range if isinstance(encoder, Encoder) else (-1.0, 1.0)
    return encoder.decode(raw)[0].float().cpu().clamp(low, high)


def prepare_by_key(
    source: Source | StreamSource | None, modality: Modality, keys: Sequence[str]
) -> dict[tuple[str, str], Tensor]:
    """Return prepared tensors, by (key, view), of the samples that still exist."""
    prepared: dict[tuple[str, str], Tensor] = {}
    try:
        for sample in _find(source, set(keys)):
            for view in modality.prepare(sample):
                if (tensor := _counted(view)) is not None:
                    prepared[escape(sample.key), view.view] = tensor
    except (LatentkitError, OSError):
        return prepared  # only the latents are shown
    return prepared


def _counted(view: Prepared) -> Tensor | None:
    """Return a prepared tensor without the padding at its end; None if the row has several
    tensors.
    """
    tensor, mask = without_mask(view.tensor), mask_of(view.tensor)
    if tensor is None or mask is None or mask.ndim != 1:
        return tensor
    count = int(mask.nonzero().max()) + 1 if bool(mask.any()) else len(mask)
    return tensor[:, :count] if tensor.ndim > 1 else tensor[:count]  # tokens have no channels


def _find(source: Source | StreamSource | None, keys: set[str]) -> Iterator[Sample]:
    """Yield the samples with these keys that the source still has."""
    if source is None:
        return
    if isinstance(source, StreamSource):
        left = set(keys)
        for shard in source.shards():
            for sample in source.read(shard):
                if escape(sample.key) in left:
                    left.discard(escape(sample.key))
                    yield sample
                if not left:
                    return
        return
    for index, entry in enumerate(source.entries()):
        if escape(entry.key) in keys:
            yield source[index]
