"""Finds the files that contain a model's weights: one file, the two halves of TAESD, or files in a
folder, which may be shards or variants.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from latentkit.contracts.samples import Remark
from latentkit.encoders.hub_weights import FILE, STEM, choose_form, group_by_form
from latentkit.encoders.hub_weights import find_weights as list_weights
from latentkit.encoders.weight_files import read_all_tensors
from latentkit.errors import EncoderError

SUFFIXES = (".safetensors", ".sft", ".bin", ".ckpt", ".pt", ".pth")
"""Endings of weights files in a folder. A file that the recipe names may have any ending, or
none.
"""

HALVES = re.compile(r"\d+\.")
"""Names in a file with one half of TAESD."""


@dataclass(frozen=True)
class WeightFiles:
    """Files that together contain a model's weights.

    Args:
        files: one file, or the shards.
        variant: variant of the files; empty for the plain ones.
        remark: what a user should know about the choice.
    """

    files: tuple[Path, ...]
    variant: str = ""
    remark: Remark | None = None

    def read(self) -> dict[str, Tensor]:
        """Return every tensor by its full name.

        Raises:
            EncoderError: a file can't be read or contains no weights.
        """
        if len(self.files) == 1:
            return _add_other_half(self.files[0], read_all_tensors(self.files[0]))
        return {
            name: tensor for file in self.files for name, tensor in read_all_tensors(file).items()
        }


def find_weights(path: Path, variant: str | None) -> WeightFiles:
    """Find the weight files of a model.

    Args:
        path: a file, or the model's folder.
        variant: which of several in a folder, such as "fp16"; None takes the plain weights, or the
            only variant there is.

    Raises:
        EncoderError: there are no weights, shards are missing, or there are several variants and
            the option doesn't decide; the message lists them.
    """
    if path.is_file():
        return WeightFiles((path,))
    forms = group_by_form(list_weights([file.name for file in path.iterdir()]))
    if not forms:
        return WeightFiles((_only_file(path),))
    chosen = choose_form(forms, variant)
    if chosen is None:
        there = ", ".join(sorted({form.variant or "the plain ones" for form in forms}))
        if variant is not None:
            raise EncoderError(
                f"{path}: there are no weights of variant {variant!r}; available: {there}"
            )
        raise EncoderError(
            f"{path}: there are several weights: {there}. Choose one with the option variant, such"
            " as variant: fp16"
        )
    name = chosen.variant
    text = f"{path.name} contains no plain weights, so the variant {name} is used"
    remark = Remark(text) if name and variant is None else None
    return WeightFiles(_files_of_form(path, forms[chosen]), name, remark)


def _files_of_form(folder: Path, names: Sequence[str]) -> tuple[Path, ...]:
    """Return the single file of a form, or else its shards."""
    single = [name for name in names if "-of-" not in name]
    parts = FILE.fullmatch(names[0])
    if not single and parts and len(names) != int(parts["parts"]):
        raise EncoderError(
            f"{folder}: {len(names)} of {int(parts['parts'])} parts of the weights are there"
            f" ({', '.join(names)}). Get the others too"
        )
    return tuple(folder / name for name in single or names)


def _only_file(folder: Path) -> Path:
    """Return the only weights file whose name isn't diffusers'."""
    files = sorted(
        file for file in folder.iterdir() if file.is_file() and file.name.lower().endswith(SUFFIXES)
    )
    if len(files) == 1:
        return files[0]
    encoders = [file for file in files if "encoder" in file.stem and _counterpart(file) in files]
    if len(files) == 2 and encoders:
        return encoders[0]
    if files:
        names = ", ".join(file.name for file in files[:8])
        raise EncoderError(
            f"{folder}: there are several weights files ({names}). Name the one to use"
        )
    others = [
        file.name
        for file in sorted(folder.iterdir())
        if file.name.lower().endswith((".msgpack", ".index.json", ".onnx", ".gguf"))
    ]
    there = f"; {', '.join(others)} can't be used" if others else ""
    raise EncoderError(
        f"{folder} contains a config.json but no weights; expected {STEM}.safetensors{there}"
    )


def _counterpart(file: Path) -> Path:
    """Return the path of the decoder that belongs to a TAESD encoder, or of the encoder that
    belongs to a decoder.

    A name that contains neither word gives the same path.
    """
    swap = {"encoder": "decoder", "decoder": "encoder"}
    return file.with_name(re.sub("encoder|decoder", lambda found: swap[found[0]], file.name))


def _add_other_half(file: Path, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """If the file is one of TAESD's two, read the other half too. Return the tensors, each under
    the name of its half.

    Raises:
        EncoderError: the file is the decoder, and the encoder is missing.
    """
    if not all(HALVES.match(name) for name in tensors):
        return tensors
    is_encoder = any(name.startswith("0.") for name in tensors)
    other = _counterpart(file)
    halves = {"encoder" if is_encoder else "decoder": tensors}
    if other != file and other.is_file():
        halves["decoder" if is_encoder else "encoder"] = read_all_tensors(other)
    if "encoder" not in halves:
        raise EncoderError(
            f"{file} contains only a decoder. Put its encoder {other.name} into the same folder,"
            " or name that file"
        )
    return {
        f"{half}.{name}": tensor for half, named in halves.items() for name, tensor in named.items()
    }
