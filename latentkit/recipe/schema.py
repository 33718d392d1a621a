"""One YAML file to a validated, frozen `Recipe`, and back.

Every error names the file, the key, what was expected and what was found. What stands under `with:`
is a plugin's: its own config class checks it, in `latentkit.tasks.check_recipe`.
"""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from latentkit.contracts import Recipe as Recipe
from latentkit.contracts import Use
from latentkit.errors import PluginError, RecipeError
from latentkit.plugins import discover
from latentkit.recipe.overrides import Overrides as Overrides
from latentkit.recipe.overrides import anchor, apply_override, resolve_beside, split_overrides
from latentkit.recipe.parts import (
    AtLeastOne,
    Auto,
    Ema,
    EncodeOutput,
    Evaluate,
    EvaluateOutput,
    Fraction,
    LossUse,
    MetricUse,
    ModelUse,
    Optimizer,
    TrainOutput,
)
from latentkit.runtime.key_errors import suggest, validate
from latentkit.runtime.paths import is_url
from latentkit.runtime.yaml_files import dump_yaml, read_yaml

ENCODER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")

# ---------------------------------------------------------------- recipes


class SourceRecipe(Recipe):
    """What every task has that reads samples."""

    source: Use = Field(description="where samples come from")
    modality: Use = Field(description="how media becomes a tensor")
    on_bad_sample: Literal["skip", "fail"] = Field(
        "skip", description="whether a bad sample is recorded and left out, or ends the run"
    )
    max_bad: Fraction = Field(
        0.05,
        description=(
            "share of bad samples, from 0 to 1, above which the run fails (when they are more"
            " than 10)"
        ),
    )

    def uses(self) -> Iterator[tuple[str, str, Use]]:
        yield "source", "source", self.source
        yield "modality", "modality", self.modality


class EncodeRecipe(SourceRecipe):
    """A latent dataset from a source."""

    task: Literal["encode"] = Field(description="what the recipe does")
    encoder: Use | None = Field(None, description="what makes the latents")
    encoders: dict[str, Use] | None = Field(
        None,
        min_length=1,
        description="encoders by name, instead of encoder: a dataset each, in PATH/NAME",
    )
    output: EncodeOutput = Field(description="where latents go, and in which form")
    batch_size: Auto | AtLeastOne = Field(
        "auto", description="samples in one batch of the encoder; auto: measured once"
    )
    threads: Auto | AtLeastOne = Field(
        "auto", description="CPU threads the encoder computes with; auto: one per core"
    )
    compile: Auto | bool = Field(
        "auto", description="whether the encoder is compiled; auto: when that pays"
    )
    executor: Use = Field(
        Use(use="auto"),
        description="what runs the units; auto: accelerate when launched by it, else local",
    )
    on_overflow: Literal["skip", "retry-fp32"] = Field(
        "skip",
        description=(
            "whether samples whose latents are not finite are recorded and left out, or encoded"
            " once more in float32"
        ),
    )
    preview: int = Field(8, ge=0, description="rows of the preview, one sample each")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.encoder is None) == (self.encoders is None):
            raise ValueError(
                "expected one of encoder and encoders"
                + (", got both" if self.encoder else ", got neither")
            )
        if self.executor.use == "auto" and self.executor.with_:
            raise ValueError("executor.with: options need a named executor, and use is 'auto'")
        return self

    @field_validator("encoders")
    @classmethod
    def _folder_names(cls, encoders: dict[str, Use] | None) -> dict[str, Use] | None:
        names = list(encoders or ())
        bad = [name for name in names if not ENCODER_NAME.fullmatch(name)]
        if bad:
            raise ValueError(
                "names become folders: expected letters, digits, - and _, got"
                f" {', '.join(map(repr, bad))}"
            )
        if len({name.lower() for name in names}) < len(names):
            raise ValueError(
                "names become folders: expected names that differ in more than upper and lower case"
            )
        return encoders

    def uses(self) -> Iterator[tuple[str, str, Use]]:
        yield from super().uses()
        if self.encoder is not None:
            yield "encoder", "encoder", self.encoder
        for name, encoder in (self.encoders or {}).items():
            yield "encoder", f"encoders.{name}", encoder
        if self.executor.use != "auto":
            yield "executor", "executor", self.executor


