"""The contract with plugins: samples, prepared tensors, specs, protocols. Importing this loads no
torch.

Every name loads on first use: `latentkit --help` does without pydantic, which specs are made of.

Shape letters used throughout: N batch, C channels, T frames, H rows, W columns, L audio samples;
lower case (h, w) in latent space.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from latentkit.contracts.encoder_description import (
        LOGVAR_RANGE,
        InputSpec,
        LatentLayout,
        MelSpec,
        Normalization,
        SizeRule,
    )
    from latentkit.contracts.exporting import (
        DrawConfig,
        Export,
        ExportConfig,
        ExportItem,
        ExportNeeds,
        ExportRow,
        ItemExporter,
        OtherScaleConfig,
    )
    from latentkit.contracts.metric_protocol import (
        Figure,
        Measured,
        Metric,
        MetricBatch,
        MetricSetting,
    )
    from latentkit.contracts.named_spec import CommandSpec, NamedSpec
    from latentkit.contracts.plugin_specs import (
        BuildContext,
        Config,
        EncoderSpec,
        ExecutorSpec,
        ExporterSpec,
        LossRole,
        LossSpec,
        MetricSpec,
        ModalitySpec,
        PluginSpec,
        SourceSpec,
        neutral,
    )
    from latentkit.contracts.protocols import (
        Adversarial,
        Decodes,
        Encoder,
        Executor,
        Exporter,
        HasModule,
        Loss,
        LossBatch,
        Modality,
        Moments,
        Prepared,
        Reconstruction,
        RowMemory,
        Source,
        StreamSource,
        Trainable,
        Unit,
        UnitResult,
        Worker,
    )
    from latentkit.contracts.ready_latents import KnownLatents
    from latentkit.contracts.recipe_models import Recipe, RecipePart, Use
    from latentkit.contracts.samples import (
        Entry,
        Remark,
        Sample,
        Shard,
    )
    from latentkit.contracts.task_spec import TaskContext, TaskSpec, lazy

__all__ = [
    "LOGVAR_RANGE",
    "Adversarial",
    "BuildContext",
    "CommandSpec",
    "Config",
    "Decodes",
    "DrawConfig",
    "Encoder",
    "EncoderSpec",
    "Entry",
    "Executor",
    "ExecutorSpec",
    "Export",
    "ExportConfig",
    "ExportItem",
    "ExportNeeds",
    "ExportRow",
    "Exporter",
    "ExporterSpec",
    "Figure",
    "HasModule",
    "InputSpec",
    "ItemExporter",
    "KnownLatents",
    "LatentLayout",
    "Loss",
    "LossBatch",
    "LossRole",
    "LossSpec",
    "Measured",
    "MelSpec",
    "Metric",
    "MetricBatch",
    "MetricSetting",
    "MetricSpec",
    "Modality",
    "ModalitySpec",
    "Moments",
    "NamedSpec",
    "Normalization",
    "OtherScaleConfig",
    "PluginSpec",
    "Prepared",
    "Recipe",
    "RecipePart",
    "Reconstruction",
    "Remark",
    "RowMemory",
    "Sample",
    "Shard",
    "SizeRule",
    "Source",
    "SourceSpec",
    "StreamSource",
    "TaskContext",
    "TaskSpec",
    "Trainable",
    "Unit",
    "UnitResult",
    "Use",
    "Worker",
    "lazy",
    "neutral",
]


_NAMES_BY_MODULE = {
    "encoder_description": "LOGVAR_RANGE InputSpec LatentLayout MelSpec Normalization SizeRule",
    "exporting": (
        "DrawConfig Export ExportConfig ExportItem ExportNeeds ExportRow ItemExporter "
        "OtherScaleConfig"
    ),
    "metric_protocol": "Figure Measured Metric MetricBatch MetricSetting",
    "named_spec": "CommandSpec NamedSpec",
    "plugin_specs": (
        "BuildContext Config EncoderSpec ExecutorSpec ExporterSpec LossRole LossSpec "
        "MetricSpec ModalitySpec PluginSpec SourceSpec neutral"
    ),
    "protocols": (
        "Adversarial Decodes Encoder Executor Exporter HasModule Loss LossBatch Modality "
        "Moments Prepared Reconstruction RowMemory Source StreamSource Trainable Unit "
        "UnitResult Worker"
    ),
    "ready_latents": "KnownLatents",
    "recipe_models": "Recipe RecipePart Use",
    "samples": "Entry Remark Sample Shard",
    "task_spec": "TaskContext TaskSpec lazy",
}
_MODULES = {
    name: f"latentkit.contracts.{module}"
    for module, names in _NAMES_BY_MODULE.items()
    for name in names.split()
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'latentkit.contracts' has no attribute {name!r}")
    return globals().setdefault(name, getattr(importlib.import_module(_MODULES[name]), name))
