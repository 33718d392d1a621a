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
    yield from _tasks_of_uses()


def _tasks_of_uses() -> Iterator[TaskSpec]:
    """Return the tasks that use a latent dataset. Each has a module of its name."""
    for name, verb, summary in (
        ("sample", "sampling", "new items, drawn from a latent dataset and decoded"),
        (
            "interpolate",
            "interpolation",
            "the way from one item of a latent dataset to another, decoded",
        ),
        ("augment", "augmenting", "more items for each class of a small latent dataset"),
        (
            "augment-study",
            "augment_study",
            "whether new items help a classifier, beside classical augmentation",
        ),
        ("score", "scoring", "how unusual each item of a latent dataset is"),
    ):
        module = f"latentkit.uses.{name.replace('-', '_')}_task"
        yield TaskSpec(
            name,
            summary,
            lazy(f"latentkit.uses.recipes:{name.title().replace('-', '')}Recipe"),
            lazy(f"{module}:run_{verb}"),
            check=lazy(f"{module}:open_{verb}"),
            report=lazy(f"{module}:report_{verb}"),
        )
