"""Which device a process computes on, on a machine without any but the CPU; tests/devices has the
others.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from latentkit.contracts import InputSpec, LatentLayout, Normalization
from latentkit.encoding.batch_encoder import BatchEncoder
from latentkit.errors import DeviceError, EncoderError
from latentkit.runtime import cores, device


@pytest.mark.parametrize("wanted", ["auto", "cpu", "cpu:0"])
def test_without_an_accelerator_the_device_is_the_cpu(wanted: str) -> None:
    assert device.choose_device(wanted) == "cpu"
    assert device.list_devices() == ["cpu"]


@pytest.mark.parametrize("wanted", ["cuda", "cuda:0", "mps", "xpu:3", "1", "gpu", ""])
def test_a_device_that_is_not_there_is_refused_by_name(wanted: str) -> None:
    with pytest.raises(DeviceError, match=rf"device '{wanted}': .* available: cpu \(or auto\)"):
        device.choose_device(wanted)


def test_the_command_line_refuses_a_missing_device_in_one_line(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "latentkit",
        "encode",
        "sample-photos",
        str(tmp_path / "out"),
        "--device",
        "cuda",
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert "device 'cuda': torch" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_what_was_drawn_inside_is_drawn_again_afterwards() -> None:
    torch.manual_seed(0)
    with device.restored_random_state("cpu"):
        inside = torch.randn(3)
    assert torch.equal(torch.randn(3), inside)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory."), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)"), True),
        (
            RuntimeError(
                "[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't allocate memory"
            ),
            True,
        ),
        (MemoryError(), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_running_out_of_memory_is_recognized_on_any_device(
    error: Exception, expected: bool
) -> None:
    assert device.is_out_of_memory(error) == expected


def test_a_line_about_a_fallback_is_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        device.warn_once("this device can't, so that is done instead")
    assert capsys.readouterr().err.count("instead") == 1


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"cpu.max": "150000 100000"}, 2),
        ({"cpu.max": "max 100000"}, 64),
        ({"cpu.cfs_quota_us": "300000", "cpu.cfs_period_us": "100000"}, 3),
        ({"cpu.cfs_quota_us": "-1", "cpu.cfs_period_us": "100000"}, 64),
        ({"cpu.max": "5000 100000"}, 1),
        ({"cpu.max": "what"}, 64),
        ({}, 64),
    ],
)
def test_a_containers_quota_limits_the_cores(
    files: dict[str, str], expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text + "\n")
    monkeypatch.setattr(cores, "QUOTA_FILES", [tmp_path / "cpu.max", tmp_path / "cpu.cfs_quota_us"])
    monkeypatch.setattr(cores.os, "sched_getaffinity", lambda _: range(64))
    assert cores.num_cores() == expected


def test_processes_of_one_machine_share_its_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cores, "num_cores", lambda: 128)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert cores.share_of_cores() == 16
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "200")
    assert cores.share_of_cores() == 1


class OnApple:
    """An encoder with an operator that the device lacks."""

    layout = LatentLayout("latent", "deterministic", "CHW", 3, 1)
    input, normalization = InputSpec(3), Normalization()

    def encode(self, batch: torch.Tensor) -> dict[str, torch.Tensor]:
        raise NotImplementedError(
            "The operator 'aten::grid_sampler_3d' is not currently implemented for the MPS"
            " device.\n"
            "As a temporary fix, ..."
        )


def test_an_operator_that_the_device_lacks_is_named_with_a_way_out() -> None:
    encoder = BatchEncoder(OnApple, 1, False, None)
    with pytest.raises(
        EncoderError,
        match=r"'aten::grid_sampler_3d' is not .* for the MPS device. Encode on .* --device cpu",
    ):
        encoder.encode(torch.zeros(1, 3, 8, 8), "8x8")
