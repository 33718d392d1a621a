"""Loads what `torch.save` wrote, with inert stand-ins for everything that isn't a tensor.

No code of a pickle is run. A pickle may name any function and have it called. Here a name is only
looked up in `REBUILDING`. Every other name becomes a class that does nothing, so tensors can be
read from files that also contain a trainer's objects.
"""

from __future__ import annotations

import pickle
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import torch


class StandIn(dict[Any, Any]):
    """Replaces any object of a pickle. It keeps the entries of a mapping and does nothing else."""

    __hash__ = object.__hash__  # type: ignore[assignment]
    __eq__ = object.__eq__

    def __new__(cls, *_: Any, **__: Any) -> StandIn:
        return super().__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None:
        super().__init__()

    def __call__(self, *_: Any, **__: Any) -> StandIn:
        return StandIn()

    def append(*_: Any) -> None:
        """Do nothing."""

    extend = add = append


def _tensor(storage: Any, offset: int, size: Any, stride: Any, *_: Any) -> Any:
    """Rebuild a tensor from its storage."""
    build: Any = torch._utils._rebuild_tensor_v2
    return build(storage, offset, size, stride, False, OrderedDict())


def _tensor_v3(
    storage: Any, offset: int, size: Any, stride: Any, _: Any, __: Any, dtype: Any, *___: Any
) -> Any:
    build: Any = torch._utils._rebuild_tensor_v3
    return build(storage, offset, size, stride, False, OrderedDict(), dtype)


REBUILDING: dict[tuple[str, str], Callable[..., Any]] = {
    ("collections", "OrderedDict"): lambda *entries: OrderedDict(*entries),
    ("torch", "Size"): lambda *sizes: torch.Size(*sizes),
    ("torch._utils", "_rebuild_tensor"): _tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_tensor_v3"): _tensor_v3,
    ("torch._utils", "_rebuild_parameter"): lambda data, *_: data,
    ("torch._utils", "_rebuild_parameter_with_state"): lambda data, *_: data,
    ("torch._tensor", "_rebuild_from_type_v2"): lambda build, _, arguments, __: build(*arguments),
    ("torch.storage", "UntypedStorage"): torch.UntypedStorage,
}
"""Everything that a pickle can call, by module and name."""


def _drop_state(unpickler: Any) -> None:
    """Replace the opcode that sets attributes of an object or calls its `__setstate__`."""
    unpickler.stack.pop()


def _make_stand_in(unpickler: Any) -> None:
    """Replace the opcode that creates an object with keyword arguments, such as a storage with an
    allocator's address.
    """
    del unpickler.stack[-2:]
    unpickler.stack[-1] = StandIn()


class Unpickler(pickle._Unpickler):
    """An unpickler that looks up only the names in `REBUILDING` and torch's dtypes, and changes no
    object.
    """

    dispatch = {  # noqa: RUF012 (of Python's own class)
        **pickle._Unpickler.dispatch,
        pickle.BUILD[0]: _drop_state,
        pickle.NEWOBJ_EX[0]: _make_stand_in,
        # Python creates a bytearray of the stated length before reading it; that may exceed the
        # memory.
        pickle.BYTEARRAY8[0]: pickle._Unpickler.dispatch[pickle.BINBYTES8[0]],
    }

    def find_class(self, module: str, name: str) -> Any:
        """Return the function, dtype or stand-in class for a name in a pickle."""
        if (module, name) in REBUILDING:
            return REBUILDING[module, name]
        dtype = getattr(torch, name, None) if module == "torch" else None
        return dtype if isinstance(dtype, torch.dtype) else type(f"{module}.{name}", (StandIn,), {})


class InertPickle:
    """The part of the module `pickle` that `torch.load` uses."""

    Unpickler = Unpickler

    @staticmethod
    def load(file: IO[bytes], **options: Any) -> Any:
        """Load one object from a file."""
        return Unpickler(file, **options).load()


def load_inert(file: Path | IO[bytes], mmap: bool) -> Any:
    """Load what `torch.save` wrote, with tensors on the CPU. Other objects are stand-ins.

    Args:
        file: a file that `torch.load(weights_only=True)` refused only because of its pickle.
        mmap: whether tensors are read when they are used (only for the path of a zip file).

    Raises:
        Exception: any error, if the file is damaged.
    """
    return torch.load(file, "cpu", InertPickle, weights_only=False, mmap=mmap)
