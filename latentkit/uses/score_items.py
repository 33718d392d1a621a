"""All scores of a latent dataset, and of the items that set its thresholds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from latentkit.contracts import HasModule
from latentkit.errors import EncoderError, StoreError
from latentkit.uses.calibration import Scores, combine
from latentkit.uses.decoding_scores import DecodingScores, negative_elbo
from latentkit.uses.latent_scores import NormalLatents, score_latents
from latentkit.uses.media_dataset import MediaDataset
from latentkit.uses.raw_rows import RawRows
from latentkit.uses.recipes import COMBINED, ScoreRecipe

CLEAN_HELD_OUT = 5
"""One in so many clean items sets the thresholds; the others define what is usual."""


@dataclass(frozen=True)
class ItemScores:
    """Scores by name.

    Args:
        scores: of each row of the scored dataset, (N,).
        reference: of the rows that set the thresholds.
        scale: standard deviation of the likelihood; None without media.
        num_missing: rows whose media the source doesn't have any more.
    """

    scores: Mapping[str, Scores]
    reference: Mapping[str, Scores]
    scale: float | None
    num_missing: int


def score_items(
    recipe: ScoreRecipe, scored: MediaDataset, clean: MediaDataset | None
) -> ItemScores:
    """Score a dataset, and the held-out part of the clean one (without a clean one: itself).

    Raises:
        StoreError: none of the items is in the source any more.
        EncoderError: the likelihood regret is asked for, and the encoder gives no gradients.
    """
    usual, held_out = split_usual(recipe, scored, clean)
    normal = NormalLatents.fit(usual, recipe.rank)
    scores = score_latents(scored.rows, normal, are_own=clean is None)
    reference = scores if clean is None else score_latents(held_out, normal, are_own=False)
    scale, num_missing = None, 0
    if recipe.from_media:
        found = _decode(recipe, scored, None)
        of_clean = found if clean is None else _decode(recipe, clean, None)
        num_missing = int(np.isnan(found["reconstruction"]).sum())
        scale = recipe.scale or _scale_of(of_clean, usual)
        if recipe.regret_steps:
            found = _decode(recipe, scored, scale)
            of_clean = found if clean is None else _decode(recipe, clean, scale)
        scores |= _select(found, scored.rows, scale)
        if clean is not None:
            reference |= _select(of_clean, held_out, scale)
    if clean is None:
        reference = scores
    return ItemScores(
        {**scores, COMBINED: combine(scores, reference)},
        {**reference, COMBINED: combine(reference, reference)},
        scale,
        num_missing,
    )


def split_usual(
    recipe: ScoreRecipe, scored: MediaDataset, clean: MediaDataset | None
) -> tuple[RawRows, RawRows]:
    """Return the rows that define what is usual, and those that set the thresholds.

    Raises:
        StoreError: too few to set a threshold by.
    """
    usual, held_out = (scored.rows,) * 2 if clean is None else clean.rows.split(CLEAN_HELD_OUT)
    rate = recipe.contamination if clean is None else recipe.false_positive_rate
    if len(held_out) < (least := math.ceil(1 / rate)):
        raise StoreError(
            f"{(clean or scored).where}: {len(held_out)} items to set thresholds by; expected at"
            f" least {least} for a rate of {rate}"
            + (
                ". Raise contamination"
                if clean is None
                else f". One in {CLEAN_HELD_OUT} clean items sets them: name a larger clean"
                " dataset, or raise false_positive_rate"
            )
        )
    return usual, held_out


def _decode(recipe: ScoreRecipe, dataset: MediaDataset, scale: float | None) -> dict[str, Scores]:
    """Return what decoding says of every row; with a scale also the likelihood regret."""
    module = None
    if scale is not None:
        decoder = dataset.media.decoder
        module = decoder.module if isinstance(decoder, HasModule) else None
        if module is None or not hasattr(module, "decode") or not dataset.rows.dataset.has_moments:
            raise EncoderError(
                f"{dataset.where}: regret_steps: the likelihood regret needs stored moments, and an"
                " encoder that can be trained, for gradients. Set regret_steps to 0"
            )
    steps = 0 if scale is None else recipe.regret_steps
    metric = DecodingScores(recipe.draws, recipe.seed, scale, steps, module)
    found = dataset.measure(metric, recipe.batch_size, recipe.seed)
    if np.isnan(found["reconstruction"]).all():
        raise StoreError(
            f"{dataset.where}: none of its items is in the source any more. Set from_media to false"
            " to score its latents alone"
        )
    return found


def _select(found: Mapping[str, Scores], rows: RawRows, scale: float) -> dict[str, Scores]:
    """Return the scores of some rows."""
    of_rows = {name: values[rows.items] for name, values in found.items()}
    scores = {name: of_rows[name] for name in of_rows if name in ("reconstruction", "regret")}
    if "kl" in of_rows:
        scores["negative_elbo"] = negative_elbo(of_rows["mean_square"], of_rows["kl"], scale)
    return scores


def _scale_of(found: Mapping[str, Scores], usual: RawRows) -> float:
    """Return the root mean square error of usual rows."""
    errors = found.get("mean_square", found["reconstruction"])[usual.items]
    return math.sqrt(max(float(np.nanmean(errors)), 1e-12))
