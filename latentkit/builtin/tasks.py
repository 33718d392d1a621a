"""Core's own tasks. Loads no torch and none of the modules that run tasks, to keep discovery quick.
"""

from __future__ import annotations

from collections.abc import Iterator

from latentkit.contracts import TaskSpec, lazy
from latentkit.hooks import hookimpl


@hookimpl
def latentkit_tasks() -> Iterator[TaskSpec]:
    """Return core's tasks. `run_recipe` calls the functions named here directly."""
    yield TaskSpec(
        "encode",
        "a latent dataset from a source",
        lazy("latentkit.recipe.schema:EncodeRecipe"),
        lazy("latentkit.tasks.encode_task:run_encode"),
        describe=lazy("latentkit.tasks.encode_task:describe_dry_run"),
        check=lazy("latentkit.tasks.encode_task:open_encode"),
        report=lazy("latentkit.cli.closing_words:report_encoding"),
        takes=("prune", "retry_skipped", "devices"),
    )
    yield TaskSpec(
        "train",
        "a trained or fine-tuned autoencoder",
        lazy("latentkit.recipe.schema:TrainRecipe"),
        lazy("latentkit.tasks.train_task:run_training"),
        check=lazy("latentkit.tasks.train_task:open_training"),
        report=lazy("latentkit.cli.closing_words:report_training"),
        takes=("precision",),
    )
    yield TaskSpec(
        "evaluate",
        "a model's reconstructions and latents, or a latent dataset, measured",
        lazy("latentkit.recipe.schema:EvaluateRecipe"),
        lazy("latentkit.tasks.evaluate_task:run_evaluating"),
        check=lazy("latentkit.tasks.evaluate_task:open_evaluation"),
        report=lazy("latentkit.cli.closing_words:report_evaluation"),
    )
    yield TaskSpec(
        "sample",
        "new items, drawn from a latent dataset and decoded",
        lazy("latentkit.uses.recipes:SampleRecipe"),
        lazy("latentkit.uses.sample_task:run_sampling"),
        check=lazy("latentkit.uses.sample_task:open_sampling"),
        report=lazy("latentkit.uses.sample_task:report_sampling"),
    )
    yield TaskSpec(
        "interpolate",
        "the way from one item of a latent dataset to another, decoded",
        lazy("latentkit.uses.recipes:InterpolateRecipe"),
        lazy("latentkit.uses.interpolate_task:run_interpolation"),
        check=lazy("latentkit.uses.interpolate_task:open_interpolation"),
        report=lazy("latentkit.uses.interpolate_task:report_interpolation"),
    )
    yield TaskSpec(
        "augment",
        "more items for each class of a small latent dataset",
        lazy("latentkit.uses.recipes:AugmentRecipe"),
        lazy("latentkit.uses.augment_task:run_augmenting"),
        check=lazy("latentkit.uses.augment_task:open_augmenting"),
        report=lazy("latentkit.uses.augment_task:report_augmenting"),
    )
    yield TaskSpec(
        "score",
        "how unusual each item of a latent dataset is",
        lazy("latentkit.uses.recipes:ScoreRecipe"),
        lazy("latentkit.uses.score_task:run_scoring"),
        check=lazy("latentkit.uses.score_task:open_scoring"),
        report=lazy("latentkit.uses.score_task:report_scoring"),
    )
