"""From a folder, a single file or a hub id to a diffusers model whose weights fit strictly."""

from __future__ import annotations

import functools
import json
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers.loaders.single_file_model import SINGLE_FILE_LOADABLE_CLASSES
from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint
from safetensors import SafetensorError

from latentkit.encoders.diffusers_table import TRAITS, find_traits
from latentkit.encoders.hub import find_model_folder
from latentkit.encoders.weight_files import read_tensors
from latentkit.errors import EncoderError

SUBFOLDERS = ("vae", "audio_vae")
"""Where a pipeline keeps its autoencoder."""

MOST_KEYS_NAMED = 8
ORIGINAL_NAME = "encoder.down.0.block.0."
"""In every checkpoint of latent-diffusion's own trainers, with or without a prefix, and in none of diffusers."""


def find_model(model: str, subfolder: str | None, revision: str | None, recipe_dir: Path, modality: str = "") -> Path:
    """The local folder (with its config.json) or the single file of a model; a hub id is downloaded.

    Args:
        modality: the recipe's; of several autoencoders in a pipeline, the first that takes it is meant.

    Raises:
        EncoderError: nothing is there, the hub can't be reached, or another subfolder than the named one takes the modality.
    """
    choose = functools.partial(_choose_folder, model, subfolder, modality)
    return find_model_folder(model, subfolder, revision, recipe_dir, choose)


def _choose_folder(model: str, subfolder: str | None, modality: str, path: Path) -> Path:
    """The folder of the autoencoder in the folder of a model or a pipeline, by its configs alone."""
    places = [path / subfolder] if subfolder else [path, *(path / name for name in SUBFOLDERS)]
    folders = [folder for folder in places if (folder / "config.json").is_file()]
    if not folders:
        where = subfolder or f"it, {', '.join(SUBFOLDERS)}"
        wanted = "the folder of a diffusers autoencoder or pipeline, or a file of weights (.safetensors, .ckpt, .pt, .pth, .bin)"
        raise EncoderError(f"model {model}: no config.json in {where}; expected {wanted}")
    fitting = [folder for folder in folders if _takes(folder, modality)]
    beside = [place for name in SUBFOLDERS if not fitting and _takes(place := folders[0].parent / name, modality)]
    if beside:
        raise EncoderError(f"model {model}: {folders[0].name} doesn't take the modality {modality!r}; {beside[0].name} beside it does")
    chosen = (fitting or folders)[0]
    read_config(chosen)  # before any weights are downloaded
    return chosen


