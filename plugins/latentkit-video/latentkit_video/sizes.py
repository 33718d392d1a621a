"""Checks that the encoder accepts clips with the recipe's sizes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from latentkit.contracts import InputSpec, SizeRule
from latentkit.errors import RecipeError
from latentkit.kit import nearest_allowed, target_shapes

if TYPE_CHECKING:
    from latentkit.kit import FramingConfig


def check_sizes(config: FramingConfig, frames: int, spec: InputSpec) -> None:
    """Check that the encoder accepts clips with this number of frames in each of the shapes.

    Raises:
        RecipeError: the encoder doesn't take the size; the message names the nearest sizes.
    """
    _check("modality.with.frames", "a number of frames", frames, spec.sizes.get("T"))
    where = "modality.with.size" if config.buckets is None else "modality.with.buckets"
    for shape in target_shapes(config):
        for axis, name, size in zip("HW", ("a height", "a width"), shape, strict=True):
            _check(where, name, size, spec.sizes.get(axis))


def _check(where: str, name: str, size: int, rule: SizeRule | None) -> None:
    if rule is not None and not rule.allows(size):
        near = " and ".join(str(other) for other in nearest_allowed(size, rule))
        raise RecipeError(
            f"{where}: {size} is not {name} that the encoder accepts: {rule}; nearest: {near}"
        )
