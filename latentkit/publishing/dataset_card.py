"""The card of a published dataset (README.md): every number in it is computed."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

import jinja2
import yaml

from latentkit.errors import StoreError
from latentkit.store.contents import counted
from latentkit.upkeep.inspect_dataset import describe_normalization, describe_stored

BEGIN = (
    "<!-- latentkit begin: `latentkit push` writes this part again, and keeps what is outside -->"
)
END = "<!-- latentkit end -->"
PART = re.compile(rf"<!-- latentkit begin.*{re.escape(END)}", re.DOTALL)

METADATA = re.compile(r"\A---\n(.*?)^---(\n|\Z)", re.DOTALL | re.MULTILINE)

SIZES = ("n<1K", "1K<n<10K", "10K<n<100K", "100K<n<1M", "1M<n<10M", "10M<n<100M", "100M<n<1B")
LARGEST = "1B<n<10B"
"""The hub's names of sizes, each for up to ten times as many rows as the one before."""

TASKS = {"image": "image", "video": "video", "audio": "audio"}
"""What the hub's tasks call what a modality gives."""

INDEX = "index"
"""Name by which the hub's viewer and `datasets` call the index."""

MOST_LINES = 30
"""Of a table of buckets, columns or reasons."""


@dataclass(frozen=True)
class ExistingCard:
    """The README.md that the hub has: its metadata, and its text."""

    metadata: Mapping[str, Any]
    text: str


def read_card(content: bytes | None, where: str) -> ExistingCard:
    """Return the card that the hub has; an empty one for None.

    Raises:
        StoreError: its metadata can't be read.
    """
    if content is None:
        return ExistingCard({}, "")
    text = content.decode(errors="replace").replace("\r\n", "\n")
    found = METADATA.match(text)
    if found is None:
        return ExistingCard({}, text)
    try:
        metadata = yaml.safe_load(found[1]) or {}
        return ExistingCard({**metadata}, text[found.end() :])
    except (TypeError, yaml.YAMLError) as error:
        raise StoreError(f"{where}: its metadata can't be read: {error}. Fix it there") from error


def write_card(
    found: Mapping[str, Any],
    repository: str,
    license_id: str,
    preview: str | None,
    existing: ExistingCard,
) -> bytes:
    """Return README.md of a dataset.

    Args:
        found: what `inspect_dataset` returns.
        repository: owner/name.
        license_id: the hub's name of a license, such as "cc-by-4.0".
        preview: name of the preview, if there is one.
        existing: the card that the hub has; metadata and text that aren't latentkit's are kept.
    """
    part = _describe(found, repository, preview)
    kept = existing.text.strip("\n")
    text = PART.sub(lambda _: part, kept) if PART.search(kept) else f"{kept}\n\n{part}".lstrip("\n")
    metadata = yaml.safe_dump(
        _metadata(found, license_id, existing.metadata), sort_keys=False, allow_unicode=True
    )
    return f"---\n{metadata}---\n\n{text}\n".encode()


def _metadata(
    found: Mapping[str, Any], license_id: str, existing: Mapping[str, Any]
) -> dict[str, Any]:
    tags = [*(existing.get("tags") or []), "latentkit", "latents", "latent-diffusion"]
    shown = {
        "config_name": INDEX,
        "default": True,
        "data_files": [{"split": "train", "path": found["index"]}],
    }
    others = [one for one in existing.get("configs") or [] if one.get("config_name") != INDEX]
    metadata = {
        **existing,
        "license": license_id,
        "tags": list(dict.fromkeys(tags)),
        "size_categories": [_size(found["rows"].get("ok", 0))],
        "configs": [shown, *others],
    }
    if (task := _task(found)) and not existing.get("task_categories"):
        metadata["task_categories"] = [task]
    return metadata


def _size(rows: int) -> str:
    power = 0 if rows < 1000 else int(math.log10(rows)) - 2
    return SIZES[power] if power < len(SIZES) else LARGEST


def _task(found: Mapping[str, Any]) -> str | None:
    """Return the hub's name of what a model trained on the dataset does; None if it has none."""
    thing = TASKS.get(found["parts"].get("modality.name", ""))
    if thing is None:
        return None
    if "text" in found["columns"]:
        return f"text-to-{thing}"
    return "unconditional-image-generation" if thing == "image" else None


