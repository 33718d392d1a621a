"""The recipe models of the tasks that use a latent dataset. Importing this loads no torch."""

from __future__ import annotations

import os
from typing import Annotated, Literal, TypeVar

from pydantic import Field

from latentkit.contracts import Recipe, RecipePart
from latentkit.recipe.parts import AtLeastOne
from latentkit.runtime.paths import is_url

AtLeastTwo = Annotated[int, Field(ge=2)]

SamplerName = Literal[
    "auto", "normal", "channel-gaussian", "spatial-gaussian", "low-rank", "mixture"
]


COMBINED = "combined"
"""Name of the score that is made of all others."""


class UseOutput(RecipePart):
    """Where the result of a task goes."""

    path: str = Field(min_length=1, description="local folder to write; relative to the recipe")


class SampleRecipe(Recipe):
    """New items, drawn from a latent dataset and decoded by its encoder."""

    task: Literal["sample"] = Field(description="what the recipe does")
    latents: str = Field(min_length=1, description="latent dataset whose latents are imitated")
    count: AtLeastOne = Field(64, description="new items")
    sampler: SamplerName = Field(
        "auto",
        description=(
            "distribution that latents are drawn from; auto: the one under which latents that it"
            " wasn't fitted to are most probable"
        ),
    )
    by: str | None = Field(
        None,
        min_length=1,
        description=(
            "attribute such as label: fit a sampler to each of its values, and draw equally many"
            " items of each; null: one sampler for all"
        ),
    )
    rank: AtLeastOne = Field(64, description="directions of the sampler low-rank")
    components: AtLeastOne = Field(10, description="Gaussians of the sampler mixture")
    posterior: Literal["auto", "sample", "mean"] = Field(
        "auto",
        description=(
            "what samplers are fitted to: a draw of each posterior, or its mean; auto: a draw"
            " where posteriors are stored"
        ),
    )
    batch_size: AtLeastOne = Field(8, description="items that pass the decoder at once")
    output: UseOutput = Field(description="where the new items go")


class NewItemKeys(Recipe):
    """How many new items are made of each labeled item, and how."""

    latents: str = Field(min_length=1, description="latent dataset of labeled items to train on")
    label: str = Field("label", min_length=1, description="attribute that is the class")
    draws: int = Field(2, ge=0, description="new items of each item: draws of its posterior")
    interpolations: int = Field(
        1, ge=0, description="new items of each item: between it and another of its class"
    )
    samples: int = Field(
        1,
        ge=0,
        description="new items for each item: samples of a distribution fitted to its class",
    )
    sampler: SamplerName = Field("auto", description="distribution of `samples`; see task sample")
    rank: AtLeastOne = Field(64, description="directions of the sampler low-rank")
    components: AtLeastOne = Field(1, description="Gaussians of the sampler mixture, per class")
    batch_size: AtLeastOne = Field(8, description="items that pass the decoder at once")


class AugmentRecipe(NewItemKeys):
    """More items for each class of a small latent dataset, decoded."""

    task: Literal["augment"] = Field(description="what the recipe does")
    test: str | None = Field(
        None,
        min_length=1,
        description=(
            "latent dataset of the test items, none of which may be among `latents`; null: nothing"
            " is checked"
        ),
    )
    test_column: str | None = Field(
        None,
        min_length=1,
        description="attribute that says which items of `latents` are test items, such as split",
    )
    test_values: tuple[str | int | float | bool, ...] = Field(
        (), description="values of `test_column` of test items, which are left out"
    )
    output: UseOutput = Field(description="where the new items go")


class AugmentStudyRecipe(NewItemKeys):
    """Whether new items help a classifier, beside classical augmentation."""

    task: Literal["augment-study"] = Field(description="what the recipe does")
    test: str = Field(
        min_length=1, description="latent dataset of the test items; none may be among `latents`"
    )
    sizes: tuple[AtLeastTwo, ...] = Field(
        (10, 50, 200), min_length=1, description="items per class to train on, for each study"
    )
    seeds: int = Field(
        5, ge=2, le=21, description="repetitions, each with other items and another network"
    )
    steps: AtLeastOne = Field(400, description="training steps of each classifier, of 64 images")
    flips: bool = Field(
        False, description="whether classical augmentation mirrors images; not for digits or text"
    )
    max_test: AtLeastOne = Field(2000, description="test items, spread evenly over the dataset")
    output: UseOutput = Field(description="where the results go")


PathMethod = Literal["linear", "spherical", "neighbors"]


class InterpolateRecipe(Recipe):
    """The way from one item of a latent dataset to another, decoded."""

    task: Literal["interpolate"] = Field(description="what the recipe does")
    latents: str = Field(min_length=1, description="latent dataset of the items")
    between: tuple[str, ...] = Field(
        min_length=2, description="keys of the items to go through, in this order"
    )
    method: PathMethod = Field(
        "spherical",
        description=(
            "linear: the straight line; spherical: the great circle of normalized latents;"
            " neighbors: straight from item to item, by those nearest to the straight line"
        ),
    )
    steps: int = Field(
        9, ge=3, description="points from one item to the next, with both of them"
    )
    batch_size: AtLeastOne = Field(8, description="points that pass the decoder at once")
    output: UseOutput = Field(description="where the points go")


class ScoreRecipe(Recipe):
    """How unusual each item of a latent dataset is."""

    task: Literal["score"] = Field(description="what the recipe does")
    latents: str = Field(min_length=1, description="latent dataset to score")
    clean: str | None = Field(
        None,
        min_length=1,
        description=(
            "latent dataset of usual items only, by the same encoder: four fifths of it define what"
            " is usual, the rest sets the thresholds; null: the scored items themselves do both"
        ),
    )
    label: str | None = Field(
        None, min_length=1, description="attribute that says which items are unusual"
    )
    unusual: tuple[str | int | float | bool, ...] = Field(
        (), description="values of `label` of unusual items"
    )
    from_media: bool = Field(
        True,
        description=(
            "also score what the decoder makes of each item, for which the source's media are read"
            " again; false: score latents alone"
        ),
    )
    draws: AtLeastOne = Field(4, description="draws of each posterior for the ELBO")
    scale: float | None = Field(
        None,
        gt=0,
        description=(
            "standard deviation of the decoder's likelihood in units of the encoder's input; null:"
            " the root mean square error of the items that define what is usual"
        ),
    )
    regret_steps: int = Field(
        0,
        ge=0,
        description=(
            "steps for the likelihood regret, each as costly as a training step; 0: no regret"
        ),
    )
    rank: AtLeastOne = Field(64, description="directions of the Mahalanobis distance's covariance")
    false_positive_rate: float = Field(
        0.05, gt=0, lt=1, description="share of clean items that may be called unusual"
    )
    contamination: float = Field(
        0.05, gt=0, lt=1, description="without `clean`: share of unusual items that is assumed"
    )
    batch_size: AtLeastOne = Field(16, description="items that pass the encoder at once")
    shown: AtLeastOne = Field(8, description="most unusual items that are shown as images")
    output: UseOutput = Field(description="where the scores go")


R = TypeVar("R", bound=Recipe)


def with_absolute(recipe: R, key: str) -> R:
    """Return the recipe with the path at a key absolute; relative ones start from its folder."""
    path: str | None = getattr(recipe, key)
    if path is None or is_url(path):
        return recipe
    absolute = os.path.abspath(recipe.base_dir / os.path.expanduser(path))
    return recipe.model_copy(update={key: absolute})
