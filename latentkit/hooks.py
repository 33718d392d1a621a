"""The hooks a plugin may implement; each docstring is a complete plugin that a test runs.

A plugin is any installed distribution with an entry point in the group `latentkit` that names a
module:

    [project.entry-points.latentkit]
    my-plugin = "my_package.plugin"

Hooks take no argument and return declarations: one spec, or an iterable of them (a generator will
do). They are called once, when the first name is looked up, so heavy imports belong inside `build`.
Core's own parts come through the same hooks. Hooks are only ever added, never changed;
docs/contract.md says how the contract grows. A package that needs a newer version of the contract
sets the version in its `__init__.py` or in the module itself. An older latentkit then refuses the
package with one clear message:

    requires_contract = 2
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from latentkit.contracts import (
        CommandSpec,
        EncoderSpec,
        ExecutorSpec,
        ExporterSpec,
        LossSpec,
        MetricSpec,
        ModalitySpec,
        SourceSpec,
        TaskSpec,
    )

PROJECT = "latentkit"

CONTRACT = 3
"""Version of the contract between latentkit and plugins: raised by each addition, never by a
change; docs/contract.md lists them.
"""

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def latentkit_sources() -> SourceSpec | Iterable[SourceSpec]:
    """Sources that this plugin adds; see `latentkit.contracts.SourceSpec` and `Source`.

    from collections.abc import Iterator
    from pydantic import Field
    from latentkit.contracts import Config, Entry, Sample, SourceSpec
    from latentkit.hooks import hookimpl

    class WordsConfig(Config):
        words: list[str] = Field(description="the samples, one text each")

    class WordsSource:
        def __init__(self, words: list[str]) -> None:
            self.words = words
        def __len__(self) -> int:
            return len(self.words)
        def __getitem__(self, index: int) -> Sample:
            index = range(len(self))[index]
            return Sample(key=str(index), media=self.words[index], stamp=self.words[index])
        def entries(self) -> Iterator[Entry]:
            return (Entry(key=str(i), stamp=word) for i, word in enumerate(self.words))

    def build(config, context):
        return WordsSource(config.words)

    @hookimpl
    def latentkit_sources():
        yield SourceSpec("words", "texts written in the recipe", WordsConfig, build)
    """
    raise AssertionError("a hook specification is never called")


@hookspec
def latentkit_modalities() -> ModalitySpec | Iterable[ModalitySpec]:
    """Modalities that this plugin adds; see `latentkit.contracts.ModalitySpec` and `Modality`.

    from latentkit.contracts import Config, ModalitySpec, Prepared
    from latentkit.hooks import hookimpl

    class BytesConfig(Config):
        pass

    class BytesModality:
        metrics = ()
        def __init__(self, low, high):
            self.low, self.high = low, high
        def prepare(self, sample):
            import torch
            row = torch.frombuffer(bytearray(sample.read()), dtype=torch.uint8)[None] / 255
            row = self.low + row * (self.high - self.low)
            yield Prepared(view="plain", bucket=str(row.shape[-1]), tensor=row)
        def render(self, tensors, path):
            scale = 255 / (self.high - self.low)
            values = [(tensor - self.low) * scale for row in tensors for tensor in row]
            path.write_bytes(b"".join(bytes(row.round().byte().flatten()) for row in values))

    def build(config, context):
        return BytesModality(*(context.input.range if context.input else (-1.0, 1.0)))

    @hookimpl
    def latentkit_modalities():
        return ModalitySpec("bytes", "raw bytes, one channel", BytesConfig, build)
    """
    raise AssertionError("a hook specification is never called")


@hookspec
def latentkit_encoders() -> EncoderSpec | Iterable[EncoderSpec]:
    """Encoders of this plugin; see `latentkit.contracts.EncoderSpec`, `Encoder`, `Trainable`.

    from latentkit.contracts import Config, EncoderSpec, InputSpec, LatentLayout, Normalization
    from latentkit.contracts import SizeRule
    from latentkit.hooks import hookimpl

    class ShrinkConfig(Config):
        pass

    class ShrinkEncoder:
        modality = "image"
        input = InputSpec(channels=3, sizes={"H": SizeRule(multiple=8), "W": SizeRule(multiple=8)})
        layout = LatentLayout("latent", "deterministic", axes="CHW", channels=3, downscale=8)
        normalization = Normalization()
        def encode(self, batch):
            from torch.nn.functional import avg_pool2d
            if batch.shape[2] % 8 or batch.shape[3] % 8:
                raise ValueError(f"expected multiples of 8, got {tuple(batch.shape[2:])}")
            return {"latent": avg_pool2d(batch, 8)}
        def fingerprint(self):
            return {"weights": "none"}

    def build(config, context):
        return ShrinkEncoder()

    @hookimpl
    def latentkit_encoders():
        return EncoderSpec("shrink", "mean of 8 x 8 pixels", ShrinkConfig, build)
    """
    raise AssertionError("a hook specification is never called")


@hookspec
def latentkit_losses() -> LossSpec | Iterable[LossSpec]:
    """Losses that this plugin adds; see `contracts.LossSpec`, `Loss`, `HasModule`, `Adversarial`.

    from latentkit.contracts import Config, LossSpec
    from latentkit.hooks import hookimpl

    class CubeConfig(Config):
        pass

    def cube(batch):
        cubed = (batch.reconstruction.output - batch.inputs).abs().pow(3)
        mask = 1 if batch.mask is None else batch.mask.expand_as(cubed)
        return (cubed * mask).flatten(1).sum(1) / (mask + 0 * cubed).flatten(1).sum(1)

    def build(config, context):
        return cube

    @hookimpl
    def latentkit_losses():
        return LossSpec("cube", "mean cubed error", CubeConfig, build, role="reconstruction")
    """
    raise AssertionError("a hook specification is never called")


@hookspec
def latentkit_executors() -> ExecutorSpec | Iterable[ExecutorSpec]:
    """Executors that this plugin adds; see `latentkit.contracts.ExecutorSpec` and `Executor`.

    from latentkit.contracts import Config, ExecutorSpec
    from latentkit.hooks import hookimpl

    class BackwardsConfig(Config):
        pass

    class BackwardsExecutor:
        def run(self, units, make_worker):
            yield from make_worker("cpu")(reversed(units))

    def build(config, context):
        return BackwardsExecutor()

    @hookimpl
    def latentkit_executors():
        return ExecutorSpec("backwards", "last unit first, on the CPU", BackwardsConfig, build)
    """
    raise AssertionError("a hook specification is never called")


@hookspec
def latentkit_exporters() -> ExporterSpec | Iterable[ExporterSpec]:
    """Exporters that this plugin adds; see `latentkit.contracts.ExporterSpec` and `Exporter`.

    from latentkit.contracts import Config, ExporterSpec
    from latentkit.hooks import hookimpl

    class NpyConfig(Config):
        pass

    class NpyExporter:
        def export(self, dataset, folder):
            import numpy
            for number in range(len(dataset)):
                numpy.save(folder / f"{number:06d}.npy", dataset[number]["latent"].numpy())

    def build(config, context):
        return NpyExporter()

    @hookimpl
    def latentkit_exporters():
        return ExporterSpec("npy", "one .npy a row", NpyConfig, build)
    """
    raise AssertionError("a hook specification is never called")


@hookspec
def latentkit_metrics() -> MetricSpec | Iterable[MetricSpec]:
    """Metrics that this plugin adds; see `latentkit.contracts.MetricSpec` and `Metric`.

    from latentkit.contracts import Config, Figure, Measured, MetricSpec
    from latentkit.hooks import hookimpl

    class OffsetConfig(Config):
        pass

    class Offset:
        def start(self, setting):
            self.values = []
        def add(self, batch):
            inputs, output = batch.pair()
            self.values += (output - inputs).flatten(1).mean(1).tolist()
        def finish(self):
            import numpy
            values = numpy.array(self.values)
            figure = Figure(values.mean(), "units of the input", "mean of output - input")
            return Measured({"": figure}, {"": values})

    def build(config, context):
        return Offset()

    @hookimpl
    def latentkit_metrics():
        return MetricSpec("offset", "mean error", OffsetConfig, build, needs=("decoder",))
    """
    raise AssertionError("a hook specification is never called")


@hookspec
def latentkit_tasks() -> TaskSpec | Iterable[TaskSpec]:
    """Tasks that this plugin adds; see `latentkit.contracts.TaskSpec` and `Recipe`.

    from typing import Literal
    from pydantic import Field
    from latentkit.contracts import Recipe, TaskSpec
    from latentkit.hooks import hookimpl

    class CountRecipe(Recipe):
        task: Literal["count"] = Field(description="what the recipe does")
        latents: str = Field(description="latent dataset whose rows are counted")

    def run(recipe, context):
        import latentkit
        return f"{recipe.latents}: {len(latentkit.open(recipe.latents))} rows"

    @hookimpl
    def latentkit_tasks():
        return TaskSpec("count", "count the rows of a latent dataset", CountRecipe, run)
    """
    raise AssertionError("a hook specification is never called")


@hookspec
def latentkit_commands() -> CommandSpec | Iterable[CommandSpec]:
    """Commands that this plugin adds; see `latentkit.contracts.CommandSpec`.

    from latentkit.contracts import CommandSpec
    from latentkit.hooks import hookimpl

    def add_arguments(parser):
        parser.add_argument("path", metavar="PATH", help="folder of the latent dataset")

    def run(options):
        import latentkit
        for key in latentkit.open(options.path).keys:
            print(key)
        return 0

    @hookimpl
    def latentkit_commands():
        return CommandSpec("keys", "print the keys of a latent dataset", add_arguments, run)
    """
    raise AssertionError("a hook specification is never called")
