"""Describe a latent dataset, finished or not, as a mapping and as text."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from latentkit.contracts import Remark
from latentkit.modalities.geometry import left_out_share
from latentkit.runtime.paths import in_shell
from latentkit.runtime.source_remarks import list_remarks
from latentkit.store.contents import (
    Filling,
    column_filling,
    counted,
    describe_fillings,
    escape_line_breaks,
    row_remarks,
    skipped_samples,
    skipped_so_far,
    source_remarks,
)
from latentkit.store.dataset_json import (
    DATASET,
    count_superseded,
    newest_number,
    read_dataset,
    read_index,
    read_units,
)
from latentkit.store.folder import Folder
from latentkit.store.format import unit_name
from latentkit.store.index import committed_units, superseded_rows
from latentkit.store.open_folder import open_folder
from latentkit.store.plan import newest_plan, read_chain

COLUMNS = [
    *("key", "view", "status", "reason", "unit", "bucket", "row", "attributes"),
    *("geometry.remarks", "geometry.height", "geometry.width", "geometry.crop"),
]
"""The columns of the index that are read."""

MOST_KEYS = 3
"""How many skipped samples are named for each reason."""

LEAST_LEFT_OUT = 0.1
"""The least share of the images' area, left out by crops, that is reported."""

MOST_REMARKS = 20
MOST_COLUMNS = 20


def inspect_dataset(path: str, with_ledger: bool = False) -> dict[str, Any]:
    """Return all that is known without reading latents; `with_ledger` adds a list of every row.

    Raises:
        StoreError: the latent dataset is missing or damaged.
    """
    folder = open_folder(path)
    if not folder.exists(DATASET) and (unfinished := _unfinished(folder)):
        return unfinished
    document = read_dataset(folder)
    index = read_index(folder, document, COLUMNS)
    copied = (
        "fingerprint",
        "parts",
        "store",
        "dtype",
        "layout",
        "normalization",
        "statistics",
        "source",
        "quantisation",
        "masked",
    )
    good = index["attributes"].filter(pc.equal(index["status"], "ok"))
    num_old = count_superseded(document, index.num_rows)
    found = {
        "path": str(folder),
        "finished": True,
        "samples": len(index["key"].unique()),
        "rows": _count(index["status"]) | ({"superseded": num_old} if num_old else {}),
        "skipped": _count(index["reason"]),
        "skipped_samples": _first_keys(skipped_samples(index)),
        "left_out_by_crops": _left_out(index),
        "columns": {name: asdict(filling) for name, filling in column_filling(good).items()},
        "remarks": {
            "source": [asdict(remark) for remark in source_remarks(document)],
            "samples": [asdict(remark) for remark in row_remarks(index)],
        },
        "views": _count(index["view"]),
        "buckets": _count(index["bucket"]),
        "units": len(document["units"]),
        "bytes": sum(unit["bytes"] for unit in document["units"].values()),
        **{name: document[name] for name in copied if name in document},
    }
    return found | (
        {"ledger": _ledger(folder, newest_number(document), index)} if with_ledger else {}
    )


def _left_out(index: pa.Table) -> float | None:
    """Return the share of the images' area that crops leave out on average; None without crops."""
    names = ("height", "width", "crop")
    kind = index["geometry"].type if "geometry" in index.column_names else pa.null()
    if not pa.types.is_struct(kind) or any(kind.get_field_index(name) < 0 for name in names):
        return None
    height, width, crop = (pc.struct_field(index["geometry"], name) for name in names)
    if not pa.types.is_list(crop.type) or not pa.types.is_integer(height.type):
        return None
    cropped = pc.fill_null(pc.equal(pc.list_value_length(crop), 4), False)
    if not pc.any(cropped).as_py():
        return None
    sides = (pc.list_element(crop.filter(cropped), place) for place in (2, 3))
    numbers = [
        column.to_numpy() for column in (height.filter(cropped), width.filter(cropped), *sides)
    ]
    return float(left_out_share(*numbers).mean())


def list_skipped(path: str) -> str:
    """Return a line for each sample that was skipped (so far), with its reason.

    Raises:
        StoreError: the latent dataset is missing or damaged.
    """
    folder = open_folder(path)
    plan = None if folder.exists(DATASET) else newest_plan(folder)
    if plan is not None:
        skipped = skipped_so_far(folder, plan)
    else:
        index = read_index(folder, read_dataset(folder), ["key", "status", "reason"])
        skipped = skipped_samples(index)
    lines = [f"{escape_line_breaks(key)}: {reason}" for key, reason in skipped.items()]
    return "\n".join(lines or [f"{folder}: no sample was skipped"])


