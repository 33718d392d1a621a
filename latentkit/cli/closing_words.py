"""Texts that commands print when they end: a summary, and what to do next."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latentkit.errors import StoreError
from latentkit.recipe.schema import EncodeRecipe, EvaluateRecipe, Recipe, TrainRecipe, load_recipe
from latentkit.runtime.paths import in_shell, is_url

if TYPE_CHECKING:
    from latentkit.encoding.encode_source import EncodeSummary
    from latentkit.evaluation.batches import Row
    from latentkit.tasks.encode_task import EncodeRun
    from latentkit.tasks.evaluate_task import EvaluateResult
    from latentkit.training.loop import TrainResult

MOST_REASONS = 4
"""Lines about skipped samples; the last one stands for several reasons where there are more."""
MOST_KEYS = 3
MOST_REMARKS = 6
MOST_COLUMNS = 4
SLOW_SECONDS, SLOW_WAITED, SLOW_FULL = 60.0, 0.3, 0.7
"""A run of at least so many seconds is told why it was slow: the encoder waited for this share of
the time or more, or batches were less full than this.
"""
KNOWN_BY_CONFIG = ("diffusers", "tiny-kl", "tiny-kl-16")
"""Encoders whose model folders `latentkit encode` recognizes by their config.json."""


def report_encoding(result: EncodeRun) -> str:
    """Return the summary of an encode task: its datasets, and the commands to look at them."""
    return "\n".join(_report_encode(name, result) for name in result.folders)


def report_training(result: TrainResult) -> str:
    """Return the summary of a train task: its model, and how to encode with it."""
    done = "was finished already" if result.finished_before else f"{result.steps} steps done"
    if result.best is not None:
        best = f"step {result.best.step}, the best by {result.best.metric or 'evaluate.best'}"
        done += f"; this model is of {best}, the last step's is in model-last/"
    skipped = (
        f"; {result.num_skipped_steps} steps were not finite and skipped"
        if result.num_skipped_steps
        else ""
    )
    left_out = ""
    if result.num_bad_samples:
        left_out = (
            f"; {result.num_bad_samples} samples left out,"
            f" {_short_path(result.model.parent / 'result.json')} says why"
        )
    return (
        f"{_short_path(result.model)}: {done}{skipped}{left_out}\n"
        f"  encode with it: {_encoding_with(result.model)}"
    )


def _encoding_with(model: Path) -> str:
    """Return the command or the recipe key that encodes with a trained model."""
    recipe = load_recipe(model.parent / "recipe.yaml")
    assert isinstance(recipe, TrainRecipe)
    if recipe.model.use in KNOWN_BY_CONFIG:
        return f"latentkit encode SOURCE OUT --encoder {in_shell(_short_path(model))}"
    use = recipe.model.use
    return f"encoder: {{use: {use}, with: {{model: {_short_path(model)}}}}} in a recipe"


def _report_encode(name: str, result: EncodeRun) -> str:
    """Return the summary of one dataset that an encode task made."""
    from latentkit.upkeep.inspect_dataset import describe_columns, describe_remarks, inspect_dataset

    found, folder = inspect_dataset(result.folders[name]), _short_path(result.folders[name])
    command = f"latentkit inspect {in_shell(folder)}"
    lines = [f"{folder}: {count_latents(found['rows'], result.summaries[name])}"]
    lines += [f"  slow          {text}" for text in explain_slowness(result.summaries[name])]
    lines += _list_skip_reasons(found, command)
    lines += [
        f"  note          {text}"
        for text in describe_remarks(found, MOST_REMARKS, command, result.remarks[name])
    ]
    lines += [f"  column        {text}" for text in describe_columns(found, MOST_COLUMNS, command)]
    if name in result.previews:
        lines.append(f"  look at       {_short_path(result.previews[name])}")
    lines.append(f"  what is in it {command}")
    lines.append(
        f"  read it       latentkit.open({json.dumps(folder, ensure_ascii=False)}).batches(256,"
        " shuffle=True)"
    )
    return "\n".join(lines)


def _list_skip_reasons(found: Mapping[str, Any], command: str) -> list[str]:
    """Return lines with the most frequent reasons for skipping, and the first samples of each."""
    from latentkit.upkeep.inspect_dataset import name_keys

    reasons: dict[str, int] = found["skipped"]
    shown = list(reasons) if len(reasons) <= MOST_REASONS else list(reasons)[: MOST_REASONS - 1]
    lines = []
    for reason in shown:
        lines += [
            f"  skipped       {reasons[reason]}: {reason}",
            f"                {name_keys(found, reason)}",
        ]
    others = [count for reason, count in reasons.items() if reason not in shown]
    if others:
        lines.append(
            f"  skipped       {sum(others)}: for {len(others)} other reasons; `{command}` lists"
            " them"
        )
    return lines + ([f"  all of them   {command} --skipped"] if reasons else [])


def report_evaluation(result: EvaluateResult) -> str:
    """Return the summary of an evaluate task: its values, and where the report lies."""
    found, folder = result.evaluation, _short_path(result.folder)
    if found is None:
        return f"{folder}: evaluated by the first process"
    skipped = len(found.rows) - found.num_samples
    width = max(len(name) for name in found.figures)
    lines = [
        f"{folder}: {found.num_samples} samples evaluated"
        + (f", {skipped} skipped" if skipped else "")
    ]
    lines += _skipped_rows(found.rows, folder)
    lines += [
        f"  {name:<{width}}  {figure.value:.6g} {figure.unit}".rstrip()
        for name, figure in found.figures.items()
    ]
    lines += [f"  note: {warning}" for warning in found.warnings]
    return "\n".join(
        [
            *lines,
            (
                f"  look at {folder}/report.html; {folder}/metrics.json says how each value is"
                " measured"
            ),
        ]
    )


def _skipped_rows(rows: Sequence[Row], folder: str) -> list[str]:
    """Return lines with the most frequent reasons for not evaluating, and first samples of each."""
    keys: dict[str, list[str]] = {}
    for row in rows:
        if row.reason:
            keys.setdefault(row.reason, []).append(row.key)
    lines = []
    by_count = sorted(keys.items(), key=lambda item: (-len(item[1]), item[0]))
    for reason, named in by_count[:MOST_REASONS]:
        lines.append(f"  skipped {len(named)}: {reason}, such as {', '.join(named[:MOST_KEYS])}")
    return lines + (
        [f"  {folder}/samples.parquet lists each skipped sample with its reason"] if lines else []
    )


def count_latents(rows: Mapping[str, int], summary: EncodeSummary) -> str:
    """Say how many latents the dataset has, and how many this process encoded."""
    total = _latents(rows.get("ok", 0), rows.get("skipped", 0))
    if not summary.num_ok and not summary.num_skipped:
        return f"{total}; all were encoded already"
    here = _latents(summary.num_ok, summary.num_skipped)
    rate = summary.num_ok / max(summary.seconds, 1e-9)
    speed = (
        f"in {summary.seconds:.1f} s ({rate:.1f}/s); the encoder waited"
        f" {_share_waited(summary):.0%} of the time"
    )
    return f"{total} {speed}" if here == total else f"{total}; {here} of them here {speed}"


def explain_slowness(summary: EncodeSummary) -> list[str]:
    """Return lines that say why a long run was slow, and what would make it faster."""
    if summary.seconds < SLOW_SECONDS:
        return []
    lines, share = [], _share_waited(summary)
    if share >= SLOW_WAITED:
        lost = f"the encoder waited for samples, {share:.0%} of the time"
        lines.append(f"{lost}; more CPU cores, a faster disk, or smaller files would feed it")
    if summary.num_slots and (full := summary.num_ok / summary.num_slots) < SLOW_FULL:
        fuller = "fewer buckets, a larger output.unit_size or a smaller batch_size would fill them"
        lines.append(f"batches were {full:.0%} full; {fuller}")
    return lines


def _share_waited(summary: EncodeSummary) -> float:
    return summary.waited_seconds / max(summary.seconds, 1e-9)


def _latents(num_ok: int, num_skipped: int) -> str:
    skipped = f", {num_skipped} skipped" if num_skipped else ""
    return f"{num_ok} latent{'' if num_ok == 1 else 's'}{skipped}"


def how_to_continue(recipe: Recipe) -> str:
    """Return what a stopped run keeps, and the command that continues it."""
    if isinstance(recipe, EvaluateRecipe):
        return "an evaluation that was stopped keeps nothing; run the same command again"
    if not isinstance(recipe, (EncodeRecipe, TrainRecipe)):
        return "run the same command again"
    output = recipe.output.path
    if _holds_recipe(output):
        kept = "what is committed is kept; go on with"
        if isinstance(recipe, TrainRecipe) and not os.path.isdir(
            os.path.join(output, "checkpoints")
        ):
            kept = (
                "no checkpoint was written yet (output.checkpoint_every:"
                f" {recipe.output.checkpoint_every}); begin again with"
            )
        return f"{kept}: latentkit run {in_shell(_short_path(f'{output}/recipe.yaml'))}"
    kept = "what is committed is kept" if os.path.isdir(output) else "nothing was committed yet"
    return f"{kept}; run the same command again"


def _holds_recipe(output: str) -> bool:
    """Return whether an output folder has a recipe.yaml to continue with."""
    from latentkit.store.open_folder import open_folder

    try:
        folder = open_folder(output)
        folder.stop_waiting()
        return folder.exists("recipe.yaml")
    except StoreError:
        return False


def _short_path(path: str | Path) -> str:
    """Return a path relative to the working directory if it lies there, else as it is, as URLs."""
    if is_url(str(path)):
        return str(path)
    absolute, here = Path(os.path.abspath(path)), Path.cwd()
    return str(absolute.relative_to(here)) if absolute.is_relative_to(here) else str(path)
