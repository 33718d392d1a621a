"""Builds a recipe from the arguments of `latentkit encode SOURCE OUT`."""

from __future__ import annotations

import functools
import glob
import itertools
import json
import os
import re
import tarfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from latentkit.contracts import BuildContext, ModalitySpec, SourceSpec
from latentkit.errors import RecipeError
from latentkit.plugins.registry import DISABLE, discover
from latentkit.recipe.overrides import Overrides, split_overrides
from latentkit.runtime.file_endings import LATENT_DATASET, TAR_ENDINGS
from latentkit.runtime.paths import find_file_path, is_url

TEXT_TABLES = (".csv", ".tsv", ".jsonl", ".ndjson", ".json")
DATA_SUFFIXES = (*TAR_ENDINGS, ".parquet", ".csv", ".tsv", ".jsonl", ".ndjson", ".arrow")
CAPTION_TABLES = (*TEXT_TABLES, "metadata.parquet")
"""Tables that the source `folder` reads in addition to media."""
PATTERN = re.compile(r"[*?\[{]|::")
"""Signs of a file pattern, which the source `datasets` accepts."""
READ_BYTES, READ_MEMBERS = 1 << 20, 300
"""How much of a table and of a tar is read to find out which media it contains."""
WEIGHTS = (".safetensors", ".sft", ".ckpt", ".pt", ".pth", ".bin")
"""Files that the encoder `diffusers` opens without a config."""
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
MAX_LOOKED_AT = 10_000
"""Most files of a folder that are checked to find out what it contains."""
MAX_OPENED, START_BYTES = 16, 512
"""Files that are opened where no ending tells anything, and what is read of each."""


def encode_recipe(
    source: str, output: str, encoder: str | None, size: Any = None, overrides: Overrides = ()
) -> tuple[dict[str, Any], list[str]]:
    """Return recipe values for one `encode` command, and remarks for the user.

    Args:
        source: name of a source plugin, a path, or `owner/name` on the hub.
        output: folder of the latent dataset.
        encoder: name of an encoder plugin, a path, or a hub id; None is `tiny-kl`.
        size: size for the modality, in pixels; None is the modality's default.
        overrides: other values for the recipe; a modality among them decides which files are looked
            for.

    Raises:
        RecipeError: source or encoder is none of these.
    """
    remarks: list[str] = []
    use_encoder = encoder_from_word(encoder or "tiny-kl", remarks)
    wanted = functools.partial(
        _modality_wanted, use_encoder if encoder else None, dict(split_overrides(overrides))
    )
    use_source, modality = _source(source, remarks, wanted)
    if encoder is None and modality != "image":
        raise RecipeError(
            f"source {source}: detected as {modality}, but no --encoder is given; tiny-kl, the"
            " default, only takes images"
        )
    if encoder is None:
        remarks.append(
            "no --encoder: using tiny-kl, the small encoder inside latentkit, which is only for"
            " trying things"
        )
    values: dict[str, Any] = {
        "task": "encode",
        "source": use_source,
        "modality": {"use": modality, "with": {} if size is None else {"size": size}},
        "encoder": use_encoder,
        "output": {"path": output},
    }
    return values, remarks


def _modality_wanted(encoder: dict[str, Any] | None, overrides: Mapping[str, Any]) -> str:
    """Return the modality that the overrides name, or that the encoder takes, which is built to
    find out; "" if neither decides.

    A model for the encoder `diffusers` isn't opened for this, because it may be gigabytes on the
    hub and may accept several.
    """
    if "modality.use" in overrides:
        return str(overrides["modality.use"])
    if encoder is None or encoder["use"] == "diffusers":
        return ""
    given = encoder.get("with", {}) | {
        name.removeprefix("encoder.with."): value
        for name, value in overrides.items()
        if name.startswith("encoder.with.")
    }
    registry = discover()
    try:
        config = registry.configure("encoder", encoder["use"], given, "encoder")
        return str(
            registry.find("encoder", encoder["use"]).spec.build(config, BuildContext()).modality
        )
    except Exception:  # noqa: BLE001 (plugin boundary)
        return ""


