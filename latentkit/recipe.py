"""One YAML file to a validated, frozen `Recipe`, and back.

Every error names the file, the key, what was expected and what was found. What stands under `with:` is a plugin's: its own
config class checks it, in `latentkit.check`.
"""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, field_validator, model_validator

from latentkit.errors import RecipeError
from latentkit.overrides import Overrides as Overrides
from latentkit.overrides import anchor, apply_override, is_url, split_overrides
from latentkit.validation import suggest, validate
from latentkit.yaml_loader import dump_yaml, read_yaml

Auto = Literal["auto"]
AtLeastOne = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Finite = Annotated[float, Field(ge=0, allow_inf_nan=False)]

ENCODER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")

# ---------------------------------------------------------------- parts of a recipe


class Part(BaseModel):
    """A mapping of a recipe: unknown keys are errors, values can't be changed."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Use(Part):
    """A plugin by name, with its options."""

    use: str = Field(min_length=1, description="name of the plugin")
    with_: dict[str, Any] = Field(default_factory=dict, alias="with", description="options of the plugin")


class ModelUse(Use):
    """The model to train."""

    train: Literal["all", "encoder", "decoder"] = Field("all", description="which half of the model is trained")


class LossUse(Use):
    """One loss."""

    weight: Finite = Field(1.0, description="factor of the loss, which is per input value")


class EncodeOutput(Part):
    """Where latents go, and in which form."""

    path: str = Field(min_length=1, description="folder of the latent dataset; relative to the recipe")
    store: Literal["moments", "mean", "sample"] = Field("moments", description="the raw posterior, its mean, or one draw from it")
    dtype: Literal["float16", "bfloat16", "float32"] = Field("float16", description="type of the stored numbers")
    unit_size: Auto | AtLeastOne = Field("auto", description="samples in one unit, the grain of resume and of distribution")


class TrainOutput(Part):
    """Where a trained model goes."""

    path: str = Field(min_length=1, description="folder of the run; relative to the recipe")
    checkpoint_every: AtLeastOne = Field(1000, description="optimiser steps from one checkpoint to the next")


class Optimizer(Part):
    """AdamW and its schedule."""

    lr: float = Field(1e-4, gt=0, allow_inf_nan=False, description="learning rate, after the warm-up")
    betas: tuple[Fraction, Fraction] = Field((0.5, 0.9), description="decay per step of the gradients' running mean and running square")
    weight_decay: Finite = Field(0.0, description="decoupled weight decay, as a factor of the learning rate")
    schedule: Literal["constant", "cosine", "linear"] = Field(
        "constant", description="constant after the warm-up, or falling to 0 at the last step along a cosine or a line"
    )
    warmup: int = Field(0, ge=0, description="optimiser steps in which the learning rate rises from 0")
    clip: float | None = Field(1.0, gt=0, allow_inf_nan=False, description="largest norm of all gradients together; null: any")

    @field_validator("betas")
    @classmethod
    def _below_one(cls, betas: tuple[float, float]) -> tuple[float, float]:
        if max(betas) >= 1:
            raise ValueError("expected two numbers below 1")
        return betas


class Ema(Part):
    """Exponential moving average of the weights."""

    decay: float = Field(0.999, ge=0, lt=1, description="share of the average that one optimiser step keeps")


# ---------------------------------------------------------------- recipes


class Recipe(Part):
    """What every task has. `origin` names the file in messages; relative paths under `with:` start from `base_dir`."""

    task: str = Field(description="what the recipe does")
    source: Use = Field(description="where samples come from")
    modality: Use = Field(description="how media becomes a tensor")
    seed: int = Field(0, ge=0, lt=2**63, description="of every random draw")
    on_bad_sample: Literal["skip", "fail"] = Field("skip", description="whether a bad sample is recorded and left out, or ends the run")
    max_bad: Fraction = Field(0.05, description="share of bad samples, from 0 to 1, above which the run fails (when they are more than 10)")

    _origin: str = PrivateAttr("recipe")
    _base_dir: Path = PrivateAttr(default_factory=Path)

    @property
    def origin(self) -> str:
        """The file it was read from, or what else messages call it."""
        return self._origin

    @property
    def base_dir(self) -> Path:
        """The folder that relative paths start from, absolute."""
        return self._base_dir

    def uses(self) -> Iterator[tuple[str, str, Use]]:
        """Kind of plugin, key and use of every plugin the recipe names, in its order."""
        yield "source", "source", self.source
        yield "modality", "modality", self.modality


class EncodeRecipe(Recipe):
    """A latent dataset from a source."""

    task: Literal["encode"] = Field(description="what the recipe does")
    encoder: Use | None = Field(None, description="what makes the latents")
    encoders: dict[str, Use] | None = Field(
        None, min_length=1, description="encoders by name, instead of encoder: a dataset each, in PATH/NAME"
    )
    output: EncodeOutput = Field(description="where latents go, and in which form")
    batch_size: Auto | AtLeastOne = Field("auto", description="samples in one batch of the encoder; auto: measured once")
    threads: Auto | AtLeastOne = Field("auto", description="CPU threads the encoder computes with; auto: one per core")
    compile: Auto | bool = Field("auto", description="whether the encoder is compiled; auto: when that pays")
    executor: Use = Field(Use(use="auto"), description="what runs the units; auto: accelerate when launched by it, else local")
    preview: int = Field(8, ge=0, description="rows of preview.png, one sample each")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.encoder is None) == (self.encoders is None):
            raise ValueError("expected one of encoder and encoders" + (", got both" if self.encoder else ", got neither"))
        if self.executor.use == "auto" and self.executor.with_:
            raise ValueError("executor.with: options need a named executor, and use is 'auto'")
        return self

    @field_validator("encoders")
    @classmethod
    def _folder_names(cls, encoders: dict[str, Use] | None) -> dict[str, Use] | None:
        names = list(encoders or ())
        bad = [name for name in names if not ENCODER_NAME.fullmatch(name)]
        if bad:
            raise ValueError(f"names become folders: expected letters, digits, - and _, got {', '.join(map(repr, bad))}")
        if len({name.lower() for name in names}) < len(names):
            raise ValueError("names become folders: expected names that differ in more than upper and lower case")
        return encoders

    def uses(self) -> Iterator[tuple[str, str, Use]]:
        yield from super().uses()
        if self.encoder is not None:
            yield "encoder", "encoder", self.encoder
        for name, encoder in (self.encoders or {}).items():
            yield "encoder", f"encoders.{name}", encoder
        if self.executor.use != "auto":
            yield "executor", "executor", self.executor


class TrainRecipe(Recipe):
    """A trained or fine-tuned autoencoder."""

    task: Literal["train"] = Field(description="what the recipe does")
    model: ModelUse = Field(description="the encoder to train")
    losses: list[LossUse] = Field(min_length=1, description="what training makes small: the weighted sum")
    optimizer: Optimizer = Field(Optimizer(), description="AdamW and its schedule")
    steps: AtLeastOne = Field(description="optimiser steps")
    batch_size: AtLeastOne = Field(8, description="samples per process and forward pass")
    accumulate: AtLeastOne = Field(1, description="forward passes per optimiser step")
    precision: Literal["float32", "bf16", "fp16"] = Field(
        "float32", description="type the network computes in; weights and losses: float32"
    )
    ema: Ema | None = Field(None, description="moving average of the weights, which is then the result; null: none")
    output: TrainOutput = Field(description="where the model goes")

    def uses(self) -> Iterator[tuple[str, str, Use]]:
        yield from super().uses()
        yield "encoder", "model", self.model
        for number, loss in enumerate(self.losses):
            yield "loss", f"losses[{number}]", loss


LAST = ("seed", "on_bad_sample", "max_bad")
"""Keys that are written after the task's own."""

