"""What `latentkit encode SOURCE OUT` means: a recipe from two or three words."""

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
"""What the source `folder` reads beside media."""
PATTERN = re.compile(r"[*?\[{]|::")
"""Signs of a pattern of files, as the source `datasets` takes."""
PEEKED_BYTES, PEEKED_FILES = 1 << 20, 300
"""Of a table, and of a tar: what is looked at to tell which media it is about."""
WEIGHTS = (".safetensors", ".sft", ".ckpt", ".pt", ".pth", ".bin")
"""Files that the encoder `diffusers` opens without a config."""
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
MAX_LOOKED_AT = 10_000
"""Files of a folder that are looked at to tell what is in it."""
MAX_OPENED, START_BYTES = 16, 512
"""Files that are opened where no ending tells anything, and what is read of each."""


def encode_recipe(
    source: str, output: str, encoder: str | None, size: Any = None, overrides: Overrides = ()
) -> tuple[dict[str, Any], list[str]]:
    """Recipe values for one `encode` command, and remarks for the user.

    Args:
        source: name of a source plugin, a path, or `owner/name` on the hub.
        output: folder of the latent dataset.
        encoder: name of an encoder plugin, a path, or a hub id; None is `tiny-kl`.
        size: of the modality, in pixels; None leaves it to the modality.
        overrides: what the recipe will be given besides; a modality among them is the one whose
            files are looked for.

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
            f"source {source}: taken for {modality}, and no --encoder is given; tiny-kl, the"
            " default, takes pictures only"
        )
    if encoder is None:
        remarks.append(
            "no --encoder: using tiny-kl, the small one inside latentkit, which is for trying out"
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
    """The modality that the overrides name, or that the encoder takes, which is built to say so; ""
    where neither tells.

    A model of the class `diffusers` is not opened for this: it may be gigabytes, on the hub, and
    take several.
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
    """Return the modality wanted, where it has media, else that of most, images first."""
    most = max(counts, key=lambda one: (counts[one], one == "image"))
    if sum(map(bool, counts.values())) < 2:
        return most
    name = wanted()
    return name if counts.get(name) else most


def _source(
    source: str, remarks: list[str], wanted: Callable[[], str]
) -> tuple[dict[str, Any], str]:
    """The recipe's source, and the modality that goes with it."""
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
    raise RecipeError(_nothing("source", source))


def _endings() -> dict[str, tuple[str, ...]]:
    return {
        one.spec.name: tuple(one.spec.suffixes)
        for one in discover().provided
        if isinstance(one.spec, ModalitySpec)
    }


def _modality_in(file: Path, wanted: Callable[[], str]) -> str:
    """Return the modality of media in a tar or table, by endings; else images."""
    try:
        if file.name.lower().endswith(TAR_ENDINGS):
            with tarfile.open(file) as tar:
                names = [member.name.lower() for member in itertools.islice(tar, PEEKED_FILES)]
        else:
            with file.open("rb") as opened:
                names = re.findall(
                    r"[^\s\"',;|]+", opened.read(PEEKED_BYTES).decode("latin-1").lower()
                )
    except (OSError, EOFError, tarfile.TarError):
        return "image"
    media = [
        name for name in names if not name.endswith((".txt", ".json"))
    ] or names  # a caption beside each picture
    counts = {
        modality: sum(name.endswith(ends) for name in media)
        for modality, ends in _endings().items()
        if ends
    }
    return _choose(counts, wanted)


def _source_for(
    path: Path, remarks: list[str], wanted: Callable[[], str]
) -> tuple[dict[str, Any], str]:
    """Return `folder` for media of the modality with most; `datasets` for tars and tables."""
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
    """As `_source_for`, at a URL; tables and tars are known by their endings."""
    from latentkit.sources.url_files import UrlFiles

    if url.lower().endswith((*DATA_SUFFIXES, ".json")) or PATTERN.search(url):
        return {"use": "datasets", "with": {"path": url}}, "image"
    return _source_of(
        url, [path.lower() for path in UrlFiles(url).list(recursive=True).files], remarks, wanted
    )


def _source_of(
    path: str, names: Sequence[str], remarks: list[str], wanted: Callable[[], str]
) -> tuple[dict[str, Any], str]:
    """The source for a folder with files of these names, in lower case."""
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
        remarks.append(f"{path}: taken for samples of the source {special.name}, by its files")
        return {"use": special.name, "with": here}, special.modality
    if counts[modality] <= len(tables):
        modality = "image"  # in the tables, unless pictures lie beside them
    in_tables = bool(tables) and not counts["image"] and modality == "image"
    remarks += _left_out(path, names, endings, None if in_tables else modality)
    if modality == "image":
        return {"use": "datasets" if in_tables else "folder", "with": here}, modality
    remarks.append(f"{path}: taken for files of the modality {modality}, by their endings")
    return {"use": "folder", "with": {**here, "suffixes": list(endings[modality])}}, modality