def _first_keys(reasons: Mapping[str, str]) -> dict[str, list[str]]:
    """Return the first few keys for each reason."""
    found: dict[str, list[str]] = {}
    for key, reason in reasons.items():
        keys = found.setdefault(reason, [])
        if len(keys) < MOST_KEYS:
            keys.append(key)
    return found


def _count(column: pa.ChunkedArray) -> dict[str, int]:
    """Count each value except null, the most frequent first."""
    counts = [
        (count["values"], count["counts"])
        for count in pc.value_counts(column.drop_null()).to_pylist()
    ]
    return dict(sorted(counts, key=lambda pair: (-pair[1], pair[0])))


def _ledger(folder: Folder, newest: int, index: pa.Table) -> list[dict[str, Any]]:
    """Return a row per sample and view: "ok", "skipped" with a reason, or "superseded"."""
    chain = read_chain(
        folder, before=newest + 1
    )  # a run in progress may have started another plan
    old = superseded_rows(chain, read_units(folder, chain))
    names = ["key", "view", "status", "reason", "unit"]
    return [
        *index.select(names).to_pylist(),
        *({**row, "status": "superseded"} for row in old.to_pylist()),
    ]


def _unfinished(folder: Folder) -> dict[str, Any] | None:
    """Return the description of an unfinished dataset; None if there is no plan."""
    plan = newest_plan(folder) if folder.list("plans") else None
    if plan is None:
        return None
    units, done, skipped = plan.units(), committed_units(folder), skipped_so_far(folder, plan)
    return {
        "path": str(folder),
        "finished": False,
        "samples": plan.num_samples,
        "samples_done": sum(unit.stop - unit.start for unit in units if unit.name in done),
        "units": len(units),
        "units_done": sum(unit.name in done for unit in units),
        "bytes": sum(
            folder.ask_each(folder.size, [unit_name(u.name) for u in units if u.name in done])
        ),
        "skipped": dict(
            sorted(Counter(skipped.values()).items(), key=lambda pair: (-pair[1], pair[0]))
        ),
        "skipped_samples": _first_keys(skipped),
        "fingerprint": plan.settings.fingerprint,
        "parts": dict(plan.settings.parts),
    }


def describe(found: dict[str, Any]) -> str:
    """Format the mapping that `inspect_dataset` returns as lines of text."""
    command = f"latentkit inspect {in_shell(found['path'])}"
    if not found["finished"]:
        units = f"{found['units_done']} of {counted(found['units'], 'unit')}"
        return "\n".join(
            [
                f"{found['path']}: unfinished",
                f"  samples    {found['samples_done']} of {found['samples']} done, {units}",
                f"  go on with latentkit run {in_shell(found['path'] + '/recipe.yaml')}",
                *_skipped(found, command),
            ]
        )
    layout, rows = found["layout"], found["rows"]
    ok = rows.get("ok", 0)
    lines = [
        f"{found['path']}: {counted(found['samples'], 'sample')}, {counted(ok, 'row')} of latents,"
        f" {rows.get('skipped', 0)} skipped"
        + (
            f", {rows['superseded']} superseded (`latentkit compact` drops them)"
            if "superseded" in rows
            else ""
        ),
        (
            f"  latents    {layout['kind']}, {counted(layout['channels'], 'channel')}, axes"
            f" {layout['axes']}{_of_axes(found)}"
        ),
        f"  stored as  {describe_stored(found)}",
        f"  source     {found['source'].get('use')} {found['source'].get('with') or ''}".rstrip(),
        f"  views      {_counts(found['views'])}",
        f"  buckets    {_counts(found['buckets'])}",
        f"  on disk    {counted(found['units'], 'unit')}, {found['bytes'] / 1e6:.1f} MB",
        f"  normalized {describe_normalization(found)}",
    ]
    if found["statistics"]:
        lines += [
            f"  mean       {_short(found['statistics']['mean'])}",
            f"  std        {_short(found['statistics']['std'])}",
        ]
    lines += [
        f"  made by    {found['parts'].get('encoder.name')}, fingerprint"
        f" {found['fingerprint'][:16]}"
    ]
    if "quantisation" in found:
        lines += [f"  int8 error {_quantization(found['quantisation'])}"]
    lines += [
        f"  column     {text}"
        for text in describe_columns(found, MOST_COLUMNS, f"{command} --json")
    ]
    lines += [
        f"  note       {text}"
        for text in describe_remarks(found, MOST_REMARKS, f"{command} --json")
    ]
    return "\n".join([*lines, *_skipped(found, command)])


