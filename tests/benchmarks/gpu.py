"""The first minutes on a GPU: the device tests, then encoding, training and reading beside the bare
network, as rows of a table.

    python tests/benchmarks/gpu.py [--device auto] [--minutes 8] [--check_losses_on_first_batch] [--parts tests encode
        train read write]

tests   what tests/devices asks of any accelerator, on this one
encode  JPEGs to latents with an SD-sized AutoencoderKL (random weights, bfloat16, compiled) at 256
        and 512 px, beside the same compiled encoder on batches that lie on the device already
train   the same network at 256 px: steps per second beside the bare forward and backward pass, and
        the memory that it takes
read    moments to the device and through the decoder, beside the decoder alone
write   rows of 16 x 64 x 64 that the writing thread takes, and that are committed

A part that would begin after --minutes is left out, and said to be. --check_losses_on_first_batch makes everything
small: any device, the CPU too, runs it in a minute or two, and its figures mean nothing.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import json
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from PIL import Image

import latentkit as lk
from latentkit.runtime.cores import num_cores
from latentkit.runtime.device import (
    can_compile,
    choose_device,
    has_bfloat16,
    make_current,
    module_of,
    synchronize,
)

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Setting:
    """How large everything is, and where."""

    device: str
    folder: Path
    small: bool

    @property
    def dtype(self) -> str:
        return "bfloat16" if has_bfloat16(self.device) else "float32"

    @property
    def compiles(self) -> bool:
        return can_compile(self.device) and self.device != "cpu" and not self.small

    def of(self, full: int, small: int) -> int:
        """A number, or the one for a rehearsal."""
        return small if self.small else full


def main() -> int:
    """Print a row per figure; 1 where a device test failed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="auto")
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--check_losses_on_first_batch", action="store_true")
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    options = parser.parse_args()
    begun, failed = time.monotonic(), 0
    setting = Setting(
        choose_device(options.device),
        Path(tempfile.mkdtemp(prefix="latentkit-gpu-")),
        options.check_losses_on_first_batch,
    )
    make_current(setting.device)
    name = getattr(module_of(setting.device), "get_device_name", platform.processor)
    print(
        f"{setting.device}: {name()}, {num_cores()} cores, torch {torch.__version__},"
        f" {setting.dtype}",
        flush=True,
    )
    print("| what | latentkit | bare | ratio |\n|---|---|---|---|", flush=True)
    try:
        for part in options.parts:
            if time.monotonic() - begun > 60 * options.minutes:
                print(
                    f"| {part} | left out: {options.minutes:g} minutes are over | | |", flush=True
                )
                continue
            try:
                for row in PARTS[part](setting):
                    print(row, flush=True)
            except Exception:  # noqa: BLE001 (plugin boundary)
                failed = 1
                traceback.print_exc()
    finally:
        shutil.rmtree(setting.folder, ignore_errors=True)
    print(f"{time.monotonic() - begun:.0f} s in all")
    return failed


def row(what: str, ours: float, bare: float | None, unit: str) -> str:
    """A row of the table."""
    compared = f"{bare:.1f} {unit} | {ours / bare:.2f}" if bare else " | "
    return f"| {what} | {ours:.1f} {unit} | {compared} |"


# ---------------------------------------------------------------- parts