def _choose(counts: Mapping[str, int], wanted: Callable[[], str]) -> str:
    """Return the modality to use, given the number of files of each: the wanted one, else that with
    the most files, images first.
    """
    most = max(counts, key=lambda one: (counts[one], one == "image"))
    if sum(map(bool, counts.values())) < 2:
        return most
    name = wanted()
    return name if counts.get(name) else most


def _source(
    source: str, remarks: list[str], wanted: Callable[[], str]
) -> tuple[dict[str, Any], str]:
    """Return the recipe's source, and its modality."""
    if _names_plugin("source", source, remarks):
        return {"use": source}, _sources()[source].modality
    if (file := find_file_path(source)) is not None:
        source = file
    path = Path(source).expanduser()
    if path.exists():
        return _source_for(path, remarks, wanted)
    from latentkit.runtime.hub_places import parse_hub_place

    if is_url(source) and parse_hub_place(source, "dataset") is None:
        return _source_at(source, remarks, wanted)
    if is_url(source) or (HUB_ID.fullmatch(source) and not source.startswith(".")):
        return {"use": "datasets", "with": {"path": source}}, "image"
    if PATTERN.search(source):
        found = sorted(
            glob.glob(
                os.path.expanduser(re.sub(r"\{[^}]*\}", "*", source.split("::")[0])), recursive=True
            )
        )
        _refuse_media(Path(found[0]) if found else path, _endings())
        parts = (os.path.abspath(os.path.expanduser(part)) for part in source.split("::"))
        return {"use": "datasets", "with": {"path": "::".join(parts)}}, (
            _modality_in(Path(found[0]), wanted) if found else "image"
        )
    raise RecipeError(_explain_unknown_word("source", source))


def _endings() -> dict[str, tuple[str, ...]]:
    return {
        one.spec.name: tuple(one.spec.suffixes)
        for one in discover().provided
        if isinstance(one.spec, ModalitySpec)
    }


def _modality_in(file: Path, wanted: Callable[[], str]) -> str:
    """Return the modality of the media in a tar, or that a table names, by their endings; image if
    unknown.
    """
    try:
        if file.name.lower().endswith(TAR_ENDINGS):
            with tarfile.open(file) as tar:
                names = [member.name.lower() for member in itertools.islice(tar, READ_MEMBERS)]
        else:
            with file.open("rb") as opened:
                names = re.findall(
                    r"[^\s\"',;|]+", opened.read(READ_BYTES).decode("latin-1").lower()
                )
    except (OSError, EOFError, tarfile.TarError):
        return "image"
    media = [
        name for name in names if not name.endswith((".txt", ".json"))
    ] or names  # a caption for each image
    counts = {
        modality: sum(name.endswith(ends) for name in media)
        for modality, ends in _endings().items()
        if ends
    }
    return _choose(counts, wanted)


def _source_for(
    path: Path, remarks: list[str], wanted: Callable[[], str]
) -> tuple[dict[str, Any], str]:
    """Return the source `folder` for media of the modality with the most files, or `datasets` for
    tars and tables.
    """
    if path.is_file():
        _refuse_media(path, _endings())
        return {"use": "datasets", "with": {"path": os.path.abspath(path)}}, _modality_in(
            path, wanted
        )
    use, modality = _source_of(os.path.abspath(path), _names(path), remarks, wanted)
    if use["use"] == "datasets":
        tar = next(
            (file for file in sorted(path.rglob("*")) if file.name.lower().endswith(TAR_ENDINGS)),
            None,
        )
        modality = "image" if tar is None else _modality_in(tar, wanted)
    return use, modality


def _source_at(
    url: str, remarks: list[str], wanted: Callable[[], str]
) -> tuple[dict[str, Any], str]:
    """Return the source at a URL, like `_source_for`. Its files are listed, but a table or a tar is
    recognized by its ending.
    """
    from latentkit.sources.url_files import UrlFiles

    if url.lower().endswith((*DATA_SUFFIXES, ".json")) or PATTERN.search(url):
        return {"use": "datasets", "with": {"path": url}}, "image"
    return _source_of(
        url, [path.lower() for path in UrlFiles(url).list(recursive=True).files], remarks, wanted
    )


