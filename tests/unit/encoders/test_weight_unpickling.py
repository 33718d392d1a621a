"""Objects beside the tensors of a checkpoint: the tensors are read, and no pickle runs anything,
whatever opcodes it uses.
"""

from __future__ import annotations

import argparse
import collections
import fractions
import io
import os
import pathlib
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from latentkit.encoders.weight_files import read_all_tensors, read_tensors
from latentkit.encoders.weight_unpickling import StandIn, Unpickler
from latentkit.errors import EncoderError


class Callback:
    """A trainer's object, with a state."""

    def __init__(self) -> None:
        self.best = {"score": 0.5, "path": pathlib.PurePosixPath("a/b")}


class Settings(dict[str, Any]):
    """A mapping of a class of its own."""


BESIDE: dict[str, Any] = {
    "callbacks": {Callback: Callback()},
    "hyper_parameters": Settings(lr=1e-4, path=pathlib.PurePosixPath("data")),
    "args": argparse.Namespace(
        lr=1, names=["a"], nested=argparse.Namespace(x=fractions.Fraction(1, 2))
    ),
    "numpy": [np.float64(0.5), np.arange(3), np.random.default_rng(0)],
    "counts": collections.Counter("abc"),
    "groups": collections.defaultdict(list, a=[1]),
    "kinds": {int, torch.nn.Linear},
    "call": print,
}


@pytest.mark.parametrize("in_zip", [True, False])
def test_tensors_beside_objects_are_read_bit_identical(
    in_zip: bool, tensors: dict[str, Tensor], tmp_path: Path
) -> None:
    held = {
        **BESIDE,
        "state_dict": tensors,
        "weights in bits": {"a": tensors["encoder.conv_in.weight"].to(torch.bfloat16)},
    }
    torch.save(held, tmp_path / "last.ckpt", _use_new_zipfile_serialization=in_zip)
    read = read_tensors(tmp_path / "last.ckpt")
    assert list(read) == list(tensors)
    assert all(torch.equal(read[name], tensors[name]) for name in tensors)
    every = read_all_tensors(tmp_path / "last.ckpt")
    assert set(every) == {f"state_dict.{name}" for name in tensors} | {"weights in bits.a"}


@pytest.mark.parametrize(
    "kind",
    [torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.int64, torch.bool, torch.uint16],
)
def test_parameters_of_every_kind_are_rebuilt_beside_an_object(
    kind: torch.dtype, tmp_path: Path
) -> None:
    values = torch.arange(6).reshape(2, 3).to(kind)
    held = {
        "a": torch.nn.Parameter(values, requires_grad=False),
        "b": values.T,
        "object": Callback(),
    }
    torch.save(held, tmp_path / "a.pt")
    read = read_tensors(tmp_path / "a.pt")
    assert torch.equal(read["a"].view(torch.uint8), values.view(torch.uint8))
    assert torch.equal(
        read["b"].contiguous().view(torch.uint8), values.T.contiguous().view(torch.uint8)
    )
    assert not any(
        isinstance(value, torch.nn.Parameter) or value.requires_grad for value in read.values()
    )


