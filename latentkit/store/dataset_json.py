"""dataset.json, which alone states that a latent dataset is finished. It is written after the
index, and depends only on plans and units.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, Field, StringConstraints, ValidationError

from latentkit.contracts import LatentLayout, Normalization, Remark
from latentkit.errors import DamagedError, PluginError, SourceError, StoreError
from latentkit.runtime.masks import MASK, masked_axes
from latentkit.runtime.paths import in_shell
from latentkit.store.claims import Claims
from latentkit.store.columns import read_parquet
from latentkit.store.folder import Folder, canonical_json
from latentkit.store.format import unit_name
from latentkit.store.index import COLUMNS, ReadUnit, index_bytes, index_of_chain, read_unit
from latentkit.store.int8 import summarize_error
from latentkit.store.live_statistics import measure_live, whole_statistics
from latentkit.store.plan import Plan, number_of, plan_name

DATASET = "dataset.json"
RECIPE = "recipe.yaml"
FORMAT = "latentkit"
VERSION = 1


@dataclass(frozen=True)
class Description:
    """Content of dataset.json other than its plans and units. `decoded` is added to the error of
    int8 latents.
    """

    layout: LatentLayout
    normalization: Normalization
    store: str
    dtype: str
    source: Mapping[str, Any]
    views: Sequence[str]
    decoded: Mapping[str, Any] = field(default_factory=dict)


def describe_again(document: Mapping[str, Any]) -> Description:
    """Return the parts of dataset.json that plans and units don't determine."""
    error = document.get("quantisation") or {}
    return Description(
        LatentLayout(**document["layout"]),
        Normalization(**document["normalization"]),
        document["store"],
        document["dtype"],
        document["source"],
        document["views"],
        {name: value for name, value in error.items() if name != "rms"},
    )


def finalize(
    folder: Folder,
    plans: Sequence[Plan],
    description: Description,
    check: Callable[[pa.Table], None],
) -> None:
    """Write the index and dataset.json of plans whose units are all committed.

    Args:
        plans: the newest plan and all that it builds on, oldest first.
        check: called with the index before anything is written; may raise an error.

    Raises:
        StoreError: a unit is damaged or belongs to another dataset, or its rows aren't the plans'.
    """
    units = read_units(folder, plans)
    index = index_of_chain(plans, units)
    check_complete(folder, plans[-1], index, description.views)
    check(index)
    content = index_bytes(index)
    name = f"index/{plans[-1].number:03d}.parquet"
    with folder.create(name) as file:
        file.write(content)
    if folder.read(name) != content:
        raise StoreError(
            f"{folder}/{name} exists already and contradicts the units. Delete it and run again"
        )
    folder.replace(DATASET, dataset_json(folder, plans, units, description, index, name, content))


def read_units(folder: Folder, plans: Sequence[Plan]) -> dict[str, ReadUnit]:
    """Read every unit of the plans, by name, without latents.

    Raises:
        StoreError: a unit is missing, damaged, or belongs to another dataset.
    """
    wanted = [unit for plan in plans for unit in plan.units()]
    units = {
        unit.unit.name: unit
        for unit in folder.ask_each(functools.partial(read_unit, folder), wanted)
    }
    for name, unit in units.items():
        if unit.header.metadata.get("fingerprint") != plans[-1].settings.fingerprint:
            raise StoreError(
                f"{folder}/{unit_name(name)}: the unit belongs to another dataset: its fingerprint"
                " differs"
            )
    return units


def check_complete(folder: Folder, plan: Plan, index: pa.Table, views: Sequence[str]) -> None:
    """Check that an index has every sample of its plan once per view.

    Raises:
        SourceError: a key occurs more than once.
        DamagedError: rows are missing.
    """
    pairs = index.select(["key", "view"]).group_by(["key", "view"]).aggregate([([], "count_all")])
    if pairs.num_rows != index.num_rows:
        twice = pairs.filter(pc.greater(pairs["count_all"], 1))["key"][0].as_py()
        advice = "every sample needs a unique key (source datasets: option key)"
        raise SourceError(f"{folder}: the source gives the key {twice!r} more than once; {advice}")
    expected = plan.table.num_rows * len(views)
    if not plan.settings.stream and index.num_rows != expected:
        raise DamagedError(
            f"{folder}: the units contain {index.num_rows} rows, but the plan has {expected}"
            " (samples x views)"
        )


