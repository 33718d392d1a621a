"""The device "sim", registered with torch, and the module torch.sim."""

from __future__ import annotations

import atexit
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch

from latentkit_sim.compiling import load_extension

LIMITS = ("no-float64", "no-bf16", "no-streams", "no-pinning")


def register(options: str) -> None:
    """Make the device known to torch; once in a process.

    Args:
        options: "1", or a list with commas of "devices=N" and LIMITS.

    Raises:
        ValueError: an unknown option.
        RuntimeError: the extension can't be compiled.
    """
    if hasattr(torch, "sim"):
        return
    devices, limits = _parse(options)
    torch.utils.rename_privateuse1_backend("sim")
    extension = load_extension()
    extension.configure(devices, *(limit not in limits for limit in LIMITS))
    torch._register_device_module("sim", _make_module(extension, devices, limits))
    torch.utils.generate_methods_for_privateuse1_backend(
        for_tensor=True, for_module=True, for_packed_sequence=True, for_storage=True
    )
    if "no-bf16" in limits:
        # torch turns autocast off with a warning. CUDA's raises.
        warnings.filterwarnings(
            "error", message="In sim autocast, but the target dtype is not supported"
        )
    atexit.register(_end_loudly, extension)


def _parse(options: str) -> tuple[int, set[str]]:
    devices, limits = 1, set()
    for option in options.split(","):
        if option.startswith("devices="):
            devices = int(option.removeprefix("devices="))
        elif option in LIMITS:
            limits.add(option)
        elif option != "1":
            raise ValueError(
                f"LATENTKIT_SIM: unknown option {option!r}. "
                f"There are 1, devices=N, {', '.join(LIMITS)}."
            )
    return devices, limits


def _end_loudly(extension: ModuleType) -> None:
    """Fail a process whose mistakes nobody has asked for."""
    if extension.in_bad_fork():
        return
    violations = extension.take_violations()
    if violations:
        print(
            "sim found mistakes that a GPU would answer with wrong numbers:",
            *violations,
            sep="\n  ",
            file=sys.stderr,
        )
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(86)


def _make_module(extension: ModuleType, devices: int, limits: set[str]) -> ModuleType:
    module = ModuleType(
        "torch.sim",
        "The simulated device: what torch.cuda is for CUDA, as far as generic code asks.",
    )
    parts = [
        _devices(devices, limits),
        _random(extension, devices),
        _memory(extension),
        _mistakes(extension),
    ]
    parts += [] if "no-streams" in limits else [_streams()]
    for part in parts:
        vars(module).update(part)
    return module


def _index(device: Any = None) -> int:
    """The index of a device; the current one for None and a device without index."""
    if device is None:
        return torch.accelerator.current_device_index()
    if isinstance(device, int):
        return device
    device = torch.device(device)
    if device.type != "sim":
        raise ValueError(f"Expected a sim device, but got: {device}")
    return torch.accelerator.current_device_index() if device.index is None else device.index


def _devices(devices: int, limits: set[str]) -> dict[str, Any]:
    def set_device(device: Any) -> None:
        if not isinstance(device, int) and torch.device(device).index is None:
            raise ValueError(
                f"Expected a torch.device with a specified index or an integer, but got:{device}"
            )
        if _index(device) >= 0:
            torch.accelerator.set_device_index(_index(device))

    def get_amp_supported_dtype() -> list[torch.dtype]:
        return [torch.float16] if "no-bf16" in limits else [torch.float16, torch.bfloat16]

    return {
        "is_available": lambda: devices > 0,
        "is_initialized": lambda: True,
        "init": lambda: None,
        "_lazy_init": lambda: None,
        "device_count": lambda: devices,
        "current_device": torch.accelerator.current_device_index,
        "set_device": set_device,
        "device": lambda device: torch.accelerator.device_index(_index(device)),
        "synchronize": lambda device=None: torch.accelerator.synchronize(_index(device)),
        "get_amp_supported_dtype": get_amp_supported_dtype,
        "is_bf16_supported": lambda *_, **__: "no-bf16" not in limits,
        "get_device_name": lambda device=None: f"simulated device {_index(device)}",
    }


def _streams() -> dict[str, Any]:
    @contextmanager
    def stream(chosen: torch.Stream | None) -> Iterator[None]:
        if chosen is None:
            yield
            return
        with chosen:
            yield

    class Stream(torch.Stream):
        """A new stream of a sim device."""

        def __new__(cls, device: Any = None, priority: int = 0, **ids: int) -> Stream:
            return (
                super().__new__(cls, **ids)
                if ids
                else super().__new__(cls, device=f"sim:{_index(device)}", priority=priority)
            )

    # Not a subclass: torch.Event.elapsed_time takes no instance of one.
    def Event(  # noqa: N802
        enable_timing: bool = False, blocking: bool = False, interprocess: bool = False
    ) -> torch.Event:
        return torch.Event(device="sim", enable_timing=enable_timing)

    return {
        "Stream": Stream,
        "Event": Event,
        "stream": stream,
        "current_stream": lambda device=None: torch.accelerator.current_stream(_index(device)),
        "set_stream": torch.accelerator.set_stream,
    }


def _random(extension: ModuleType, devices: int) -> dict[str, Any]:
    def generator(device: Any = "sim") -> torch.Generator:
        return extension.default_generator(_index(device))

    def set_rng_state(state: torch.Tensor, device: Any = "sim") -> None:
        generator(device).set_state(state)

    def manual_seed_all(seed: int) -> None:
        for device in range(devices):
            generator(device).manual_seed(seed)

    return {
        "get_rng_state": lambda device="sim": generator(device).get_state(),
        "set_rng_state": set_rng_state,
        "get_rng_state_all": lambda: [generator(device).get_state() for device in range(devices)],
        "manual_seed": lambda seed: generator().manual_seed(int(seed)) and None,
        "manual_seed_all": manual_seed_all,
        "initial_seed": lambda: generator().initial_seed(),
        "default_generators": [generator(device) for device in range(devices)],
        "_is_in_bad_fork": extension.in_bad_fork,
    }


def _memory(extension: ModuleType) -> dict[str, Any]:
    return {
        "empty_cache": lambda: None,
        "memory_allocated": lambda device=None: extension.allocated(_index(device)),
        "max_memory_allocated": lambda device=None: extension.peak(_index(device)),
        "reset_peak_memory_stats": lambda device=None: extension.reset_peak(_index(device)),
    }


def _mistakes(extension: ModuleType) -> dict[str, Any]:
    return {
        "violations": extension.take_violations,
        "num_synchronizations": extension.num_synchronizations,
        "reset_num_synchronizations": extension.reset_synchronizations,
    }
