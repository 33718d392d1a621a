"""From sound files to latents a trainer reads: real autoencoders with random weights, through
`latentkit.run`.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
import torch
from latentkit_audio.sndfile import SndFile
from PIL import Image

import latentkit as lk
from latentkit.store.local_folder import LocalFolder
from latentkit.upkeep.compare_values import compare_values
from latentkit.upkeep.verify import verify_folder

pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")

RECIPE = """
task: encode
source: {{use: audio-clips, with: {{path: sounds, length: {length}}}}}
modality: {{use: audio, with: {{length: {length}}}}}
encoder: {{use: diffusers, with: {{model: model}}}}
output: {{path: latents, dtype: float32}}
batch_size: 2
preview: 8
"""

ROW = 8816
"""Samples of 0.2 s at 44.1 kHz, as a multiple of 16."""

NOISE = np.random.default_rng(0).integers(-9000, 9000, (22_050, 2), np.int16)


def run(folder: Path, length: float) -> Any:
    """The latent dataset of the sounds in `folder`."""
    (folder / "recipe.yaml").write_text(RECIPE.format(length=length))
    return lk.run(folder / "recipe.yaml")


@dataclass(frozen=True)
class Encoded:
    """A finished run: where, by what model, and what it gave."""

    folder: Path
    model: Any
    latents: Any


@pytest.fixture(scope="module")
def encoded(tmp_path_factory: pytest.TempPathFactory, make_sine: Callable[..., Any]) -> Encoded:
    """Good and bad sounds through a tiny AutoencoderOobleck: 44.1 kHz stereo, 16 samples to a
    latent.
    """
    folder = tmp_path_factory.mktemp("encoded")
    torch.manual_seed(0)
    model = diffusers.AutoencoderOobleck(
        encoder_hidden_size=8,
        downsampling_ratios=[4, 4],
        channel_multiples=[1, 2],
        decoder_channels=8,
        decoder_input_channels=4,
    )
    model.save_pretrained(folder / "model")
    sounds = folder / "sounds"
    sounds.mkdir()
    soundfile.write(sounds / "a.wav", NOISE, 44_100)
    soundfile.write(sounds / "b.ogg", make_sine(1500, 0.2, 8000), 8000)
    soundfile.write(sounds / "empty.wav", np.zeros(0), 44_100)
    soundfile.write(sounds / "many.wav", np.zeros((ROW, 4)), 44_100)
    soundfile.write(sounds / "nan.wav", np.array([0.1, np.nan]), 44_100, "FLOAT")
    (sounds / "text.mp3").write_text("no sound")
    return Encoded(folder, model.eval(), run(folder, 0.2))


def test_evaluations_of_a_training_run_can_be_heard(encoded: Encoded, tmp_path: Path) -> None:
    source = {"use": "audio-clips", "with": {"path": str(encoded.folder / "sounds"), "length": 0.2}}
    lk.run(
        {
            "task": "train",
            "source": source,
            "losses": [{"use": "mse"}],
            "modality": {"use": "audio", "with": {"length": 0.2, "on_short": "skip"}},
            "model": {"use": "diffusers", "with": {"model": str(encoded.folder / "model")}},
            "steps": 1,
            "batch_size": 2,
            "max_bad": 1.0,
            "output": {"path": str(tmp_path / "run")},
            "evaluate": {"source": source, "metrics": [{"use": "kl"}], "batch_size": 1},
        }
    )
    sounds = []
    for step in (0, 1):
        sound, rate = soundfile.read(tmp_path / "run" / "evaluations" / f"{step:08d}.wav")
        assert rate == 44_100
        sounds.append(sound)
    # The first sound is a span of a file that needs no conversion; behind it is its reconstruction.
    np.testing.assert_allclose(sounds[0][:ROW], NOISE[:ROW] / 2**15, atol=1e-3)
    assert not np.array_equal(*sounds), "a step changes reconstructions"


def test_latents_are_those_of_the_sound_itself(encoded: Encoded) -> None:
    """Two full spans and a tail of a file that needs no conversion: equal to calling diffusers on
    its samples; the mask marks the tail.
    """
    latents = encoded.latents
    assert latents.keys == ["a.wav#t=0,0.2", "a.wav#t=0.2,0.4", "a.wav#t=0.4,0.5", "b.ogg#t=0,0.2"]
    for number, (start, stop) in enumerate([(0, 8816), (8820, 17_636), (17_640, 22_050)]):
        waveform = torch.zeros(1, 2, ROW)
        waveform[0, :, : stop - start] = torch.from_numpy(NOISE[start:stop].T / np.float32(32_768))
        with torch.inference_mode():
            expected = encoded.model.encode(waveform).latent_dist.mean[0]
        assert torch.allclose(latents.moments(number)["mean"], expected, rtol=1e-4, atol=1e-5)
    batch = next(iter(latents.batches(4)))
    assert batch["latent"].shape == (4, 4, 551)
    assert batch["latent_mask"].sum(1).tolist() == [551, 551, 276, 551]


def test_what_can_not_be_encoded_is_in_the_ledger_with_its_reason(encoded: Encoded) -> None:
    ledger = pq.read_table(encoded.folder / "latents" / "index").to_pylist()
    assert {row["key"]: row["reason"] for row in ledger if row["status"] != "ok"} == {
        "empty.wav": "a sound of zero length",
        "many.wav#t=0,0.199909": (
            "4 channels; with on_many_channels: mix their mean is used"
        ),
        "nan.wav#t=0,0.000045": "1 of 2 values are nan or infinite",
        "text.mp3": "not an audio file, or damaged: Format not recognised.",
    }


def test_deep_finds_rows_that_a_wrong_seek_made(
    encoded: Encoded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A double whose seeks lead 5 frames on makes wrong rows, and can't hide them: a check decodes
    files from their start.
    """
    (tmp_path / "sounds").mkdir()
    (tmp_path / "model").symlink_to(encoded.folder / "model")
    (tmp_path / "sounds" / "a.wav").symlink_to(encoded.folder / "sounds" / "a.wav")

    def check() -> tuple[str, ...]:
        return tuple(
            finding.part
            for finding in compare_values(verify_folder(LocalFolder(tmp_path / "latents")), seed=0)
        )

    right = SndFile.read
    monkeypatch.setattr(
        SndFile,
        "read",
        lambda self, start, stop, pool: right(self, start + 5 if start else 0, stop + 5, pool),
    )
    run(tmp_path, 0.1)
    assert check() == ("unit",)
    shutil.rmtree(tmp_path / "latents")
    monkeypatch.undo()
    run(tmp_path, 0.1)
    assert check() == ("remark",)


