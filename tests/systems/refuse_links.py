"""Run a command, and all processes that it starts, where the kernel refuses hard links.

    python refuse_links.py links COMMAND...            as exFAT, FAT and SMB do
    python refuse_links.py links,renames COMMAND...    as FUSE does, and renames without replacing

A seccomp filter answers these system calls with EPERM and EINVAL, as on such a disk.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
import sys

CALLS = {
    "x86_64": {"link": (86, 265), "renameat2": 316},
    "aarch64": {"link": (37,), "renameat2": 276},
}
"""Numbers of the system calls (both of link and linkat, where there are both)."""

LOAD_NUMBER = (0x20, 0, 0, 0)
LOAD_FLAGS = (0x20, 0, 0, 16 + 4 * 8)
"""The fifth argument's lower half, which is how renameat2 is told to replace nothing."""

ALLOW = (0x06, 0, 0, 0x7FFF0000)
PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 38, 22, 2


def answer(number: int) -> tuple[int, int, int, int]:
    """Refuse the call with this error."""
    return 0x06, 0, 0, 0x00050000 | number


def skip_unless_equal(value: int, steps: int) -> tuple[int, int, int, int]:
    return 0x15, 0, steps, value


def program(refused: set[str]) -> list[tuple[int, int, int, int]]:
    """The filter's instructions: code, steps to skip if true, if false, operand."""
    calls = CALLS[platform.machine()]
    steps = [LOAD_NUMBER]
    for number in calls["link"] if "links" in refused else ():
        steps += [skip_unless_equal(number, 1), answer(errno.EPERM)]
    if "renames" in refused:
        steps += [
            skip_unless_equal(calls["renameat2"], 3),
            LOAD_FLAGS,
            (0x15, 1, 0, 0),
            answer(errno.EINVAL),
        ]
    return [*steps, ALLOW]


def refuse(refused: set[str]) -> None:
    """From now on, in this process and its children, for good."""
    steps = program(refused)
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in steps))
    header = ctypes.create_string_buffer(
        struct.pack("HxxxxxxQ", len(steps), ctypes.addressof(code))
    )
    c_library = ctypes.CDLL(None, use_errno=True)
    for option, value, place in (
        (PR_SET_NO_NEW_PRIVS, 1, 0),
        (PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.addressof(header)),
    ):
        if c_library.prctl(
            option,
            ctypes.c_ulong(value),
            ctypes.c_ulong(place),
            ctypes.c_ulong(0),
            ctypes.c_ulong(0),
        ):
            raise OSError(ctypes.get_errno(), "the kernel takes no filter")


if __name__ == "__main__":
    refuse(set(sys.argv[1].split(",")))
    os.execvp(sys.argv[2], sys.argv[2:])
