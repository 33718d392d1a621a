"""What `torch.save` wrote, with inert stand-ins for everything that isn't a tensor.

No code of a pickle is run.

A pickle may name any function and have it called. Here a name is only ever looked up in
`REBUILDING`; every other name becomes a class that does nothing, so that the tensors beside a
trainer's own objects can be read.
"""

from __future__ import annotations

import pickle
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import torch


class StandIn(dict[Any, Any]):
    """In the place of any object of a pickle: keeps the entries of a mapping, does nothing else."""

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
    """Replace the opcode that sets attributes or calls `__setstate__`."""
    unpickler.stack.pop()


def _make_stand_in(unpickler: Any) -> None:
    """Replace the opcode that makes an object by keywords."""
    del unpickler.stack[-2:]
    unpickler.stack[-1] = StandIn()


class Unpickler(pickle._Unpickler):
    """Looks up no name but those of `REBUILDING` and torch's dtypes; changes no object."""

    dispatch = {  # noqa: RUF012 (of Python's own class)
        **pickle._Unpickler.dispatch,
        pickle.BUILD[0]: _drop_state,
        pickle.NEWOBJ_EX[0]: _make_stand_in,
        # A bytearray is made, zeros and all, in the stated length before it is read: more than
        # there is memory.
        pickle.BYTEARRAY8[0]: pickle._Unpickler.dispatch[pickle.BINBYTES8[0]],
    }

    def find_class(self, module: str, name: str) -> Any:
        """What a pickle gets for a name."""
        if (module, name) in REBUILDING:
            return REBUILDING[module, name]
        dtype = getattr(torch, name, None) if module == "torch" else None
        return dtype if isinstance(dtype, torch.dtype) else type(f"{module}.{name}", (StandIn,), {})


class InertPickle:
    """The part of the module `pickle` that `torch.load` uses."""

    Unpickler = Unpickler

    @staticmethod
    def load(file: IO[bytes], **options: Any) -> Any:
        """One object from a file."""
        return Unpickler(file, **options).load()


def load_inert(file: Path | IO[bytes], mmap: bool) -> Any:
    """What `torch.save` wrote, tensors on the CPU; other objects are stand-ins.

    Args:
        file: one that `torch.load(weights_only=True)` refused for its pickle alone.
        mmap: read tensors when they are used (the path of a zip file only).

    Raises:
        Exception: any, where the file is damaged.
    """
    return torch.load(file, "cpu", InertPickle, weights_only=False, mmap=mmap)
