"""Encoding: the whole pipeline beside the bare encoder, beside decoding alone, and beside the loops
that people write today.

    python tests/benchmarks/encode.py [--photos FOLDER] [--parts free resize sleep bare loops]
        [--images 24] [--rounds 3]

free    an encoder that costs nothing: how near does the pipeline come to decoding and resizing the
        same JPEGs in as many threads as there are cores?
resize  the same encoder that costs nothing: how much quicker are the other ways of the option
        `resize` than Pillow's, of the photographs and of some enlarged to 12 megapixels? And how
        near does `lanczos`, the way of a new dataset, come to the same calls alone in as many
        threads as there are cores? In seconds on the clock and of processor time.
sleep   an encoder that sleeps as long as decoding takes: do the two overlap?
bare    SD-sized AutoencoderKL with random weights at 256 px: how much is left of the same batches
        as ready tensors?
loops   the same model beside a loop over a torch DataLoader (2 workers, float32, contiguous, a file
        per batch), and beside one picture at a time; ours in float32 and in bfloat16, with the
        batch size that `auto` finds.

Contenders take turns in every round; ratios are formed inside a round.
"""

from __future__ import annotations

import argparse
import io
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import diffusers
import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from latentkit.contracts import BuildContext, Encoder, InputSpec, LatentLayout, Normalization
from latentkit.encoders.diffusers import DiffusersEncoder
from latentkit.encoding.auto_sizes import measure_batches
from latentkit.encoding.encode_source import encode_source
from latentkit.encoding.make_plan import EncodeInputs, EncodeSettings
from latentkit.executors.local import LocalExecutor
from latentkit.modalities.decode_image import decode_levels
from latentkit.modalities.geometry import crop_box
from latentkit.modalities.image import ImageModality
from latentkit.modalities.lanczos import resize_levels
from latentkit.modalities.options import ImageConfig
from latentkit.runtime.buffers import BufferPool
from latentkit.sources.folder import FolderSource
from latentkit.sources.options import FolderConfig
from latentkit.store.local_folder import LocalFolder

SIZE = 256
PARTS = ["free", "resize", "sleep", "bare", "loops"]
MEMORY = BufferPool(pinned=False)
WAYS = ["pillow", "lanczos", "draft"]


