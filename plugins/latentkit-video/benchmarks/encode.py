"""The whole pipeline beside decoding alone, and beside the bare encoder.

    python benchmarks/encode.py [--clips FOLDER] [--parts free bare] [--rounds 5]

free    an encoder that costs nothing: how near does the pipeline come to what one writes with PyAV
alone (open, seek, decode, reformat,
        crop, to a float tensor), in as many threads as there are cores?
bare    AutoencoderKLWan as released, with random weights: how much is left of the same batches as
ready tensors?

Contenders take turns in every round; ratios are formed inside a round, and the first round is left
out."""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import av
import numpy as np
import torch
from av.video import VideoFrame, VideoStream
from av.video.reformatter import Interpolation, VideoReformatter
from latentkit_video.modality import VideoModality
from latentkit_video.plugin import VideoClipsConfig, VideoConfig
from latentkit_video.source import open_video_clips

from latentkit.contracts import (
    BuildContext,
    Encoder,
    InputSpec,
    LatentLayout,
    Normalization,
    Sample,
    Source,
)
from latentkit.encoding.encode_source import encode_source
from latentkit.encoding.make_plan import EncodeInputs, EncodeSettings
from latentkit.executors.local import LocalExecutor
from latentkit.store.local_folder import LocalFolder

FRAMES, SIZE = 17, 256
WAN_FRAMES, WAN_SIZE = 9, 64


class FreeEncoder:
    """An encoder that does nothing: always the same latents."""

    modality = "video"
    input = InputSpec(3, axes="CTHW")
    layout = LatentLayout("latent", "gaussian", "CTHW", 4, (4, 8, 8))
    normalization = Normalization()
    mean = torch.zeros(64, 4, 5, SIZE // 8, SIZE // 8)

    def encode(self, batch: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"mean": self.mean[: len(batch)], "logvar": self.mean[: len(batch)]}

    def fingerprint(self) -> dict[str, str]:
        return {}


def draw_videos(folder: Path, count: int) -> Path:
    """Videos of 640 x 480 with moving detail and noise, 2 s at 25 frames a second, a key frame each
    second.
    """
    folder.mkdir()
    generator = np.random.default_rng(0)
    rough = generator.integers(0, 256, (30, 60, 3), np.uint8)
    scene = (
        VideoFrame.from_ndarray(rough, "rgb24")
        .reformat(1280, 480, interpolation="BICUBIC")
        .to_ndarray()
        .astype(np.float32)
    )
    for number in range(count):
        with av.open(folder / f"{number:03d}.mp4", "w") as container:
            stream = container.add_stream(
                "libx264", 25, options={"g": "25", "crf": "20", "preset": "veryfast"}
            )
            stream.height, stream.width, stream.pix_fmt = 480, 640, "yuv420p"
            for time_step in range(50):
                shift = (number * 37 + time_step * 5) % 640
                picture = scene[:, shift : shift + 640] + generator.normal(0, 6, (480, 640, 1))
                container.mux(
                    stream.encode(
                        VideoFrame.from_ndarray(picture.clip(0, 255).astype(np.uint8), "rgb24")
                    )
                )
            container.mux(stream.encode())
    return folder


def load_clip(sample: Sample) -> torch.Tensor:
    """(3, T, H, W) as one writes it with PyAV alone: the span's first frames, scaled to cover a
    square, its middle.
    """
    assert sample.span is not None
    reformatter, pictures = VideoReformatter(), []
    with av.open(os.fspath(Path(str(sample.media)))) as container:
        stream: VideoStream = container.streams.video[0]
        stream.thread_type, stream.thread_count = "NONE", 1
        first, tick = stream.start_time or 0, float(stream.time_base or 0)
        container.seek(first + int(sample.span[0] / tick), stream=stream)
        for frame in container.decode(stream):
            if ((frame.pts or 0) - first) * tick < sample.span[0] - 0.01:
                continue
            scale = SIZE / min(frame.height, frame.width)
            height, width = round(frame.height * scale), round(frame.width * scale)
            scaled = reformatter.reformat(
                frame, width, height, "gbrp", interpolation=Interpolation.LANCZOS, threads=1
            )
            top, left = (height - SIZE) // 2, (width - SIZE) // 2
            pictures.append(scaled.to_ndarray()[top : top + SIZE, left : left + SIZE])
            if len(pictures) == FRAMES:
                break
    return torch.from_numpy(np.stack(pictures)).permute(3, 0, 1, 2).float().div_(127.5).sub_(1)


def time_decoding(samples: list[Sample]) -> float:
    """Seconds for all clips, in as many threads as there are cores."""
    begun = time.perf_counter()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(load_clip, samples))
    return time.perf_counter() - begun


