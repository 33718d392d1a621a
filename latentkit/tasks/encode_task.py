"""The encode task: makes latent datasets from a recipe."""

from __future__ import annotations

import os
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from latentkit.contracts import TaskContext
from latentkit.errors import EncoderError, PluginError, RecipeError
from latentkit.recipe.schema import (
    EncodeRecipe,
    Recipe,
    dump_recipe,
    resolve,
)
from latentkit.tasks.build_parts import (
    ConfiguredEncode,
    configured_encodes,
    is_launched,
    open_executor,
)

if TYPE_CHECKING:
    from latentkit.contracts import Executor, Remark
    from latentkit.encoding.encode_source import EncodeSummary
    from latentkit.encoding.make_plan import EncodeInputs, EncodeSettings
    from latentkit.encoding.shared_pass import SharedPassResult
    from latentkit.reading.dataset import LatentDataset
    from latentkit.store.folder import Folder


DEFAULT_CONTEXT = TaskContext()
MOST_REMARKS = 20


@dataclass(frozen=True)
class EncodeRun:
    """Result of an encode task, by name of the encoder ("" for the only one).

    Args:
        previews: preview files, if there are any.
        remarks: what the source found but didn't use; for a stream, as far as this process read it.
    """

    folders: Mapping[str, str]
    summaries: Mapping[str, EncodeSummary]
    previews: Mapping[str, str]
    remarks: Mapping[str, Sequence[Remark]]

    def datasets(self) -> dict[str, LatentDataset]:
        """Return the opened datasets."""
        from latentkit.reading.dataset import open_dataset
        from latentkit.tasks.open_decoder import open_decoder

        return {
            name: open_dataset(folder, open_decoder=open_decoder)
            for name, folder in self.folders.items()
        }


def print_remark(text: str) -> None:
    """Print a remark for the user, in the first process of a launch only."""
    if is_first_process():
        print(text, file=sys.stderr, flush=True)


def is_first_process() -> bool:
    """Return whether this is the only process, or the launcher's rank 0."""
    return not is_launched() or os.environ.get("RANK", "0") == "0"


# ---------------------------------------------------------------- encode


def run_encode(recipe: EncodeRecipe, context: TaskContext) -> EncodeRun:
    """Run an encode recipe: make or update the dataset of each encoder."""
    from latentkit.encoding.encode_source import encode_source
    from latentkit.runtime.source_remarks import print_remarks, read_remarks

    folders, summaries, previews, remarks = {}, {}, {}, {}
    encodes = {encode.name: encode for encode in _settled_encodes(recipe)}
    opened = {name: build_encode(encode, recipe, context) for name, encode in encodes.items()}
    shared = _encode_together(encodes, opened) if len(encodes) > 1 else {}
    for name, encode in encodes.items():
        folders[name] = _output(recipe, encode)
        parts, passed = opened.pop(name), shared.get(name)
        before = _read_description(parts.folder)
        summaries[name] = encode_source(
            parts.folder,
            parts.inputs,
            parts.executor,
            parts.device,
            parts.settings,
            _recipe_text(parts.encode.recipe, parts.encode),
            show_progress=is_first_process(),
            is_compared=passed is not None and passed.is_compared,
        )
        if passed is not None:
            summaries[name] = passed.summary + summaries[name]
        preview = _complete(parts, before)
        remarks[name] = read_remarks(parts.inputs.source)
        if (
            not is_first_process()
        ):  # the first process prints its own; what another has read of a stream, only it knows
            print_remarks(
                [remark for remark in remarks[name] if remark not in parts.inputs.remarks]
            )
        if preview:
            previews[name] = preview
    return EncodeRun(folders, summaries, previews, remarks)


def _encode_together(
    encodes: Mapping[str, ConfiguredEncode], opened: Mapping[str, BuiltEncode]
) -> dict[str, SharedPassResult]:
    """Return what passes over the source did for encoders that share an input, by name. Other
    encoders are left out.
    """
    from latentkit.encoding.shared_pass import EncodeTarget, encode_in_one_pass, group_by_input

    first = next(iter(opened.values()))
    prepared_alike = _group_by_modality(encodes)
    groups = [
        group
        for names in prepared_alike
        for group in group_by_input({name: opened[name].inputs for name in names}, first.device)
    ]
    if len(groups) > 1:
        named = " | ".join(", ".join(group.names) for group in groups)
        others = " or their datasets have other options" if len(prepared_alike) > 1 else ""
        print_remark(
            f"encoders take different inputs{others}, so the source is read and prepared once for"
            f" each of: {named}"
        )
    passed: dict[str, SharedPassResult] = {}
    for group in groups:
        targets = [
            EncodeTarget(
                opened[name].folder,
                opened[name].inputs,
                opened[name].settings,
                _recipe_text(encodes[name].recipe, encodes[name]),
            )
            for name in group.names
        ]
        if len(targets) > 1:
            done = encode_in_one_pass(
                targets, group.modality, first.executor, first.device, is_first_process()
            )
            passed |= zip(group.names, done, strict=True)
    return passed


def open_encode(recipe: EncodeRecipe, remote: Collection[str]) -> None:
    """Open what a run would open before its work, but for the parts at the keys `remote`."""
    for encode in configured_encodes(recipe):
        if "source" not in remote:
            encode.open_source()
        if not any(where.startswith("encoder") for where in remote):
            encode.open_modality(encode.encoder_opener()("cpu"))


def _group_by_modality(encodes: Mapping[str, ConfiguredEncode]) -> list[list[str]]:
    """Return the names of the encoders, grouped by equal options of the modality."""
    groups: list[list[str]] = []
    for name, encode in encodes.items():
        alike = (one for one in groups if encodes[one[0]].modality == encode.modality)
        if (group := next(alike, None)) is None:
            groups.append([name])
        else:
            group.append(name)
    return groups


