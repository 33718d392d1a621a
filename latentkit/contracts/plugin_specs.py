"""What a plugin declares: specs, which check themselves, and the base of their config classes.

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
    """What `build` is told besides its config.

    Args:
        device: torch device to build on, such as "cpu" or "cuda:0".
        seed: the recipe's.
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
    """A declaration of something that is built from options. Checks itself when made.

    Args:
        name: kebab-case name used by recipes.
        summary: one line for `latentkit plugins`.
        config: subclass of `Config` that validates `with:`.
        build: called with the validated config and a `BuildContext`; heavy imports belong inside
            it.
        version: raised when the values it makes change for the same config.

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
    """A source; `build` gives a `Source` or a `StreamSource`. Returned by the hook
    `latentkit_sources`.

    Args:
        suffixes: endings of files of which this source, given their folder as `path`, makes better
            samples than `folder`, in lower case with the dot; for `latentkit encode`.
        signature: place and bytes in a file by which such a file is known where endings tell
            nothing.
        modality: name of the one that reads its samples, for `latentkit encode`.
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
    """A modality; `build` gives a `Modality`. Returned by the hook `latentkit_modalities`.

    Its config may have a method `fitted(InputSpec) -> dict`: options left at a default that the
    encoder doesn't take, with the nearest values that it does. `latentkit encode` takes those.

    Args:
        suffixes: endings of the files that it reads, in lower case with the dot; by them `latentkit
            encode` knows what a folder holds.
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
    """An encoder; `build` gives an `Encoder`, often also `Decodes`, `Trainable`.

    Hook `latentkit_encoders`.
    """

    kind = "encoder"


LossRole = Literal["reconstruction", "latent", "adversarial"]


@dataclass(frozen=True)
class LossSpec(PluginSpec):
    """A loss; `build` gives a `Loss`. Returned by the hook `latentkit_losses`.

    Args:
        role: "reconstruction" (compares output and input), "latent" (looks at moments) or
            "adversarial".
    """

    role: LossRole = "reconstruction"

    kind: ClassVar[str] = "loss"


class ExecutorSpec(PluginSpec):
    """An executor; `build` gives an `Executor`. Returned by the hook `latentkit_executors`."""

    kind = "executor"


class ExporterSpec(PluginSpec):
    """An exporter; `build` gives an `Exporter`. Returned by the hook `latentkit_exporters`."""

    kind = "exporter"


Need = Literal["decoder", "posterior", "continuous", "modality"]
Better = Literal["higher", "lower", ""]


@dataclass(frozen=True)
class MetricSpec(PluginSpec):
    """A metric; `build` gives a `Metric`. Returned by the hook `latentkit_metrics`.

    Args:
        needs: "decoder" (reconstructions of a source), "posterior" (mean and logvar), "continuous"
            (latents that are numbers, not indices), "modality" (`Modality.metrics` names it, or
            `modalities` the modality).
        better: which way the figure that has the metric's own name is better; empty where there is
            none, or neither way is.
        modalities: names of those for which it makes sense although their own list of metrics
            doesn't have it, for a metric that needs "modality".
    """

    needs: tuple[Need, ...] = ()
    better: Better = ""
    modalities: Sequence[str] = ()

    kind: ClassVar[str] = "metric"