def time_pipeline(
    source: Source, encoder: Encoder, config: VideoConfig, output: Path, batch_size: int
) -> float:
    """Seconds from source to closed dataset."""
    modality = VideoModality(config, BuildContext(input=encoder.input))
    inputs = EncodeInputs(
        source, modality, ["plain"], lambda device: encoder, {"encoder.name": "benchmark"}
    )
    settings = EncodeSettings(batch_size=batch_size, unit_size=32, compile=False)
    begun = time.perf_counter()
    encode_source(
        LocalFolder(output), inputs, LocalExecutor("cpu"), "cpu", settings, "", show_progress=False
    )
    return time.perf_counter() - begun


def open_wan(folder: Path) -> Encoder:
    """Wan 2.1's autoencoder with random weights."""
    from diffusers import AutoencoderKLWan

    from latentkit.encoders.diffusers import open_diffusers
    from latentkit.encoders.options import DiffusersConfig

    torch.manual_seed(0)
    AutoencoderKLWan().save_pretrained(folder)
    encoder: Encoder = open_diffusers(
        DiffusersConfig(model=str(folder)), BuildContext(modality="video")
    )
    return encoder


def time_bare_encoder(encoder: Encoder, count: int, batch_size: int) -> float:
    """Seconds for as many clips as ready tensors, results dropped."""
    batch = torch.rand(batch_size, 3, WAN_FRAMES, WAN_SIZE, WAN_SIZE) * 2 - 1
    begun = time.perf_counter()
    for _ in range(count // batch_size):
        encoder.encode(batch)
    return time.perf_counter() - begun


def report(title: str, theirs: list[float], ours: list[float], count: int) -> None:
    """A line: clips per second of both, and the median ratio of ours to theirs in speed."""
    ratios = [their / own for their, own in zip(theirs[1:], ours[1:], strict=True)]
    speeds = (
        f"theirs {count / statistics.median(theirs[1:]):.2f}/s, pipeline"
        f" {count / statistics.median(ours[1:]):.2f}/s"
    )
    print(
        f"{title}: {speeds}, ratio {statistics.median(ratios):.3f} ({min(ratios):.3f} to"
        f" {max(ratios):.3f})",
        flush=True,
    )


def measure_free(videos: Path, scratch: Path, rounds: int) -> None:
    """Part `free`."""
    source = open_video_clips(VideoClipsConfig(path=str(videos), frames=FRAMES), BuildContext())
    samples = [source[number] for number in range(len(source)) if source[number].span is not None]
    limits, ours = [], []
    for number in range(rounds + 1):
        limits.append(time_decoding(samples))
        ours.append(
            time_pipeline(
                source,
                FreeEncoder(),
                VideoConfig(frames=FRAMES, size=SIZE),
                scratch / f"free{number}",
                4,
            )
        )
    report(
        f"free encoder, {len(samples)} clips of {FRAMES} frames to {SIZE} px",
        limits,
        ours,
        len(samples),
    )


def measure_bare(videos: Path, scratch: Path, rounds: int) -> None:
    """Part `bare`: a clip of each video."""
    source = open_video_clips(
        VideoClipsConfig(path=str(videos), frames=WAN_FRAMES, stride=50), BuildContext()
    )
    encoder, config = open_wan(scratch / "wan"), VideoConfig(frames=WAN_FRAMES, size=WAN_SIZE)
    limits, ours = [], []
    for number in range(rounds + 1):
        limits.append(time_bare_encoder(encoder, len(source), 2))
        ours.append(time_pipeline(source, encoder, config, scratch / f"bare{number}", 2))
    report(
        f"bare encoder, AutoencoderKLWan, {len(source)} clips of {WAN_FRAMES} frames of"
        f" {WAN_SIZE} px",
        limits,
        ours,
        len(source),
    )


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument(
        "--clips", type=Path, help="folder of videos (default: drawn ones of 640 x 480)"
    )
    options.add_argument("--parts", nargs="+", default=["free", "bare"], choices=["free", "bare"])
    options.add_argument("--rounds", type=int, default=5)
    given = options.parse_args()
    with tempfile.TemporaryDirectory() as scratch_name:
        scratch = Path(scratch_name)
        videos = given.clips or draw_videos(scratch / "videos", 24)
        if "free" in given.parts:
            measure_free(videos, scratch, given.rounds)
        if "bare" in given.parts:
            measure_bare(videos, scratch, given.rounds)


if __name__ == "__main__":
    main()
