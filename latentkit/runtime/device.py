"""The device that a process computes on: which one it is, and what it can do.

No other module asks torch for this. A device is named by a string with its number, such as
"cuda:0", "mps:0" or "cpu". What devices lack, and what is done instead:

| feature                    | cpu | cuda, ROCm  | xpu         | npu   | mps   |
|----------------------------|-----|-------------|-------------|-------|-------|
| float64                    | yes | yes         | tried       | tried | no    |
| bfloat16                   | yes | tried       | tried       | tried | tried |
| streams, pinned memory     | no  | yes         | yes         | yes   | no    |
| channels last, 2-D and 3-D | yes | yes         | yes         | no    | no    |
| compile                    | yes | with triton | with triton | no    | no    |
| its own random numbers     | no  | yes         | yes         | yes   | yes   |

- float64: computed on the CPU.
- bfloat16: training warns and uses float32; encoding refuses.
- streams, pinned memory: copies wait.
- channels last: tensors are contiguous.
- compile: runs uncompiled, with a warning.

"tried" means tried once on the device. On a device of another kind, from a backend that isn't part
of torch, every feature is tried.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from latentkit.errors import DeviceError
from latentkit.runtime.workers import is_worker

CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}
"""By a tensor's number of axes, the memory format in which convolutions are fast."""

CONTIGUOUS_KINDS = {"mps", "npu"}
"""Kinds whose convolutions are slow or wrong with channels-last tensors."""

OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "CUDNN_STATUS_NOT_SUPPORTED")
"""Texts in torch's errors about memory that aren't an `OutOfMemoryError`."""

COMPILING_KINDS = {"cuda", "xpu"}


def list_devices() -> list[str]:
    """Return the devices of this machine that `auto` chooses from: all accelerators, or the CPU if
    there is none.
    """
    kind = _accelerator()
    return (
        [f"{kind}:{index}" for index in range(torch.accelerator.device_count())]
        if kind
        else ["cpu"]
    )


def choose_device(wanted: str = "auto") -> str:
    """Return the device that this process uses, with its number.

    Args:
        wanted: "auto" for this machine's accelerator, or else the CPU; a kind such as "cuda", of
            which each of a launcher's processes takes one; or one device, such as "cuda:1", "cpu"
            or "1".

    Raises:
        DeviceError: the device doesn't exist; the message lists the available ones.
    """
    accelerator = _accelerator()
    if wanted == "auto":
        wanted = accelerator if accelerator and not is_cpu_requested() else "cpu"
    try:
        device = torch.device(f"{accelerator}:{wanted}" if wanted.isdecimal() else wanted)
    except RuntimeError as error:
        raise _missing(wanted) from error
    if device.type == "cpu":
        return "cpu"
    count = torch.accelerator.device_count() if device.type == accelerator else 0
    index = (
        int(os.environ.get("LOCAL_RANK", "0")) % max(count, 1)
        if device.index is None
        else device.index
    )
    if index >= count:
        raise _missing(wanted)
    return f"{device.type}:{index}"


def is_cpu_requested() -> bool:
    """Return whether the launcher was called with `--cpu`."""
    return os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes")


def kind_of(device: str | torch.device) -> str:
    """Return the kind of a device, such as "cuda"."""
    return torch.device(device).type


def make_current(device: str) -> None:
    """Make this the device of kernels and streams that name none."""
    if (index := torch.device(device).index) is not None and kind_of(device) != "mps":
        torch.accelerator.set_device_index(index)


def synchronize(device: str) -> None:
    """Wait until the device has finished all computation."""
    if kind_of(device) != "cpu":
        torch.accelerator.synchronize(torch.device(device))


def free_memory(device: str) -> None:
    """Return the memory that torch keeps for later to the device, for other processes."""
    if kind_of(device) != "cpu":
        module_of(device).empty_cache()


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that a device or the machine has no memory left."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and any(sign in text for sign in OUT_OF_MEMORY)


def is_unsupported(error: BaseException) -> bool:
    """Return whether an error says that the device's backend lacks an operator, as Apple's GPUs
    do.
    """
    return isinstance(error, NotImplementedError) and "not currently implemented for the" in str(
        error
    )


@functools.cache
def warn_once(text: str) -> None:
    """Print a warning about what is done instead of what was requested, each text only once."""
    if not is_worker() and os.environ.get("RANK", "0") == "0":
        print(f"warning: {text}", file=sys.stderr, flush=True)


