"""New latents from few labeled items: draws of their posteriors, mixtures of two items of a class,
and samples of a distribution fitted to a class.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from latentkit.errors import StoreError
from latentkit.uses.raw_rows import RawRows, content_of
from latentkit.uses.recipes import NewItemKeys
from latentkit.uses.samplers import Sampler

if TYPE_CHECKING:
    from latentkit.reading.dataset import LatentDataset

MIXED = (0.25, 0.75)
"""Share of the first of two items in a mixture: nearer to one of them it would be a copy."""


@dataclass(frozen=True)
class NewItem:
    """A latent that no item has.

    Args:
        latent: (C, ...) raw.
        method: "draw", "interpolation" or "sample".
        source_keys: keys of the items it was made of; empty for a sample, of all of its class.
        share: of the first item in an interpolation.
    """

    latent: Tensor
    label: Any
    method: str
    source_keys: Sequence[str] = ()
    share: float | None = None

    def describe(self) -> dict[str, Any]:
        """Return what is known of it, without the latent."""
        known: dict[str, Any] = {"method": self.method, "source_keys": list(self.source_keys)}
        return {**known, "share": self.share}


def check_posteriors(rows: RawRows, recipe: NewItemKeys) -> None:
    """Check that there are posteriors to draw from, if the recipe draws.

    Raises:
        StoreError: none are stored.
    """
    if recipe.draws and not rows.dataset.has_moments:
        raise StoreError(
            f"{rows.dataset.folder}: draws: it has no stored moments to draw from. Set draws to 0,"
            " or encode with output.store: moments"
        )


def check_no_test_items(rows: RawRows, test: LatentDataset) -> None:
    """Check that no item of a test dataset is among the rows, by its media.

    Raises:
        StoreError: some are.
    """
    names = rows.dataset.keys
    used = content_of(rows.dataset, {names[item] for item in rows.items.tolist()})
    if shared := len(used & content_of(test)):
        raise StoreError(
            f"{rows.dataset.folder}: {shared} items are in the test dataset {test.folder} too"
            " (equal media); expected none, as new items made of them would make the test"
            " meaningless"
        )


def make_items(
    classes: Mapping[Any, RawRows], samplers: Mapping[Any, Sampler], recipe: NewItemKeys
) -> Iterator[NewItem]:
    """Yield the new items of each item, class by class. They depend on the seed, the keys and the
    items of the class alone.

    Args:
        classes: rows by label.
        samplers: fitted to each class; not used without `samples`.
    """
    for label, rows in classes.items():
        yield from _draw(rows, label, recipe)
        yield from _interpolate(rows, label, recipe)
        count = len(rows) * recipe.samples
        if count:
            generator = _generator(recipe.seed, "sample", str(label))
            for latent in samplers[label].draw(count, generator):
                yield NewItem(latent, label, "sample")


def _draw(rows: RawRows, label: Any, recipe: NewItemKeys) -> Iterator[NewItem]:
    """Yield draws of each item's posterior."""
    keys = rows.dataset.keys
    for items in rows.item_batches() if recipe.draws else ():
        mean, logvar = rows.moments(items)
        assert logvar is not None
        for item, one, spread in zip(items.tolist(), mean, (logvar / 2).exp(), strict=True):
            generator = _generator(recipe.seed, "draw", keys[item])
            noise = torch.randn((recipe.draws, *one.shape), generator=generator)
            for drawn in one + spread * noise:
                yield NewItem(drawn, label, "draw", [keys[item]])


def _interpolate(rows: RawRows, label: Any, recipe: NewItemKeys) -> Iterator[NewItem]:
    """Yield mixtures of each item with others of its class."""
    means, keys = replace(rows, draws=False), rows.dataset.keys
    for place, item in enumerate(rows.items.tolist() if recipe.interpolations else []):
        generator = _generator(recipe.seed, "interpolation", keys[item])
        steps = torch.randint(1, len(rows), (recipe.interpolations,), generator=generator)
        shares = torch.empty(recipe.interpolations).uniform_(*MIXED, generator=generator)
        others = rows.items[(place + steps.numpy()) % len(rows)]
        (own, _), (partners, _) = (
            means.moments(rows.items[place : place + 1]),
            means.moments(others),
        )
        for other, partner, share in zip(others.tolist(), partners, shares.tolist(), strict=True):
            latent = share * own[0] + (1 - share) * partner
            yield NewItem(latent, label, "interpolation", [keys[item], keys[other]], share)


def _generator(seed: int, *words: str) -> torch.Generator:
    """Return a generator that is seeded by words, so that one item's draws don't depend on the
    others'.
    """
    digest = hashlib.sha256("\n".join([str(seed), *words]).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") % 2**63)
