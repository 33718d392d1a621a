"""Finds the tensors of a checkpoint that fit a model, under any prefix, and explains what is wrong
if none do.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from latentkit.encoders.diffusers_table import find_traits
from latentkit.encoders.original_names import to_diffusers_names
from latentkit.errors import EncoderError

MAX_NAMES_SHOWN = 8
OUTERMOST = "outermost"
"""What messages call names without a prefix."""

TRAINERS = re.compile(
    r"(loss|losses|model_ema|discriminator|optimizer|lr_scheduler|global_step|epoch|step)(\.|$)"
)
"""First words of what trainers store in addition to a network."""
SCALED = (
    ".scale_weight",
    ".weight_scale",
    ".scale_input",
    ".input_scale",
    ".comfy_quant",
    ".weight_scale_inv",
)
UNUSED = "num_batches_tracked"
"""A counter of batch normalization, unused in evaluation. Some converters leave it out."""


@dataclass(frozen=True)
class Fit:
    """The tensors under one prefix of a checkpoint, by the model's names, and what is wrong with
    them as its weights.

    Args:
        prefix: prefix in the checkpoint, such as "first_stage_model."; empty for names without one.
        tensors: tensors by the model's names.
        missing, unexpected, misshaped: names of tensors that don't fit.
        lacks_decoder: whether only the decoder is missing.
    """

    prefix: str
    tensors: Mapping[str, Tensor]
    missing: Sequence[str] = ()
    unexpected: Sequence[str] = ()
    misshaped: Sequence[str] = ()
    lacks_decoder: bool = False

    @property
    def is_good(self) -> bool:
        """Return whether a model can encode with these tensors."""
        return not (self.missing or self.unexpected or self.misshaped)

    def describe(self) -> str:
        """Return what is wrong, in one line."""
        kinds = (
            ("missing", self.missing),
            ("unexpected", self.unexpected),
            ("of another shape or kind", self.misshaped),
        )
        return "; ".join(
            f"{len(names)} {word} ({_list_some(names)})" for word, names in kinds if names
        )


def find_fits(tensors: Mapping[str, Tensor], model: Any) -> list[Fit]:
    """Match the tensors under every prefix to the model, and return the best match first.

    Args:
        tensors: all tensors of a checkpoint, by full names.
        model: a diffusers model, with or without weights (on the meta device).

    Raises:
        EncoderError: the weights are fp8 with scales.
    """
    own = model.state_dict()
    fits: list[Fit] = []
    for prefix, named in _split_by_prefix(tensors, own):
        within = tuple(  # separate networks, such as averaged weights
            fit.prefix.removeprefix(prefix)
            for fit in fits
            if fit.is_good and fit.prefix != prefix and fit.prefix.startswith(prefix)
        )
        rest = {name: tensor for name, tensor in named.items() if not name.startswith(within)}
        fits.append(_fit_under_prefix(prefix, rest, own, model))
    fits.sort(
        key=lambda fit: (
            len(fit.missing) + len(fit.unexpected) + len(fit.misshaped) + fit.lacks_decoder,
            fit.prefix,
        )
    )
    good: dict[Any, Fit] = {}
    for fit in fits:
        if fit.is_good and fit.lacks_decoder == fits[0].lacks_decoder:
            good.setdefault(
                frozenset((name, tensor.data_ptr()) for name, tensor in fit.tensors.items()), fit
            )
    return list(good.values()) or fits


def choose_fit(path: Path, fits: Sequence[Fit], variant: str | None) -> Fit:
    """Return the one fit that the recipe means.

    Args:
        path: path of the checkpoint, for messages.
        fits: result of `find_fits`.
        variant: the prefix or a word of it, if several fits are good; "outermost" means names
            without a prefix.

    Raises:
        EncoderError: no fit is good, or several are and the variant doesn't decide.
    """
    if not fits[0].is_good:
        refuse_fp8_scales(path, fits[0].unexpected)
        raise EncoderError(
            f"{path}: the weights don't fit the model: keys {fits[0].describe()}. They"
            " would load, and give wrong results. Check that weights and config belong together"
        )
    meant = _fits_named(fits, variant)
    if len(meant) == 1:
        return meant[0]
    names = ", ".join(map(_name_of, fits))
    if len(fits) == 1:
        raise EncoderError(
            f"{path}: it contains no weights {variant!r}, only one model ({names}). Leave out the"
            " option variant"
        )
    word = _name_of(fits[0]).split(".")[-1]
    word = word if len(_fits_named(fits, word)) == 1 else _name_of(fits[0])
    advice = f"Choose one by the option variant, such as --set encoder.with.variant={word}"
    raise EncoderError(
        f"{path} contains the weights of {len(fits)} such models, under {names}. {advice}"
    )


def _name_of(fit: Fit) -> str:
    """Return the fit's prefix as messages and the option variant name it."""
    return fit.prefix.rstrip(".") or OUTERMOST


