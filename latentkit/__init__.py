"""Latent datasets for latent diffusion, and the autoencoders that make them.

Everything here loads on first use: `import latentkit` itself loads nothing heavy.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from latentkit.run import encode, run
    from latentkit.store.join import JoinedDataset
    from latentkit.store.join import join_datasets as join
    from latentkit.store.loader import collate
    from latentkit.store.reader import LatentDataset
    from latentkit.store.reader import open_dataset as open

__version__ = "0.1.0"

__all__ = ["JoinedDataset", "LatentDataset", "__version__", "collate", "encode", "join", "open", "run"]

_PLACES = {
    "encode": ("latentkit.run", "encode"),
    "run": ("latentkit.run", "run"),
    "open": ("latentkit.store.reader", "open_dataset"),
    "collate": ("latentkit.store.loader", "collate"),
    "join": ("latentkit.store.join", "join_datasets"),
    "LatentDataset": ("latentkit.store.reader", "LatentDataset"),
    "JoinedDataset": ("latentkit.store.join", "JoinedDataset"),
}


def _property(name: str) -> property:
    """A property that imports what it gives. Importing a module of the same name (`latentkit.run`) tries to set it, to no effect."""
    module, attribute = _PLACES[name]
    return property(lambda package: getattr(importlib.import_module(module), attribute), lambda package, value: None)


class _Package(ModuleType):
    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *__all__})


for _name in _PLACES:
    setattr(_Package, _name, _property(_name))
sys.modules[__name__].__class__ = _Package
