"""From what a recipe calls a model to files on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError

from latentkit.errors import EncoderError


def find_model_path(model: str, revision: str | None, patterns: Sequence[str], recipe_dir: Path) -> Path:
    """The path of a model: what lies there, relative to the recipe's folder, or the files of a hub id, downloaded once.

    Args:
        model: a path, or `owner/name` on the hub.
        revision: branch, tag or commit on the hub; None is its main branch.
        patterns: globs of the files wanted from the hub.
        recipe_dir: folder that relative paths are in.

    Raises:
        EncoderError: nothing is there, or the hub can't be reached.
    """
    path = recipe_dir / Path(model).expanduser()
    if path.exists():
        return path
    if model.startswith((".", "/", "~")):
        raise EncoderError(f"model {model}: there is no such file or folder ({path})")
    try:
        return Path(snapshot_download(model, revision=revision, allow_patterns=list(patterns)))
    except (OSError, HFValidationError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise EncoderError(
            f"model {model}: no such file or folder here, and it can't be had from the hub ({reason}); check the name and the network, "
            "or give the path of a downloaded folder"
        ) from error