def _fits_named(fits: Sequence[Fit], variant: str | None) -> list[Fit]:
    """Return the fits whose whole name is the variant, or else those that have it as a word of
    their name.
    """
    if variant is None:
        return list(fits)
    named = [fit for fit in fits if variant == _name_of(fit)]
    return named or [fit for fit in fits if variant in _name_of(fit).split(".")]


def refuse_fp8_scales(path: Path, names: Iterable[str]) -> None:
    """Refuse quantized weights that are stored with separate scales, because their values alone are
    wrong.

    Raises:
        EncoderError: a name belongs to such a scale.
    """
    scaled = next(
        (name for name in names if name.endswith(SCALED) or name.split(".")[-1] == "scaled_fp8"),
        None,
    )
    if scaled:
        raise EncoderError(
            f"{path}: its weights are quantized and have separate scales ({scaled}). Get the file"
            " in full or half precision"
        )


def _split_by_prefix(
    tensors: Mapping[str, Tensor], own: Mapping[str, Tensor]
) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Yield each prefix and the tensors under it, without the prefix. The longest prefix is
    first.
    """
    first = next((name for name in own if name.startswith("encoder.")), next(iter(own)))
    prefixes = {""}
    for name in tensors:
        found = re.match(r"((?:.*?\.)?)encoder\.", name)
        if found:
            prefixes.add(found[1])
        if name.endswith(f".{first}"):
            prefixes.add(name.removesuffix(first))
    for prefix in sorted(prefixes, key=lambda one: (-len(one), one)):
        yield (
            prefix,
            {
                name.removeprefix(prefix): tensor
                for name, tensor in tensors.items()
                if name.startswith(prefix)
            },
        )
    if prefixes == {""} and not any(
        name.startswith("encoder.") for name in tensors
    ):  # an encoder that was saved alone
        yield "", {f"encoder.{name}": tensor for name, tensor in tensors.items()}


def _fit_under_prefix(
    prefix: str, named: Mapping[str, Tensor], own: Mapping[str, Tensor], model: Any
) -> Fit:
    """Convert the names under one prefix to the model's (`own`), and compare them with its
    tensors.
    """
    converted = to_diffusers_names(named, dict(model.config))
    model._fix_state_dict_keys_on_load(converted)  # older names of diffusers
    ignored = model._keys_to_ignore_on_load_unexpected or ()
    missing = [name for name in own if name not in converted and not name.endswith(UNUSED)]
    unexpected = [
        name
        for name in converted
        if name not in own
        and not TRAINERS.match(name)
        and not any(re.search(pattern, name) for pattern in ignored)
    ]
    misshaped = [
        name for name in own if name in converted and not _is_alike(own[name], converted[name])
    ]
    decoder = find_traits(type(model).__name__, model.config)[0].decoder
    decoding = [name for name in own if name.split(".")[0] in decoder and not name.endswith(UNUSED)]
    lacks_decoder = bool(decoding) and set(decoding) <= set(missing)
    if lacks_decoder:
        missing = [name for name in missing if name not in decoding]
    return Fit(
        prefix,
        {name: converted[name] for name in own if name in converted},
        missing,
        unexpected,
        misshaped,
        lacks_decoder,
    )


def _is_alike(own: Tensor, given: Tensor) -> bool:
    """Return whether two tensors have the same shape and are both floating point, or both not."""
    return own.shape == given.shape and own.is_floating_point() == given.is_floating_point()


def _list_some(names: Sequence[str]) -> str:
    """Return the first names, sorted, for a message."""
    return ", ".join(sorted(names)[:MAX_NAMES_SHOWN]) + (
        ", ..." if len(names) > MAX_NAMES_SHOWN else ""
    )
