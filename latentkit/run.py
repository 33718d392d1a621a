"""Recipe to built objects to one of the task functions."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latentkit.build import Line, is_launched, lines_of, open_executor
from latentkit.errors import EncoderError, PluginError, RecipeError
from latentkit.overrides import find_local_path, is_url
from latentkit.recipe import EncodeRecipe, EvaluateRecipe, Overrides, Recipe, TrainRecipe, dump_recipe, load_recipe, parse_recipe, resolve
from latentkit.recipe_parts import Use
from latentkit.run_evaluating import EvaluateResult, prepare_evaluation, run_evaluating
from latentkit.run_training import open_training, run_training
from latentkit.shorthand import HUB_ID, encode_recipe

if TYPE_CHECKING:
    from latentkit.contracts import Executor, Remark
    from latentkit.encode import EncodeSummary
    from latentkit.one_pass import Passed
    from latentkit.planning import EncodeInputs, EncodeSettings
    from latentkit.store.folder import Folder
    from latentkit.store.reader import LatentDataset
    from latentkit.train import TrainResult


def encode(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    encoder: str | os.PathLike[str] | None = None,
    size: int | tuple[int, int] | None = None,
    overrides: Overrides = (),
    device: str = "auto",
    devices: Sequence[str] = (),
) -> LatentDataset:
    """The latent dataset of `source`, encoded into the folder `output` as far as it isn't yet.

    Args:
        source: name of a source plugin, a path, or `owner/name` on the hub.
        output: folder of the latent dataset.
        encoder: name of an encoder plugin, a path, or a hub id; None is `tiny-kl`, which is for trying out.
        size: side of the pictures in pixels, or (height, width); None is the modality's default.
        overrides: any key of the recipe, such as {"batch_size": 64, "output.dtype": "float32"}.
        device, devices: see `RunOptions`.

    Raises:
        LatentkitError: whatever the user can mend; the message says how.
    """
    named = None if encoder is None else os.fspath(encoder)
    values, remarks = encode_recipe(os.fspath(source), os.fspath(output), named, size, overrides)
    for remark in remarks:
        say(remark)
    recipe = parse_recipe(values, "encode", Path.cwd(), overrides)
    if not isinstance(recipe, EncodeRecipe) or recipe.encoder is None:
        raise ValueError("overrides of encode can't change the task or name several encoders; use latentkit.run")
    _heed_launcher(recipe)
    options = RunOptions(device=device, devices=tuple(devices), fits=True)
    return _run_encode(recipe, options).datasets()[""]


def run(
    recipe: str | os.PathLike[str] | Mapping[str, Any],
    overrides: Overrides = (),
    *,
    dry_run: bool = False,
    prune: bool = False,
    retry_skipped: bool = False,
    device: str = "auto",
    devices: Sequence[str] = (),
) -> Any:
    """Run any recipe; again goes on where it stopped, or does what has changed in the source since.

    Args:
        recipe: path of a YAML file, or its values; relative paths in values start from the working directory.
        overrides: as for `encode`.
        dry_run, prune, retry_skipped, device, devices: see `RunOptions`.

    Returns:
        An encode task's `LatentDataset` (with `encoders:`, one by name), a train task's `TrainResult`, an evaluate task's
        `EvaluateResult`; with `dry_run`, the text of what
        would be done.

    Raises:
        LatentkitError: whatever the user can mend; the message says how.
    """
    parsed = parse_recipe(recipe, "recipe", Path.cwd(), overrides) if isinstance(recipe, Mapping) else load_recipe(recipe, overrides)
    result = run_recipe(parsed, RunOptions(dry_run, prune, retry_skipped, device, tuple(devices)))
    if isinstance(result, EncodeRun):
        datasets = result.datasets()
        return datasets[""] if set(datasets) == {""} else datasets
    return result


@dataclass(frozen=True)
class RunOptions:
    """How a run differs from the plain one.

    Args:
        dry_run: say what would be done, and do nothing.
        prune: leave samples that are gone from the source out of the dataset, also when they are most of it.
        retry_skipped: encode once more the samples that were skipped.
        device: "auto", a kind such as "cuda", or one device such as "cuda:1"; goes before what the recipe says.
        devices: several, such as ("cuda:0", "cuda:1"), a process each; for encoding. None: that one, or all where it is "auto".
        fits: where the recipe of one encoder leaves a size open whose default the encoder doesn't
            take, take its nearest.
    """

    dry_run: bool = False
    prune: bool = False
    retry_skipped: bool = False
    device: str = "auto"
    devices: tuple[str, ...] = ()
    fits: bool = False


DEFAULT_OPTIONS = RunOptions()
MOST_REMARKS = 20


@dataclass(frozen=True)
class EncodeRun:
    """What an encode task made, by name of the encoder ("" for the only one).

    Args:
        folders: of the datasets.
        summaries: what this process did.
        previews: files to look at, where there are any.
        remarks: what the source found and did not use; of a stream, as far as this process read it.
    """

    folders: Mapping[str, str]
    summaries: Mapping[str, EncodeSummary]
    previews: Mapping[str, str]
    remarks: Mapping[str, Sequence[Remark]]

    def datasets(self) -> dict[str, LatentDataset]:
        """The datasets, opened."""
        from latentkit.store.reader import open_dataset

        return {name: open_dataset(folder) for name, folder in self.folders.items()}


def run_recipe(recipe: Recipe, options: RunOptions = DEFAULT_OPTIONS) -> EncodeRun | TrainResult | EvaluateResult | str:
    """Run a parsed recipe; with `dry_run`, the text of what would be done.

    Raises:
        RecipeError: an option that the task has no use for.
        LatentkitError: the launcher asks for what isn't done here, such as FSDP.
    """
    _heed_launcher(recipe)
    if isinstance(recipe, EncodeRecipe):
        return _foretell(recipe, options) if options.dry_run else _run_encode(recipe, options)
    if options != RunOptions(device=options.device):
        several = "--devices (on several devices, train with accelerate launch)"
        raise RecipeError(f"{recipe.origin}: --dry-run, --prune, --retry-skipped and {several} are for encoding; the task is {recipe.task}")
    if isinstance(recipe, TrainRecipe):
        return run_training(recipe, is_first_process(), options.device)
    if isinstance(recipe, EvaluateRecipe):
        return run_evaluating(recipe, is_first_process(), options.device)
    raise RecipeError(f"{recipe.origin}: task {recipe.task} can't be run")


def open_parts(recipe: Recipe) -> str:
    """Open all that a run of the recipe would open before its work, on the CPU; nothing is written, downloaded or measured.

    Returns:
        "", or what is not looked at, and why.

    Raises:
        LatentkitError: what the run would end with: a path that isn't there, a size that the encoder doesn't take, a missing tracker.
    """
    remote = [f"{where} ({name})" for where, use in _used(recipe) if (name := _hub_name(use, recipe))]
    if isinstance(recipe, EncodeRecipe):
        for line in lines_of(recipe):
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
    return f"not looked at, as it may have to be downloaded: {', '.join(remote)}" if remote else ""


def _used(recipe: Recipe) -> list[tuple[str, Use]]:
    return [(where, use) for _, where, use in recipe.uses()]


def _hub_name(use: Use, recipe: Recipe) -> str:
    """The hub id or URL that a plugin's options name; "" where they name none."""
    for key in ("model", "path"):
        name = use.with_.get(key)
        if not isinstance(name, str) or use.use == "folder":
            continue
        if is_url(name) or (find_local_path(name, recipe.base_dir) is None and _is_hub_id(use, key, name)):
            return name
    return ""