def _takes(folder: Path, modality: str) -> bool:
    """Whether a folder holds a model of this modality; a folder without one, or with one that can't be driven, doesn't."""
    try:
        config = read_config(folder)
    except EncoderError:
        return False
    return any(modality in traits.modalities for traits in find_traits(config["_class_name"], config))


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of a diffusers model, by its folder or the file itself.

    Raises:
        EncoderError: missing, no JSON, or of a class that the table doesn't know.
    """
    file = folder / "config.json" if folder.is_dir() else folder
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise EncoderError(f"{file}: {error.strerror}") from error
    except ValueError as error:
        raise EncoderError(f"{file}: not JSON ({error}); expected the config.json of a diffusers autoencoder") from error
    name = config.get("_class_name") if isinstance(config, dict) else None
    if not (isinstance(name, str) and (name in TRAITS or _might_be_driven(name)) and hasattr(diffusers, name)):
        raise EncoderError(
            f"{file}: _class_name is {name!r}; this version drives {', '.join(TRAITS)}, and other models of diffusers "
            f"{diffusers.__version__} that have encode and decode"
        )
    return dict(config)


def _might_be_driven(name: str) -> bool:
    found = getattr(diffusers, name, None)
    return isinstance(found, type) and issubclass(found, diffusers.ModelMixin) and hasattr(found, "encode") and hasattr(found, "decode")


def load_model(path: Path, config_file: Path | None, dtype: torch.dtype) -> Any:
    """A model in eval mode without gradients, every tensor of which came from its file.

    Args:
        path: folder, or single file.
        config_file: config.json of a single file; None looks beside it.
        dtype: of the weights.

    Raises:
        EncoderError: no weights, or weights that don't fit: names missing, unexpected and misshaped keys.
    """
    with quiet(), torch.random.fork_rng(devices=[]):  # some classes draw the weights that they then load
        model = _load_file(path, config_file, dtype) if path.is_file() else _load_folder(path, dtype)
    model.eval()
    model.requires_grad_(False)
    return model


def build_model(config: Mapping[str, Any]) -> Any:
    """A model with random weights (torch's global generator), float32.

    Raises:
        EncoderError: the config doesn't fit its class.
    """
    name = config["_class_name"]
    try:
        with quiet():
            return getattr(diffusers, name).from_config(config)
    except (ValueError, TypeError, RuntimeError, ArithmeticError, LookupError, ImportError, NameError) as error:
        raise EncoderError(f"{name} can't be built by its config: {str(error).strip()[:500]}") from error


def _load_folder(folder: Path, dtype: torch.dtype) -> Any:
    config = read_config(folder)
    if not any(folder.glob("diffusion_pytorch_model*")):
        raise EncoderError(f"{folder}: there is a config.json but no weights; expected diffusion_pytorch_model.safetensors")
    try:
        model, loaded = getattr(diffusers, config["_class_name"]).from_pretrained(
            folder, torch_dtype=dtype, output_loading_info=True, local_files_only=True
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise EncoderError(f"{folder}: the weights can't be loaded: {str(error).strip()[:500]}") from error
    _check_keys(folder, loaded["missing_keys"], loaded["unexpected_keys"], loaded["mismatched_keys"])
    return model


def _load_file(file: Path, config_file: Path | None, dtype: torch.dtype) -> Any:
    """A single file: in diffusers' names with a config beside it, else in the original trainers' names, which diffusers converts."""
    config_file = config_file or file.with_name("config.json")
    config = read_config(config_file)
    model_class = getattr(diffusers, config["_class_name"])
    read = read_tensors(file)
    try:
        model = model_class.from_config(config)
        own = model.state_dict()
        tensors = _in_own_names(read, config, set(own))
        model._fix_state_dict_keys_on_load(tensors)
        misshaped = [name for name in own if name in tensors and own[name].shape != tensors[name].shape]
        _check_keys(file, sorted(set(own) - set(tensors)), sorted(set(tensors) - set(own)), misshaped)
        model.load_state_dict(tensors)
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        raise EncoderError(f"{file}: the weights can't be loaded: {str(error).strip()[:500]}") from error
    kept = set(model._keep_in_fp32_modules or ())
    for name, tensor in model.state_dict(keep_vars=True).items():
        if tensor.is_floating_point() and not kept & set(name.split(".")):
            tensor.data = tensor.data.to(dtype)
    return model


def _in_own_names(tensors: dict[str, Any], config: dict[str, Any], own: set[str]) -> dict[str, Any]:
    """The tensors of a file by diffusers' names: as they are, or as diffusers converts them from the original trainers'."""
    if config["_class_name"] == "AutoencoderKL":
        is_original = any(ORIGINAL_NAME in name for name in tensors)
        return convert_ldm_vae_checkpoint(tensors, config) if is_original else tensors  # type: ignore[no-untyped-call]
    known: Mapping[str, Any] = SINGLE_FILE_LOADABLE_CLASSES
    convert = known.get(config["_class_name"], {}).get("checkpoint_mapping_fn")
    if convert is None or set(tensors) == own:
        return tensors
    try:
        converted: dict[str, Any] = convert(checkpoint=dict(tensors), config=config)
    except (KeyError, ValueError, IndexError):
        return tensors  # not the original names either; what doesn't fit is said by its own
    return min((tensors, converted), key=lambda named: len(own ^ set(named)))


def _check_keys(path: Path, missing: list[str], unexpected: list[str], misshaped: list[Any]) -> None:
    problems = [
        f"{len(keys)} {word} ({_some(keys)})"
        for word, keys in (("missing", missing), ("unexpected", unexpected), ("of another shape", misshaped))
        if keys
    ]
    if problems:
        raise EncoderError(f"{path}: the weights don't fit the model: keys {'; '.join(problems)}. It would run, and be wrong")


def _some(keys: list[Any]) -> str:
    named = sorted(map(str, keys))
    return ", ".join(named[:MOST_KEYS_NAMED]) + (", ..." if len(named) > MOST_KEYS_NAMED else "")


@contextmanager
def quiet() -> Iterator[None]:
    """Silence diffusers' warnings about what `_check_keys` turns into errors, and torch's about what diffusers uses of it."""
    logs = diffusers.utils.logging
    level, had_bars = logs.get_verbosity(), logs.is_progress_bar_enabled()
    logs.set_verbosity(50)
    logs.disable_progress_bar()
    try:
        with warnings.catch_warnings(action="ignore", category=FutureWarning):
            yield
    finally:
        logs.set_verbosity(level)
        if had_bars:
            logs.enable_progress_bar()