def _source_of(
    path: str, names: Sequence[str], remarks: list[str], wanted: Callable[[], str]
) -> tuple[dict[str, Any], str]:
    """Return the source for a folder with files of these lower-case names."""
    here, endings = {"path": path}, _endings()
    counts = {
        modality: sum(name.endswith(ends) for name in names) for modality, ends in endings.items()
    }
    tables = [
        name
        for name in names
        if name.endswith(DATA_SUFFIXES)
        and not (name.endswith(CAPTION_TABLES) and any(counts.values()))
    ]
    modality = _choose(counts, wanted)
    num_others = max(counts[modality], len(tables))
    special = None if is_url(path) else _special_source(Path(path), names, num_others)
    if special is not None:
        remarks.append(f"{path}: detected as samples of the source {special.name} (by its files)")
        return {"use": special.name, "with": here}, special.modality
    if counts[modality] <= len(tables):
        modality = "image"  # inside the tables, unless images are beside them
    in_tables = bool(tables) and not counts["image"] and modality == "image"
    remarks += _left_out(path, names, endings, None if in_tables else modality)
    if modality == "image":
        return {"use": "datasets" if in_tables else "folder", "with": here}, modality
    remarks.append(f"{path}: detected as {modality} (by file endings)")
    return {"use": "folder", "with": {**here, "suffixes": list(endings[modality])}}, modality


def _sources() -> dict[str, SourceSpec]:
    return {
        one.spec.name: one.spec for one in discover().provided if isinstance(one.spec, SourceSpec)
    }


def _special_source(path: Path, names: Sequence[str], num_others: int) -> SourceSpec | None:
    """Return the source that makes better samples of a folder's files than `folder` or `datasets`.

    Args:
        names: names of the files, in lower case.
        num_others: number of files that those two sources read.
    """
    specs = list(_sources().values())
    for spec in specs:
        if sum(name.endswith(tuple(spec.suffixes)) for name in names) > num_others:
            return spec
    if num_others:
        return None
    files = itertools.islice((file for file in path.rglob("*") if file.is_file()), MAX_OPENED)
    starts = [_start(file) for file in files]
    for spec in specs:
        if spec.signature is not None:
            place, signature = spec.signature
            if any(start[place:].startswith(signature) for start in starts):
                return spec
    return None


def _start(file: Path) -> bytes:
    with file.open("rb") as opened:
        return opened.read(START_BYTES)


def _refuse_media(file: Path, endings: Mapping[str, tuple[str, ...]]) -> None:
    """Explain what to give instead of a single image, video or similar, because only a folder of
    them is a source.
    """
    name = file.name.lower()
    for modality, ends in endings.items():
        if name.endswith(ends) and not name.endswith(DATA_SUFFIXES):
            what = (
                f"a single file of the modality {modality}; expected a folder of such files, or a"
                " file with a table or a tar"
            )
            raise RecipeError(
                f"source {file}: {what}. Give the folder that contains it, or put it into a new"
                " folder"
            )


def _left_out(
    path: str, names: Sequence[str], endings: Mapping[str, tuple[str, ...]], taken: str | None
) -> list[str]:
    """Return a remark for each modality whose files aren't used: their number, and the options that
    would use them.

    Args:
        taken: the modality whose files are used; None if tables are.
    """
    among = f" among the first {len(names)}" if len(names) > MAX_LOOKED_AT else ""
    remarks = []
    for modality, ends in endings.items():
        left = [
            name
            for name in names
            if name.endswith(ends) and not (taken and name.endswith(endings[taken]))
        ]
        if left:
            there = ",".join(end for end in ends if any(name.endswith(end) for name in left))
            sets = ["source.use=folder"] * (taken is None) + [
                f"modality.use={modality}",
                f"'source.with.suffixes=[{there}]'",
            ]
            what = (
                "1 file of the modality {} is"
                if len(left) == 1
                else f"{len(left)} files of the modality {{}} are"
            )
            remarks.append(
                f"{path}: {what.format(modality)} left out{among}; to use those instead: --set"
                f" {' --set '.join(sets)}"
            )
    return remarks


