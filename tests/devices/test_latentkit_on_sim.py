"""latentkit as it is, on the simulated device: the right values, no mistake that a GPU would answer
with wrong numbers, few waits.
"""

from __future__ import annotations

import contextlib
import io
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import latentkit as lk
from latentkit import cli
from latentkit.contracts import LossBatch, Reconstruction
from latentkit.errors import DeviceError, PluginError
from latentkit.runtime import device as devices
from latentkit.training.settings import WeightedLoss
from latentkit.training.step import compute

sim: Any = getattr(torch, "sim", None)  # in the worker
EVERYTHING_LACKING = "no-float64,no-bf16,no-streams,no-pinning"
ON_ANY_DEVICE = [
    "test_latents_are_those_of_the_cpu_and_stay_right_under_verify",
    "test_half_precision_trains",
    "test_every_metric_is_measured_without_float64_on_the_device",
]
"""Which of these hold on a real accelerator too: tests/benchmarks/gpu.py runs them there."""


def on_sim(options: str = "1") -> Callable[[Callable[[Path], None]], Callable[..., None]]:
    """Let a test run, with a folder of its own, in the process that has the simulated device with
    these options.
    """

    def wrap(function: Callable[[Path], None]) -> Callable[..., None]:
        def in_worker() -> None:
            with tempfile.TemporaryDirectory() as folder:
                function(Path(folder))

        def test(sim_worker: Callable[[str], Any]) -> None:
            problem = sim_worker(options).call(__file__, function.__name__)
            assert problem is None, problem

        test.__doc__ = function.__doc__
        test.on_sim = in_worker
        return test

    return wrap


def draw_photos(folder: Path, count: int, side: int = 32) -> Path:
    folder.mkdir()
    for number in range(count):
        Image.linear_gradient("L").rotate(number * 25).resize((side, side)).convert("RGB").save(
            folder / f"{number:02d}.png"
        )
    return folder


def encode(photos: Path, output: Path, **overrides: Any) -> Any:
    values = {
        "batch_size": 2,
        "output.unit_size": 100,
        "threads": 1,
        "compile": False,
        "preview": 0,
        "output.dtype": "float32",
    }
    return lk.encode(
        photos,
        output,
        size=32,
        overrides=values | {name.replace("__", "."): value for name, value in overrides.items()},
    )


def means(data: Any) -> torch.Tensor:
    return torch.stack([data.moments(row)["mean"] for row in range(len(data))])