# ---------------------------------------------------------------- what it can do


@functools.cache
def has_float64(device: str | torch.device) -> bool:
    """Return whether the device computes in float64."""
    return _succeeds(lambda: torch.ones(1, dtype=torch.float64, device=device).add(1).item())


@functools.cache
def has_bfloat16(device: str | torch.device) -> bool:
    """Return whether the device computes in bfloat16 natively, not by emulation."""
    if kind_of(device) == "cuda" and not torch.version.hip:
        return torch.cuda.get_device_capability(device)[0] >= 8

    def multiply() -> None:
        ones = torch.ones(2, 2, dtype=torch.bfloat16, device=device)
        ones.mm(ones).sum().item()

    return _succeeds(multiply)


@functools.cache
def has_streams(device: str | torch.device) -> bool:
    """Return whether copies can run in parallel to computation, in their own stream."""
    return kind_of(device) not in ("cpu", "mps") and hasattr(module_of(device), "Stream")


@functools.cache
def pins_memory(device: str | torch.device) -> bool:
    """Return whether copies from and to pinned memory run in parallel to computation."""

    def pin() -> None:
        with module_of(device).device(
            torch.device(device)
        ):  # otherwise a context would be created on the first device
            torch.empty(1, pin_memory=True)

    return has_streams(device) and _succeeds(pin)


@functools.cache
def can_compile(device: str | torch.device) -> bool:
    """Return whether `torch.compile` has a code generator for the device."""
    if kind_of(device) == "cpu":
        return True
    from torch.utils._triton import has_triton

    return kind_of(device) in COMPILING_KINDS and has_triton()


def memory_format(device: str | torch.device, num_axes: int) -> torch.memory_format:
    """Return the memory format in which the device's convolutions over tensors with this number of
    axes are fast.
    """
    if kind_of(device) in CONTIGUOUS_KINDS:
        return torch.contiguous_format
    return CHANNELS_LAST.get(num_axes, torch.contiguous_format)


def to_float64(tensor: Tensor) -> Tensor:
    """Return the tensor in float64, on its device if that supports it, else on the CPU."""
    return tensor.double() if has_float64(tensor.device) else tensor.cpu().double()


# ---------------------------------------------------------------- random numbers


def random_state(device: str | torch.device) -> Tensor:
    """Return the state of the device's generator, uint8 on the CPU."""
    if kind_of(device) in ("cpu", "mps"):  # whose functions take no device
        state: Tensor = module_of(device).get_rng_state()
        return state
    state = module_of(device).get_rng_state(torch.device(device))
    return state


def set_random_state(device: str | torch.device, state: Tensor) -> None:
    """Set the device's generator to a state that `random_state` returned."""
    if kind_of(device) in ("cpu", "mps"):
        module_of(device).set_rng_state(state)
    else:
        module_of(device).set_rng_state(state, torch.device(device))


@contextmanager
def restored_random_state(device: str | torch.device) -> Iterator[None]:
    """Restore the generators of the CPU and of this device at the end."""
    devices = ["cpu"] if kind_of(device) == "cpu" else ["cpu", device]
    states = [(each, random_state(each)) for each in devices]
    try:
        yield
    finally:
        for each, state in states:
            set_random_state(each, state)


# ---------------------------------------------------------------- torch


def module_of(device: str | torch.device) -> Any:
    """Return torch's module for the device's kind, such as `torch.cuda`; for the CPU, torch
    itself.
    """
    return torch if kind_of(device) == "cpu" else torch.get_device_module(torch.device(device))


def _accelerator() -> str:
    """Return the kind of accelerator that torch finds on this machine; empty without any."""
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return "" if found is None else found.type


def _missing(wanted: str) -> DeviceError:
    """Return the error for a device that doesn't exist."""
    known = list_devices()
    there = ", ".join(known if known == ["cpu"] else [*known, "cpu"])
    return DeviceError(
        f"device {wanted!r}: torch {torch.__version__} finds no such device here; available:"
        f" {there} (or auto)"
    )


def _succeeds(run: Callable[[], object]) -> bool:
    """Return whether a computation runs without error."""
    try:
        run()
    except (RuntimeError, TypeError, NotImplementedError):
        return False
    return True
