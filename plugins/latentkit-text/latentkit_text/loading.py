"""Loads a text encoder with its tokenizer from a folder or a hub id."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES

from latentkit.contracts import BuildContext
from latentkit.errors import EncoderError
from latentkit.kit import find_model_path
from latentkit_text.encoder import TextEncoder
from latentkit_text.tokens import Tokenizer

if TYPE_CHECKING:
    from latentkit_text.plugin import TextEncoderConfig

NETWORK_FOLDERS = ("", "text_encoder")
TOKENIZER_FILES = (
    "tokenizer_config.json",
    "tokenizer.json",
    "spiece.model",
    "vocab.json",
    "vocab.txt",
)
UNLIMITED = 100_000
"""Tokenizers without a limit state a huge one."""
HUB_FILES = ("*.json", "*.txt", "*.model", "*.safetensors")


def open_text_encoder(config: TextEncoderConfig, context: BuildContext) -> TextEncoder:
    """Return the encoder that a recipe names.

    Raises:
        EncoderError: the model doesn't exist, its weights don't fit, or its tokenizer has no limit
            and `max_length` is not given.
    """
    prefixes = [
        "",
        *(
            f"{name}/"
            for name in (config.subfolder or "text_encoder", config.tokenizer or "tokenizer")
        ),
    ]
    patterns = [prefix + file for prefix in prefixes for file in HUB_FILES]
    root = find_model_path(config.model, config.revision, patterns, context.recipe_dir)
    folder = _network_folder(root, config.subfolder)
    tokenizer = _open_tokenizer(root, folder, config)
    network = _open_network(folder, config, needs_pooled=config.output == "pooled")
    return TextEncoder(network.to(context.device), tokenizer, config)


def _network_folder(root: Path, subfolder: str | None) -> Path:
    names = NETWORK_FOLDERS if subfolder is None else (subfolder,)
    for name in names:
        if (root / name / "config.json").is_file():
            return root / name
    raise EncoderError(
        f"{root}: no config.json in {' or '.join(name or 'it' for name in names)}; expected a text"
        " encoder's folder"
    )


def _open_tokenizer(root: Path, network_folder: Path, config: TextEncoderConfig) -> Tokenizer:
    # A pipeline's text_encoder_2 goes with its tokenizer_2.
    beside = (
        network_folder.name.replace("text_encoder", "tokenizer")
        if network_folder.name.startswith("text_encoder")
        else "tokenizer"
    )
    folders = (
        [network_folder, root / beside] if config.tokenizer is None else [root / config.tokenizer]
    )
    for folder in folders:
        if any((folder / file).is_file() for file in TOKENIZER_FILES):
            break
    else:
        raise EncoderError(
            f"{' and '.join(map(str, folders))}: no tokenizer there; name its folder in"
            " encoder.with.tokenizer"
        )
    try:
        tokenizer: Any = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
        raise EncoderError(
            f"{folder}: the tokenizer can't be opened: {str(error).strip()[:500]}"
        ) from error
    max_length = config.max_length or int(tokenizer.model_max_length)
    if max_length > UNLIMITED:
        raise EncoderError(
            f"{folder}: the tokenizer has no limit; set encoder.with.max_length, such as 256"
        )
    return Tokenizer(tokenizer, max_length, config.padding == "max_length")


def _open_network(folder: Path, config: TextEncoderConfig, needs_pooled: bool) -> Any:
    try:
        with _quiet():
            described = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
            network, loaded = _network_class(described).from_pretrained(
                folder,
                dtype=getattr(torch, config.dtype),
                output_loading_info=True,
                local_files_only=True,
            )
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise EncoderError(
            f"{folder}: the text encoder can't be opened: {str(error).strip()[:500]}"
        ) from error
    missing = sorted(
        name for name in loaded["missing_keys"] if needs_pooled or not name.startswith("pooler.")
    )
    if missing or loaded["mismatched_keys"]:
        wrong = ", ".join([*missing, *map(str, loaded["mismatched_keys"])][:8])
        raise EncoderError(
            f"{folder}: the weights don't fit; missing or of another shape are {wrong}. Loading it"
            " anyway would give silently wrong results"
        )
    return _text_half(network).eval().requires_grad_(False)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence transformers' progress bars, and its warnings about problems that are errors here."""
    level, has_bar = (
        transformers.logging.get_verbosity(),
        transformers.logging.is_progress_bar_enabled(),
    )
    transformers.logging.set_verbosity(logging.ERROR)
    transformers.logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(level)
        if has_bar:
            transformers.logging.enable_progress_bar()


def _network_class(config: Any) -> Any:
    """Return transformers' class for a config: the architecture in it if that is a text encoder,
    else the class that encodes text.
    """
    named = (getattr(config, "architectures", None) or [""])[0]
    if named in (
        "CLIPTextModel",
        "CLIPTextModelWithProjection",
        *MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES.values(),
    ):
        return getattr(transformers, named)
    if config.model_type in MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES:
        return transformers.AutoModelForTextEncoding
    return transformers.AutoModel


def _text_half(network: Any) -> Any:
    """Return the part of a network that encodes text: usually the whole network, one half of CLIP's
    pair, or the encoder of an encoder-decoder model.
    """
    if getattr(network.config, "is_encoder_decoder", False) and hasattr(network, "decoder"):
        return network.get_encoder()
    return getattr(network, "text_model", network) if hasattr(network, "vision_model") else network
