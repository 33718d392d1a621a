"""What is in a latent dataset, finished or not, as a mapping and as text."""

from __future__ import annotations

from collections import Counter
from typing import Any

from latentkit.store.folder import Folder, open_folder
from latentkit.store.index import DATASET, committed, read_dataset, read_index
from latentkit.store.plan import newest_plan
from latentkit.store.writer import unit_name


def inspect_dataset(path: str) -> dict[str, Any]:
    """Everything that can be said without reading latents.

    Raises:
        StoreError: there is no latent dataset, or it is damaged.
    """
    folder = open_folder(path)
    if not folder.exists(DATASET) and (unfinished := _unfinished(folder)):
        return unfinished
    document = read_dataset(folder)
    index = read_index(folder, document, ["key", "view", "status", "reason", "bucket"])
    statuses = Counter(index["status"].to_pylist())
    return {
        "path": str(folder),
        "finished": True,
        "samples": len(set(index["key"].to_pylist())),
        "rows": dict(statuses),
        "skipped": dict(Counter(reason for reason in index["reason"].to_pylist() if reason).most_common()),
        "views": dict(Counter(index["view"].to_pylist())),
        "buckets": dict(Counter(bucket for bucket in index["bucket"].to_pylist() if bucket).most_common()),
        "units": len(document["units"]),
        "bytes": sum(unit["bytes"] for unit in document["units"].values()),
        **{name: document[name] for name in ("fingerprint", "parts", "store", "dtype", "layout", "normalization", "statistics", "source")},
    }


def _unfinished(folder: Folder) -> dict[str, Any] | None:
    plan = newest_plan(folder) if folder.list("plans") else None
    if plan is None:
        return None
    units, done = plan.units(), committed(folder)
    return {
        "path": str(folder),
        "finished": False,
        "samples": plan.num_samples,
        "samples_done": sum(unit.stop - unit.start for unit in units if unit.name in done),
        "units": len(units),
        "units_done": sum(unit.name in done for unit in units),
        "bytes": sum(folder.size(unit_name(unit.name)) for unit in units if unit.name in done),
        "fingerprint": plan.settings.fingerprint,
        "parts": dict(plan.settings.parts),
    }


def describe(found: dict[str, Any]) -> str:
    """The mapping of `inspect_dataset` as lines for a person."""
    if not found["finished"]:
        return "\n".join([
            f"{found['path']}: unfinished",
            f"  samples    {found['samples_done']} of {found['samples']} done, {found['units_done']} of {found['units']} units",
            f"  go on with latentkit run {found['path']}/recipe.yaml",
        ])
    layout, rows = found["layout"], found["rows"]
    lines = [
        f"{found['path']}: {found['samples']} samples, {rows.get('ok', 0)} rows of latents, {rows.get('skipped', 0)} skipped",
        f"  latents    {layout['kind']}, {layout['channels']} channels, axes {layout['axes']}",
        f"  stored as  {found['store']} in {found['dtype']}",
        f"  source     {found['source'].get('use')} {found['source'].get('with') or ''}".rstrip(),
        f"  views      {_counts(found['views'])}",
        f"  buckets    {_counts(found['buckets'])}",
        f"  on disk    {found['units']} units, {found['bytes'] / 1e6:.1f} MB",
        f"  normalised (z - {_short(found['normalization']['shift'])}) * {_short(found['normalization']['scale'])}",
    ]
    if found["statistics"]:
        lines += [f"  mean       {_short(found['statistics']['mean'])}", f"  std        {_short(found['statistics']['std'])}"]
    lines += [f"  made by    {found['parts'].get('encoder.name')}, fingerprint {found['fingerprint'][:16]}"]
    lines += [f"  skipped    {count}: {reason}" for reason, count in found["skipped"].items()]
    return "\n".join(lines)


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} ({count})" for name, count in counts.items()) or "none"


def _short(value: Any) -> str:
    if isinstance(value, list):
        texts = [_short(part) for part in value[:4]]
        return f"[{', '.join(texts)}{', ...' if len(value) > 4 else ''}]"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
