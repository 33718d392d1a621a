"""How long an export takes beside writing the same files with the format's own writer alone, from
arrays that are ready in memory. The two take turns, each in a process of its own.

python tests/benchmarks/export.py FOLDER [--rows 100000] [--side 32] [--rounds 3] [--formats ...]

The formats of trainers need plugins/latentkit-trainers.
"""

from __future__ import annotations

import argparse
import io
import json
import shutil
import statistics
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from make_dataset import caption, make_dataset
from safetensors.torch import save_file

from latentkit.tasks.export import export_dataset

Array = Any
"""float32, (4, side, side)."""

Put = Callable[[int, Array, Path], None]
"""Writes one sample."""

READY = 64
"""Arrays that the own writer is given again and again, so that it never waits for them."""


class TarWriter:
    """10,000 rows in a file, by the standard library, as the library webdataset does it."""

    def __init__(self) -> None:
        self._tar: Any = None

    def __call__(self, number: int, latent: Array, folder: Path) -> None:
        if number % 10_000 == 0:
            self._tar = tarfile.open(folder / f"{number // 10_000:06d}.tar", "w")  # noqa: SIM115
        file = io.BytesIO()
        np.save(file, latent, allow_pickle=False)
        labels = json.dumps(labels_of(number)).encode()
        for name, content in {"latent.npy": file.getvalue(), "json": labels}.items():
            entry = tarfile.TarInfo(f"{number:08d}.{name}")
            entry.size = len(content)
            self._tar.addfile(entry, io.BytesIO(content))
        if number % 10_000 == 9_999:
            self._tar.close()


def labels_of(number: int) -> dict[str, Any]:
    """What an export says of a row."""
    labels = {"text": caption(number), "label": number % 1000}
    return {"key": f"{number:08d}", **labels, "view": "plain"}


def put_safetensors(number: int, latent: Array, folder: Path) -> None:
    """A file, 10,000 in a folder."""
    name = folder / f"{number // 10_000:04d}" / f"{number:08d}.safetensors"
    name.parent.mkdir(exist_ok=True)
    header = {"row": json.dumps(labels_of(number))}
    save_file({"latent": torch.from_numpy(latent)}, name, header)


def put_kohya(number: int, latent: Array, folder: Path) -> None:
    """A .npz of two views and two small arrays."""
    sizes = {"original_size": np.array([256, 256]), "crop_ltrb": np.array([0, 0, 256, 256])}
    np.savez(folder / f"{number:08d}.npz", latents=latent, latents_flipped=latent, **sizes)


def put_mar(number: int, latent: Array, folder: Path) -> None:
    """A .npz of two views' moments in a folder per class."""
    name = folder / str(number % 1000) / f"{number:08d}.npz"
    name.parent.mkdir(exist_ok=True)
    moments = np.concatenate([latent, latent])
    np.savez(name, moments=moments, moments_flip=moments)


def put_repa(number: int, latent: Array, folder: Path) -> None:
    """A .npy of moments, 1,000 in a folder."""
    name = folder / f"{number // 1000:05d}" / f"{number:08d}.npy"
    name.parent.mkdir(exist_ok=True)
    np.save(name, np.concatenate([latent, latent]))


def put_fast_dit(number: int, latent: Array, folder: Path) -> None:
    """Two .npy of each view."""
    for name in ("features", "labels"):
        (folder / name).mkdir(exist_ok=True)
    for place in (2 * number, 2 * number + 1):
        np.save(folder / "features" / f"{place:08d}.npy", latent[None])
        np.save(folder / "labels" / f"{place:08d}.npy", np.array([number % 1000]))


@dataclass(frozen=True)
class Format:
    """One export and its own writer.

    Args:
        to: the exporter.
        make: gives what writes a sample.
        options: of the exporter.
        views: of the dataset.
    """

    to: str
    make: Callable[[], Put]
    options: Mapping[str, Any] = field(default_factory=dict)
    views: tuple[str, ...] = ("plain",)


