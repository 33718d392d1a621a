"""The whole pipeline beside decoding and resampling alone, and beside the bare encoder.

    python benchmarks/encode.py [--parts free spans bare] [--files 4000] [--rounds 5]

free    an encoder that costs nothing: how near does the pipeline come to soundfile and soxr on the
same files in as many threads as there
        are cores? 10 s of stereo, FLAC as it is and mp3 to 48 kHz; read, and the whole of them held
        only as long as it takes. Beside that the same with what a trainer's own loop would have to
        do on top: the media's hash, and batches of (rows, channels, samples).
spans   the same for one long FLAC file, a tenth as long as all the others together, cut into spans
of 10 s: the limit seeks and reads
        the spans.
bare    an Oobleck-shaped autoencoder with random weights: how much is left of the same batches as
ready tensors?

Contenders take turns in every round; ratios are formed inside a round, of the clock and of the
processor time of all threads."""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import diffusers
import numpy as np
import soundfile
import soxr
import torch
from latentkit_audio.clips import open_audio_clips
from latentkit_audio.modality import QUALITY, AudioModality
from latentkit_audio.plugin import AudioClipsConfig, AudioConfig

from latentkit.contracts import (
    BuildContext,
    Encoder,
    InputSpec,
    LatentLayout,
    Normalization,
    SizeRule,
    Source,
)
from latentkit.encoders.diffusers import open_diffusers
from latentkit.encoders.options import DiffusersConfig
from latentkit.encoding.encode_source import encode_source
from latentkit.encoding.make_plan import EncodeInputs, EncodeSettings
from latentkit.executors.local import LocalExecutor
from latentkit.store.local_folder import LocalFolder

RATE_HZ = 44_100
SECONDS = 10.0
HOP = 2048
DRAWN = 16
PARTS = ["free", "spans", "bare"]

Times = tuple[float, float]
"""Seconds of the clock and of the processors."""


class FreeEncoder:
    """An encoder that does nothing."""

    modality = "audio"
    layout = LatentLayout("latent", "gaussian", "CL", 64, HOP)
    normalization = Normalization()

    def __init__(self, rate_hz: int) -> None:
        self.input = InputSpec(
            2, sizes={"L": SizeRule(HOP, minimum=HOP)}, sample_rate_hz=rate_hz, axes="CL"
        )

    def encode(self, batch: torch.Tensor) -> dict[str, torch.Tensor]:
        mean = torch.zeros(len(batch), 64, batch.shape[2] // HOP)
        return {"mean": mean, "logvar": mean}

    def fingerprint(self) -> dict[str, str]:
        return {}


def draw_sounds(folder: Path, suffix: str, count: int, seconds: float = SECONDS) -> Path:
    """Stereo files of gliding tones and noise; some of them under many names."""
    generator = np.random.default_rng(0)
    folder.mkdir()
    clock = np.arange(round(seconds * RATE_HZ)) / RATE_HZ
    for number in range(DRAWN, count):
        (folder / f"{number:04d}{suffix}").symlink_to(folder / f"{number % DRAWN:04d}{suffix}")
    for number in range(min(count, DRAWN)):
        tones = [
            0.3 * np.sin(2 * np.pi * (200 + 10 * number + 40 * channel) * clock * (1 + clock / 50))
            for channel in (1, 2)
        ]
        noise = generator.normal(0, 0.02, (len(clock), 2))
        soundfile.write(folder / f"{number:04d}{suffix}", np.stack(tones, axis=1) + noise, RATE_HZ)
    return folder


def timed(work: Callable[[], object]) -> Times:
    """What some work took."""
    clock, processors = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - clock, time.process_time() - processors


def run_pipeline(source: Source, encoder: Encoder, output: Path, batch_size: int) -> None:
    """From source to closed dataset."""
    modality = AudioModality(AudioConfig(length=SECONDS), BuildContext(input=encoder.input))
    inputs = EncodeInputs(
        source, modality, ["plain"], lambda device: encoder, {"encoder.name": "benchmark"}
    )
    settings = EncodeSettings(batch_size=batch_size, unit_size=512, compile=False)
    encode_source(
        LocalFolder(output), inputs, LocalExecutor("cpu"), "cpu", settings, "", show_progress=False
    )


def run_decoding(source: Source, rate_hz: int, batch_size: int = 0) -> None:
    """Read and resample all samples in as many threads as there are cores, and no more; with a
    batch size, hash and batch them too.
    """
    length = round(SECONDS * rate_hz)
    batches = [np.zeros((batch_size, 2, length), np.float32) for _ in range(2)]

    def decode(index: int) -> None:
        sample = source[index]
        if batch_size:
            sample.content()
        start, stop = (
            (0, None)
            if sample.span is None
            else (round(second * RATE_HZ) for second in sample.span)
        )
        frames, found_hz = soundfile.read(
            sample.media, start=start, stop=stop, dtype="float32", always_2d=True
        )
        if found_hz != rate_hz:
            frames = soxr.resample(frames, found_hz, rate_hz, quality=QUALITY)
        if batch_size:
            batches[index // batch_size % 2][index % batch_size, :, : len(frames)] = frames[
                :length
            ].T

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(decode, range(len(source))))