def describe_dry_run(recipe: EncodeRecipe, context: TaskContext) -> str:
    """Return a text that says what a run would do."""
    from latentkit.encoding.dry_run import describe_run
    from latentkit.encoding.make_plan import describe_entries
    from latentkit.runtime.source_remarks import list_remarks

    lines = []
    for encode in _settled_encodes(recipe):
        parts = build_encode(encode, recipe, context)
        lines.append(describe_run(parts.folder, parts.inputs, parts.settings))
        lines += [f"  column {text}" for text in describe_entries(parts.inputs)]
        lines += [f"  note {text}" for text in list_remarks(parts.inputs.remarks, MOST_REMARKS)]
    return "\n".join(lines)


def _settled_encodes(recipe: EncodeRecipe) -> list[ConfiguredEncode]:
    """Return one configured encode per encoder; options left open are those of its dataset.

    Raises:
        PluginError, RecipeError: as `check_recipe`.
        StoreError: a dataset can't be read.
    """
    from latentkit.store.open_folder import open_folder
    from latentkit.store.plan import newest_plan

    encodes = []
    for encode in configured_encodes(recipe):
        plan = newest_plan(open_folder(_output(recipe, encode)))
        encodes.append(encode.settled(plan.settings.parts if plan else None))
    return encodes


def _output(recipe: EncodeRecipe, encode: ConfiguredEncode) -> str:
    """Return the path or URL of one encoder's dataset.

    Raises:
        RecipeError: the path is on the hub, where commits are too slow for units.
    """
    from latentkit.store.open_folder import find_hub_place

    if (place := find_hub_place(recipe.output.path)) is not None:
        raise RecipeError(
            f"output.path {recipe.output.path}: datasets on the hub can be read, not written."
            f" Encode into a folder, then upload it: latentkit push FOLDER {place.repository}"
        )
    return f"{recipe.output.path}/{encode.name}" if encode.name else recipe.output.path


@dataclass(frozen=True)
class BuiltEncode:
    """One encoder of an encode recipe, with everything built."""

    encode: ConfiguredEncode
    folder: Folder
    executor: Executor
    device: str
    inputs: EncodeInputs
    settings: EncodeSettings


def build_encode(
    encode: ConfiguredEncode, recipe: EncodeRecipe, context: TaskContext = DEFAULT_CONTEXT
) -> BuiltEncode:
    """Build everything that encoding with one encoder of a recipe needs."""
    from latentkit.contracts import StreamSource
    from latentkit.encoding.make_plan import EncodeInputs, EncodeSettings
    from latentkit.runtime.device import choose_device
    from latentkit.store.open_folder import open_folder

    folder = open_folder(_output(recipe, encode))
    source = encode.open_source()
    executor = open_executor(recipe, context.device, context.devices)
    device = getattr(executor, "device", None) or choose_device(context.device)
    opener = encode.encoder_opener()
    encoder = opener(device)
    for remark in encoder.remarks() if hasattr(encoder, "remarks") else ():
        print_remark(remark.text)
    if context.fits and not encode.name:
        encode, fits = encode.fitted(encoder)
        for text in fits:
            print_remark(text)
    described = {"use": encode.source.provided.spec.name, "with": recipe.source.with_}
    inputs = EncodeInputs(
        source,
        encode.open_modality(encoder),
        encode.views,
        opener,
        encode.fingerprint_parts(encoder),
        described,
        opener.in_float32(),
        encode.default_parts(),
    )
    if isinstance(source, StreamSource):
        inputs.remarks  # noqa: B018  # read now, because reading the source adds others in each process
    settings = EncodeSettings(
        recipe.output.store,
        recipe.output.dtype,
        recipe.output.unit_size,
        recipe.batch_size,
        recipe.threads,
        recipe.compile,
        recipe.on_bad_sample,
        recipe.max_bad,
        recipe.on_overflow,
        recipe.preview,
        context.prune,
        context.retry_skipped,
    )
    return BuiltEncode(encode, folder, executor, device, inputs, settings)


def _read_description(folder: Folder) -> bytes | None:
    """Return the existing dataset.json; None in an unfinished dataset."""
    from latentkit.store.dataset_json import DATASET

    return folder.read(DATASET) if folder.exists(DATASET) else None


def _complete(opened: BuiltEncode, before: bytes | None) -> str | None:
    """Update a finished dataset's description, and return its preview, if it has one.

    `before` is the dataset.json from before the run.
    """
    from latentkit.contracts import StreamSource
    from latentkit.runtime.device import is_out_of_memory
    from latentkit.store.dataset_json import DATASET, compare_normalizations, update_description
    from latentkit.tasks.preview import preview_suffix, store_preview

    folder, inputs = opened.folder, opened.inputs
    is_stream = isinstance(inputs.source, StreamSource)
    remarks = None if is_stream else [asdict(remark) for remark in inputs.remarks]
    update_description(folder, inputs.open_encoder(opened.device).normalization, remarks)
    if before and (difference := compare_normalizations(before, folder.read(DATASET))):
        print_remark(f"{folder}: {difference}")
    if not opened.settings.preview or not is_first_process():
        return None
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
        # A finished dataset is valid without a preview.
        reason = " ".join(str(error).split())
        print_remark(f"{folder}: no preview: {reason}; the dataset is complete without it")
        made = False
    return f"{folder}/{name}" if made else None


def _recipe_text(recipe: Recipe, encode: ConfiguredEncode) -> str:
    """Return the recipe.yaml of one encoder's dataset, which is enough to make it again."""
    values = {}
    for name, value in resolve(recipe).items():
        if name == "encoders":
            values["encoder"] = value[encode.name]
        else:
            values[name] = value
    return dump_recipe(values)
