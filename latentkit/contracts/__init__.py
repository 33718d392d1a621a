"""What plugins see: samples, prepared tensors, specs, protocols. Importing this loads no torch.

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
    from latentkit.contracts.samples import (
        Entry,
        Remark,
        Sample,
        Shard,
    )
    from latentkit.contracts.task_spec import (
        Recipe,
        RecipePart,
        TaskContext,
        TaskSpec,
        Use,
        lazy,
    )

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


_MODULES = (
    "named_spec",
    "samples",
    "encoder_description",
    "protocols",
    "metric_protocol",
    "plugin_specs",
    "exporting",
    "task_spec",
)
"""Those that load quickly first."""


def __getattr__(name: str) -> Any:
    for module in _MODULES if name in __all__ else ():
        found = vars(importlib.import_module(f"latentkit.contracts.{module}"))
        if name in found:
            return globals().setdefault(name, found[name])
    raise AttributeError(f"module 'latentkit.contracts' has no attribute {name!r}")
