"""Parts of core that plugins may use. As in the contract, names stay and keep their meaning.

`latentkit.contracts` defines what plugins are; this package helps to write one. Every name loads on
first use, so that `from latentkit.kit import FramingConfig` in a module of declarations loads no
torch. docs/plugins/index.md has a line about each name; `help(latentkit.kit.NAME)` has the rest.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from latentkit.contracts.samples import file_state
    from latentkit.encoders.hashing import hash_tensors
    from latentkit.encoders.hub import find_model_path
    from latentkit.encoders.weight_files import read_tensors
    from latentkit.exporting.names import safe_name
    from latentkit.metrics.metric import PerSample
    from latentkit.modalities.av_files import av_errors, open_with_av
    from latentkit.modalities.buckets import nearest_shape
    from latentkit.modalities.framing import (
        check_small,
        enlarged_remarks,
        target_shapes,
        unflipped,
        view_box,
    )
    from latentkit.modalities.geometry import Box, Shape, draw_fractions, nearest_allowed
    from latentkit.modalities.options import FramingConfig
    from latentkit.plugins import discover
    from latentkit.plugins.named_parts import build_part
    from latentkit.recipe.schema import load_recipe
    from latentkit.runtime.buffers import BufferPool, prepared_memory
    from latentkit.runtime.device import choose_device, free_memory, memory_format
    from latentkit.runtime.memory import refuse_beyond_memory
    from latentkit.runtime.numpy_files import npy_bytes, write_npy, write_npz
    from latentkit.runtime.packed_latents import pack_latents
    from latentkit.runtime.progress import Progress
    from latentkit.sources.endings import is_clutter
    from latentkit.sources.files import LocalFiles
    from latentkit.sources.folder import FolderSource
    from latentkit.sources.latent_source import Latents, LatentSource
    from latentkit.sources.options import FolderConfig

__all__ = [
    "Box",
    "BufferPool",
    "FolderConfig",
    "FolderSource",
    "FramingConfig",
    "LatentSource",
    "Latents",
    "LocalFiles",
    "PerSample",
    "Progress",
    "Shape",
    "av_errors",
    "build_part",
    "check_small",
    "choose_device",
    "discover",
    "draw_fractions",
    "enlarged_remarks",
    "file_state",
    "find_model_path",
    "free_memory",
    "hash_tensors",
    "is_clutter",
    "load_recipe",
    "memory_format",
    "nearest_allowed",
    "nearest_shape",
    "npy_bytes",
    "open_with_av",
    "pack_latents",
    "prepared_memory",
    "read_tensors",
    "refuse_beyond_memory",
    "safe_name",
    "target_shapes",
    "unflipped",
    "view_box",
    "write_npy",
    "write_npz",
]

_NAMES_BY_MODULE = {
    "contracts.samples": "file_state",
    "encoders.hashing": "hash_tensors",
    "encoders.hub": "find_model_path",
    "encoders.weight_files": "read_tensors",
    "exporting.names": "safe_name",
    "metrics.metric": "PerSample",
    "modalities.av_files": "av_errors open_with_av",
    "modalities.buckets": "nearest_shape",
    "modalities.framing": "check_small enlarged_remarks target_shapes unflipped view_box",
    "modalities.geometry": "Box Shape draw_fractions nearest_allowed",
    "modalities.options": "FramingConfig",
    "plugins": "discover",
    "plugins.named_parts": "build_part",
    "recipe.schema": "load_recipe",
    "runtime.buffers": "BufferPool prepared_memory",
    "runtime.device": "choose_device free_memory memory_format",
    "runtime.memory": "refuse_beyond_memory",
    "runtime.numpy_files": "npy_bytes write_npy write_npz",
    "runtime.packed_latents": "pack_latents",
    "runtime.progress": "Progress",
    "sources.endings": "is_clutter",
    "sources.files": "LocalFiles",
    "sources.folder": "FolderSource",
    "sources.latent_source": "LatentSource Latents",
    "sources.options": "FolderConfig",
}
_MODULES = {
    name: f"latentkit.{module}"
    for module, names in _NAMES_BY_MODULE.items()
    for name in names.split()
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'latentkit.kit' has no attribute {name!r}")
    return globals().setdefault(name, getattr(importlib.import_module(_MODULES[name]), name))


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
