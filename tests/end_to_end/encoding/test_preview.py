"""The preview of an encoder that can't decode: the samples alone, as they were prepared for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import latentkit as lk
from latentkit.cli.main import main
from latentkit.errors import EncoderError
from latentkit.tasks.preview import preview_dataset

COUNT, SHOWN = 12, 3


@pytest.fixture
def encoded(waves: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Waves of different length, padded, through an encoder without `decode`."""
    monkeypatch.delattr(waves.WaveEncoder, "decode")
    lk.run(
        {
            "task": "encode",
            "source": {"use": "waves", "with": {"count": COUNT}},
            "modality": {"use": "waves"},
            "encoder": {"use": "waves"},
            "output": {"path": str(tmp_path / "out")},
            "batch_size": 3,
            "threads": 1,
            "compile": False,
            "preview": SHOWN,
        }
    )
    return tmp_path / "out"


def shown(path: Path) -> list[Any]:
    with np.load(path) as arrays:
        return [arrays[name] for name in arrays.files]


def test_a_run_shows_the_samples_without_their_padding(waves: Any, encoded: Path) -> None:
    waves_shown = shown(encoded / "preview.npz")
    numbers = [0, 6, 11]  # first, middle and last of the rows: 5 can't be used
    assert len(waves_shown) == len(numbers)
    for array, number in zip(waves_shown, numbers, strict=True):
        np.testing.assert_array_equal(array, waves.wave_of(number)[None])


def test_the_command_says_that_nothing_is_decoded(
    encoded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["preview", str(encoded), str(tmp_path / "look.npz"), "--rows", "2"]) == 0
    assert (
        capsys.readouterr().out
        == f"wrote {tmp_path / 'look.npz'}: only the samples, as the encoder can't decode latents\n"
    )
    assert len(shown(tmp_path / "look.npz")) == 2


def test_without_samples_there_is_nothing_to_show(
    waves: Any, encoded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waves.Waves, "entries", lambda self: iter(()))
    with pytest.raises(EncoderError, match="'waves' can't decode, and none of the samples"):
        preview_dataset(str(encoded), tmp_path / "look.npz", 2)
    assert not (tmp_path / "look.npz").exists()