def _names(path: Path) -> list[str]:
    """Return lower-case names of the files below a folder that the source `folder` would read: no
    hidden ones, no earlier output.
    """
    names: list[str] = []
    for parent, below, files in os.walk(path):
        if Path(parent) != path and set(below) >= LATENT_DATASET:
            below.clear()
            continue
        below[:] = [name for name in below if not name.startswith(".")]
        names += [name.lower() for name in files if not name.startswith(".")]
        if len(names) > MAX_LOOKED_AT:
            break
    return names


def encoder_from_word(encoder: str, remarks: list[str]) -> dict[str, Any]:
    """Return the `encoder:` of a recipe from the name of a plugin, a path, or a hub id.

    Args:
        remarks: a remark is added if the word is ambiguous.

    Raises:
        RecipeError: the word is none of these.
    """
    if _names_plugin("encoder", encoder, remarks):
        return {"use": encoder}
    path = Path(encoder).expanduser()
    if path.exists():
        return {"use": _encoder_for(path), "with": {"model": os.path.abspath(path)}}
    from latentkit.runtime.hub_places import parse_hub_place

    if parse_hub_place(encoder) is not None:
        return {"use": "diffusers", "with": {"model": encoder}}
    raise RecipeError(_explain_unknown_word("encoder", encoder))


def _encoder_for(path: Path) -> str:
    """Return the encoder that opens a model's folder or file, from its config.json."""
    if _is_tiny_kl(path):
        return "tiny-kl"
    configs = [
        path / "config.json",
        *path.glob("*/config.json"),
    ]  # a pipeline has a folder for each part
    is_in_cache = (path / "snapshots").is_dir()  # the hub's, of a repository
    if path.is_file() or is_in_cache or any(_names_class(config) for config in configs):
        return "diffusers"
    if not any(config.is_file() for config in configs) and any(
        file.name.lower().endswith(WEIGHTS) for file in path.iterdir()
    ):
        return "diffusers"  # which knows published weights by the names in them
    what = "no config.json in it, or in its folders, has the _class_name of a diffusers model"
    advice = (
        f"Another model is opened with --encoder NAME --set encoder.with.model={path}, where NAME"
        " is an encoder plugin"
    )
    raise RecipeError(f"encoder {path}: {what}. {advice}: {_known('encoder')}")


def _names_class(config: Path) -> bool:
    """Return whether a config.json names a class, or is broken."""
    try:
        found = json.loads(config.read_text(encoding="utf-8"))
    except OSError:
        return False
    except ValueError:
        return True  # the encoder `diffusers` says what is wrong with it
    return isinstance(found, dict) and isinstance(found.get("_class_name"), str)


def _is_tiny_kl(path: Path) -> bool:
    config = path / "config.json"
    return config.is_file() and '"TinyKL"' in config.read_text(encoding="utf-8", errors="replace")


def _names_plugin(kind: str, word: str, remarks: list[str]) -> bool:
    """Return whether a word is a plugin's name. A remark mentions a path of that name."""
    if not any(row.kind == kind and row.name == word for row in discover().rows()):
        return False
    if os.path.exists(word):
        remarks.append(
            f"{word} is used as the name of the {kind} plugin; write ./{word} for the path"
        )
    return True


def _explain_unknown_word(kind: str, word: str) -> str:
    """Return why a word is neither plugin, path nor hub id, and why a plugin of that name may be
    missing.
    """
    registry = discover()
    lines = [
        (
            f"{kind} {word}: no such path, no {kind} plugin of that name ({_known(kind)}), and not"
            " a hub id (owner/name)"
        )
    ]
    if registry.disabled:
        lines.append(
            f"  left out by {DISABLE}: {', '.join(' '.join(one) for one in registry.disabled)}"
        )
    lines += [f"  a plugin has a problem: {problem}" for problem in registry.problems]
    return "\n".join(lines)


def _known(kind: str) -> str:
    return ", ".join(sorted({row.name for row in discover().rows() if row.kind == kind}))
