"""What plugins see: samples, prepared tensors, specs, protocols. Importing this loads no torch.

Shape letters used throughout: N batch, C channels, T frames, H rows, W columns, L audio samples;
lower case (h, w) in latent space.
"""

from __future__ import annotations

from latentkit.contracts.encoder_description import (
    InputSpec,
    LatentLayout,
    MelSpec,
    Normalization,
    SizeRule,
)
from latentkit.contracts.metric_protocol import (
    Figure,
    Measured,
    Metric,
    MetricBatch,
    MetricSetting,
)
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

__all__ = [
    "Adversarial",
    "BuildContext",
    "Config",
    "Decodes",
    "Encoder",
    "EncoderSpec",
    "Entry",
    "Executor",
    "ExecutorSpec",
    "Exporter",
    "ExporterSpec",
    "Figure",
    "HasModule",
    "InputSpec",
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
    "Normalization",
    "PluginSpec",
    "Prepared",
    "Reconstruction",
    "Remark",
    "Sample",
    "Shard",
    "SizeRule",
    "Source",
    "SourceSpec",
    "StreamSource",
    "Trainable",
    "Unit",
    "UnitResult",
    "Worker",
    "neutral",
]