def _sources() -> dict[str, SourceSpec]:
    return {
        one.spec.name: one.spec for one in discover().provided if isinstance(one.spec, SourceSpec)
    }


def _special_source(path: Path, names: Sequence[str], num_others: int) -> SourceSpec | None:
    """The source that makes better samples of a folder's files than `folder` or `datasets` would.

    Args:
        names: of the files, in lower case.
        num_others: of them are those two's.
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
    """Say what to give instead of a single file of media."""
    name = file.name.lower()
    for modality, ends in endings.items():
        if name.endswith(ends) and not name.endswith(DATA_SUFFIXES):
            what = (
                f"a single file of the modality {modality}; expected a folder of such files, or a"
                " file with a table or a tar"
            )
            raise RecipeError(
                f"source {file}: {what}. Give the folder that it lies in, or put it into one of"
                " its own"
            )


def _left_out(
    path: str, names: Sequence[str], endings: Mapping[str, tuple[str, ...]], taken: str | None
) -> list[str]:
    """A remark for each modality whose files aren't taken: how many there are, and the options that
    would take them.

    Args:
        taken: the modality whose files are; None where tables are.
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
                f"{path}: {what.format(modality)} left out{among}; to take those instead: --set"
                f" {' --set '.join(sets)}"
            )
    return remarks


def _names(path: Path) -> list[str]:
    """Return names of the files below a folder that the source `folder` would see, lower case."""
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
    """The `encoder:` of a recipe, by the name of a plugin, a path, or a hub id.

    Args:
        remarks: one is added where it could mean something else too.

    Raises:
        RecipeError: it is none of these.
    """
    if _names_plugin("encoder", encoder, remarks):
        return {"use": encoder}
    path = Path(encoder).expanduser()
    if path.exists():
        return {"use": _encoder_for(path), "with": {"model": os.path.abspath(path)}}
    from latentkit.runtime.hub_places import parse_hub_place

    if parse_hub_place(encoder) is not None:
        return {"use": "diffusers", "with": {"model": encoder}}
    raise RecipeError(_nothing("encoder", encoder))


def _encoder_for(path: Path) -> str:
    """The encoder that opens a model's folder or file, as far as a config.json tells."""
    if _is_tiny_kl(path):
        return "tiny-kl"
    configs = [
        path / "config.json",
        *path.glob("*/config.json"),
    ]  # of a pipeline, in a folder for each part
    is_in_cache = (path / "snapshots").is_dir()  # the hub's, of a repository
    if path.is_file() or is_in_cache or any(_names_class(config) for config in configs):
        return "diffusers"
    if not any(config.is_file() for config in configs) and any(
        file.name.lower().endswith(WEIGHTS) for file in path.iterdir()
    ):
        return "diffusers"  # which knows published weights by the names in them
    what = "no config.json in it, or in a folder in it, has the _class_name of a diffusers model"
    advice = (
        f"Another model is opened with --encoder NAME --set encoder.with.model={path}, where NAME"
        " is an encoder plugin"
    )
    raise RecipeError(f"encoder {path}: {what}. {advice}: {_known('encoder')}")


def _names_class(config: Path) -> bool:
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
    """Whether a bare word is a plugin's name; a path of that name is pointed out."""
    if not any(row.kind == kind and row.name == word for row in discover().rows()):
        return False
    if os.path.exists(word):
        remarks.append(
            f"{word} is taken for the {kind} plugin of that name; write ./{word} for the path"
        )
    return True


def _nothing(kind: str, word: str) -> str:
    """Say why a word is no plugin, path or hub id, and what kept such a plugin away."""
    registry = discover()
    lines = [
        f"{kind} {word}: there is no such path, no {kind} plugin of that name ({_known(kind)}), and"
        " it is no hub id (owner/name)"
    ]
    if registry.disabled:
        lines.append(
            f"  left out by {DISABLE}: {', '.join(' '.join(one) for one in registry.disabled)}"
        )
    lines += [f"  a plugin has a problem: {problem}" for problem in registry.problems]
    return "\n".join(lines)


def _known(kind: str) -> str:
    return ", ".join(sorted({row.name for row in discover().rows() if row.kind == kind}))
