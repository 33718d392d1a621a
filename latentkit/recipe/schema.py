"""Read a YAML file as a validated, frozen `Recipe`, and write one.

Every error names the file, the key, what was expected and what was found. The options under `with:`
are checked by the plugin's own config class, in `latentkit.tasks.check_recipe`.
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
from latentkit.recipe.overrides import (
    apply_override,
    make_paths_absolute,
    resolve_output_path,
    split_overrides,
)
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
    """Keys of every task that reads samples."""

    source: Use = Field(description="where samples come from")
    modality: Use = Field(description="how media becomes a tensor")
    on_bad_sample: Literal["skip", "fail"] = Field(
        "skip", description="skip: record a bad sample and leave it out; fail: end the run"
    )
    max_bad: Fraction = Field(
        0.05,
        description=(
            "largest share of bad samples, from 0 to 1; the run fails if more are bad (and more"
            " than 10)"
        ),
    )

    def uses(self) -> Iterator[tuple[str, str, Use]]:
        yield "source", "source", self.source
        yield "modality", "modality", self.modality


class EncodeRecipe(SourceRecipe):
    """Recipe of the task `encode`: make a latent dataset from a source."""

    task: Literal["encode"] = Field(description="what the recipe does")
    encoder: Use | None = Field(None, description="the encoder that makes the latents")
    encoders: dict[str, Use] | None = Field(
        None,
        min_length=1,
        description="encoders by name, instead of encoder; each makes a dataset in PATH/NAME",
    )
    output: EncodeOutput = Field(description="where latents go, and in which form")
    batch_size: Auto | AtLeastOne = Field(
        "auto", description="samples in one batch of the encoder; auto: measured once"
    )
    threads: Auto | AtLeastOne = Field(
        "auto", description="CPU threads the encoder computes with; auto: one per core"
    )
    compile: Auto | bool = Field(
        "auto", description="whether the encoder is compiled; auto: when that saves time"
    )
    executor: Use = Field(
        Use(use="auto"),
        description="where units run; auto: accelerate when launched by it, else local",
    )
    on_overflow: Literal["skip", "retry-fp32"] = Field(
        "skip",
        description=(
            "what happens to samples whose latents are not finite; skip: they are recorded and left"
            " out; retry-fp32: they are encoded again in float32"
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
    """Recipe of the task `train`: train or fine-tune an autoencoder."""

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
            "sizes for modality.with.size; each batch draws one of them; empty: modality.with.size"
            " alone"
        ),
    )
    model: ModelUse = Field(description="the encoder to train")
    losses: list[LossUse] = Field(
        min_length=1, description="losses, whose weighted sum training minimizes"
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
        None, description="moving average of the weights, which becomes the result; null: none"
    )
    evaluate: Evaluate | None = Field(
        None, description="what is measured during training; null: nothing"
    )
    max_bad_steps: AtLeastOne = Field(
        10,
        description=(
            "the run ends after this many steps in a row whose loss or gradient isn't finite"
        ),
    )
    log: list[str] = Field(
        [],
        description=(
            "Accelerate trackers that get the values of log.jsonl too, such as tensorboard (pip"
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
            raise ValueError(
                "evaluate.modality: missing; needed with latents, which have no modality"
            )
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
    """Recipe of the task `evaluate`: measure a model or a latent dataset."""

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
        "mean",
        description="mean: decode and measure each posterior's mean; sample: one draw from it",
    )
    batch_size: AtLeastOne = Field(8, description="samples in one forward pass")
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
    """Read and validate the recipe in a YAML file.

    Args:
        path: path or URL of the file. With a URL, a relative `output.path` starts from the URL's
            folder, and other paths from the working directory.
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
        values = {**values, "output": {**output, "path": resolve_output_path(file, output["path"])}}
    return parse_recipe(values, file, Path.cwd(), overrides)


def parse_recipe(
    values: Mapping[str, Any],
    origin: Path | str,
    base_dir: Path,
    overrides: Overrides = (),
    model: type[Recipe] | None = None,
) -> Recipe:
    """Validate plain values and return the recipe; `output.path` becomes absolute, or stays a URL.

    Args:
        values: as read from YAML; not changed.
        origin: what messages call the recipe, such as its file.
        base_dir: folder that relative paths start from.
        overrides: as for `load_recipe`.
        model: the recipe's pydantic model; None: the one of its task.

    Raises:
        RecipeError: one line per problem: origin, key, expected, got.
        PluginError: several plugins have the task.
    """
    merged: dict[str, Any] = copy.deepcopy(dict(values))
    base_dir = Path(os.path.abspath(base_dir))
    _make_latents_absolute(merged, base_dir)
    for key, value in split_overrides(overrides):
        apply_override(merged, key, value)
    _make_latents_absolute(merged, Path.cwd())
    output = merged.get("output")
    if isinstance(output, Mapping):
        merged["output"] = make_paths_absolute(output, ("output",), base_dir)
    recipe = validate(model or _find_recipe_model(merged, origin), merged, str(origin))
    recipe.place(str(origin), base_dir)
    return recipe


def _make_latents_absolute(values: dict[str, Any], base_dir: Path) -> None:
    """Make `latents`, which is always a path or URL, absolute."""
    place = values.get("latents")
    if isinstance(place, str) and place and not is_url(place):
        values["latents"] = os.path.abspath(base_dir / os.path.expanduser(place))


def _find_recipe_model(values: Mapping[str, Any], origin: Path | str) -> type[Recipe]:
    """Return the recipe's pydantic model, from the core or plugin task that the values name."""
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
    """Return the plain values to write as `recipe.yaml` in the output folder, all top-level keys.

    `output.path` is "." (a URL stays) and local paths under `with` are absolute; all other values
    are as given.
    """
    given = recipe.model_dump(by_alias=True)
    absent = {
        key
        for key in ("encoder", "encoders", "source", "modality", "model")
        if given.get(key) is None
    }
    keys = [key for key in given if key not in LAST and key not in absent]
    keys += [key for key in LAST if key in given]
    kept = {key: given[key] for key in keys}
    values: dict[str, Any] = make_paths_absolute(kept, (), recipe.base_dir)
    if not is_url(values["output"]["path"]):
        values["output"]["path"] = "."
    return values


def dump_recipe(values: Mapping[str, Any]) -> str:
    """Return plain values as YAML text, in their order; `load_recipe` reads equal values back."""
    return dump_yaml(values)