def check_encoding(folder: Path) -> None:
    photos = draw_photos(folder / "photos", 7)
    data = encode(photos, folder / "sim", preview=2)
    expected = lk.encode(
        photos,
        folder / "cpu",
        size=32,
        device="cpu",
        overrides={"output.dtype": "float32", "preview": 0, "threads": 1},
    )
    torch.testing.assert_close(means(data), means(expected), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(
        data.statistics["std"], expected.statistics["std"], atol=1e-4, rtol=1e-4
    )
    assert (folder / "sim" / "preview.png").stat().st_size > 0
    decoded = data.decode(torch.stack([data[0]["latent"]]))
    assert decoded.shape == (1, 3, 32, 32)
    assert decoded.isfinite().all()
    assert run("verify", folder / "sim", "--deep") == 0


@on_sim()
def test_latents_are_those_of_the_cpu_and_stay_right_under_verify(folder: Path) -> None:
    check_encoding(folder)


@on_sim(EVERYTHING_LACKING)
def test_latents_are_those_of_the_cpu_where_the_device_lacks_everything(folder: Path) -> None:
    assert not any(
        ask("sim:0")
        for ask in (
            devices.has_float64,
            devices.has_bfloat16,
            devices.has_streams,
            devices.pins_memory,
        )
    )
    check_encoding(folder)


@on_sim()
def test_a_batch_waits_for_the_device_once(folder: Path) -> None:
    """The writing thread waits for the copy of a batch's latents; nothing else does, whatever is
    stored.
    """
    photos = {count: draw_photos(folder / f"{count}", count) for count in (8, 24)}
    for name, options in {
        "moments": {},
        "mean": {"output__store": "mean"},
        "half": {"output__dtype": "float16"},
    }.items():
        counts = {}
        for count, source in photos.items():
            sim.reset_num_synchronizations()
            encode(source, folder / f"{name}-{count}", **options)
            counts[count] = sim.num_synchronizations()
        batches = (24 - 8) // 2
        assert counts[24] - counts[8] <= batches, f"{name}: {counts} waits for 4 and 12 batches"


@on_sim("no-bf16")
def test_bfloat16_is_refused_for_encoding_where_the_device_has_none(folder: Path) -> None:
    with pytest.raises(
        DeviceError, match="sim:0 can't compute in bfloat16; set the encoder's dtype to float32"
    ):
        encode(draw_photos(folder / "photos", 2), folder / "out", encoder__with__dtype="bfloat16")


@on_sim("devices=2")
def test_devices_are_numbered_and_missing_ones_refused(folder: Path) -> None:
    assert devices.list_devices() == ["sim:0", "sim:1"]
    assert [devices.choose_device(name) for name in ("auto", "sim", "sim:1", "1", "cpu")] == [
        "sim:0",
        "sim:0",
        "sim:1",
        "sim:1",
        "cpu",
    ]
    for missing in ("sim:2", "2", "cuda"):
        with pytest.raises(DeviceError, match="available: sim:0, sim:1, cpu"):
            devices.choose_device(missing)


@on_sim("devices=2")
def test_all_devices_of_the_machine_encode(folder: Path) -> None:
    """The command line's default: a process each, one result, the same as on one device."""
    photos = draw_photos(folder / "photos", 12)
    printed = []
    for name, more in (("one", ["--device", "sim:1"]), ("all", [])):
        arguments = [
            "--size",
            "32",
            "--set",
            "batch_size=2",
            "--set",
            "output.unit_size=2",
            "--set",
            "threads=1",
            "--set",
            "preview=0",
        ]
        with contextlib.redirect_stdout(io.StringIO()) as out:
            assert run("encode", photos, folder / name, *arguments, *more) == 0
        printed.append(out.getvalue())
    assert all("12 latents in" in text for text in printed)
    one, both = (lk.open(folder / name, posterior="mean") for name in ("one", "all"))
    assert torch.equal(means(one), means(both))


# ---------------------------------------------------------------- training and evaluating


def train(folder: Path, steps: int, output: str, **overrides: Any) -> Any:
    recipe: Mapping[str, Any] = {
        "task": "train",
        "source": {"use": "folder", "with": {"path": str(folder / "photos")}},
        "modality": {"use": "image", "with": {"size": 32}},
        "model": {"use": "tiny-kl"},
        "losses": [
            {"use": "l1"},
            {"use": "kl", "weight": 1e-6},
            {
                "use": "patch-gan",
                "weight": 0.5,
                "adaptive": True,
                "with": {"num_layers": 1, "width": 8},
            },
            {"use": "equivariance", "weight": 0.1},
        ],
        "ema": {"decay": 0.9},
        "steps": steps,
        "batch_size": 2,
        "evaluate": {
            "every": 2,
            "source": {"use": "folder", "with": {"path": str(folder / "photos")}},
            "metrics": [{"use": "psnr"}, {"use": "ssim"}, {"use": "kl"}, {"use": "elbo"}],
            "best": "psnr",
        },
        "output": {"path": str(folder / output), "checkpoint_every": 2},
    }
    return lk.run(
        recipe, overrides={name.replace("__", "."): value for name, value in overrides.items()}
    )


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(next(folder.glob("model/*.safetensors")))


@on_sim()
def test_a_run_that_goes_on_ends_with_the_same_weights(folder: Path) -> None:
    draw_photos(folder / "photos", 6)
    train(folder, 4, "whole")
    train(folder, 2, "parts")
    train(folder, 4, "parts")
    whole, parts = weights(folder / "whole"), weights(folder / "parts")
    assert all(torch.equal(tensor, parts[name]) for name, tensor in whole.items())
    assert any((folder / "whole" / "evaluations").iterdir())


@on_sim(EVERYTHING_LACKING)
def test_training_falls_back_where_the_device_lacks_everything(folder: Path) -> None:
    draw_photos(folder / "photos", 6)
    with contextlib.redirect_stderr(io.StringIO()) as said:
        train(folder, 2, "out", precision="bf16", compile=True)
    assert said.getvalue().count("sim:0 can't compute in bfloat16; training in float32") == 1
    assert (
        said.getvalue().count("sim:0: torch can't compile for this device; training without compile: true")
        == 1
    )
    assert all(tensor.isfinite().all() for tensor in weights(folder / "out").values())
    with contextlib.redirect_stderr(io.StringIO()) as said:
        train(folder, 2, "half", precision="fp16")
    assert (
        said.getvalue().count(
            "sim:0 has no float64, which torch's loss scaling needs; training in float32"
        )
        == 1
    )


@on_sim()
def test_half_precision_trains(folder: Path) -> None:
    draw_photos(folder / "photos", 6)
    for precision in ("bf16", "fp16"):
        result = train(folder, 3, precision, precision=precision)
        assert result.steps == 3
        assert all(tensor.isfinite().all() for tensor in weights(folder / precision).values())


@on_sim()
def test_a_training_step_waits_for_the_device_a_few_times(folder: Path) -> None:
    """Copying the batch, deciding whether the step is finite, and the log; no loss or metric adds
    to them in silence.
    """
    draw_photos(folder / "photos", 6)
    counts = {}
    for steps in (4, 12):
        sim.reset_num_synchronizations()
        train(folder, steps, f"{steps}", evaluate=None, output__checkpoint_every=100)
        counts[steps] = sim.num_synchronizations()
    assert (counts[12] - counts[4]) / 8 <= 8, counts


@on_sim(EVERYTHING_LACKING)
def test_every_metric_is_measured_without_float64_on_the_device(folder: Path) -> None:
    draw_photos(folder / "photos", 3, side=192)
    names = [
        "psnr",
        "ssim",
        "ms-ssim",
        "l1",
        "mse",
        "kl",
        "elbo",
        "latent-statistics",
        "active-units",
        "latent-spectrum",
    ]
    metrics = [{"use": name} for name in names] + [
        {"use": "iwae", "with": {"scale": 0.1, "draws": 2}}
    ]
    recipe = {
        "task": "evaluate",
        "source": {"use": "folder", "with": {"path": str(folder / "photos")}},
        "modality": {"use": "image", "with": {"size": 192}},
        "model": {"use": "tiny-kl"},
        "metrics": metrics,
        "batch_size": 2,
    }
    figures = []
    for name, chosen in (("sim", "auto"), ("cpu", "cpu")):
        lk.run({**recipe, "output": {"path": str(folder / name)}}, device=chosen)
        found = json.loads((folder / name / "metrics.json").read_text())
        figures.append(dict(values_of(found)))
    assert figures[0].keys() == figures[1].keys()
    for name, value in figures[0].items():
        assert value == pytest.approx(figures[1][name], rel=1e-3, abs=1e-4), name


def values_of(found: Any, where: str = "") -> Iterator[tuple[str, float]]:
    """Every "value" in a JSON document, by its path."""
    if isinstance(found, Mapping):
        for name, part in found.items():
            if name == "value":
                yield where, part
            else:
                yield from values_of(part, f"{where}/{name}")


def run(*arguments: Any) -> int:
    """The exit code of a command in this process."""
    return cli.main([str(argument) for argument in arguments])


@on_sim()
def test_a_loss_that_answers_on_another_device_is_named(folder: Path) -> None:
    inputs = torch.zeros(2, 3, 8, 8, device="sim")
    batch = LossBatch(
        inputs, Reconstruction(inputs, inputs, None), None, 0, torch.zeros_like, torch.zeros_like
    )
    with pytest.raises(
        PluginError,
        match="loss 'mine': expected values on sim:0, like the batch, got values on cpu",
    ):
        compute(WeightedLoss("mine", lambda batch: torch.zeros(2)), batch)