def describe_columns(found: Mapping[str, Any], most: int, command: str) -> list[str]:
    """Return a line for each column, with the number of rows that have it.

    With more than `most` columns, the last line names the command that lists all.
    """
    columns = {name: Filling(**filling) for name, filling in found["columns"].items()}
    lines = describe_fillings(columns, found["rows"].get("ok", 0), "row")
    if len(lines) <= most:
        return lines
    return [*lines[: most - 1], f"{len(lines) - most + 1} other columns; `{command}` lists them"]


def describe_remarks(
    found: Mapping[str, Any], most: int, command: str, source: Sequence[Remark] | None = None
) -> list[str]:
    """Return a line for each remark of the source and of samples.

    Args:
        most: lines, the last of which names the command that lists all.
        source: the source's remarks now; None: its remarks when the dataset was written.
    """
    stated = [Remark(**remark) for remark in found["remarks"]["source"]]
    of_samples = [Remark(**remark) for remark in found["remarks"]["samples"]]
    remarks = [*(stated if source is None else source), *of_samples]
    lines, share = list_remarks(remarks, most, command), found["left_out_by_crops"]
    if share is not None and share >= LEAST_LEFT_OUT:
        left_out = f"crops leave out {share:.0%} of the images' area on average"
        lines.append(f"{left_out}; buckets, or another crop, keep more")
    return lines


def _skipped(found: Mapping[str, Any], command: str) -> list[str]:
    """Return lines with the number of skipped rows for each reason, and the first few keys."""
    lines = []
    for reason, count in found["skipped"].items():
        lines += [f"  skipped    {count}: {reason}", f"             {name_keys(found, reason)}"]
    return lines + ([f"  all of them: {command} --skipped"] if lines else [])


def name_keys(found: Mapping[str, Any], reason: str) -> str:
    """Return the first few samples that were skipped for a reason, as text."""
    return "such as " + ", ".join(map(escape_line_breaks, found["skipped_samples"].get(reason, [])))


def describe_normalization(found: Mapping[str, Any]) -> str:
    """Return the formula that reading applies to stored latents z, with any fold into channels."""
    norm, layout = found["normalization"], found["layout"]
    fold: dict[str, int] = norm.get("fold") or {}
    if not fold:
        return f"(z - {_short(norm['shift'])}) * {_short(norm['scale'])}"
    factors = " and ".join(f"{factor} along {axis}" for axis, factor in fold.items())
    channels = layout["channels"] * math.prod(fold.values())
    return (
        f"(fold(z) - {_short(norm['shift'])}) * {_short(norm['scale'])}; fold puts {factors} into"
        f" channels: {channels} when read"
    )


def describe_stored(found: Mapping[str, Any]) -> str:
    """Name the stored values and their dtype, such as "moments in float16"."""
    if found["layout"]["kind"] == "quantised":
        return "indices"
    is_posterior = found["layout"]["kind"] == "gaussian"
    return f"{found['store'] if is_posterior else 'latents'} in {found['dtype']}"


def _of_axes(found: dict[str, Any]) -> str:
    """Describe the axes whose length differs from row to row, or that are masked."""
    if found["layout"]["ragged_axis"]:
        return f", {found['layout']['ragged_axis']} of each row's own length"
    return f", a mask along {found['masked']}" if "masked" in found else ""


def _quantization(stated: dict[str, Any]) -> str:
    rms = ", ".join(f"{name} {_short(values)}" for name, values in stated["rms"].items())
    psnr = stated.get("psnr_db")
    return f"rms {rms}" + (
        f"; decoded, {psnr:.2f} dB PSNR against unquantized" if psnr is not None else ""
    )


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} ({count})" for name, count in counts.items()) or "none"


def _short(value: Any) -> str:
    if isinstance(value, list):
        texts = [_short(part) for part in value[:4]]
        return f"[{', '.join(texts)}{', ...' if len(value) > 4 else ''}]"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