class TrainRecipe(SourceRecipe):
    """A trained or fine-tuned autoencoder."""

    task: Literal["train"] = Field(description="what the recipe does")
    modality: Use = Field(
        Use(use="auto"),
        description=(
            "how media becomes a tensor; auto: as in the latent dataset that `latents` names"
        ),
    )
    latents: str | None = Field(
        None,
        min_length=1,
        description=(
            "latent dataset of the source, whose moments are used instead of the encoder; needs"
            " train: decoder"
        ),
    )
    sizes: list[AtLeastOne] = Field(
        [],
        description=(
            "sizes for modality.with.size, of which each batch draws one; empty: that one alone"
        ),
    )
    model: ModelUse = Field(description="the encoder to train")
    losses: list[LossUse] = Field(
        min_length=1, description="what training makes small: the weighted sum"
    )
    optimizer: Optimizer = Field(Optimizer(), description="AdamW and its schedule")
    steps: AtLeastOne = Field(description="optimizer steps")
    batch_size: AtLeastOne = Field(8, description="samples per process and forward pass")
    accumulate: AtLeastOne = Field(1, description="forward passes per optimizer step")
    precision: Literal["float32", "bf16", "fp16"] = Field(
        "float32", description="type the network computes in; weights and losses: float32"
    )
    gradient_checkpointing: bool = Field(
        False,
        description="compute activations twice instead of keeping them: less memory, more time",
    )
    compile: bool = Field(False, description="whether the model is compiled")
    ema: Ema | None = Field(
        None, description="moving average of the weights, which is then the result; null: none"
    )
    evaluate: Evaluate | None = Field(
        None, description="what is measured during training; null: nothing"
    )
    max_bad_steps: AtLeastOne = Field(
        10,
        description="steps in a row whose loss or gradient isn't finite, after which the run ends",
    )
    log: list[str] = Field(
        [],
        description=(
            "trackers of Accelerate's that get what log.jsonl gets, such as tensorboard (pip"
            " install latentkit-diffusion[tensorboard])"
        ),
    )
    output: TrainOutput = Field(description="where the model goes")

    @model_validator(mode="after")
    def _one_modality(self) -> Self:
        if (self.modality.use == "auto") != (self.latents is not None):
            raise ValueError(
                "expected one of modality and latents"
                + (", got both" if self.latents else ", got neither")
            )
        if self.latents is not None and (self.model.train != "decoder" or self.sizes):
            raise ValueError(
                "latents: expected model.train: decoder and no sizes, as the encoder isn't run"
            )
        if (
            self.latents is not None
            and self.evaluate is not None
            and self.evaluate.modality is None
        ):
            raise ValueError("evaluate.modality: missing; with latents there is none to take over")
        return self

    def uses(self) -> Iterator[tuple[str, str, Use]]:
        yield "source", "source", self.source
        if self.latents is None:
            yield "modality", "modality", self.modality
        yield "encoder", "model", self.model
        for number, loss in enumerate(self.losses):
            yield "loss", f"losses[{number}]", loss
        if self.evaluate is not None:
            yield "source", "evaluate.source", self.evaluate.source
            if self.evaluate.modality is not None:
                yield "modality", "evaluate.modality", self.evaluate.modality
            for number, metric in enumerate(self.evaluate.metrics):
                yield from metric.uses(f"evaluate.metrics[{number}]")


class EvaluateRecipe(SourceRecipe):
    """A model's reconstructions and latents, or a latent dataset, measured."""

    task: Literal["evaluate"] = Field(description="what the recipe does")
    source: Use | None = Field(None, description="where samples come from")  # type: ignore[assignment]
    modality: Use | None = Field(None, description="how media becomes a tensor")  # type: ignore[assignment]
    model: Use | None = Field(None, description="the encoder to evaluate")
    latents: str | None = Field(
        None,
        min_length=1,
        description="latent dataset to measure, instead of source, modality and model",
    )
    metrics: list[MetricUse] = Field(min_length=1, description="what is measured")
    posterior: Literal["mean", "sample"] = Field(
        "mean", description="what is decoded and measured of each posterior: its mean, or a draw"
    )
    batch_size: AtLeastOne = Field(8, description="samples that pass the model at once")
    output: EvaluateOutput = Field(description="where the results go")

    @model_validator(mode="after")
    def _one_subject(self) -> Self:
        given = [use is not None for use in (self.source, self.modality, self.model)]
        if any(given) if self.latents is not None else not all(given):
            raise ValueError("expected either source, modality and model, or latents without these")
        return self

    def uses(self) -> Iterator[tuple[str, str, Use]]:
        parts = (
            ("source", "source", self.source),
            ("modality", "modality", self.modality),
            ("encoder", "model", self.model),
        )
        yield from ((kind, where, use) for kind, where, use in parts if use is not None)
        for number, metric in enumerate(self.metrics):
            yield from metric.uses(f"metrics[{number}]")


