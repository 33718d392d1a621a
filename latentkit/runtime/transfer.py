"""Copies tensors to a device, in parallel to its computation if it has streams, and back. Also
measures how long the device was idle.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from latentkit.runtime.device import has_streams, kind_of, module_of, pins_memory


class Transfer:
    """Copies to and from one device.

    Args:
        device: device such as "cuda:0".
    """

    def __init__(self, device: str) -> None:
        self.device = device
        self.runs_beside = has_streams(device)
        """Whether copies run in parallel to computation, so memory must be kept until they end."""
        self._module = module_of(device)
        self._stream = self._module.Stream(device=device) if self.runs_beside else None

    def to_device(self, batch: Any) -> Any:
        """Return the batch, a tensor or a mapping of tensors, on the device. The caller keeps it
        until it has been used.
        """
        if isinstance(batch, Mapping):
            return {name: self.to_device(part) for name, part in batch.items()}
        if self._stream is None:
            return batch.to(self.device)
        with self._module.stream(self._stream):
            copy = batch.to(self.device, non_blocking=True)
        current = self._module.current_stream(torch.device(self.device))
        current.wait_stream(self._stream)
        copy.record_stream(current)
        return copy

    def to_host(
        self, tensors: Mapping[str, Tensor]
    ) -> tuple[dict[str, Tensor], Callable[[], None]]:
        """Return the tensors on the CPU, and a function to call before reading them, because copies
        may not be finished.
        """
        if not self.runs_beside or all(tensor.device.type == "cpu" for tensor in tensors.values()):
            return {name: tensor.cpu() for name, tensor in tensors.items()}, lambda: None
        pinned = pins_memory(self.device)
        host = {
            name: torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=pinned)
            for name, tensor in tensors.items()
        }
        for name, tensor in tensors.items():
            host[name].copy_(tensor, non_blocking=True)
        # Waiting for this event doesn't occupy a core, which decoding needs.
        event = self._module.Event(**{"blocking": True} if kind_of(self.device) == "cuda" else {})
        event.record(self._module.current_stream(torch.device(self.device)))
        return host, event.synchronize


class WaitClock:
    """Measures how long a device was idle, with the device's own events, because calls return
    before it has computed.

    Devices without events aren't measured. There calls return after computing, so the caller's
    clock is right.
    """

    def __init__(self, device: str) -> None:
        self.has_events = has_streams(device)
        self._module, self._device = module_of(device), torch.device(device)
        self._idle_since: Any = None
        self._lock = threading.Lock()
        self._new_seconds = 0.0

    @contextmanager
    def computing(self) -> Iterator[Callable[[], float]]:
        """Yield a function that returns how many seconds the device was idle before the computation
        inside. Call it when that is done.
        """
        before, begin = self._idle_since, self._record()

        def idle_seconds() -> float:
            seconds: float = 0.0 if before is None else before.elapsed_time(begin) / 1000
            with self._lock:
                self._new_seconds += seconds
            return seconds

        yield idle_seconds
        self._idle_since = self._record()

    def take_waited_seconds(self, seconds: float) -> float:
        """Return the device's idle seconds since the last call, or the caller's `seconds` if there
        are no events.
        """
        if not self.has_events:
            return seconds
        with self._lock:
            seconds, self._new_seconds = self._new_seconds, 0.0
        return seconds

    def _record(self) -> Any:
        """Return an event recorded now; None without events."""
        if not self.has_events:
            return None
        event = self._module.Event(enable_timing=True)
        event.record(self._module.current_stream(self._device))
        return event
