"""Time and peak memory of one training step, beside a plain PyTorch loop that does the same
arithmetic, or beside diffusers' example.

    python tests/benchmarks/train.py                                    256 px, batches of 4, a GPU
    python tests/benchmarks/train.py --size 128 --batch 2 --rounds 3    on a CPU
    python tests/benchmarks/train.py --latents
    python tests/benchmarks/train.py --example

`--latents` trains the decoder alone, once running the encoder and once from stored moments.
`--example` takes the losses of diffusers' train_autoencoderkl.py, its way and ours.

The model is Stable Diffusion's autoencoder with random weights; losses are L1 and KL, the optimizer
is AdamW, gradients are clipped. Both loops take turns in one process, so that whatever else the
machine does disturbs them alike; the ratio is of medians. Pictures are made beforehand. On a CPU
the clock is that of this process's own CPU time, which other programs disturb less. Peak memory is
measured in a process each: on a GPU what torch held, on a CPU the resident memory.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import repeat
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.functional import relu

from latentkit.contracts import BuildContext, Reconstruction
from latentkit.losses.kl import Kl
from latentkit.losses.patch_gan import PatchDiscriminator, PatchGan
from latentkit.losses.reconstruction import l1
from latentkit.plugins import discover
from latentkit.training.batches import Batch, Position
from latentkit.training.log import TrainingLog
from latentkit.training.settings import TrainSettings, WeightedLoss, WeightSchedule
from latentkit.training.start import start
from latentkit.training.step import take_step

DTYPES = {"float32": None, "bf16": torch.bfloat16}
KL_WEIGHT = 1e-6
Step = Callable[[], object]


def new_model(width: int) -> Any:
    """Stable Diffusion's autoencoder, 128 channels wide, or a narrower one, as recipes build it."""
    torch.manual_seed(0)
    blocks = {
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
    }
    channels = [width, 2 * width, 4 * width, 4 * width]
    config = {
        "_class_name": "AutoencoderKL",
        "block_out_channels": channels,
        "layers_per_block": 2,
        "latent_channels": 4,
        **blocks,
    }
    registry = discover()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "vae.json"
        path.write_text(json.dumps(config))
        options = registry.configure("encoder", "diffusers", {"config": str(path)}, "model")
        return registry.find("encoder", "diffusers").spec.build(
            options, BuildContext(modality="image")
        )