LAST = ("seed", "on_bad_sample", "max_bad")
"""Keys that are written after the task's own."""

# ---------------------------------------------------------------- reading


def load_recipe(path: str | os.PathLike[str], overrides: Overrides = ()) -> Recipe:
    """The recipe in a YAML file.

    Args:
        path: of the file, or its URL; then a relative `output.path` starts from there, and other
            paths from the working directory.
        overrides: "key=value" texts as typed after `--set`, or a mapping of dotted keys to values;
            see `apply_override`.

    Raises:
        RecipeError: the file or the recipe can't be used; one line per problem.
    """
    place = os.fspath(path)
    file = place if is_url(place) else Path(place)
    values = read_yaml(file)
    if not isinstance(values, Mapping):
        got = (
            "nothing" if values is None else "a list" if isinstance(values, list) else repr(values)
        )
        raise RecipeError(f"{path}: expected a mapping that starts with 'task:', got {got}")
    if isinstance(file, Path):
        return parse_recipe(values, file, file.parent, overrides)
    output = values.get("output")
    if isinstance(output, Mapping) and isinstance(output.get("path"), str):
        values = {**values, "output": {**output, "path": resolve_beside(file, output["path"])}}
    return parse_recipe(values, file, Path.cwd(), overrides)


def parse_recipe(
    values: Mapping[str, Any],
    origin: Path | str,
    base_dir: Path,
    overrides: Overrides = (),
    model: type[Recipe] | None = None,
) -> Recipe:
    """The recipe that plain values describe; `output.path` becomes absolute unless it is a URL.

    Args:
        values: as read from YAML; not changed.
        origin: what messages call the recipe, such as its file.
        base_dir: folder that relative paths start from.
        overrides: as for `load_recipe`.
        model: of the recipe; None: that of its task, whoever provides it.

    Raises:
        RecipeError: one line per problem: origin, key, expected, got.
        PluginError: several plugins have the task.
    """
    merged: dict[str, Any] = copy.deepcopy(dict(values))
    base_dir = Path(os.path.abspath(base_dir))
    _anchor_latents(merged, base_dir)
    for key, value in split_overrides(overrides):
        apply_override(merged, key, value)
    _anchor_latents(merged, Path.cwd())
    output = merged.get("output")
    if isinstance(output, Mapping):
        merged["output"] = anchor(output, ("output",), base_dir)
    recipe = validate(model or _find_task(merged, origin), merged, str(origin))
    recipe.place(str(origin), base_dir)
    return recipe


def _anchor_latents(values: dict[str, Any], base_dir: Path) -> None:
    """Make `latents`, which is always a path or URL, absolute."""
    place = values.get("latents")
    if isinstance(place, str) and place and not is_url(place):
        values["latents"] = os.path.abspath(base_dir / os.path.expanduser(place))


def _find_task(values: Mapping[str, Any], origin: Path | str) -> type[Recipe]:
    """The recipe model of the task that the values name, whoever provides it."""
    registry = discover()
    names = registry.names("task")
    known = " or ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))
    if "task" not in values:
        raise RecipeError(f"{origin}: task: missing; expected {known}")
    task = values["task"]
    if not isinstance(task, str) or task not in names:
        unknown = f"task: expected {known}, got {task!r}{suggest(str(task), names)}"
        raise RecipeError("\n".join([f"{origin}: {unknown}", *registry.advise(str(task))]))
    try:
        found: type[Recipe] = registry.find("task", task).spec.recipe
    except PluginError as error:  # several have the name
        raise PluginError(f"{origin}: task: {error}") from error
    return found


# ---------------------------------------------------------------- writing


def resolve(recipe: Recipe) -> dict[str, Any]:
    """Return plain values for the `recipe.yaml` in the recipe's output, all top-level keys.

    `output.path` is "." (a URL stays) and local paths under `with` are absolute; all else is as
    given.
    """
    given = recipe.model_dump(by_alias=True)
    absent = {
        key
        for key in ("encoder", "encoders", "source", "modality", "model")
        if given.get(key) is None
    }
    keys = [key for key in given if key not in LAST and key not in absent]
    keys += [key for key in LAST if key in given]
    values: dict[str, Any] = anchor({key: given[key] for key in keys}, (), recipe.base_dir)
    if not is_url(values["output"]["path"]):
        values["output"]["path"] = "."
    return values


def dump_recipe(values: Mapping[str, Any]) -> str:
    """YAML text of plain values, in their order, that `load_recipe` reads back equal."""
    return dump_yaml(values)
