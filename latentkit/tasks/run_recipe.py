"""Runs a recipe: builds its objects and calls its task."""

from __future__ import annotations

from typing import TYPE_CHECKING

from latentkit.errors import RecipeError
from latentkit.recipe.parts import Use
from latentkit.recipe.schema import (
    EncodeRecipe,
    EvaluateRecipe,
    Recipe,
    TrainRecipe,
)
from latentkit.runtime.paths import find_local_path, is_url
from latentkit.tasks.build_parts import configured_encodes
from latentkit.tasks.encode_task import (
    DEFAULT_OPTIONS,
    EncodeRun,
    RunOptions,
    describe_dry_run,
    is_first_process,
    print_remark,
    run_encode,
)
from latentkit.tasks.evaluate_task import EvaluateResult, prepare_evaluation, run_evaluating
from latentkit.tasks.recipe_from_arguments import HUB_ID
from latentkit.tasks.train_task import open_training, run_training

if TYPE_CHECKING:
    from latentkit.training.loop import TrainResult


def run_recipe(
    recipe: Recipe, options: RunOptions = DEFAULT_OPTIONS
) -> EncodeRun | TrainResult | EvaluateResult | str:
    """Run a parsed recipe. With `dry_run`, return the text of what would be done.

    Raises:
        RecipeError: an option doesn't apply to the task.
        LatentkitError: the launcher asks for an unsupported feature, such as FSDP.
    """
    check_launcher_settings(recipe)
    if isinstance(recipe, EncodeRecipe):
        return describe_dry_run(recipe, options) if options.dry_run else run_encode(recipe, options)
    if options != RunOptions(device=options.device):
        several = "--devices (on several devices, train with accelerate launch)"
        raise RecipeError(
            f"{recipe.origin}: --dry-run, --prune, --retry-skipped and {several} are for encoding;"
            f" the task is {recipe.task}"
        )
    if isinstance(recipe, TrainRecipe):
        return run_training(recipe, is_first_process(), options.device)
    if isinstance(recipe, EvaluateRecipe):
        return run_evaluating(recipe, is_first_process(), options.device)
    raise RecipeError(f"{recipe.origin}: task {recipe.task} can't be run")


def open_parts(recipe: Recipe) -> str:
    """Open on the CPU everything that a run of the recipe would open before its work. Nothing is
    written, downloaded or measured.

    Returns:
        "", or what wasn't checked, and why.

    Raises:
        LatentkitError: the error that would end the run, such as a missing path, a size that the
            encoder doesn't accept, or a missing tracker.
    """
    remote = [
        f"{where} ({name})" for where, use in _used(recipe) if (name := _hub_name(use, recipe))
    ]
    if isinstance(recipe, EncodeRecipe):
        for line in configured_encodes(recipe):
            if not _hub_name(recipe.source, recipe):
                line.open_source()
            if not any(where.startswith("encoder") for where in remote):
                line.open_modality(line.encoder_opener()("cpu"))
    elif remote:
        pass
    elif isinstance(recipe, TrainRecipe):
        open_training(recipe)
    elif isinstance(recipe, EvaluateRecipe):
        prepare_evaluation(recipe, "cpu")
    return (
        f"not checked, because it may have to be downloaded: {', '.join(remote)}" if remote else ""
    )


def _used(recipe: Recipe) -> list[tuple[str, Use]]:
    return [(where, use) for _, where, use in recipe.uses()]


def _hub_name(use: Use, recipe: Recipe) -> str:
    """Return the hub id or URL in a plugin's options; "" if there is none."""
    for key in ("model", "path"):
        name = use.with_.get(key)
        if not isinstance(name, str) or use.use == "folder":
            continue
        if is_url(name) or (
            find_local_path(name, recipe.base_dir) is None and _is_hub_id(use, key, name)
        ):
            return name
    return ""


def _is_hub_id(use: Use, key: str, name: str) -> bool:
    """Return whether a name that isn't a local path is looked for on the hub."""
    from latentkit.runtime.hub_places import ID_PART, parse_hub_place

    if (
        key == "path" and use.use != "datasets"
    ):  # paths of other sources may have more than one slash
        return HUB_ID.fullmatch(name) is not None
    is_bare = (
        key == "path" and ID_PART.fullmatch(name) is not None
    )  # the oldest datasets have no owner
    return is_bare or parse_hub_place(name) is not None


def check_launcher_settings(recipe: Recipe) -> None:
    """Refuse a launcher's settings that aren't supported, and print which have no effect on this
    task.
    """
    from latentkit.runtime.launcher import check_launcher, launched_precision

    check_launcher()
    if not isinstance(recipe, TrainRecipe) and (precision := launched_precision()):
        effect = "is only for training; here a model computes in its own dtype (option dtype)"
        print_remark(f"the launcher's mixed precision {precision} {effect}")
