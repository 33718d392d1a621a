"""Which tensors of a checkpoint are a model's, under which names; and what is wrong where none are.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from latentkit.encoders.diffusers_table import find_traits
from latentkit.encoders.original_names import to_own_names
from latentkit.errors import EncoderError

MOST_NAMED = 8
OUTERMOST = "outermost"
"""What names without a prefix are called."""

TRAINERS = re.compile(
    r"(loss|losses|model_ema|discriminator|optimizer|lr_scheduler|global_step|epoch|step)(\.|$)"
)
"""First words of what trainers keep beside a network."""
SCALED = (
    ".scale_weight",
    ".weight_scale",
    ".scale_input",
    ".input_scale",
    ".comfy_quant",
    ".weight_scale_inv",
)
UNUSED = "num_batches_tracked"
"""A counter of batch normalization, which no evaluation uses; some converters leave it out."""


@dataclass(frozen=True)
class Fit:
    """Tensors under one prefix of a checkpoint, and what keeps them from being the weights.

    Args:
        prefix: as in the checkpoint, such as "first_stage_model."; empty for names without one.
        tensors: by the model's names.
        lacks_decoder: everything but the decoder is there.
    """

    prefix: str
    tensors: Mapping[str, Tensor]
    missing: Sequence[str] = ()
    unexpected: Sequence[str] = ()
    misshaped: Sequence[str] = ()
    lacks_decoder: bool = False

    @property
    def is_good(self) -> bool:
        """Whether a model can encode with these."""
        return not (self.missing or self.unexpected or self.misshaped)

    def describe(self) -> str:
        """What is wrong, in one line."""
        kinds = (
            ("missing", self.missing),
            ("unexpected", self.unexpected),
            ("of another shape or kind", self.misshaped),
        )
        return "; ".join(f"{len(names)} {word} ({_some(names)})" for word, names in kinds if names)


def find_fits(tensors: Mapping[str, Tensor], model: Any) -> list[Fit]:
    """The tensors under every prefix that may be the model's, the best first.

    Args:
        tensors: of a checkpoint, by full names.
        model: of diffusers, with or without weights (on the meta device).

    Raises:
        EncoderError: the weights are scaled fp8 ones.
    """
    own = model.state_dict()
    fits: list[Fit] = []
    for prefix, named in _networks(tensors, own):
        within = tuple(  # whole networks of their own, such as averages beside what is averaged
            fit.prefix.removeprefix(prefix)
            for fit in fits
            if fit.is_good and fit.prefix != prefix and fit.prefix.startswith(prefix)
        )
        rest = {name: tensor for name, tensor in named.items() if not name.startswith(within)}
        fits.append(_fit(prefix, rest, own, model))
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
    """The one fit that is meant.

    Args:
        path: of the checkpoint, for messages.
        variant: the prefix or a word of it, where several are good; "outermost" for names without
            one.

    Raises:
        EncoderError: none is good, or several are and the variant doesn't tell which.
    """
    if not fits[0].is_good:
        refuse_scaled(path, fits[0].unexpected)
        raise EncoderError(
            f"{path}: the weights don't fit the model: keys {fits[0].describe()}. It would run, and"
            " be wrong"
        )
    meant = _find_meant(fits, variant)
    if len(meant) == 1:
        return meant[0]
    names = ", ".join(map(_name_of, fits))
    if len(fits) == 1:
        raise EncoderError(
            f"{path}: there are no weights {variant!r} in it, only one model ({names}); leave out"
            " variant"
        )
    word = _name_of(fits[0]).split(".")[-1]
    word = word if len(_find_meant(fits, word)) == 1 else _name_of(fits[0])
    advice = f"Choose one by the option variant, such as --set encoder.with.variant={word}"
    raise EncoderError(
        f"{path} holds the weights of {len(fits)} such models, under {names}. {advice}"
    )


def _name_of(fit: Fit) -> str:
    return fit.prefix.rstrip(".") or OUTERMOST


def _find_meant(fits: Sequence[Fit], variant: str | None) -> list[Fit]:
    """Return the fits of which a variant is the whole name, else a word of it."""
    if variant is None:
        return list(fits)
    named = [fit for fit in fits if variant == _name_of(fit)]
    return named or [fit for fit in fits if variant in _name_of(fit).split(".")]


def refuse_scaled(path: Path, names: Iterable[str]) -> None:
    """Nothing, unless weights have scales beside them.

    Raises:
        EncoderError: they have: their values alone are wrong.
    """
    scaled = next(
        (name for name in names if name.endswith(SCALED) or name.split(".")[-1] == "scaled_fp8"),
        None,
    )
    if scaled:
        raise EncoderError(
            f"{path}: its weights are quantized, with scales beside them ({scaled}); get the file"
            " in full or half precision"
        )


def _networks(
    tensors: Mapping[str, Tensor], own: Mapping[str, Tensor]
) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Prefixes and what is under them, without the prefix; the longest first."""
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
    ):  # an encoder saved by itself
        yield "", {f"encoder.{name}": tensor for name, tensor in tensors.items()}


def _fit(prefix: str, named: Mapping[str, Tensor], own: Mapping[str, Tensor], model: Any) -> Fit:
    converted = to_own_names(named, dict(model.config))
    model._fix_state_dict_keys_on_load(converted)  # diffusers' names of before
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
    return own.shape == given.shape and own.is_floating_point() == given.is_floating_point()


def _some(names: Sequence[str]) -> str:
    return ", ".join(sorted(names)[:MOST_NAMED]) + (", ..." if len(names) > MOST_NAMED else "")
