"""Runs a recipe: builds its objects and calls its task."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from latentkit.contracts import Recipe, TaskContext, TaskSpec, Use
from latentkit.errors import RecipeError
from latentkit.plugins import discover
from latentkit.runtime.paths import find_local_path, is_url
from latentkit.tasks.encode_task import DEFAULT_CONTEXT, is_first_process, print_remark
from latentkit.tasks.recipe_from_arguments import HUB_ID


def run_recipe(recipe: Recipe, context: TaskContext = DEFAULT_CONTEXT) -> Any:
    """Run a parsed recipe. With `dry_run`, return the text of what would be done.

    Raises:
        RecipeError: an option doesn't apply to the task.
        LatentkitError: the launcher asks for an unsupported feature, such as FSDP.
    """
    spec = find_task(recipe)
    check_launcher_settings("precision" in spec.takes)
    _refuse_unused(recipe, spec, context)
    context = replace(context, is_first_process=is_first_process())
    if context.dry_run and spec.describe is not None:
        return spec.describe(recipe, context)
    return spec.run(recipe, context)


def find_task(recipe: Recipe) -> TaskSpec:
    """Return the spec of the task that runs a recipe.

    Raises:
        PluginError: several plugins have a task of this name.
    """
    spec = discover().find("task", recipe.task).spec
    assert isinstance(spec, TaskSpec)
    return spec


def _refuse_unused(recipe: Recipe, spec: TaskSpec, context: TaskContext) -> None:
    """Refuse options of the run that have no effect on the task.

    Raises:
        RecipeError: an option has no effect; the message names it.
    """
    given = {
        "--prune": context.prune and "prune" not in spec.takes,
        "--retry-skipped": context.retry_skipped and "retry_skipped" not in spec.takes,
        "--devices": bool(context.devices) and "devices" not in spec.takes,
        "--dry-run": context.dry_run and spec.describe is None,
    }
    unused = [name for name, is_unused in given.items() if is_unused]
    if unused:
        advice = "leave it out" if len(unused) == 1 else "leave them out"
        if "--devices" in unused and "precision" in spec.takes:
            advice += "; on several devices, train with accelerate launch"
        raise RecipeError(
            f"{recipe.origin}: the task {recipe.task} has no use for {', '.join(unused)}; {advice}"
        )


def open_parts(recipe: Recipe) -> str:
    """Open on the CPU everything that a run of the recipe would open before its work. Nothing is
    written, downloaded or measured.

    Returns:
        "", or what wasn't checked, and why.

    Raises:
        LatentkitError: the error that would end the run, such as a missing path, a size that the
            encoder doesn't accept, or a missing tracker.
    """
    found = {where: _hub_name(use, recipe) for _, where, use in recipe.uses()}
    remote = {where: name for where, name in found.items() if name}
    spec = find_task(recipe)
    if spec.check is not None:
        spec.check(recipe, list(remote))
    named = ", ".join(f"{where} ({name})" for where, name in remote.items())
    return f"not checked, because it may have to be downloaded: {named}" if remote else ""


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


def check_launcher_settings(takes_precision: bool = False) -> None:
    """Refuse a launcher's settings that aren't supported, and print which have no effect on this
    task.
    """
    from latentkit.runtime.launcher import check_launcher, launched_precision

    check_launcher()
    if not takes_precision and (precision := launched_precision()):
        effect = "is only for training; here a model computes in its own dtype (option dtype)"
        print_remark(f"the launcher's mixed precision {precision} {effect}")
