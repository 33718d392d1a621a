"""The recipe models of the tasks that use a latent dataset. Importing this loads no torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from latentkit.contracts import Recipe, RecipePart
from latentkit.recipe.parts import AtLeastOne

SamplerName = Literal[
    "auto", "normal", "channel-gaussian", "spatial-gaussian", "low-rank", "mixture"
]


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
