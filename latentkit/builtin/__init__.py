"""Core's own plugins, declared through the same hooks as other plugins. Loads no torch.

A `build` function imports the module that does the work, and nothing here does any.
"""

from latentkit.builtin.exporters import latentkit_exporters
from latentkit.builtin.losses import latentkit_losses
from latentkit.builtin.metrics import latentkit_metrics
from latentkit.builtin.plugins import (
    latentkit_encoders,
    latentkit_executors,
    latentkit_modalities,
    latentkit_sources,
)
from latentkit.builtin.tasks import latentkit_tasks
from latentkit.cli.core_commands import latentkit_commands
from latentkit.modalities.options import FramingConfig
from latentkit.sources.options import FolderConfig

__all__ = [
    "FolderConfig",
    "FramingConfig",
    "latentkit_commands",
    "latentkit_encoders",
    "latentkit_executors",
    "latentkit_exporters",
    "latentkit_losses",
    "latentkit_metrics",
    "latentkit_modalities",
    "latentkit_sources",
    "latentkit_tasks",
]
