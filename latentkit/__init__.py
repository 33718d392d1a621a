"""Latent datasets for latent diffusion, and the autoencoders that make them.

Everything here loads on first use: `import latentkit` itself loads nothing heavy.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from latentkit._version import __version__

if TYPE_CHECKING:
    from latentkit.api import augment, augment_study, encode, interpolate, run, sample, score
    from latentkit.api import open_dataset as open
    from latentkit.api import open_encoder as encoder
    from latentkit.encoding.encoded_latents import EncodedLatents
    from latentkit.encoding.latent_encoder import LatentEncoder
    from latentkit.reading.dataset import LatentDataset
    from latentkit.reading.joined_dataset import JoinedDataset
    from latentkit.reading.joined_dataset import join_datasets as join
    from latentkit.reading.loaded_rows import collate

__all__ = [
    "EncodedLatents",
    "JoinedDataset",
    "LatentDataset",
    "LatentEncoder",
    "__version__",
    "augment",
    "augment_study",
    "collate",
    "encode",
    "encoder",
    "interpolate",
    "join",
    "open",
    "run",
    "sample",
    "score",
]

_PLACES = {
    "encode": ("latentkit.api", "encode"),
    "run": ("latentkit.api", "run"),
    "sample": ("latentkit.api", "sample"),
    "augment": ("latentkit.api", "augment"),
    "augment_study": ("latentkit.api", "augment_study"),
    "interpolate": ("latentkit.api", "interpolate"),
    "score": ("latentkit.api", "score"),
    "open": ("latentkit.api", "open_dataset"),
    "encoder": ("latentkit.api", "open_encoder"),
    "collate": ("latentkit.reading.loaded_rows", "collate"),
    "join": ("latentkit.reading.joined_dataset", "join_datasets"),
    "LatentDataset": ("latentkit.reading.dataset", "LatentDataset"),
    "EncodedLatents": ("latentkit.encoding.encoded_latents", "EncodedLatents"),
    "LatentEncoder": ("latentkit.encoding.latent_encoder", "LatentEncoder"),
    "JoinedDataset": ("latentkit.reading.joined_dataset", "JoinedDataset"),
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'latentkit' has no attribute {name!r}")
    module, attribute = _PLACES[name]
    return globals().setdefault(name, getattr(importlib.import_module(module), attribute))


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