def test_the_preview_is_each_sound_and_what_its_latent_decodes_to(encoded: Encoded) -> None:
    """The noise of the first file sample by sample, the tone of the last by its frequency, their
    decodings, and silence between.
    """
    preview, rate_hz = soundfile.read(encoded.folder / "latents" / "preview.wav", always_2d=True)
    pause, row_pause = 11_025, 33_075
    assert rate_hz == 44_100
    assert np.abs(preview[:ROW] - NOISE[:ROW] / 32_768).max() < 1e-4
    tone = preview[-2 * ROW - pause : -ROW - pause, 0]
    assert np.argmax(np.abs(np.fft.rfft(tone * np.hanning(ROW)))) * rate_hz / ROW == pytest.approx(
        1500, abs=rate_hz / ROW
    )
    means = lk.open(encoded.folder / "latents", posterior="mean")
    decoded = (
        encoded.latents.decode(torch.stack([means[0]["latent"], means[3]["latent"]]))
        .clamp(-1, 1)
        .numpy()
    )
    assert np.abs(preview[ROW + pause : 2 * ROW + pause].T - decoded[0]).max() < 1e-3
    assert np.abs(preview[-ROW:].T - decoded[1]).max() < 1e-3
    assert not preview[2 * ROW + pause : 2 * ROW + pause + row_pause].any()


def test_spectrograms_of_a_mel_autoencoder(make_sine: Callable[..., Any], tmp_path: Path) -> None:
    """AutoencoderKLLTX2Audio: 0.99 s of any file are 97 frames of 64 bins (4k + 1), and those 25
    latents; the preview is a picture.
    """
    torch.manual_seed(0)
    model = diffusers.AutoencoderKLLTX2Audio(
        base_channels=32, output_channels=2, ch_mult=(1, 1, 2), num_res_blocks=1, latent_channels=2
    )
    model.save_pretrained(tmp_path / "model")
    (tmp_path / "sounds").mkdir()
    soundfile.write(tmp_path / "sounds" / "a.mp3", make_sine(1000, 1.5, 44_100), 44_100)
    latents = run(tmp_path, 0.99)
    assert latents[0]["latent"].numel() == 2 * 25 * 16
    assert latents[0]["latent_mask"].all()
    assert latents[1]["latent_mask"].tolist() == sorted(
        latents[1]["latent_mask"].tolist(), reverse=True
    )
    assert not latents[1]["latent_mask"].all()
    with Image.open(tmp_path / "latents" / "preview.png") as picture:
        assert picture.height > 2 * 64


def test_the_command_knows_sounds_by_their_endings(encoded: Encoded, tmp_path: Path) -> None:
    """Whole files, of which the first 10 s are taken: both good ones are shorter, so they are
    padded.
    """
    command = [
        sys.executable,
        "-m",
        "latentkit",
        "encode",
        "sounds",
        str(tmp_path / "out"),
        "--encoder",
        "model",
    ]
    done = subprocess.run(command, cwd=encoded.folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "detected as audio" in done.stderr
    assert "2 latents, 4 skipped" in done.stdout
    assert "1: a sound of zero length" in done.stdout
    data = lk.open(tmp_path / "out")
    assert data.keys == ["a.wav", "b.ogg"]
    assert data[0]["latent_mask"].sum() == -(-22_050 // 16)
