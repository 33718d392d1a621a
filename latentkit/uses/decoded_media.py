"""Decodes raw latents with the encoder of their dataset, and writes media files into a folder that
a task owns.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from latentkit.contracts import Decodes, Encoder, Modality
from latentkit.errors import RecipeError, StoreError
from latentkit.runtime.paths import is_url
from latentkit.runtime.yaml_files import parse_yaml
from latentkit.tasks.build_parts import configured_encode_of
from latentkit.tasks.open_decoder import open_decoder
from latentkit.tasks.preview import preview_suffix

if TYPE_CHECKING:
    from latentkit.reading.dataset import LatentDataset

RECIPE = "recipe.yaml"


@dataclass(frozen=True)
class MediaDecoder:
    """A dataset's decoder, with the modality that writes what it gives.

    Args:
        suffix: ending of media files, such as ".png".
    """

    decoder: Decodes
    modality: Modality
    suffix: str

    def decode(self, raw: Tensor, batch_size: int) -> Iterator[Tensor]:
        """Yield what each raw latent (N, C, ...) decodes to, one after the other, float32 on the
        CPU in the encoder's range.
        """
        low, high = self.decoder.input.range if isinstance(self.decoder, Encoder) else (-1.0, 1.0)
        for start in range(0, len(raw), batch_size):
            batch = raw[start : start + batch_size]
            yield from self.decoder.decode(batch).float().cpu().clamp(low, high)


def open_media_decoder(
    dataset: LatentDataset, parts: Mapping[str, str], device: str
) -> MediaDecoder:
    """Return the decoder of a dataset.

    Args:
        parts: of the dataset's fingerprint.

    Raises:
        EncoderError: the encoder can't decode.
        LatentkitError: it can't be opened, or isn't the one that made the dataset.
    """
    decoder = open_decoder(dataset.folder, parts, device)
    assert isinstance(decoder, Encoder)
    modality = configured_encode_of(dataset.folder).open_modality(decoder)
    return MediaDecoder(decoder, modality, preview_suffix(modality))


def claim_local_folder(path: str, task: str, recipe: str, owned: Sequence[str]) -> Path:
    """Return the folder at `path`, with the recipe in it, and without what an earlier run of the
    task has written there.

    Args:
        owned: names of files and folders that the task writes.

    Raises:
        RecipeError: `path` is a URL.
        StoreError: the folder contains something else, or can't be written.
    """
    if is_url(path):
        raise RecipeError(f"output.path: expected a local folder, got {path}")
    folder = Path(path)
    try:
        if folder.is_dir() and any(folder.iterdir()) and _task_of(folder) != task:
            raise StoreError(
                f"{folder} contains something other than a result of the task {task}. Choose"
                " another output.path"
            )
        folder.mkdir(parents=True, exist_ok=True)
        for name in owned:
            place = folder / name
            shutil.rmtree(place) if place.is_dir() else place.unlink(missing_ok=True)
        (folder / RECIPE).write_text(recipe, encoding="utf-8")
    except OSError as error:
        raise StoreError(f"{folder} can't be written: {error.strerror or error}") from error
    return folder


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write values as JSON."""
    text = json.dumps(values, indent=1, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")


def _task_of(folder: Path) -> Any:
    path = folder / RECIPE
    if not path.is_file():
        return None
    values = parse_yaml(path.read_text(encoding="utf-8", errors="replace"), str(path))
    return values.get("task") if isinstance(values, Mapping) else None
