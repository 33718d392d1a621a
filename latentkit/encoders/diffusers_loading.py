"""Loads diffusers models from a folder, a single file or a hub id. Their weights must fit
exactly.
"""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
from torch import Tensor, nn

from latentkit.contracts.samples import Remark
from latentkit.encoders.diffusers_building import build_model as build_model
from latentkit.encoders.diffusers_building import build_shapes, build_unset
from latentkit.encoders.diffusers_building import quiet as quiet
from latentkit.encoders.diffusers_table import TRAITS, find_traits
from latentkit.encoders.hub import find_model_folder
from latentkit.encoders.published_configs import find_published, list_published, recognize_config
from latentkit.encoders.weight_files import read_metadata
from latentkit.encoders.weight_fitting import Fit, choose_fit, find_fits
from latentkit.encoders.weight_folders import SUFFIXES, WeightFiles, find_weights
from latentkit.errors import EncoderError

SUBFOLDERS = ("vae", "audio_vae")
"""Folders of a pipeline that contain its autoencoder."""


def find_model(
    model: str,
    subfolder: str | None,
    revision: str | None,
    recipe_dir: Path,
    modality: str = "",
    variant: str | None = None,
) -> Path:
    """Return the local folder (with its config.json) or the single file of a model. A hub id is
    downloaded.

    Args:
        modality: the recipe's modality; of several autoencoders in a pipeline, the first that
            accepts it is chosen.
        variant: which weights to take from the hub, such as "fp16"; None takes the plain ones, or
            the only ones there are.

    Raises:
        EncoderError: nothing is there, the hub can't be reached, or the named subfolder doesn't
            accept the modality but another one does.
    """
    choose = functools.partial(_choose_folder, model, subfolder, modality)
    return find_model_folder(model, subfolder, revision, recipe_dir, choose, variant)


def _choose_folder(model: str, subfolder: str | None, modality: str, path: Path) -> Path:
    """Choose the autoencoder's folder inside the folder of a model or pipeline, from the configs
    alone.
    """
    folders = _model_folders(path, subfolder)
    if not folders:
        if not subfolder and _has_weights(path):
            return path  # the names of its tensors show what it contains when they are read
        where = subfolder or f"it, {', '.join(SUBFOLDERS)}"
        wanted = (
            "the folder of a diffusers autoencoder or pipeline, or a file of weights "
            "(.safetensors, .ckpt, .pt, .pth, .bin)"
        )
        raise EncoderError(f"model {model}: no config.json in {where}; expected {wanted}")
    fitting = [folder for folder in folders if _accepts_modality(folder, modality)]
    beside = [
        folder
        for folder in _model_folders(folders[0].parent, None)
        if not fitting and _accepts_modality(folder, modality)
    ]
    if beside:
        name = folders[0].name
        raise EncoderError(
            f"model {model}: {name} doesn't accept the modality {modality!r}; {beside[0].name}"
            " beside it does"
        )
    chosen = (fitting or folders)[0]
    read_config(chosen)  # before any weights are downloaded
    return chosen


def _model_folders(path: Path, subfolder: str | None) -> list[Path]:
    """Return the folders with a config.json, the likeliest autoencoder first: those with a usual
    name, then any whose config is an autoencoder's.
    """
    if subfolder:
        places = [path / subfolder]
    else:
        named = [path, *(path / name for name in SUBFOLDERS)]
        places = named + [
            place for place in sorted(path.iterdir()) if place not in named and _is_supported(place)
        ]
    return [place for place in places if (place / "config.json").is_file()]


def _has_weights(folder: Path) -> bool:
    return any(file.is_file() and file.name.lower().endswith(SUFFIXES) for file in folder.iterdir())


def _is_supported(folder: Path) -> bool:
    with contextlib.suppress(EncoderError):
        return bool(read_config(folder))
    return False


def _accepts_modality(folder: Path, modality: str) -> bool:
    """Return whether the folder contains a supported model that accepts the modality."""
    try:
        config = read_config(folder)
    except EncoderError:
        return False
    return any(
        modality in traits.modalities for traits in find_traits(config["_class_name"], config)
    )


def read_config(folder: Path) -> dict[str, Any]:
    """Read the config.json of a diffusers model, given the file or its folder.

    Raises:
        EncoderError: the file is missing or isn't JSON, or neither the table nor the installed
            diffusers knows its class.
    """
    file = folder / "config.json" if folder.is_dir() else folder
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise EncoderError(f"{file}: {error.strerror}") from error
    except ValueError as error:
        raise EncoderError(
            f"{file}: not JSON ({error}); expected the config.json of a diffusers autoencoder"
        ) from error
    name = config.get("_class_name") if isinstance(config, dict) else None
    if isinstance(name, str) and name.removeprefix("Flax") in TRAITS:
        name = name.removeprefix("Flax")  # the same model, saved by a class that diffusers had
        if not hasattr(diffusers, name):
            raise EncoderError(
                f"{file}: diffusers {diffusers.__version__} has no {name}; pip install -U diffusers"
            )
    elif not (isinstance(name, str) and _looks_like_autoencoder(name)):
        raise EncoderError(
            f"{file}: _class_name is {name!r}; this version supports {', '.join(TRAITS)}, and other"
            f" models of diffusers {diffusers.__version__} that have encode and decode"
        )
    return {**config, "_class_name": name}


def _looks_like_autoencoder(name: str) -> bool:
    """Return whether diffusers has a model class of this name with `encode` and `decode`."""
    found = getattr(diffusers, name, None)
    return (
        isinstance(found, type)
        and issubclass(found, diffusers.ModelMixin)
        and hasattr(found, "encode")
        and hasattr(found, "decode")
    )