def _is_hub_id(use: Use, key: str, name: str) -> bool:
    """Whether a name that is no path here is looked for on the hub."""
    from latentkit.runtime.hub_places import ID_PART, parse_hub_place

    if key == "path" and use.use != "datasets":  # a path of other sources may have more than one slash
        return HUB_ID.fullmatch(name) is not None
    is_bare = key == "path" and ID_PART.fullmatch(name) is not None  # the oldest data sets have no owner
    return is_bare or parse_hub_place(name) is not None


def _heed_launcher(recipe: Recipe) -> None:
    """Refuse what the launcher asks for and can't have; say what has no effect on this task."""
    from latentkit.runtime.launcher import check_launcher, launched_precision

    check_launcher()
    if not isinstance(recipe, TrainRecipe) and (precision := launched_precision()):
        effect = "is for training; here a model computes in its own dtype (option dtype)"
        say(f"the launcher's mixed precision {precision} {effect}")


def say(text: str) -> None:
    """A remark for the user, from the first process of a launch only."""
    if is_first_process():
        print(text, file=sys.stderr, flush=True)


def is_first_process() -> bool:
    """Whether this is the only process, or the launcher's rank 0."""
    return not is_launched() or os.environ.get("RANK", "0") == "0"


# ---------------------------------------------------------------- encode


