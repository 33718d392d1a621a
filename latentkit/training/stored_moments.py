"""Trains a decoder from a latent dataset: its stored moments replace the encoder, which never
runs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from latentkit.contracts import Modality, Sample
from latentkit.errors import SampleError, TrainingError
from latentkit.preparing.sample_trier import prepared_by
from latentkit.reading.dataset import open_dataset
from latentkit.store.dataset_json import read_dataset, read_index
from latentkit.store.open_folder import open_folder
from latentkit.training.batches import Example, SampleLocation


class StoredMoments:
    """A `Prepare` that pairs each view of an image with the moments it was encoded to.

    Args:
        modality: configured like that of the dataset, so that its views are those that were
            encoded.

    Raises:
        TrainingError: the dataset stores no moments.
        StoreError: the dataset is missing, unfinished or damaged.
    """

    def __init__(self, path: str, modality: Modality) -> None:
        self._modality = modality
        folder = open_folder(path)
        document = read_dataset(folder)
        if not open_dataset(path).has_moments:
            raise TrainingError(
                f"latents: {folder} stores no moments (store: {document['store']}). Encode with"
                " store: moments"
            )
        index = read_index(folder, document, ["key", "view", "status", "content"]).to_pylist()
        good = [row for row in index if row["status"] == "ok"]
        self._contents: dict[str, str] = {row["key"]: row["content"] for row in good}
        self._datasets = {
            view: open_dataset(path, "moments", [view])
            for view in sorted({row["view"] for row in good})
        }
        self._rows = {
            view: {key: row for row, key in enumerate(dataset.keys)}
            for view, dataset in self._datasets.items()
        }

    def __call__(self, sample: Sample, place: SampleLocation) -> list[Example]:
        """Return every view that has moments. The modality's draws are the same as for the dataset.

        Raises:
            SampleError: the sample has none, or its media isn't what was encoded.
        """
        if sample.key not in self._contents:
            raise SampleError("the latent dataset has no latents of it")
        if sample.content() != self._contents[sample.key]:
            raise SampleError("its media is not what the latent dataset was made from")
        examples = []
        for view in prepared_by(self._modality)(sample):
            row = self._rows.get(view.view, {}).get(sample.key)
            if row is not None and isinstance(view.tensor, Tensor):
                moments = self._datasets[view.view].moments(row)
                examples.append(
                    Example(view.tensor, torch.cat([moments["mean"], moments["logvar"]]).float())
                )
        return examples