def _describe(found: Mapping[str, Any], repository: str, preview: str | None) -> str:
    template = resources.files("latentkit.publishing").joinpath("card.md.jinja")
    environment = jinja2.Environment(trim_blocks=True, keep_trailing_newline=False)
    environment.filters["plain"] = _plain
    columns = list(found["columns"].items())
    text = "text" if "text" in found["columns"] else next(iter(found["columns"]), None)
    titles, channels = _channels(found)
    return environment.from_string(template.read_text(encoding="utf-8")).render(
        begin=BEGIN,
        end=END,
        name=repository.partition("/")[2],
        repository=repository,
        rows=counted(found["rows"].get("ok", 0), "latent"),
        samples=counted(found["samples"], "sample"),
        encoder=_encoder(found),
        columns_to_open=f", columns=[{json.dumps(text)}]" if text and text.isidentifier() else "",
        batch_shape=_batch_shape(found),
        preview=preview,
        facts=_facts(found),
        buckets=list(found["buckets"].items())[:MOST_LINES],
        columns=columns[:MOST_LINES],
        skipped=list(found["skipped"].items())[:MOST_LINES],
        channel_titles=titles,
        channels=channels,
    )


def _encoder(found: Mapping[str, Any]) -> str:
    """Return the encoder as a link to the commit on the hub it came from, or its name."""
    name, commit = (found["parts"].get(f"encoder.{part}") for part in ("name", "hub_commit"))
    repository, _, revision = (commit or "").partition("@")
    if not revision:
        return f"the encoder `{name}`"
    return f"[{repository}](https://huggingface.co/{repository}/tree/{revision})"


def _batch_shape(found: Mapping[str, Any]) -> str:
    """Return the shape of a batch as latentkit gives it."""
    layout, fold = found["layout"], found["normalization"].get("fold") or {}
    channels = layout["channels"] * math.prod(fold.values())
    letters = [axis if axis != "C" else str(channels) for axis in layout["axes"]]
    kind = "int64" if layout["kind"] == "quantised" else "float32"
    return f"(N, {', '.join(letters)}) {kind}"


def _facts(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    layout, rows, parts = found["layout"], found["rows"], found["parts"]
    hub_commit = parts.get("encoder.hub_commit")
    many = len(found["buckets"])
    facts = {
        "samples": str(found["samples"]),
        "latents": f"{rows.get('ok', 0)}, {rows.get('skipped', 0)} skipped",
        "views": ", ".join(f"{view} ({count})" for view, count in found["views"].items()),
        "buckets": f"{many}, the largest {MOST_LINES} below" if many > MOST_LINES else str(many),
        "form": (
            f"{layout['kind']}, {counted(layout['channels'], 'channel')}, axes {layout['axes']},"
            f" downscaled by {layout['downscale']}"
        ),
        "stored as": describe_stored(found),
        "size": f"{counted(found['units'], 'unit')}, {found['bytes'] / 1e6:.1f} MB",
        "encoder": parts.get("encoder.name", "") + (f", {hub_commit}" if hub_commit else ""),
        "encoder's weights": parts.get("encoder.weights", ""),
        "normalized": describe_normalization(found),
        "fingerprint": found["fingerprint"],
    }
    return [(title, value) for title, value in facts.items() if value]


def _channels(found: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return the titles of the table of statistics, and its numbers, a list per channel."""
    statistics, normalization = found["statistics"] or {}, found["normalization"]
    if not statistics:
        return [], []
    columns = {name: statistics[name] for name in ("mean", "std")}
    for name in ("shift", "scale"):
        value = normalization[name]
        if isinstance(value, list) and len(value) == len(columns["mean"]):
            columns[name] = value
    flat = all(isinstance(number, int | float) for column in columns.values() for number in column)
    if not flat:
        return [], []
    rows = zip(*columns.values(), strict=True)
    return list(columns), [[f"{number:.6g}" for number in numbers] for numbers in rows]


def _plain(text: object) -> str:
    """Return text without meaning in Markdown or HTML, on one line."""
    line = re.sub(r"\s+", " ", str(text))
    escaped = line.replace("&", "&amp;").replace("<", "&lt;")
    return re.sub(r"([\\`*_\[\]|!#])", r"\\\1", escaped)
