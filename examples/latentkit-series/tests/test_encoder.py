"""The plugin is found, and its encoder keeps the contract."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from latentkit.contracts import BuildContext
from latentkit.errors import EncoderError
from latentkit.plugins import discover
from latentkit.testing import EncoderContract

from latentkit_series.encoder import open_series_kl
from latentkit_series.plugin import SeriesKLConfig, latentkit_encoders

SMALL = SeriesKLConfig(channels=2, width=4)


class TestSeriesKL(EncoderContract):
    spec = latentkit_encoders()

    def make_config(self, tmp_path: Path) -> SeriesKLConfig:
        return SMALL


class TestSavedSeriesKL(EncoderContract):
    """With statistics, from a folder."""

    spec = latentkit_encoders()

    def make_config(self, tmp_path: Path) -> SeriesKLConfig:
        encoder = open_series_kl(SMALL, BuildContext())
        encoder.set_statistics(torch.arange(4.0), torch.tensor([1.0, 2.0, 3.0, 4.0]))
        encoder.save(tmp_path)
        return SeriesKLConfig(model=str(tmp_path))


def test_statistics_are_saved_and_normalize_latents(tmp_path: Path) -> None:
    encoder = open_series_kl(SMALL, BuildContext())
    mean, std = torch.tensor([0.0, 1.0, 2.0, 3.0]), torch.tensor([1.0, 2.0, 4.0, 8.0])
    encoder.set_statistics(mean, std)
    encoder.save(tmp_path)
    again = open_series_kl(SeriesKLConfig(model=str(tmp_path)), BuildContext())
    raw = mean[:, None] + std[:, None] * torch.ones(4, 5)
    assert torch.allclose(again.normalization.apply(raw, "CL"), torch.ones(4, 5))
    assert again.fingerprint() == encoder.fingerprint()


def test_a_folder_of_something_else_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"kind": "other"}')
    with pytest.raises(EncoderError, match="expected a folder that training of series-kl wrote"):
        open_series_kl(SeriesKLConfig(model=str(tmp_path)), BuildContext())


def test_the_installed_plugin_is_found() -> None:
    registry = discover()
    for kind, name in (("modality", "series"), ("encoder", "series-kl")):
        assert registry.find(kind, name).distribution == "latentkit-series"
    assert not [one for one in registry.problems if one.distribution == "latentkit-series"]
