"""What a decoder is given of a row, a batch, moments or indices."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from latentkit.contracts import LatentLayout, Normalization
from latentkit.reading.raw_latents import find_raw_latents

LAYOUT = LatentLayout("latent", "gaussian", "CHW", 3, 8)
FOLDED = Normalization(shift=0.5, scale=2.0, fold={"H": 2})
PLAIN = Normalization(shift=0.5, scale=2.0)


def find(given: Any, normalization: Normalization, takes_moments: bool) -> torch.Tensor:
    raw, is_single = find_raw_latents(given, LAYOUT, normalization, takes_moments)
    return raw[0] if is_single else raw


def test_latents_are_denormalized_and_moments_lose_their_logvar() -> None:
    raw = torch.arange(2 * 3 * 4 * 5.0).reshape(2, 3, 4, 5)
    moments = torch.cat([raw, torch.full_like(raw, -9.0)], dim=1)
    latents = (raw - 0.5) * 2
    for given in (latents, moments, {"latent": latents}, {"moments": moments.half()}):
        assert torch.equal(find(given, PLAIN, True), raw)
    assert torch.equal(find({"mean": raw[0], "logvar": raw[0]}, PLAIN, False), raw[0])
    assert torch.equal(find(latents[1], PLAIN, False), raw[1])
    with pytest.raises(ValueError, match="expected latent of 3 channels, got 6"):
        find(moments, PLAIN, False)


def test_where_a_fold_doubles_the_channels_only_the_caller_knows() -> None:
    raw = torch.arange(3 * 4 * 5.0).reshape(3, 4, 5)
    rows = [raw[channel, place::2] for channel in range(3) for place in range(2)]
    latents = (torch.stack(rows) - 0.5) * 2
    assert torch.equal(find(latents, FOLDED, False), raw)
    moments = torch.cat([raw, raw])
    assert torch.equal(find(moments, FOLDED, True), raw)
    assert torch.equal(find({"moments": moments}, FOLDED, False), raw)


def test_indices_stay_as_they_are() -> None:
    layout = LatentLayout("latent", "quantised", "HW", 1, 2)
    indices = torch.arange(6).reshape(2, 3)
    for given, is_single in ((indices, True), ({"indices": indices[None]}, False)):
        found, single = find_raw_latents(given, layout, Normalization(), False)
        assert torch.equal(found, indices[None])
        assert single is is_single


def test_a_mapping_without_latents_names_what_is_expected() -> None:
    with pytest.raises(ValueError, match=r"with latent, mean, moments or indices, got .* image"):
        find({"key": "a", "image": torch.zeros(3, 4, 5)}, PLAIN, True)