def run_encoder(encoder: Encoder, count: int, batch_size: int) -> None:
    """The same batches as ready tensors, results dropped."""
    batch = torch.rand(batch_size, 2, round(SECONDS * RATE_HZ) // HOP * HOP) * 2 - 1
    for _ in range(count // batch_size):
        encoder.encode(batch)


def compare(
    title: str,
    limits: dict[str, Callable[[], object]],
    ours: Callable[[int], object],
    count: int,
    rounds: int,
) -> None:
    """A line per limit: rows per second of both, and the median ratio of ours to the limit in
    speed; one round more warms up.
    """
    taken: dict[str, list[tuple[Times, Times]]] = {name: [] for name in limits}
    for number in range(rounds + 1):
        limits_took = {name: timed(limit) for name, limit in limits.items()}
        own = timed(lambda: ours(number))  # noqa: B023 (called at once)
        for name, took in limits_took.items():
            taken[name].append((took, own))
    for name, (_, *pairs) in taken.items():
        clock, processors = ([limit[kind] / own[kind] for limit, own in pairs] for kind in (0, 1))
        speeds = [count / statistics.median(pair[kind][0] for pair in pairs) for kind in (0, 1)]
        spread = f"{statistics.median(clock):.3f} ({min(clock):.3f} to {max(clock):.3f})"
        ratios = f"ratio {spread}, by processor time {statistics.median(processors):.3f}"
        print(
            f"{title}: {name} {speeds[0]:.1f}/s, pipeline {speeds[1]:.1f}/s, {ratios}", flush=True
        )


def save_oobleck(folder: Path) -> Path:
    """Stable Audio's architecture at an eighth of its width, with random weights."""
    torch.manual_seed(0)
    model = diffusers.AutoencoderOobleck(
        encoder_hidden_size=16, decoder_channels=16, decoder_input_channels=8
    )
    model.save_pretrained(folder)
    return folder


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--parts", nargs="+", default=PARTS, choices=PARTS)
    options.add_argument("--files", type=int, default=4000)
    options.add_argument("--rows", type=int, default=12, help="for the Oobleck-shaped encoder")
    options.add_argument("--rounds", type=int, default=5)
    given = options.parse_args()
    with tempfile.TemporaryDirectory() as scratch_name:
        scratch = Path(scratch_name)

        def open_clips(folder: Path, length: float | None = None) -> Source:
            return open_audio_clips(
                AudioClipsConfig(path=str(folder), length=length), BuildContext()
            )

        def measure(title: str, source: Source, rate_hz: int) -> None:
            free = FreeEncoder(rate_hz)
            outputs = scratch / f"out-{title.split(',')[0].replace(' ', '-')}"
            compare(
                f"free encoder, {title}, {len(source)} rows of {SECONDS:g} s",
                {
                    "decoding": lambda: run_decoding(source, rate_hz),
                    "with hash and batches": lambda: run_decoding(source, rate_hz, 16),
                },
                lambda number: run_pipeline(source, free, outputs / str(number), 16),
                len(source),
                given.rounds,
            )

        if "free" in given.parts:
            measure(
                "FLAC, 44.1 kHz",
                open_clips(draw_sounds(scratch / "flac", ".flac", given.files)),
                44_100,
            )
            measure(
                "mp3, 44.1 to 48 kHz",
                open_clips(draw_sounds(scratch / "mp3", ".mp3", given.files)),
                48_000,
            )
        if "spans" in given.parts:
            long = draw_sounds(scratch / "long", ".flac", 1, SECONDS * given.files / 10)
            measure("long FLAC, spans", open_clips(long, SECONDS), 44_100)
        if "bare" in given.parts:
            sounds = open_clips(draw_sounds(scratch / "few", ".flac", given.rows))
            config = DiffusersConfig(model=str(save_oobleck(scratch / "oobleck")))
            encoder = open_diffusers(config, BuildContext(modality="audio"))
            compare(
                f"bare encoder, Oobleck-shaped, float32, batch 2, {torch.get_num_threads()}"
                " threads",
                {"encoder": lambda: run_encoder(encoder, given.rows, 2)},
                lambda number: run_pipeline(sounds, encoder, scratch / "bare" / str(number), 2),
                given.rows,
                given.rounds,
            )


if __name__ == "__main__":
    main()