def device_tests(setting: Setting) -> Iterator[str]:
    """Run what holds on any accelerator."""
    spec = importlib.util.spec_from_file_location(
        "on_device", HERE.parent / "devices" / "test_latentkit_on_sim.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name in module.ON_ANY_DEVICE:
        begun = time.monotonic()
        try:
            getattr(module, name).on_sim()
            outcome = "passed"
        except Exception as error:  # noqa: BLE001 (whatever it is, it is what the table must say)
            traceback.print_exc()
            outcome = f"FAILED: {type(error).__name__}"
        yield f"| {name} | {outcome} in {time.monotonic() - begun:.0f} s | | |"


def encoding(setting: Setting) -> Iterator[str]:
    """Photographs through the whole pipeline beside ready batches."""
    model = save_model(setting)
    for size in (256, 512) if not setting.small else (32,):
        count, batch_size = setting.of(6144 if size == 256 else 2048, 8), setting.of(
            64 if size == 256 else 16, 2
        )
        photos = draw_photos(setting.folder / f"photos-{size}", count, size + size // 4)
        encoder = open_encoder(setting, model)
        batch = torch.rand(batch_size, 3, size, size, device=setting.device) * 2 - 1
        bare = count / timed(setting, functools.partial(encoder.encode, batch), count // batch_size)
        del encoder
        values = {
            "encoder.with.dtype": setting.dtype,
            "batch_size": batch_size,
            "compile": setting.compiles,
            "preview": 0,
        }
        rates = []
        for number in range(2):  # the first compiles
            begun = time.perf_counter()
            output = setting.folder / f"latents-{size}-{number}"
            lk.encode(
                photos, output, encoder=model, size=size, overrides=values, device=setting.device
            )
            rates.append(count / (time.perf_counter() - begun))
        compiled = ", compiled" if setting.compiles else ""
        yield row(
            f"encode {size} px, batches of {batch_size}, {setting.dtype}{compiled}, {count} JPEGs",
            rates[-1],
            bare,
            "rows/s",
        )


def training(setting: Setting) -> Iterator[str]:
    """Steps of the model beside a bare forward and backward pass."""
    size, batch_size, steps = setting.of(256, 32), setting.of(16, 2), setting.of(150, 2)
    photos = draw_photos(setting.folder / "photos-train", setting.of(512, 6), size + size // 4)
    config = save_model(setting) / "config.json"
    precision = "bf16" if setting.dtype == "bfloat16" else "float32"
    recipe: dict[str, Any] = {
        "task": "train",
        "source": {"use": "folder", "with": {"path": str(photos)}},
        "modality": {"use": "image", "with": {"size": size}},
        "model": {"use": "diffusers", "with": {"config": str(config)}},
        "losses": [{"use": "l1"}, {"use": "kl", "weight": 1e-6}],
        "optimizer": {"lr": 1e-5},
        "precision": precision,
        "batch_size": batch_size,
        "steps": steps,
        "output": {"path": str(setting.folder / "run"), "checkpoint_every": 100_000},
    }
    module = module_of(setting.device)
    if hasattr(module, "reset_peak_memory_stats"):
        module.reset_peak_memory_stats()
    lk.run(recipe, device=setting.device)
    rate = samples_per_second(setting.folder / "run" / "log.jsonl") / batch_size
    peak = module.max_memory_allocated() / 2**30 if hasattr(module, "max_memory_allocated") else 0.0
    model = (
        diffusers.AutoencoderKL.from_config(diffusers.AutoencoderKL.load_config(config))
        .to(setting.device)
        .train()
    )
    optimizer = torch.optim.AdamW(model.parameters(), 1e-5)
    batch = torch.rand(batch_size, 3, size, size, device=setting.device) * 2 - 1

    def step() -> None:
        with torch.autocast(
            torch.device(setting.device).type, torch.bfloat16, enabled=precision == "bf16"
        ):
            loss = (model(batch, sample_posterior=True).sample - batch).abs().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    bare = timed(setting, step, setting.of(20, 2)) / setting.of(20, 2)
    yield row(
        f"train {size} px, batches of {batch_size}, {precision}, peak {peak:.1f} GiB",
        rate,
        1 / bare,
        "steps/s",
    )


def reading(setting: Setting) -> Iterator[str]:
    """Moments from disk, drawn, copied and decoded, beside decoding alone."""
    size = setting.of(256, 32)
    path = setting.folder / f"latents-{size}-1"
    if not path.exists():
        yield "| read | left out: the part encode has not run | | |"
        return
    data, batch_size = lk.open(path), setting.of(64, 2)
    first = next(iter(data.batches(batch_size)))["latent"].to(setting.device)
    num_batches = len(data) // batch_size
    bare = len(data) / timed(
        setting, lambda: data.decode(first, device=setting.device), num_batches
    )
    synchronize(setting.device)
    begun = time.perf_counter()
    for batch in data.batches(batch_size, shuffle=True):
        data.decode(batch["latent"].to(setting.device, non_blocking=True), device=setting.device)
    synchronize(setting.device)
    yield row(
        f"read, draw and decode {size} px, batches of {batch_size}",
        len(data) / (time.perf_counter() - begun),
        bare,
        "rows/s",
    )


def writing(setting: Setting) -> Iterator[str]:
    """The writer's ceiling, in a process of its own."""
    rows = setting.of(2048, 128)
    command = [sys.executable, HERE / "write.py", "--rows", str(rows), "--rounds", "3"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    for line in done.stdout.splitlines():
        yield f"| {line.strip()} | | | |"


PARTS: dict[str, Callable[[Setting], Iterator[str]]] = {
    "tests": device_tests,
    "encode": encoding,
    "train": training,
    "read": reading,
    "write": writing,
}


# ---------------------------------------------------------------- what they measure with


def timed(setting: Setting, run: Callable[[], object], times: int) -> float:
    """Seconds of so many runs, after two to warm up (and compile)."""
    for _ in range(2):
        run()
    synchronize(setting.device)
    begun = time.perf_counter()
    for _ in range(times):
        run()
    synchronize(setting.device)
    return time.perf_counter() - begun


def save_model(setting: Setting) -> Path:
    """An SD-sized AutoencoderKL with random weights, as a folder; a tiny one for a rehearsal."""
    folder = setting.folder / "model"
    if not folder.exists():
        torch.manual_seed(0)
        channels = (8, 8, 8, 8) if setting.small else (128, 256, 512, 512)
        model = diffusers.AutoencoderKL(
            block_out_channels=channels,
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=setting.of(2, 1),
            norm_num_groups=setting.of(32, 4),
            latent_channels=4,
            scaling_factor=0.18215,
        )
        model.save_pretrained(folder)
    return folder


def open_encoder(setting: Setting, model: Path) -> Any:
    """The encoder as a run opens it, compiled where it can be."""
    from latentkit.contracts import BuildContext
    from latentkit.encoders.diffusers import open_diffusers
    from latentkit.encoders.options import DiffusersConfig

    encoder = open_diffusers(
        DiffusersConfig(model=str(model), dtype=setting.dtype), BuildContext(setting.device)
    )
    if setting.compiles:
        encoder.compile()
    return encoder


def draw_photos(folder: Path, count: int, side: int) -> Path:
    """JPEGs with photographic detail."""
    generator = np.random.default_rng(0)
    folder.mkdir()
    noise = generator.normal(0, 8, (side, side, 3))
    for number in range(min(count, 256)):
        rough = Image.fromarray(generator.integers(0, 256, (48, 48, 3), np.uint8)).resize(
            (side, side), Image.Resampling.BICUBIC
        )
        Image.fromarray((np.asarray(rough) + noise).clip(0, 255).astype(np.uint8)).save(
            folder / f"{number:05d}.jpg", quality=92
        )
    for number in range(256, count):
        shutil.copyfile(folder / f"{number % 256:05d}.jpg", folder / f"{number:05d}.jpg")
    return folder


def samples_per_second(log: Path) -> float:
    """The median over the lines of a training log, without the first, in which everything is warmed
    up.
    """
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    found = [line["samples_per_second"] for line in lines if "samples_per_second" in line]
    return statistics.median(found[1:] or found)


if __name__ == "__main__":
    sys.exit(main())
