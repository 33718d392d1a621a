"""A latent dataset with its decoder and its source, to compare or use items beside latents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from latentkit.contracts import Encoder, Metric, Recipe, Source, StreamSource
from latentkit.errors import FingerprintError, LatentkitError, StoreError
from latentkit.evaluation.evaluate import EvaluateSettings, NamedMetric, evaluate_model
from latentkit.reading.dataset import open_dataset
from latentkit.runtime.bad_samples import BadSamplePolicy
from latentkit.store.columns import escape
from latentkit.store.dataset_json import read_dataset
from latentkit.store.fingerprint import different_parts
from latentkit.tasks.build_parts import configured_encode_of
from latentkit.tasks.preview import prepare_by_key
from latentkit.uses.calibration import Bools, Scores
from latentkit.uses.decoded_media import MediaDecoder, open_media_decoder
from latentkit.uses.raw_rows import RawRows, content_of, open_rows


@dataclass(frozen=True)
class MediaDataset:
    """A latent dataset.

    Args:
        decoder, source: of the dataset; None where latents alone are scored.
    """

    rows: RawRows
    device: str
    decoder: MediaDecoder | None = None
    source: Source | StreamSource | None = None

    @property
    def where(self) -> str:
        """Return the folder."""
        return str(self.rows.dataset.folder)

    @property
    def media(self) -> MediaDecoder:
        """Return the decoder."""
        assert self.decoder is not None
        return self.decoder

    @cached_property
    def keys(self) -> list[str]:
        """Return the key of each row."""
        return self.rows.dataset.keys

    @cached_property
    def views(self) -> list[str]:
        """Return the view of each row."""
        views = self.rows.dataset.row_views
        assert views is not None
        return views

    def values_of(self, column: str) -> list[str]:
        """Return the values of an attribute, sorted."""
        return sorted({str(row.get(column)) for row in self.rows.dataset.row_columns()})

    def has_value(self, column: str, values: Sequence[Any]) -> Bools:
        """Return whether the attribute of each row has one of some values, compared as texts."""
        wanted = {str(value) for value in values}
        rows = self.rows.dataset.row_columns()
        return np.array([str(row.get(column)) in wanted for row in rows])

    def measure(self, metric: Metric, batch_size: int, seed: int) -> dict[str, Scores]:
        """Measure every item of the source, and return the numbers by row of the dataset, (N,); nan
        where the source doesn't have the item any more.
        """
        assert self.source is not None
        assert isinstance(self.media.decoder, Encoder)
        # Samples that can't be used have no row, and were reported when the dataset was made.
        every = BadSamplePolicy(max_bad=1.0)
        settings = EvaluateSettings(
            batch_size=batch_size, seed=seed, device=self.device, bad=every, show_progress=True
        )
        named = [NamedMetric("", metric, ["decoder"])]
        found = evaluate_model(
            self.media.decoder, self.source, self.media.modality, named, settings
        )
        good = [row for row in found.rows if not row.reason]
        places = {(escape(row.key), row.view): place for place, row in enumerate(good)}
        rows = zip(self.keys, self.views, strict=True)
        chosen = np.array([places.get(row, -1) for row in rows])
        return {
            name.removeprefix("_"): np.where(chosen < 0, np.nan, values[chosen])
            for name, values in found.per_sample.items()
        }

    def prepare(self, rows: Sequence[tuple[str, str]]) -> list[Tensor]:
        """Return items as they are prepared for the encoder, by their key and view.

        Raises:
            StoreError: the source doesn't have one any more.
        """
        found = prepare_by_key(self.source, self.media.modality, [key for key, _ in rows])
        if missing := [key for key, view in rows if (key, view) not in found]:
            raise StoreError(
                f"{self.where}: {len(missing)} items can't be read from its source any more, such"
                f" as {missing[0]!r}; expected all. Encode the dataset again"
            )
        return [found[row] for row in rows]

    def render_items(self, scores: Scores, count: int, path: Path) -> None:
        """Write the items of the highest scores, each beside what the decoder makes of its mean,
        and the absolute difference of the two (black where they are equal).
        """
        highest = np.argsort(-np.nan_to_num(scores, nan=-np.inf), kind="stable")[:count]
        tensors = prepare_by_key(
            self.source, self.media.modality, [self.keys[place] for place in highest]
        )
        shown = []
        for place in highest:
            tensor = tensors.get((self.keys[place], self.views[place]))
            if tensor is not None:
                mean, _ = self.rows.moments(np.array([place]))
                (decoded,) = self.media.decode(mean, 1)
                low, high = self.media.decoder.input.range  # type: ignore[attr-defined]
                shown.append([tensor, decoded, (low + (tensor - decoded).abs()).clamp(low, high)])
        if shown:
            self.media.modality.render(shown, path)


def open_media_dataset(
    path: str, columns: Sequence[str], recipe: Recipe, device: str, from_media: bool = True
) -> MediaDataset:
    """Open a dataset with its decoder and source.

    Args:
        columns: attributes that it must have.
        from_media: whether the decoder and the source are opened.

    Raises:
        StoreError: it has no such attribute, or latents of several shapes.
        LatentkitError: the decoder or the source can't be opened.
    """
    try:
        dataset = open_dataset(path, views="all", columns=columns)
    except ValueError as error:
        raise StoreError(f"{recipe.origin}: label: {error}") from error
    rows = open_rows(dataset, "auto", recipe.seed)
    if not from_media:
        return MediaDataset(rows, device)
    try:
        source = configured_encode_of(dataset.folder).open_source()
    except (LatentkitError, OSError) as error:
        raise StoreError(
            f"{path}: its source can't be opened, from which items are read again: {error}"
        ) from error
    parts = read_dataset(dataset.folder)["parts"]
    return MediaDataset(rows, device, open_media_decoder(dataset, parts, device), source)


def check_clean(clean: MediaDataset, scored: MediaDataset) -> None:
    """Check that a clean dataset is of the same encoder, and shares no item with the other.

    Raises:
        FingerprintError: it is of another encoder.
        StoreError: it has other shapes, or shares items.
    """
    parts = [read_dataset(one.rows.dataset.folder)["parts"] for one in (scored, clean)]
    different = different_parts(parts[0], parts[1], "encoder.")
    if different:
        raise FingerprintError(
            f"clean: {clean.where} is of another encoder than {scored.where}:"
            f" {', '.join(different)} differ. Encode both with the same one"
        )
    if clean.rows.shape != scored.rows.shape:
        raise StoreError(
            f"clean: {clean.where} has latents of the shape {clean.rows.shape}; expected"
            f" {scored.rows.shape}, as {scored.where} has. Encode both with the same size"
        )
    if shared := len(content_of(clean.rows.dataset) & content_of(scored.rows.dataset)):
        raise StoreError(
            f"clean: {clean.where} shares {shared} items with {scored.where} (equal media);"
            " expected other items, as thresholds set by what is scored mean nothing"
        )