def find_config_file(name: str, recipe_dir: Path) -> Path:
    """Return the config.json that the option config names: a file, a folder with one, or a name in
    `published_configs`.

    Raises:
        EncoderError: the option is none of these; the message lists the names.
    """
    path = recipe_dir / Path(name).expanduser()
    places = [path, *(path / folder / "config.json" for folder in ("", *SUBFOLDERS))]
    found = next((place for place in places if place.is_file()), None) or find_published(name)
    if found is None:
        raise EncoderError(
            f"config {name}: there is no such file, no folder with a config.json, and no published"
            " autoencoder of that name; expected one of these, or one of"
            f" {', '.join(list_published())}"
        )
    return found


@dataclass(frozen=True)
class FoundModel:
    """Facts about a model that are known before its weights are loaded.

    Args:
        config_file: its config.json.
        remarks: what a user should know about how it was found.
        lacks_decoder: whether its file contains only the encoder.
    """

    config_file: Path
    remarks: tuple[Remark, ...] = ()
    lacks_decoder: bool = False


def inspect_model(
    path: Path, config_file: Path | None, variant: str | None = None, modality: str = ""
) -> FoundModel:
    """Find a model's config and what is special about its weights, without loading them.

    The names and shapes of the tensors decide for a single file, and for a folder without a config.

    Args:
        path: folder, or single file.
        config_file: the config that the recipe names; None takes the one in the folder or beside
            the file, or else that of the published autoencoder that the weights fit.
        variant: which of several weights.
        modality: the recipe's modality, for files with several networks.

    Raises:
        EncoderError: the weights can't be read, or not exactly one config fits them.
    """
    beside = path / "config.json" if path.is_dir() else path.with_name("config.json")
    if config_file is None and beside.is_file() and (path.is_dir() or _is_supported(beside)):
        config_file = beside
    if config_file is not None and path.is_dir():
        with contextlib.suppress(EncoderError):  # which loading says
            remark = find_weights(path, variant).remark
            return FoundModel(config_file, (remark,) if remark else ())
        return FoundModel(config_file)
    weights = find_weights(path, variant)
    tensors = weights.read()
    remarks = [weights.remark] if weights.remark else []
    if config_file is None:
        config_file, *equals = recognize_config(
            path, tensors, read_metadata(weights.files[0]), modality
        )
        same = (
            f" ({', '.join(file.stem for file in equals)} would give the same latents)"
            if equals
            else ""
        )
        remarks.append(
            Remark(
                f"no config.json: recognized as {config_file.stem} by the names and shapes of the"
                f" weights{same}"
            )
        )
    model = build_shapes(read_config(config_file))
    fit = choose_fit(weights.files[0], find_fits(tensors, model), _other_variant(weights, variant))
    if any("float8" in str(tensor.dtype) for tensor in fit.tensors.values()):
        remarks.append(
            Remark(
                "the weights are in 8 bits (fp8), so latents differ from those of the full weights"
            )
        )
    if fit.lacks_decoder:
        remarks.append(
            Remark(
                "the file contains no decoder: it can encode, but decoding and previews need the"
                " decoder"
            )
        )
    return FoundModel(config_file, tuple(remarks), fit.lacks_decoder)


def load_model(
    path: Path, config_file: Path | None, dtype: torch.dtype, variant: str | None = None
) -> Any:
    """Load a model in eval mode, without gradients. Every tensor comes from its file.

    Args:
        path: folder, or single file.
        config_file: config of the weights; None finds it as `inspect_model` does.
        dtype: dtype of the loaded weights.
        variant: which of several weights.

    Raises:
        EncoderError: there are no weights, or they don't fit; the message names missing,
            unexpected and misshaped keys.
    """
    config = read_config(config_file or inspect_model(path, None, variant).config_file)
    model = build_unset(config, dtype)
    fit = _read_fit(path, variant, model)
    model.load_state_dict(fit.tensors, strict=False)  # the fit was strict
    if fit.lacks_decoder:
        drop_modules(model, find_traits(config["_class_name"], config)[0].decoder)
    model.eval()
    model.requires_grad_(False)
    return model


def read_named_tensors(
    path: Path, config_file: Path, places: tuple[str, ...], variant: str | None = None
) -> dict[str, Tensor]:
    """Return, in float32 and by name, those tensors of a model whose names start with given words.
    No others are read.

    Args:
        places: first words of the tensors' names.
        path, config_file, variant: as for `load_model`.

    Raises:
        EncoderError: as `load_model`.
    """
    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        model = build_model(read_config(config_file))
    tensors = _read_fit(path, variant, model).tensors
    return {
        name: tensor.float() for name, tensor in tensors.items() if name.split(".")[0] in places
    }


def _read_fit(path: Path, variant: str | None, model: Any) -> Fit:
    """Read the weights and match them to the model."""
    weights = find_weights(path, variant)
    return choose_fit(
        weights.files[0], find_fits(weights.read(), model), _other_variant(weights, variant)
    )


def _other_variant(weights: WeightFiles, variant: str | None) -> str | None:
    """Return the variant if it doesn't name a file, so it must name weights inside a checkpoint."""
    return None if variant == weights.variant else variant


def drop_modules(model: nn.Module, names: Iterable[str]) -> None:
    """Replace sub-modules by empty ones, so that they take no memory and don't count as the
    encoder's.

    They aren't deleted because some classes walk through them.
    """
    for name in names:
        if getattr(model, name, None) is not None:
            setattr(model, name, nn.Module().eval())
