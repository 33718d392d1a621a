"""The declarations of plugins: specs, which check themselves, and the base of their config classes.

Importing this loads no torch.

Plugins import these from `latentkit.contracts`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from latentkit.contracts.named_spec import NamedSpec

if TYPE_CHECKING:
    from latentkit.contracts.encoder_description import InputSpec


class Config(BaseModel):
    """Base of every plugin's config: unknown keys are errors, values can't be changed, every field
    has a description.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)


class NoOptions(Config):
    """Config of a plugin without options."""


def neutral(default: Any, *, description: str, **constraints: Any) -> Any:
    """A config field that can't change a value of a latent (a path, a cache size); it stays out of
    the fingerprint.
    """
    return Field(
        default, description=description, json_schema_extra={"neutral": True}, **constraints
    )


@dataclass(frozen=True)
class BuildContext:
    """The context that `build` gets in addition to its config.

    Args:
        device: torch device to build on, such as "cpu" or "cuda:0".
        seed: the recipe's seed.
        recipe_dir: folder that relative paths in the config start from.
        input: the encoder's `InputSpec`, for a modality or a loss; None elsewhere.
        modality: name of the recipe's modality, for an encoder that takes several and a source with
            files of several; empty where there is none.
    """

    device: str = "cpu"
    seed: int = 0
    recipe_dir: Path = field(default_factory=Path)
    input: InputSpec | None = None
    modality: str = ""


@dataclass(frozen=True)
class PluginSpec(NamedSpec):
    """The declaration of a plugin that is built from options; checked when it is created.

    Args:
        name: kebab-case name used by recipes.
        summary: one line for `latentkit plugins`.
        config: subclass of `Config` that validates `with:`.
        build: called with the validated config and a `BuildContext`; heavy imports belong inside
            it.
        version: number to raise when the same config starts to give other values.

    Raises:
        ValueError: a name that is not kebab-case, a summary of several lines, a version below 1, a
            config field without a description.
        TypeError: a part of the wrong type.
    """

    config: type[BaseModel]
    build: Callable[[Any, BuildContext], Any]
    version: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        where = self._where()
        self._check_callable("build")
        if isinstance(self.version, bool) or not isinstance(self.version, int) or self.version < 1:
            raise ValueError(
                f"{where}: version must be a whole number from 1, got {self.version!r}"
            )
        self._check_config(where)

    def _check_config(self, where: str) -> None:
        """Check that the config class is strict and describes every field."""
        if not (isinstance(self.config, type) and issubclass(self.config, BaseModel)):
            raise TypeError(
                f"{where}: config must be a subclass of latentkit.contracts.Config, got"
                f" {self.config!r}"
            )
        options = self.config.model_config
        if options.get("extra") != "forbid" or not options.get("frozen"):
            raise ValueError(
                f"{where}: config must have extra='forbid' and frozen=True; subclass Config"
            )
        bare = [name for name, info in self.config.model_fields.items() if not info.description]
        if bare:
            raise ValueError(f"{where}: config fields without a description: {', '.join(bare)}")


@dataclass(frozen=True)
class SourceSpec(PluginSpec):
    """A source; `build` returns a `Source` or a `StreamSource`. Returned by the hook
    `latentkit_sources`.

    Args:
        suffixes: file endings, in lower case with the dot. For a folder of such files `latentkit
            encode` uses this source instead of `folder`, with the folder as `path`.
        signature: offset and bytes by which such a file is recognized if its ending says nothing.
        modality: name of the modality for its samples, for `latentkit encode`.
    """

    suffixes: Sequence[str] = ()
    signature: tuple[int, bytes] | None = None
    modality: str = "image"

    kind: ClassVar[str] = "source"

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_suffixes(self)


@dataclass(frozen=True)
class ModalitySpec(PluginSpec):
    """A modality; `build` returns a `Modality`. Returned by the hook `latentkit_modalities`.

    Its config may have a method `fitted(InputSpec) -> dict`. It returns options whose default the
    encoder doesn't take, with the nearest values that it takes; `latentkit encode` uses those.

    Args:
        suffixes: endings of the files that it reads, in lower case with the dot. `latentkit encode`
            detects the modality of a folder by them.
    """

    suffixes: Sequence[str] = ()

    kind: ClassVar[str] = "modality"

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_suffixes(self)


def _check_suffixes(spec: SourceSpec | ModalitySpec) -> None:
    found = spec.suffixes
    wrong = [suffix for suffix in found if not suffix.startswith(".") or suffix != suffix.lower()]
    if isinstance(found, str) or wrong:
        where = f"{type(spec).__name__}({spec.name!r})"
        raise ValueError(f"{where}: suffixes must be like ['.wav', '.flac'], got {found!r}")


class EncoderSpec(PluginSpec):
    """An encoder; `build` returns an `Encoder`, often also `Decodes`, `Trainable`.

    Hook `latentkit_encoders`.
    """

    kind = "encoder"


LossRole = Literal["reconstruction", "latent", "adversarial"]


@dataclass(frozen=True)
class LossSpec(PluginSpec):
    """A loss; `build` returns a `Loss`. Returned by the hook `latentkit_losses`.

    Args:
        role: "reconstruction" (compares output and input), "latent" (depends on the moments) or
            "adversarial".
    """

    role: LossRole = "reconstruction"

    kind: ClassVar[str] = "loss"


class ExecutorSpec(PluginSpec):
    """An executor; `build` returns an `Executor`. Returned by the hook `latentkit_executors`."""

    kind = "executor"


class ExporterSpec(PluginSpec):
    """An exporter; `build` returns an `Exporter`. Returned by the hook `latentkit_exporters`."""

    kind = "exporter"


Need = Literal["decoder", "posterior", "continuous", "modality"]
Better = Literal["higher", "lower", ""]


@dataclass(frozen=True)
class MetricSpec(PluginSpec):
    """A metric; `build` returns a `Metric`. Returned by the hook `latentkit_metrics`.

    Args:
        needs: "decoder" (reconstructions of a source), "posterior" (mean and logvar), "continuous"
            (latents that are numbers, not indices), "modality" (`Modality.metrics` names it, or
            `modalities` the modality).
        better: whether "higher" or "lower" is better for the figure with the metric's own name;
            empty if there is none, or neither is better.
        modalities: for a metric that needs "modality": names of modalities that it applies to
            although their own `metrics` don't list it.
    """

    needs: tuple[Need, ...] = ()
    better: Better = ""
    modalities: Sequence[str] = ()

    kind: ClassVar[str] = "metric"