def plain_step(options: argparse.Namespace, precision: str) -> Step:
    """A step of a loop as one would write it down."""
    device = torch.device(options.device)
    module = new_model(options.width).module.to(device, memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(module.parameters(), 1e-4, (0.5, 0.9), weight_decay=0.0)
    pictures = make_pictures(options)
    dtype = DTYPES[precision]

    def step() -> None:
        inputs = pictures.to(device).contiguous(memory_format=torch.channels_last)
        with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
            found: Reconstruction = module(inputs)
        assert found.moments is not None
        mean, logvar = found.moments.mean.float(), found.moments.logvar.float()
        rate = (
            0.5
            * (mean.square() + logvar.exp() - 1 - logvar).flatten(1).sum(1).mean()
            / inputs[0].numel()
        )
        loss = (found.output.float() - inputs).abs().mean() + KL_WEIGHT * rate
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss.item()  # as any loop that logs

    return step


def example_step(options: argparse.Namespace, precision: str, disc_start: int) -> Step:
    """An update of model and discriminator as diffusers' example does it; of the model alone before
    `disc_start`.
    """
    accelerator = Accelerator(mixed_precision="no", cpu=options.device == "cpu")
    device, dtype = accelerator.device, DTYPES[precision] or torch.float32
    vae, disc = new_model(options.width).module.model.to(device, dtype), PatchDiscriminator(
        3, 64, 3, "batch"
    ).to(device, dtype)
    optimizers = [
        torch.optim.AdamW(module.parameters(), 4.5e-6, weight_decay=1e-2) for module in (vae, disc)
    ]
    vae, disc, optimizer, disc_optimizer = accelerator.prepare(vae, disc, *optimizers)
    pictures = make_pictures(options)

    def iterate(trains_model: bool) -> None:
        targets = pictures.to(device, dtype)
        posterior = accelerator.unwrap_model(vae).encode(targets).latent_dist
        found = accelerator.unwrap_model(vae).decode(posterior.sample()).sample
        if trains_model:
            nll = (found.float() - targets.float()).abs().sum() / len(targets)
            rate = posterior.kl().sum() / len(targets)
            generator_loss = -disc(found).mean()
            last = accelerator.unwrap_model(vae).decoder.conv_out.weight
            norms = [
                torch.autograd.grad(value, last, retain_graph=True)[0].norm()
                for value in (nll, generator_loss)
            ]
            weight = (norms[0] / (norms[1] + 1e-4)).clamp(0, 1e4).detach() * (
                0.0 if disc_start else 1.0
            )
            accelerator.backward(nll + KL_WEIGHT * rate + weight * generator_loss)
            accelerator.clip_grad_norm_(vae.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        else:
            loss = 0.5 * (relu(1 - disc(targets)).mean() + relu(1 + disc(found)).mean())
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(disc.parameters(), 1.0)
            disc_optimizer.step()
            disc_optimizer.zero_grad(set_to_none=True)

    def step() -> None:
        for trains_model in (True,) if disc_start else (True, False):
            iterate(trains_model)

    return step


def own_step(
    options: argparse.Namespace,
    precision: Any,
    half: Any = "all",
    moments: bool = False,
    disc_start: int | None = None,
) -> Step:
    """A step of the training loop; `moments`: stored ones instead of the encoder; `disc_start`:
    with a discriminator from there on.
    """
    settings = TrainSettings(steps=10**6, batch_size=options.batch, precision=precision, train=half)
    accelerator = Accelerator(mixed_precision="no", cpu=options.device == "cpu")
    losses = [WeightedLoss("l1", l1), WeightedLoss("kl", Kl(), KL_WEIGHT, "latent")]
    if disc_start is not None:
        critic = PatchGan(PatchDiscriminator(3, 64, 3, "batch"))
        losses.append(
            WeightedLoss(
                "gan",
                critic,
                1.0,
                "adversarial",
                adaptive=True,
                schedule=WeightSchedule(disc_start),
            )
        )
    log = TrainingLog(Path(tempfile.gettempdir()) / "unused.jsonl", settings.steps, accelerator, [])
    run = start(new_model(options.width), losses, settings, accelerator, log)
    stored = (
        torch.randn(options.batch, 8, options.size // 8, options.size // 8) if moments else None
    )
    batches: Iterator[Batch] = repeat(Batch(make_pictures(options), Position(), stored))
    return lambda: take_step(run, batches)


def make_pictures(options: argparse.Namespace) -> Tensor:
    """(N, 3, H, W) in [-1, 1], pinned for a GPU."""
    pictures = torch.rand(options.batch, 3, options.size, options.size) * 2 - 1
    return pictures.pin_memory() if options.device != "cpu" else pictures


def compare(steps: dict[str, Step], options: argparse.Namespace) -> dict[str, float]:
    """Median seconds of each, taking turns; the first round warms up."""
    clock = time.process_time if options.device == "cpu" else time.perf_counter
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(options.rounds + 1):
        for name, step in steps.items():
            begin = clock()
            for _ in range(options.steps):
                step()
            if options.device != "cpu":
                torch.cuda.synchronize()
            if number:
                seconds[name].append((clock() - begin) / options.steps)
    return {name: statistics.median(found) for name, found in seconds.items()}


def report(title: str, seconds: dict[str, float], options: argparse.Namespace) -> None:
    """A line per loop, with its ratio to the first."""
    first = next(iter(seconds.values()))
    for name, found in seconds.items():
        speed = f"{found:9.3f} s a step {options.batch / found:8.2f} pictures/s"
        print(f"{title:<9}{name:<28}{speed}   {found / first:.3f} of the first", flush=True)


def loops(options: argparse.Namespace, precision: str) -> dict[str, Callable[[], Step]]:
    """What is compared, by name; the first is what the others are measured by."""
    if options.latents:
        return {
            "decoder, running the encoder": lambda: own_step(options, precision, "decoder"),
            "decoder, stored moments": lambda: own_step(
                options, precision, "decoder", moments=True
            ),
        }
    if options.example:
        return {
            f"{name}, {phase}": partial(build, options, precision, disc_start=start)
            for phase, start in (("before the GAN", 10**5), ("with the GAN", 0))
            for name, build in (("example", example_step), ("latentkit", own_step))
        }
    return {
        "plain": lambda: plain_step(options, precision),
        "latentkit": lambda: own_step(options, precision),
    }


def peak_memory(kind: str, precision: str) -> float:
    """GiB at most of a process that does two steps; the same command with --memory-of."""
    command = [sys.executable, __file__, *sys.argv[1:], "--memory-of", kind, precision]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(done.stdout.split()[-1])


def print_memory(kind: str, precision: str, options: argparse.Namespace) -> None:
    """GiB at most that two steps took, as the last word."""
    step = loops(options, precision)[kind]()
    step()
    step()
    if options.device == "cpu":
        # Not getrusage's figure, which starts with the parent's.
        (line,) = (
            line
            for line in Path("/proc/self/status").read_text().splitlines()
            if line.startswith("VmHWM")
        )
        print(int(line.split()[1]) / 2**20)
    else:
        print(torch.cuda.max_memory_allocated() / 2**30)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", type=int, default=256, help="side of the pictures, in pixels")
    parser.add_argument("--batch", type=int, default=4, help="pictures a step")
    parser.add_argument(
        "--width", type=int, default=128, help="channels of the model's first block"
    )
    parser.add_argument("--steps", type=int, default=1, help="steps timed at once")
    parser.add_argument(
        "--rounds", type=int, default=5, help="turns of each loop, of which the median counts"
    )
    parser.add_argument("--precision", nargs="+", default=list(DTYPES), choices=list(DTYPES))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--latents",
        action="store_true",
        help="compare training the decoder with and without running the encoder",
    )
    parser.add_argument(
        "--example",
        action="store_true",
        help="compare with diffusers' example, with a discriminator",
    )
    parser.add_argument("--no-memory", action="store_true", help="leave out peak memory")
    parser.add_argument(
        "--memory-of", nargs=2, metavar=("LOOP", "PRECISION"), help=argparse.SUPPRESS
    )
    options = parser.parse_args()
    if options.memory_of:
        print_memory(*options.memory_of, options)
        return
    for precision in options.precision:
        found = loops(options, precision)
        pairs = [list(found)[start : start + 2] for start in range(0, len(found), 2)]
        for pair in pairs:
            report(precision, compare({name: found[name]() for name in pair}, options), options)
            if not options.no_memory:
                theirs, own = (peak_memory(name, precision) for name in pair)
                print(
                    f"{precision:<9}peak memory: {pair[0]} {theirs:.2f} GiB, {pair[1]} {own:.2f}"
                    f" GiB, {own / theirs:.3f} of it",
                    flush=True,
                )


if __name__ == "__main__":
    main()