BOTH = ("plain", "hflip")
SCALE = {"allow_other_scale": True}
MEAN, DRAW = {"posterior": "mean"}, {"posterior": "draw"}
FORMATS = {
    "webdataset": Format("webdataset", TarWriter),
    "webdataset-draw": Format("webdataset", TarWriter, DRAW),
    "safetensors": Format("safetensors", lambda: put_safetensors),
    "safetensors-draw": Format("safetensors", lambda: put_safetensors, DRAW),
    "kohya": Format("kohya", lambda: put_kohya, {**MEAN, **SCALE, "family": "sd"}, BOTH),
    "kohya-draw": Format("kohya", lambda: put_kohya, {**DRAW, **SCALE, "family": "sd"}, BOTH),
    "mar": Format("mar", lambda: put_mar, SCALE, BOTH),
    "repa": Format("repa", lambda: put_repa, {**SCALE, "pictures": False}),
    "fast-dit": Format("fast-dit", lambda: put_fast_dit, {**MEAN, **SCALE}, BOTH),
    "fast-dit-draw": Format("fast-dit", lambda: put_fast_dit, {**DRAW, **SCALE}, BOTH),
}


def write_alone(form: Format, out: Path, num_samples: int, side: int) -> None:
    """Write the files of a format with its own writer."""
    ready = np.random.default_rng(0).standard_normal((READY, 4, side, side), np.float32)
    out.mkdir()
    put = form.make()
    for number in range(num_samples):
        put(number, ready[number % READY], out)


class Watch:
    """Samples the process's own memory, without files that are mapped; Linux alone."""

    def __init__(self) -> None:
        self.start, self.peak, self._ended = self._now(), 0, threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _now(self) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if "RssAnon" in line)

    def _run(self) -> None:
        while not self._ended.wait(0.02):
            self.peak = max(self.peak, self._now())

    def end(self) -> int:
        """Bytes at the most, over those at the start."""
        self._ended.set()
        self._thread.join()
        return max(0, self.peak - self.start)


def run_one(given: argparse.Namespace) -> None:
    """Write one format, in one way, and print seconds, seconds of processor time and bytes."""
    form = FORMATS[given.one]
    latents = given.folder / f"latents-{given.rows}-{len(form.views)}"
    out = given.folder / "out"
    watch, start, cpu = Watch(), time.perf_counter(), time.process_time()
    if given.alone:
        write_alone(form, out, given.rows // len(form.views), given.side)
    else:
        export_dataset(str(latents), str(out), form.to, form.options)
    seconds = time.perf_counter() - start
    print(json.dumps([seconds, time.process_time() - cpu, watch.end()]))


def compare(name: str, given: argparse.Namespace) -> None:
    """Let the two ways of one format take turns."""
    ours, own = [], []
    words = ["--rows", given.rows, "--side", given.side, "--one", name]
    for _ in range(given.rounds):
        for found, more in ((own, ["--alone"]), (ours, [])):
            command = [sys.executable, __file__, given.folder, *words, *more]
            done = subprocess.run([*map(str, command)], stdout=subprocess.PIPE, check=True)
            found.append(json.loads(done.stdout))
            shutil.rmtree(given.folder / "out")
            (given.folder / "out.toml").unlink(missing_ok=True)
            (given.folder / "out.txt").unlink(missing_ok=True)
    clock, cpu = (
        statistics.median(one[kind] / other[kind] for one, other in zip(own, ours, strict=True))
        for kind in (0, 1)
    )
    print(
        f"{name}: {given.rows} rows exported in {min(one[0] for one in ours):.1f} s, own"
        f" writer {min(one[0] for one in own):.1f} s; ratio {clock:.2f} by the clock, {cpu:.2f} in"
        f" processor time; memory {max(one[2] for one in ours) / 1e6:.0f} MB",
        flush=True,
    )


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("folder", type=Path)
    options.add_argument("--rows", type=int, default=100_000)
    options.add_argument("--side", type=int, default=32)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--formats", nargs="+", default=[*FORMATS], choices=[*FORMATS])
    options.add_argument("--one", help=argparse.SUPPRESS)
    options.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.one:
        run_one(given)
        return
    for name in given.formats:
        views = FORMATS[name].views
        latents = given.folder / f"latents-{given.rows}-{len(views)}"
        if not latents.exists():
            num_samples = given.rows // len(views)
            make_dataset(latents, num_samples, 4, given.side, 16_384, views)
        compare(name, given)


if __name__ == "__main__":
    main()