def dataset_json(
    folder: Folder,
    plans: Sequence[Plan],
    units: Mapping[str, ReadUnit],
    description: Description,
    index: pa.Table,
    name: str,
    content: bytes,
) -> bytes:
    """Return dataset.json for an index that is written as `content` under `name`."""
    used = _used(units, index)
    merged = measure_live(folder, {unit.unit.name: unit for unit in used}, index)
    settings = plans[-1].settings
    document: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "fingerprint": settings.fingerprint,
        "parts": dict(settings.parts),
        "store": description.store,
        "dtype": description.dtype,
        "views": list(description.views),
        "layout": asdict(description.layout),
        "normalization": asdict(description.normalization),
        "statistics": merged.summary() if merged else None,
        "source": dict(description.source),
        "index": {"name": name, "sha256": hashlib.sha256(content).hexdigest()},
        "plans": {
            plan_name(plan.number): hashlib.sha256(folder.read(plan_name(plan.number))).hexdigest()
            for plan in plans
        },
        "units": {
            key: {
                "bytes": unit.header.file_bytes,
                "rows": unit.rows.num_rows,
                "header_sha256": unit.header.sha256,
            }
            for key, unit in units.items()
        },
    }
    masked = {axes for unit in used for axes in _masked_axes(unit, description.layout)}
    if len(masked) > 1:
        raise PluginError(
            f"rows have masks along {' and along '.join(sorted(masked))}; all masks of a dataset"
            " must cover the same axes"
        )
    if masked:
        document["masked"] = masked.pop()
    error = summarize_error(unit.header.metadata for unit in used)
    if error is not None:
        document["quantisation"] = {**error, **description.decoded}
    return seal_document(document)


def update_description(
    folder: Folder, normalization: Normalization, remarks: Sequence[Mapping[str, Any]] | None
) -> None:
    """Update the normalization and the source's remarks in dataset.json, although no sample has
    changed.

    Args:
        normalization: the encoder's normalization, which reading applies; stored latents don't
            include it.
        remarks: None keeps the existing ones.

    Raises:
        StoreError: there is no finished dataset.
    """
    claims = Claims(folder)
    document = read_dataset(folder)
    if document == _with_new_description(document, normalization, remarks):
        return
    with claims.heartbeat():
        if not claims.take("finalize"):
            return  # another process finishes a later plan, and updates it then
        document = _with_new_description(read_dataset(folder), normalization, remarks)
        folder.replace(DATASET, seal_document(document))


def _with_new_description(
    document: dict[str, Any],
    normalization: Normalization,
    remarks: Sequence[Mapping[str, Any]] | None,
) -> dict[str, Any]:
    """Return the document with this normalization and these remarks."""
    source = dict(document["source"])
    if remarks is not None:
        source.pop("remarks", None)
        source |= {"remarks": [*remarks]} if remarks else {}
    plain = json.loads(json.dumps(asdict(normalization)))  # as JSON returns it
    return {**document, "normalization": plain, "source": source}


def compare_normalizations(before: bytes, now: bytes) -> str:
    """Return in one line how the normalizations in two dataset.json differ; "" if they don't."""
    there, here = (_read_normalization(content) for content in (before, now))
    if there is None or there == here:
        return ""
    was, now_is = (_describe_normalization(value) for value in (there, here))
    return f"latents are now read with {now_is}, as the encoder's config says; before it was {was}"


