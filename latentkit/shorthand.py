"""What `latentkit encode SOURCE OUT` means: a recipe from two or three words."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from latentkit.contracts import ModalitySpec
from latentkit.errors import RecipeError
from latentkit.plugins import discover

DATA_SUFFIXES = (".parquet", ".tar", ".csv", ".arrow")
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
MAX_LOOKED_AT = 10_000
"""Files of a folder that are looked at to tell what is in it."""


def encode_recipe(source: str, output: str, encoder: str | None, size: Any = None) -> tuple[dict[str, Any], list[str]]:
    """Recipe values for one `encode` command, and remarks for the user.

    Args:
        source: name of a source plugin, a path, or `owner/name` on the hub.
        output: folder of the latent dataset.
        encoder: name of an encoder plugin, a path, or a hub id; None is `tiny-kl`.
        size: of the modality, in pixels; None leaves it to the modality.

    Raises:
        RecipeError: source or encoder is none of these.
    """
    remarks: list[str] = []
    use_source, modality = _source(source, remarks)
    if encoder is None and modality != "image":
        raise RecipeError(f"source {source}: taken for {modality}, and no --encoder is given; tiny-kl, the default, takes pictures only")
    if encoder is None:
        remarks.append("no --encoder: using tiny-kl, the small one inside latentkit, which is for trying out")
    values: dict[str, Any] = {
        "task": "encode",
        "source": use_source,
        "modality": {"use": modality, "with": {} if size is None else {"size": size}},
        "encoder": _encoder(encoder or "tiny-kl", remarks),
        "output": {"path": output},
    }
    return values, remarks


def _source(source: str, remarks: list[str]) -> tuple[dict[str, Any], str]:
    """The recipe's source, and the modality that goes with it."""
    if _names_plugin("source", source, remarks):
        return {"use": source}, "image"
    path = Path(source).expanduser()
    if path.exists():
        return _source_for(path, remarks)
    if HUB_ID.fullmatch(source) and not source.startswith("."):
        return {"use": "datasets", "with": {"path": source}}, "image"
    raise RecipeError(_nothing("source", source))


def _source_for(path: Path, remarks: list[str]) -> tuple[dict[str, Any], str]:
    """`folder` for pictures, `datasets` for tables and tars, `folder` with other suffixes for what another modality reads."""
    here = {"path": os.path.abspath(path)}
    if path.is_file():
        return {"use": "datasets", "with": here}, "image"
    suffixes = {one.spec.name: tuple(one.spec.suffixes) for one in discover().provided if isinstance(one.spec, ModalitySpec)}
    names = [name.lower() for name in _names(path)]
    counts = {modality: sum(name.endswith(endings) for name in names) for modality, endings in suffixes.items()}
    num_tables = sum(name.endswith(DATA_SUFFIXES) for name in names)
    most = "image" if counts["image"] else max(counts, key=lambda modality: counts[modality])
    if most != "image" and counts[most] > num_tables:  # a table beside them has their captions
        remarks.append(f"{path}: taken for files of the modality {most}, by their endings")
        return {"use": "folder", "with": {**here, "suffixes": list(suffixes[most])}}, most
    return {"use": "datasets" if num_tables and not counts["image"] else "folder", "with": here}, "image"


def _names(path: Path) -> Iterable[str]:
    seen = 0
    for _, _, names in os.walk(path):
        yield from names
        seen += len(names)
        if seen > MAX_LOOKED_AT:
            return


def _encoder(encoder: str, remarks: list[str]) -> dict[str, Any]:
    if _names_plugin("encoder", encoder, remarks):
        return {"use": encoder}
    path = Path(encoder).expanduser()
    if path.exists():
        return {"use": "tiny-kl" if _is_tiny_kl(path) else "diffusers", "with": {"model": os.path.abspath(path)}}
    if HUB_ID.fullmatch(encoder) and not encoder.startswith("."):
        return {"use": "diffusers", "with": {"model": encoder}}
    raise RecipeError(_nothing("encoder", encoder))


def _is_tiny_kl(path: Path) -> bool:
    config = path / "config.json"
    return config.is_file() and '"TinyKL"' in config.read_text(encoding="utf-8", errors="replace")


def _names_plugin(kind: str, word: str, remarks: list[str]) -> bool:
    """Whether a bare word is a plugin's name; a path of that name is pointed out."""
    if not any(row.kind == kind and row.name == word for row in discover().rows()):
        return False
    if os.path.exists(word):
        remarks.append(f"{word} is taken for the {kind} plugin of that name; write ./{word} for the path")
    return True


def _nothing(kind: str, word: str) -> str:
    known = f"no {kind} plugin of that name ({_known(kind)})"
    return f"{kind} {word}: there is no such path, {known}, and it is no hub id (owner/name)"


def _known(kind: str) -> str:
    return ", ".join(sorted({row.name for row in discover().rows() if row.kind == kind}))