class FreeEncoder:
    """An encoder that only sleeps, not at all if so asked: 16 KiB a row, always the same."""

    modality = "image"
    input = InputSpec(3)
    layout = LatentLayout("latent", "gaussian", "CHW", 4, 8)
    normalization = Normalization()
    mean = torch.zeros(256, 4, SIZE // 8, SIZE // 8)

    def __init__(self, seconds_per_row: float = 0.0) -> None:
        self.seconds_per_row = seconds_per_row

    def encode(self, batch: torch.Tensor) -> dict[str, torch.Tensor]:
        time.sleep(self.seconds_per_row * len(batch))
        return {"mean": self.mean[: len(batch)], "logvar": self.mean[: len(batch)]}

    def fingerprint(self) -> dict[str, str]:
        return {}


def draw_photos(folder: Path, count: int, height: int = 375, width: int = 500) -> Path:
    """JPEGs, by default of ImageNet's usual size, with photographic detail, for machines without a
    folder of photographs.
    """
    generator = np.random.default_rng(0)
    folder.mkdir()
    for number in range(count):
        rough = Image.fromarray(generator.integers(0, 256, (47, 63, 3), np.uint8)).resize(
            (width, height), Image.Resampling.BICUBIC
        )
        noise = generator.normal(0, 8, (height, width, 3))
        Image.fromarray((np.asarray(rough) + noise).clip(0, 255).astype(np.uint8)).save(
            folder / f"{number:05d}.jpg", quality=92
        )
    return folder


def enlarge_photos(photos: list[Path], folder: Path) -> Path:
    """Photographs in the size of a phone's, 4,032 pixels along the longer side, with the grain of a
    sensor.
    """
    generator = np.random.default_rng(0)
    folder.mkdir()
    for number, file in enumerate(photos):
        with Image.open(file) as image:
            scale = 4032 / max(image.size)
            size = round(image.width * scale), round(image.height * scale)
            large = np.asarray(image.convert("RGB").resize(size, Image.Resampling.BICUBIC))
        grain = generator.normal(0, 2, large.shape).astype(np.float32)
        Image.fromarray((large + grain).clip(0, 255).astype(np.uint8)).save(
            folder / f"{number:05d}.jpg", quality=90
        )
    return folder


def save_sd_sized(folder: Path) -> Path:
    """The SD 1.5 autoencoder's architecture with random weights, as a folder."""
    torch.manual_seed(0)
    model = diffusers.AutoencoderKL(
        block_out_channels=(128, 256, 512, 512),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        latent_channels=4,
        scaling_factor=0.18215,
    )
    model.save_pretrained(folder)
    return folder


def time_pipeline(
    source: FolderSource,
    encoder: Encoder,
    output: Path,
    batch_size: int,
    unit_size: int,
    resize: str = "lanczos",
) -> float:
    """Seconds from source to closed dataset."""
    modality = ImageModality(
        ImageConfig.model_validate({"size": SIZE, "resize": resize}),
        BuildContext(input=encoder.input),
    )
    inputs = EncodeInputs(
        source, modality, ["plain"], lambda device: encoder, {"encoder.name": "benchmark"}
    )
    settings = EncodeSettings(batch_size=batch_size, unit_size=unit_size, compile=False)
    begun = time.perf_counter()
    encode_source(
        LocalFolder(output), inputs, LocalExecutor("cpu"), "cpu", settings, "", show_progress=False
    )
    return time.perf_counter() - begun


def time_bare_encoder(encoder: Encoder, count: int, batch_size: int) -> float:
    """Seconds for the same batches as ready tensors, results dropped."""
    batch = torch.rand(batch_size, 3, SIZE, SIZE) * 2 - 1
    begun = time.perf_counter()
    for _ in range(count // batch_size):
        encoder.encode(batch)
    return time.perf_counter() - begun


def load_levels(file: Path) -> None:
    """A center crop of a picture, resized, by the calls of `resize: lanczos`."""
    media = file.read_bytes()
    with Image.open(io.BytesIO(media)) as image:
        levels = decode_levels(image, media, "RGB", (255, 255, 255), MEMORY)
    box = crop_box((levels.shape[0], levels.shape[1]), (SIZE, SIZE))
    resize_levels(levels, box, (SIZE, SIZE), MEMORY)


def load_picture(file: Path) -> Image.Image:
    """A center crop of a picture, resized."""
    with Image.open(file) as image:
        picture = image.convert("RGB")
    side = min(picture.size)
    left, top = (picture.width - side) / 2, (picture.height - side) / 2
    return picture.resize(
        (SIZE, SIZE), Image.Resampling.LANCZOS, box=(left, top, left + side, top + side)
    )


class Pictures(Dataset[torch.Tensor]):
    """As a trainer's script has them: (3, H, W) float32 in [-1, 1]."""

    def __init__(self, files: list[Path]) -> None:
        self.files = files

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> torch.Tensor:
        return (
            torch.from_numpy(np.asarray(load_picture(self.files[index])).copy())
            .permute(2, 0, 1)
            .float()
            / 127.5
            - 1
        )


def time_loader_loop(folder: Path, files: list[Path], output: Path, batch_size: int) -> float:
    """Seconds of the loop that people write: a DataLoader, vae.encode, .cpu(), a file per batch."""
    vae = diffusers.AutoencoderKL.from_pretrained(folder).eval()
    output.mkdir()
    begun = time.perf_counter()
    for number, batch in enumerate(DataLoader(Pictures(files), batch_size, num_workers=2)):
        with torch.no_grad():
            torch.save(vae.encode(batch).latent_dist.parameters.cpu(), output / f"{number}.pt")
    return time.perf_counter() - begun


def time_single_loop(folder: Path, files: list[Path], output: Path) -> float:
    """Seconds of the loop without batches: open, encode, save, picture by picture."""
    vae = diffusers.AutoencoderKL.from_pretrained(folder).eval()
    output.mkdir()
    begun = time.perf_counter()
    for number, picture in enumerate(Pictures(files)[place] for place in range(len(files))):
        with torch.no_grad():
            torch.save(
                vae.encode(picture[None]).latent_dist.parameters.cpu(), output / f"{number}.pt"
            )
    return time.perf_counter() - begun


def time_decoding(files: list[Path], load: Callable[[Path], object] = load_levels) -> float:
    """Seconds to decode, convert and resize all files in as many threads as there are cores, and no
    more.
    """

    begun = time.perf_counter()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(load, files))
    return time.perf_counter() - begun


def report(title: str, theirs: list[float], ours: list[float], count: int) -> None:
    """A line: pictures per second of both, and the median ratio of ours to theirs in speed."""
    ratios = [their / own for their, own in zip(theirs, ours, strict=True)]
    speeds = (
        f"theirs {count / statistics.median(theirs):.2f}/s, pipeline"
        f" {count / statistics.median(ours):.2f}/s"
    )
    print(
        f"{title}: {speeds}, ratio {statistics.median(ratios):.3f} ({min(ratios):.3f} to"
        f" {max(ratios):.3f})",
        flush=True,
    )


def measure_decoding(source: FolderSource, scratch: Path, rounds: int, sleeping: bool) -> None:
    """Parts `free` and `sleep`."""
    files = [Path(str(source[index].media)) for index in range(len(source))]
    limits, ours = [], []
    for number in range(rounds + 1):  # the first is the warm-up
        limits.append(time_decoding(files))
        encoder = FreeEncoder(limits[-1] / len(files) if sleeping else 0.0)
        # Nothing overlaps with the first batch, so where there is something to overlap it is a
        # small one.
        ours.append(
            time_pipeline(
                source, encoder, scratch / f"free{sleeping}{number}", 8 if sleeping else 32, 512
            )
        )
    what = "encoder that sleeps as long as decoding takes" if sleeping else "free encoder"
    report(f"{what}, {len(files)} JPEGs to {SIZE} px", limits[1:], ours[1:], len(files))


def measure_resizing(source: FolderSource, scratch: Path, rounds: int, title: str) -> None:
    """Part `resize`."""
    files = [Path(str(source[index].media)) for index in range(len(source))]
    clocks: dict[str, list[float]] = {name: [] for name in ("bare lanczos", *WAYS)}
    processors: dict[str, list[float]] = {name: [] for name in clocks}
    for number in range(rounds + 1):  # the first is the warm-up
        for name in clocks:
            output, begun = scratch / f"{title}-{name}-{number}", time.process_time()
            clocks[name].append(
                time_pipeline(source, FreeEncoder(), output, 32, 512, name)
                if name in WAYS
                else time_decoding(files)
            )
            processors[name].append(time.process_time() - begun)
    for unit, times in (("clock", clocks), ("processor time", processors)):
        for one, other in (
            ("pillow", "lanczos"),
            ("pillow", "draft"),
            ("bare lanczos", "lanczos"),
        ):
            report(
                f"free encoder, {title}, {one} beside resize: {other}, {unit}",
                times[one][1:],
                times[other][1:],
                len(source),
            )


def measure_bare(
    source: FolderSource, folder: Path, scratch: Path, rounds: int, batch_size: int
) -> None:
    """Part `bare`."""
    encoder = DiffusersEncoder(folder, None, torch.float32, False, "cpu")
    time_bare_encoder(encoder, batch_size, batch_size)
    limits, ours = [], []
    for number in range(rounds):
        limits.append(time_bare_encoder(encoder, len(source), batch_size))
        ours.append(
            time_pipeline(
                source, encoder, scratch / f"sd{number}", batch_size, -(-len(source) // 3)
            )
        )
    title = (
        f"bare encoder, SD-sized AutoencoderKL, float32, {SIZE} px, batch {batch_size},"
        f" {torch.get_num_threads()} threads"
    )
    report(title, limits, ours, len(source))


def measure_loops(
    source: FolderSource, folder: Path, scratch: Path, rounds: int, batch_size: int
) -> None:
    """Part `loops`."""
    files = [Path(str(source[index].media)) for index in range(len(source))]
    prepared = next(ImageModality(ImageConfig(size=SIZE), BuildContext()).prepare(source[0]))
    times: dict[str, list[float]] = {
        "DataLoader loop": [],
        "one at a time": [],
        "float32": [],
        "bfloat16": [],
    }
    encoders = {
        name: DiffusersEncoder(folder, None, getattr(torch, name), False, "cpu")
        for name in ("float32", "bfloat16")
    }
    sizes = {}
    for name, encoder in encoders.items():
        sizes[name] = measure_batches(
            encoder, prepared, "cpu", "moments", torch.float16, None
        ).batch_size
    for number in range(rounds):
        times["DataLoader loop"].append(
            time_loader_loop(folder, files, scratch / f"loader{number}", batch_size)
        )
        times["one at a time"].append(time_single_loop(folder, files, scratch / f"single{number}"))
        for name, encoder in encoders.items():
            times[name].append(
                time_pipeline(
                    source, encoder, scratch / f"{name}{number}", sizes[name], -(-len(source) // 3)
                )
            )
    for loop in ("DataLoader loop", "one at a time"):
        for name in encoders:
            report(
                f"{loop} beside ours in {name}, batch {sizes[name]} by auto",
                times[loop],
                times[name],
                len(files),
            )


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument(
        "--photos", type=Path, help="folder of JPEGs (default: drawn ones of 500 x 375)"
    )
    options.add_argument("--parts", nargs="+", default=PARTS, choices=PARTS)
    options.add_argument("--images", type=int, default=24, help="pictures for the SD-sized encoder")
    options.add_argument(
        "--batch", type=int, default=4, help="of the bare encoder and of the DataLoader"
    )
    options.add_argument("--rounds", type=int, default=3)
    given = options.parse_args()
    with tempfile.TemporaryDirectory() as scratch_name:
        scratch = Path(scratch_name)
        photos = given.photos or draw_photos(scratch / "photos", 1000)
        source = FolderSource(FolderConfig(path=str(photos)), BuildContext())
        if "resize" in given.parts:
            places = range(0, len(source), -(-len(source) // 48))
            files = [Path(str(source[place].media)) for place in places]
            folder = enlarge_photos(files, scratch / "large")
            large = FolderSource(FolderConfig(path=str(folder)), BuildContext())
            measure_resizing(source, scratch, given.rounds, "photos")
            measure_resizing(large, scratch, given.rounds, "12 megapixels")
        for part in ("free", "sleep"):
            if part in given.parts:
                measure_decoding(source, scratch, given.rounds, part == "sleep")
        few = scratch / "few"
        few.mkdir()
        for number in range(min(given.images, len(source))):
            (few / f"{number:05d}.jpg").symlink_to(Path(str(source[number].media)).absolute())
        source, folder = FolderSource(FolderConfig(path=str(few)), BuildContext()), save_sd_sized(
            scratch / "vae"
        )
        if "bare" in given.parts:
            measure_bare(source, folder, scratch, given.rounds, given.batch)
        if "loops" in given.parts:
            measure_loops(source, folder, scratch, given.rounds, given.batch)


if __name__ == "__main__":
    main()