def global_(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def text(value: str) -> bytes:
    return b"X" + len(value.encode()).to_bytes(4, "little") + value.encode()


def attacks(mark: Path) -> dict[str, bytes]:
    """Programs that leave `mark` behind when a plain unpickler reads them, by the opcodes that they
    run by.
    """
    command = text(f"touch {mark}")
    code = text(f"open({str(mark)!r}, 'w').close()")
    system = global_("posix" if os.name == "posix" else "nt", "system")
    stacked = text("posix") + text("system") + b"\x93"
    return {
        "GLOBAL, REDUCE": system + command + b"\x85R",
        "STACK_GLOBAL, REDUCE": stacked + command + b"\x85R",
        "eval": global_("builtins", "eval") + code + b"\x85R",
        "exec": global_("builtins", "exec") + code + b"\x85R",
        "INST": b"(" + command + b"iposix\nsystem\n",
        "OBJ": b"(" + system + command + b"o",
        "getattr chain": (
            global_("builtins", "getattr") + global_("os", "path") + text("os") + b"\x86R"
        ),
        "dotted name": text("os") + text("path.os.system") + b"\x93" + command + b"\x85R",
        "import": global_("importlib", "import_module") + text("os") + b"\x85R",
        "runpy": global_("runpy", "_run_code") + code + b"}\x86R",
        "NEWOBJ_EX": (
            global_("subprocess", "Popen")
            + b"]"
            + command
            + b"a\x85}"
            + text("shell")
            + b"\x88s\x92"
        ),
        "BUILD on a class": (
            global_("collections", "OrderedDict") + b"}" + text("keys") + system + b"sb"
        ),
        "BUILD on a function": (
            global_("torch._utils", "_rebuild_tensor_v2") + b"}" + text("__call__") + system + b"sb"
        ),
        "BUILD with slots": (
            global_("torch._utils", "_rebuild_tensor_v2")
            + b"N}"
            + text("__call__")
            + system
            + b"s\x86b"
        ),
        "torch.load of bytes": global_("torch.storage", "_load_from_bytes") + b"C\x01x\x85R",
        "torch.jit": global_("torch.jit", "load") + text(str(mark)) + b"\x85R",
    }


NAMES = list(attacks(Path("mark")))


def write_checkpoint(program: bytes, tensors: dict[str, Tensor], file: Path) -> None:
    """What torch.save writes of tensors under `state_dict`, with the program beside them in the
    pickle.
    """
    torch.save({"state_dict": tensors}, file)
    with zipfile.ZipFile(file) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in parts.items():
            if name.endswith("data.pkl"):
                assert content.endswith(
                    b"s."
                )  # the mapping's one entry is set, and the pickle ends
                content = content[:-1] + text("program") + program + b"s."
            archive.writestr(name, content)


@pytest.mark.parametrize("name", NAMES)
def test_no_opcode_of_a_checkpoint_runs_a_program(
    name: str, tmp_path: Path, tensors: dict[str, Tensor]
) -> None:
    mark, file = tmp_path / "mark", tmp_path / "vae.ckpt"
    write_checkpoint(attacks(mark)[name], tensors, file)
    before = dict(vars(torch._utils)), collections.OrderedDict.keys
    try:
        read = read_tensors(file)
    except EncoderError as error:
        assert "vae.ckpt" in str(error)  # noqa: PT017 (either is right)
    else:
        assert all(torch.equal(read[key], tensors[key]) for key in tensors)
    assert not mark.exists()
    assert (dict(vars(torch._utils)), collections.OrderedDict.keys) == before
    assert vars(torch._utils._rebuild_tensor_v2) == {}


@pytest.mark.skipif(os.name != "posix", reason="the programs are of a POSIX shell")
def test_the_programs_would_run_in_a_plain_unpickler(tmp_path: Path) -> None:
    """So that the test above can fail."""
    ran = []
    for name, program in attacks(tmp_path / "mark").items():
        if name in (
            "GLOBAL, REDUCE",
            "STACK_GLOBAL, REDUCE",
            "eval",
            "exec",
            "INST",
            "OBJ",
            "dotted name",
        ):
            pickle.loads(b"\x80\x04" + program + b".")
            ran.append((tmp_path / "mark").exists())
            (tmp_path / "mark").unlink(missing_ok=True)
    assert ran == [True] * 7


STORAGE = global_("torch.storage", "UntypedStorage")
ADDRESS = b"}" + text("allocator") + b"J\x41\x41\x41\x41s"
CRASHES = {
    "address of an allocator": STORAGE + b"K\x08\x85" + ADDRESS + b"\x92",
    "address alone": STORAGE + b")" + ADDRESS + b"\x92",
    "keywords as arguments": STORAGE + ADDRESS + b"\x85R",
    "keywords as arguments of new": STORAGE + b"K\x08" + ADDRESS + b"\x86\x81",
    "value out of bounds": STORAGE + b"K\x08\x85RJ\xff\xff\xff\x7fK\x01s",
    "negative size": STORAGE + b"J\xff\xff\xff\xff\x85\x81",
    "size beyond any memory": STORAGE + b"\x8a\x08" + b"\xff" * 7 + b"\x3f\x85R",
    "bytearray beyond any memory": b"\x96" + (1 << 38).to_bytes(8, "little") + b"x",
}
"""Programs that crash the process, or fill its memory, where a pickle's numbers are taken as they
are.
"""


def test_no_numbers_of_a_checkpoint_crash_the_process(
    tmp_path: Path, tensors: dict[str, Tensor]
) -> None:
    """In a process of its own, which would die."""
    few = {name: tensors[name] for name in list(tensors)[:2]}
    for number, program in enumerate(CRASHES.values()):
        write_checkpoint(program, few, tmp_path / f"{number}.ckpt")
    code = f"""
from pathlib import Path
from latentkit.encoders.weight_files import read_tensors
from latentkit.errors import EncoderError
for number in range({len(CRASHES)}):
    try:
        print(number, len(read_tensors(Path(f"{{number}}.ckpt"))), flush=True)
    except EncoderError:
        print(number, 0, flush=True)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    said = [tuple(map(int, line.split())) for line in done.stdout.splitlines()]
    assert (done.returncode, done.stderr) == (0, "")
    assert [number for number, _ in said] == list(range(len(CRASHES)))
    assert {num_tensors for _, num_tensors in said} <= {0, len(few)}
    assert said[0] == (0, len(few))  # its stand-in keeps nobody from the tensors beside it


def test_mappings_that_hold_each_other_are_looked_into_once(
    tensors: dict[str, Tensor], tmp_path: Path
) -> None:
    """A trainer's objects refer back to it, and share others: thirty references on each of eight
    levels would take years.
    """
    shared: dict[str, Any] = {}
    for _ in range(8):
        shared = dict.fromkeys(map(str, range(30)), shared)
    outer: dict[str, Any] = {"tensor": torch.ones(1)}
    inner: dict[str, Any] = {f"back {number}": outer for number in range(30)}
    outer |= {f"down {number}": inner for number in range(30)}
    held = {"state_dict": tensors, "callbacks": outer, "shared": shared, "model": tensors}
    torch.save({**held, "object": Callback()}, tmp_path / "last.ckpt")
    assert list(read_tensors(tmp_path / "last.ckpt")) == list(tensors)
    every = set(read_all_tensors(tmp_path / "last.ckpt"))
    named = {f"{group}.{name}" for group in ("state_dict", "model") for name in tensors}
    assert every == named | {"callbacks.tensor"}


class Reduces:
    """Pickled as a call."""

    def __init__(self, call: Callable[..., Any], *arguments: Any, state: Any = None) -> None:
        self.reduced = (call, arguments, state)

    def __reduce__(self) -> tuple[Any, ...]:
        return self.reduced


@pytest.mark.parametrize("protocol", range(6))
def test_a_call_gives_a_stand_in_in_every_protocol(protocol: int, tmp_path: Path) -> None:
    call = Reduces(os.mkdir, str(tmp_path / "made"), state={"__setstate__": 1})
    found = Unpickler(io.BytesIO(pickle.dumps([call, {"a": call}], protocol))).load()
    assert isinstance(found[0], StandIn)
    assert not (tmp_path / "made").exists()


def test_a_whole_module_is_said_to_be_one(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(2, 2), tmp_path / "model.pt")
    with pytest.raises(
        EncoderError,
        match=(
            r"got an object \(torch\.nn\.modules\.linear\.Linear\), .* save model\.state_dict\(\)"
            r" instead"
        ),
    ):
        read_tensors(tmp_path / "model.pt")