def _read_normalization(content: bytes) -> Any:
    """Return the normalization in a dataset.json; None if it is damaged."""
    try:
        return json.loads(content)["normalization"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None  # damaged, and already written again


def _describe_normalization(value: Any) -> str:
    """Return a text such as "shift 0.0, scale 0.18215"; of numbers per channel only the first."""
    texts = []
    for name, part in dict(value).items():
        text = json.dumps(part)
        texts += [f"{name} {text if len(text) <= 40 else f'{text[:40]} ...'}"] if part != {} else []
    return ", ".join(texts)


def seal_document(document: dict[str, Any]) -> bytes:
    """Return a document with its own sha256, as dataset.json stores it."""
    sealed = {**document, "sha256": hashlib.sha256(canonical_json(document).encode()).hexdigest()}
    return (json.dumps(sealed, indent=1, ensure_ascii=False) + "\n").encode()


def _used(units: Mapping[str, ReadUnit], index: pa.Table) -> list[ReadUnit]:
    """Return the units that contain rows of the index."""
    names = set(index["unit"].unique().to_pylist())
    return [unit for name, unit in units.items() if name in names]


def accepts_statistics(
    document: Mapping[str, Any], units: Mapping[str, ReadUnit], index: pa.Table
) -> bool:
    """Return whether a document has the statistics of whole units, as earlier versions wrote
    them.
    """
    whole = whole_statistics(_used(units, index))
    return bool(document["statistics"] == (whole.summary() if whole else None))


def _masked_axes(unit: ReadUnit, layout: LatentLayout) -> Iterator[str]:
    """Yield the letters of the axes that the masks of a unit's rows cover."""
    for name, tensor in unit.header.tensors.items():
        if name.endswith(f"/{MASK}"):
            yield masked_axes(layout, len(tensor.shape) - 1)


def refuse_missing_units(folder: Folder, document: Mapping[str, Any]) -> None:
    """Check that every unit in dataset.json exists.

    Raises:
        StoreError: a unit is missing; the message says how to get it back.
    """
    there = set(folder.list("units"))
    missing = sorted(
        name
        for name in map(unit_name, document["units"])
        if name.removeprefix("units/") not in there
    )
    if missing:
        raise StoreError(
            f"{folder}/{missing[0]} is missing. `latentkit verify {in_shell(folder)} --repair`"
            " encodes it again"
        )


def count_superseded(document: Mapping[str, Any], num_index_rows: int) -> int:
    """Return the number of rows in the units that are no longer in the index."""
    return sum(int(unit["rows"]) for unit in document["units"].values()) - num_index_rows


def newest_number(document: Mapping[str, Any]) -> int:
    """Return the number of the plan that dataset.json was written for."""
    return max(map(number_of, document["plans"]))


INDEX_TYPES = {
    name: pa.int64() if name == "row" else pa.string()
    for name in COLUMNS
    if name not in ("geometry", "attributes")
}

Count = Annotated[int, Field(strict=True, ge=0, lt=1 << 63)]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class _Index(BaseModel):
    name: Annotated[str, StringConstraints(pattern=r"^index/[0-9]{3,10}\.parquet$")]
    sha256: Sha256


class _Unit(BaseModel):
    bytes: Count
    rows: Count
    header_sha256: Sha256


class _Source(BaseModel, extra="allow"):
    remarks: list[Remark] = []


class _Document(BaseModel):
    """Allowed content of dataset.json. Names in it become file names, so they are checked."""

    fingerprint: Sha256
    parts: dict[str, str]
    store: Literal["moments", "mean", "sample"]
    dtype: Literal["float32", "float16", "bfloat16", "int8"]
    views: list[str]
    layout: LatentLayout
    normalization: Normalization
    statistics: dict[str, Any] | None
    source: _Source
    index: _Index
    plans: Annotated[
        dict[Annotated[str, StringConstraints(pattern=r"^plans/[0-9]{3,10}\.parquet$")], Sha256],
        Field(min_length=1),
    ]
    quantization: dict[str, Any] | None = None
    masked: str = ""
    units: dict[Annotated[str, StringConstraints(pattern=r"^[0-9]{3,10}-[0-9]{6,10}$")], _Unit]


def read_dataset(folder: Folder) -> dict[str, Any]:
    """Read dataset.json and check its own hash.

    Raises:
        DamagedError: the file is damaged.
        StoreError: the file is missing, unfinished, or of an unknown version.
    """
    where, run = f"{folder}/{DATASET}", f"`latentkit run {in_shell(f'{folder}/recipe.yaml')}`"
    if not folder.exists(DATASET):
        if folder.list("plans"):
            raise StoreError(
                f"{folder}: the run that makes this dataset is unfinished. Run {run} to continue"
            )
        raise StoreError(f"{folder} is not a latent dataset: it contains no {DATASET}")
    try:
        document = json.loads(folder.read(DATASET))
        stated = document.pop("sha256")
        actual = hashlib.sha256(canonical_json(document).encode()).hexdigest()
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise DamagedError(
            f"{where} is damaged ({type(error).__name__}); {run} writes it again"
        ) from error
    if document.get("format") != FORMAT:
        raise DamagedError(f"{where} is not a latent dataset's")
    if stated != actual:
        raise DamagedError(f"{where} is damaged: its content doesn't match its own sha256")
    if document.get("version") != VERSION:
        raise StoreError(
            f"{where} has format version {document.get('version')}, but this program reads"
            f" {VERSION}. Update latentkit"
        )
    try:
        _Document.model_validate(document)
        layout = LatentLayout(**document["layout"])
        Normalization(**document["normalization"])
        if layout.ragged_axis is not None and layout.ragged_axis not in layout.axes.replace(
            "C", ""
        ):
            raise TypeError(f"layout.ragged_axis {layout.ragged_axis!r} is none of {layout.axes}")
    except TypeError as error:
        raise DamagedError(f"{where} doesn't describe a latent dataset: {error}") from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise DamagedError(
            f"{where} doesn't describe a latent dataset: {'.'.join(map(str, first['loc']))}:"
            f" {first['msg']}"
        ) from error
    return dict(document)


def read_index(
    folder: Folder, document: Mapping[str, Any], columns: Sequence[str] | None = None
) -> pa.Table:
    """Read the index that dataset.json names, and check its hash.

    Raises:
        DamagedError: the index is damaged.
        StoreError: the index is missing.
    """
    entry = document["index"]
    where = f"{folder}/{entry['name']}"
    content = folder.read(entry["name"])
    if hashlib.sha256(content).hexdigest() != entry["sha256"]:
        raise DamagedError(f"{where} is damaged: its content doesn't match the sha256 in {DATASET}")
    try:
        table = read_parquet(content, columns)
        table.validate(full=True)
        there = {column.name: column.type for column in table.schema}
        wanted = [name for name in COLUMNS if columns is None or name in columns]
        if (
            any(there[name] != INDEX_TYPES.get(name, there[name]) for name in wanted)
            or len(there) != table.num_columns
        ):
            raise ValueError("not the columns of an index")
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        raise DamagedError(f"{where} is damaged ({type(error).__name__})") from error
    return table
