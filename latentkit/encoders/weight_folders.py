"""The files that a model's weights are in: one file, the two halves of TAESD, or what lies in a
folder, in shards and variants.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from latentkit.contracts.samples import Remark
from latentkit.encoders.hub_weights import FILE, STEM, choose_form, forms_of
from latentkit.encoders.hub_weights import find_weights as list_weights
from latentkit.encoders.weight_files import read_all_tensors
from latentkit.errors import EncoderError

SUFFIXES = (".safetensors", ".sft", ".bin", ".ckpt", ".pt", ".pth")
"""Endings by which weights are found in a folder; a file that is named may have any, or none."""

HALVES = re.compile(r"\d+\.")
"""Names in a file of one half of TAESD."""


@dataclass(frozen=True)
class WeightFiles:
    """Files that together hold a model's weights.

    Args:
        variant: that they are of; empty for the plain ones.
        remark: what a user should know of the choice.
    """

    files: tuple[Path, ...]
    variant: str = ""
    remark: Remark | None = None

    def read(self) -> dict[str, Tensor]:
        """Every tensor by its full name.

        Raises:
            EncoderError: a file can't be read, or is something else.
        """
        if len(self.files) == 1:
            return _with_counterpart(self.files[0], read_all_tensors(self.files[0]))
        return {
            name: tensor for file in self.files for name, tensor in read_all_tensors(file).items()
        }


def find_weights(path: Path, variant: str | None) -> WeightFiles:
    """The files of a model.

    Args:
        path: a file, or the folder of a model.
        variant: such as "fp16", of several in a folder; None takes the plain weights, or the only
            variant there is.

    Raises:
        EncoderError: none is there, shards are missing, or there are several and the variant
            doesn't tell which; says what there is.
    """
    if path.is_file():
        return WeightFiles((path,))
    forms = forms_of(list_weights([file.name for file in path.iterdir()]))
    if not forms:
        return WeightFiles((_only_file(path),))
    chosen = choose_form(forms, variant)
    if chosen is None:
        there = ", ".join(sorted({form.variant or "the plain ones" for form in forms}))
        if variant is not None:
            raise EncoderError(
                f"{path}: there is no variant {variant!r} of the weights; there is {there}"
            )
        raise EncoderError(
            f"{path}: the weights are there as {there}: choose by the option variant, such as"
            " variant: fp16"
        )
    name = chosen.variant
    text = f"there are no plain weights in {path.name}: the variant {name} is taken"
    remark = Remark(text) if name and variant is None else None
    return WeightFiles(_whole(path, forms[chosen]), name, remark)


def _whole(folder: Path, names: Sequence[str]) -> tuple[Path, ...]:
    """Return the one file of a form, else its shards."""
    single = [name for name in names if "-of-" not in name]
    parts = FILE.fullmatch(names[0])
    if not single and parts and len(names) != int(parts["parts"]):
        raise EncoderError(
            f"{folder}: {len(names)} of {int(parts['parts'])} parts of the weights are there"
            f" ({', '.join(names)}); get the others too"
        )
    return tuple(folder / name for name in single or names)


def _only_file(folder: Path) -> Path:
    """The one file of weights under another name than diffusers'."""
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
            f"{folder}: there are several files of weights ({names}); name the one that is meant"
        )
    others = [
        file.name
        for file in sorted(folder.iterdir())
        if file.name.lower().endswith((".msgpack", ".index.json", ".onnx", ".gguf"))
    ]
    there = f"; {', '.join(others)} can't be used" if others else ""
    raise EncoderError(
        f"{folder}: there is a config.json but no weights; expected {STEM}.safetensors{there}"
    )


def _counterpart(file: Path) -> Path:
    """Path of the decoder that belongs to a TAESD encoder, or of the encoder to a decoder.

    It is the same path where the name has neither word.
    """
    swap = {"encoder": "decoder", "decoder": "encoder"}
    return file.with_name(re.sub("encoder|decoder", lambda found: swap[found[0]], file.name))


def _with_counterpart(file: Path, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors, and those of the other half where one file of TAESD's two is given; each under
    the name of its half.
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
            f"{file} holds a decoder alone; expected its encoder beside it, {other.name}, or name"
            " that file"
        )
    return {
        f"{half}.{name}": tensor for half, named in halves.items() for name, tensor in named.items()
    }