def _run_encode(recipe: EncodeRecipe, options: RunOptions) -> EncodeRun:
    from latentkit.sources.remarks import remarks_of, say_remarks

    folders, summaries, previews, remarks = {}, {}, {}, {}
    lines = {line.name: line for line in lines_of(recipe)}
    opened = {name: open_line(line, recipe, options) for name, line in lines.items()}
    shared = _encode_together(lines, opened) if len(lines) > 1 else {}
    for name, line in lines.items():
        folders[name] = _output(recipe, line)
        parts = opened.pop(name)
        summaries[name], preview = _encode_line(parts, shared.get(name))
        remarks[name] = remarks_of(parts.inputs.source)
        if not is_first_process():  # the first says its own; what another has read of a stream, nobody else knows
            say_remarks([remark for remark in remarks[name] if remark not in parts.inputs.remarks])
        if preview:
            previews[name] = preview
    return EncodeRun(folders, summaries, previews, remarks)


def _encode_together(lines: Mapping[str, Line], opened: Mapping[str, OpenLine]) -> dict[str, Passed]:
    """What passes over the source did, one per input that several encoders share, by name; the other encoders are left out."""
    from latentkit.one_pass import Target, encode_in_one_pass, group_by_input

    first = next(iter(opened.values()))
    groups = group_by_input(lines, {name: parts.inputs for name, parts in opened.items()}, first.device)
    if len(groups) > 1:
        named = " | ".join(", ".join(group.names) for group in groups)
        say(f"encoders take different inputs, so the source is read and prepared once for each of: {named}")
    passed: dict[str, Passed] = {}
    for group in groups:
        targets = [
            Target(opened[name].folder, opened[name].inputs, opened[name].settings, _recipe_text(lines[name].recipe, lines[name]))
            for name in group.names
        ]
        if len(targets) > 1:
            done = encode_in_one_pass(targets, group.modality, first.executor, first.device, is_first_process())
            passed |= zip(group.names, done, strict=True)
    return passed


def _foretell(recipe: EncodeRecipe, options: RunOptions) -> str:
    from latentkit.encode import foretell
    from latentkit.planning import describe_entries
    from latentkit.sources.remarks import list_remarks

    lines = []
    for line in lines_of(recipe):
        parts = open_line(line, recipe, options)
        lines.append(foretell(parts.folder, parts.inputs, parts.settings))
        lines += [f"  column {text}" for text in describe_entries(parts.inputs)]
        lines += [f"  note {text}" for text in list_remarks(parts.inputs.remarks, MOST_REMARKS)]
    return "\n".join(lines)


def _output(recipe: EncodeRecipe, line: Line) -> str:
    return f"{recipe.output.path}/{line.name}" if line.name else recipe.output.path


@dataclass(frozen=True)
class OpenLine:
    """A line of an encode recipe, built."""

    line: Line
    folder: Folder
    executor: Executor
    device: str
    inputs: EncodeInputs
    settings: EncodeSettings