TASKS: dict[str, type[Recipe]] = {"encode": EncodeRecipe, "train": TrainRecipe}

# ---------------------------------------------------------------- reading


def load_recipe(path: str | os.PathLike[str], overrides: Overrides = ()) -> Recipe:
    """The recipe in a YAML file.

    Args:
        path: of the file.
        overrides: "key=value" texts as typed after `--set`, or a mapping of dotted keys to values; see `apply_override`.

    Raises:
        RecipeError: the file or the recipe can't be used; one line per problem.
    """
    file = Path(path)
    values = read_yaml(file)
    if not isinstance(values, Mapping):
        got = "nothing" if values is None else "a list" if isinstance(values, list) else repr(values)
        raise RecipeError(f"{path}: expected a mapping that starts with 'task:', got {got}")
    return parse_recipe(values, file, file.parent, overrides)


def parse_recipe(values: Mapping[str, Any], origin: Path | str, base_dir: Path, overrides: Overrides = ()) -> Recipe:
    """The recipe that plain values describe; `output.path` becomes absolute unless it is a URL.

    Args:
        values: as read from YAML; not changed.
        origin: what messages call the recipe, such as its file.
        base_dir: folder that relative paths start from.
        overrides: as for `load_recipe`.

    Raises:
        RecipeError: one line per problem: origin, key, expected, got.
    """
    merged: dict[str, Any] = copy.deepcopy(dict(values))
    for key, value in split_overrides(overrides):
        apply_override(merged, key, value)
    base_dir = Path(os.path.abspath(base_dir))
    output = merged.get("output")
    if isinstance(output, Mapping):
        merged["output"] = anchor(output, ("output",), base_dir)
    recipe = validate(_find_task(merged, origin), merged, str(origin))
    recipe._origin, recipe._base_dir = str(origin), base_dir
    return recipe


def _find_task(values: Mapping[str, Any], origin: Path | str) -> type[Recipe]:
    known = " or ".join(TASKS)
    if "task" not in values:
        raise RecipeError(f"{origin}: task: missing; expected {known}")
    task = values["task"]
    if not isinstance(task, str) or task not in TASKS:
        raise RecipeError(f"{origin}: task: expected {known}, got {task!r}{suggest(str(task), TASKS)}")
    return TASKS[task]


# ---------------------------------------------------------------- writing


def resolve(recipe: Recipe) -> dict[str, Any]:
    """Plain values of the recipe for the `recipe.yaml` inside its own output, every top-level key given.

    `output.path` is "." (a URL stays) and local paths under `with` are absolute; all else is as given.
    """
    given = recipe.model_dump(by_alias=True)
    absent = {key for key in ("encoder", "encoders") if given.get(key) is None}
    keys = [key for key in given if key not in LAST and key not in absent]
    values: dict[str, Any] = anchor({key: given[key] for key in (*keys, *LAST)}, (), recipe.base_dir)
    if not is_url(values["output"]["path"]):
        values["output"]["path"] = "."
    return values


def dump_recipe(values: Mapping[str, Any]) -> str:
    """YAML text of plain values, in their order, that `load_recipe` reads back equal."""
    return dump_yaml(values)