def open_line(line: Line, recipe: EncodeRecipe, options: RunOptions = DEFAULT_OPTIONS) -> OpenLine:
    """Everything that encoding one line of a recipe needs."""
    from latentkit.contracts import StreamSource
    from latentkit.planning import EncodeInputs, EncodeSettings
    from latentkit.runtime.device import choose_device
    from latentkit.store.folder import open_folder

    folder = open_folder(_output(recipe, line))
    source = line.open_source()
    executor = open_executor(recipe, options.device, options.devices)
    device = getattr(executor, "device", None) or choose_device(options.device)
    opener = line.encoder_opener()
    encoder = opener(device)
    for remark in encoder.remarks() if hasattr(encoder, "remarks") else ():
        say(remark.text)
    if options.fits and not line.name:
        line, fits = line.fitted(encoder)
        for text in fits:
            say(text)
    described = {"use": line.source.provided.spec.name, "with": recipe.source.with_}
    inputs = EncodeInputs(
        source, line.open_modality(encoder), line.views, opener, line.fingerprint_parts(encoder), described, opener.in_float32(),
        line.default_parts(),
    )  # fmt: skip
    if isinstance(source, StreamSource):
        inputs.remarks  # noqa: B018  # now: once it has been read it remarks more, in each process other things
    settings = EncodeSettings(
        recipe.output.store, recipe.output.dtype, recipe.output.unit_size, recipe.batch_size, recipe.threads, recipe.compile,
        recipe.seed, recipe.on_bad_sample, recipe.max_bad, recipe.on_overflow, recipe.preview, options.prune, options.retry_skipped,
    )  # fmt: skip
    return OpenLine(line, folder, executor, device, inputs, settings)


def _encode_line(opened: OpenLine, passed: Passed | None) -> tuple[EncodeSummary, str | None]:
    from latentkit.contracts import StreamSource
    from latentkit.encode import encode_source
    from latentkit.preview import preview_suffix, store_preview
    from latentkit.runtime.device import is_out_of_memory
    from latentkit.store.dataset import DATASET, compare_normalizations, restate

    folder, inputs, recipe = opened.folder, opened.inputs, opened.line.recipe
    before = folder.read(DATASET) if folder.exists(DATASET) else None
    text = _recipe_text(recipe, opened.line)
    shown, is_compared = is_first_process(), passed is not None and passed.is_compared
    summary = encode_source(
        folder, inputs, opened.executor, opened.device, opened.settings, text, show_progress=shown, is_compared=is_compared
    )
    is_stream = isinstance(inputs.source, StreamSource)
    remarks = None if is_stream else [asdict(remark) for remark in inputs.remarks]
    restate(folder, inputs.open_encoder(opened.device).normalization, remarks)
    if before and (difference := compare_normalizations(before, folder.read(DATASET))):
        say(f"{folder}: {difference}")
    summary = summary if passed is None else passed.summary + summary
    if not opened.settings.preview or not shown:
        return summary, None
    name = f"preview{preview_suffix(inputs.modality)}"
    is_current = folder.exists(name) and folder.read(DATASET) == before
    try:
        decoder, num_rows = inputs.open_decoder(opened.device), opened.settings.preview
        made = is_current or store_preview(
            folder, inputs.source, inputs.modality, decoder, name, num_rows
        )
    except Exception as error:
        if not (isinstance(error, (PluginError, EncoderError)) or is_out_of_memory(error)):
            raise
        # No reason to call a finished dataset a failure.
        reason = " ".join(str(error).split())
        say(f"{folder}: no preview: {reason}; the dataset is complete without it")
        made = False
    return summary, f"{folder}/{name}" if made else None


def _recipe_text(recipe: Recipe, line: Line) -> str:
    """recipe.yaml of one line's dataset, which alone makes it again."""
    values = {}
    for name, value in resolve(recipe).items():
        if name == "encoders":
            values["encoder"] = value[line.name]
        else:
            values[name] = value
    return dump_recipe(values)
