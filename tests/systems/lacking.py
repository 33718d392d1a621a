"""Run Python code as on macOS or Windows, as far as Linux can be made to lack what they lack.

    python lacking.py darwin|win32|linux FILE [MODULE...]

Other people's modules that FILE needs are imported before anything is taken away.

`LACKING` lists what is taken away or behaves otherwise. It is so for latentkit's modules alone, and
for what they ask pathlib and shutil to do: torch, pyarrow and the others have ports of their own.
Paths stay those of Linux, and so does what the kernel does.
"""

from __future__ import annotations

import builtins
import errno
import fcntl
import io
import multiprocessing
import os
import pathlib
import shutil
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType, ModuleType
from typing import Any

OURS = ("latentkit", "lacking_double")
THROUGH = {"pathlib", "shutil", "genericpath", "posixpath", __name__}
"""Modules that act for the one that calls them."""

SHARING_VIOLATION = 32
OPEN, LISTDIR, READLINK = open, os.listdir, os.readlink


@dataclass(frozen=True)
class Lack:
    """Something that a system lacks.

    Args:
        name: of an attribute "module.name", a module, or a way to behave.
        on: the systems.
        use: Python code that needs it; `file` and `folder` are there, and `unread`, an open file.
        checked: why latentkit does without it, or where it goes another way.
    """

    name: str
    on: tuple[str, ...]
    use: str
    checked: str


BOTH, WINDOWS = ("darwin", "win32"), ("win32",)
LACKING = (
    Lack(
        "os.sched_getaffinity",
        BOTH,
        "import os; os.sched_getaffinity(0)",
        "numerics.num_cores asks os.cpu_count then",
    ),
    Lack(
        "os.posix_fadvise",
        BOTH,
        "import os; os.posix_fadvise(unread.fileno(), 0, 1, 0)",
        "store.mapped tells no kernel what it will need",
    ),
    Lack(
        "errno.EREMOTEIO",
        BOTH,
        "import errno; errno.EREMOTEIO",
        "store.outage adds it on Linux alone",
    ),
    Lack(
        "resource.RUSAGE_THREAD",
        BOTH,
        "import resource; resource.RUSAGE_THREAD",
        "store.readahead counts on Linux alone",
    ),
    Lack(
        "/proc",
        BOTH,
        "open('/proc/self/stat', 'rb').close()",
        "store.folder.host: no PID namespaces; uploads from named files",
    ),
    Lack("resource", WINDOWS, "import resource", "store.readahead imports it on Linux alone"),
    Lack("fcntl", WINDOWS, "import fcntl", "store.commit: os.rename replaces nothing there"),
    Lack("pwd", WINDOWS, "import pwd", "nowhere used"),
    Lack("os.fork", WINDOWS, "import os; os.fork and None", "processes are spawned everywhere"),
    Lack("os.getuid", WINDOWS, "import os; os.getuid()", "nowhere used"),
    Lack("os.killpg", WINDOWS, "import os; os.killpg and None", "nowhere used"),
    Lack("os.uname", WINDOWS, "import os; os.uname()", "nowhere used"),
    Lack("os.sysconf", WINDOWS, "import os; os.sysconf('SC_PAGE_SIZE')", "nowhere used"),
    Lack("os.statvfs", WINDOWS, "import os; os.statvfs(folder)", "nowhere used"),
    Lack("os.O_DIRECTORY", WINDOWS, "import os; os.O_DIRECTORY", "nowhere used"),
    Lack(
        "signal.SIGKILL",
        WINDOWS,
        "import signal; signal.SIGKILL",
        "children are ended by multiprocessing",
    ),
    Lack("signal.SIGHUP", WINDOWS, "import signal; signal.SIGHUP", "nowhere used"),
    Lack("signal.SIGUSR1", WINDOWS, "import signal; signal.SIGUSR1", "nowhere used"),
    Lack(
        "a folder's handle",
        WINDOWS,
        "import os; os.close(os.open(folder, os.O_RDONLY))",
        "store.commit.sync does without",
    ),
    Lack(
        "flushing what is open for reading",
        WINDOWS,
        "import os; os.fsync(unread.fileno())",
        "store.commit.sync opens files for writing",
    ),
    Lack(
        "replacing an open file",
        WINDOWS,
        "import os; os.replace(other, file)",
        "store.commit.retry_while_in_use tries again; files are closed first",
    ),
    Lack(
        "renaming an open file",
        WINDOWS,
        "import os; os.rename(file, file + '.new')",
        "store.folder closes a file before it gets its name",
    ),
    Lack(
        "removing an open file",
        WINDOWS,
        "import os; os.unlink(file)",
        "checkpoints are read, not mapped; a cache keeps what is in use",
    ),
    Lack(
        "renaming onto a file",
        WINDOWS,
        "import os; os.rename(other, third)",
        "os.replace where that is meant; exporting removes an empty folder",
    ),
    Lack(
        "the system's encoding",
        BOTH,
        "open(file).close()",
        "every text file names its encoding: Windows would take cp1252",
    ),
)


def is_ours(frame: FrameType | None) -> bool:
    """Whether one of our modules asked."""
    while frame is not None and frame.f_globals.get("__name__") in THROUGH:
        frame = frame.f_back
    return frame is not None and str(frame.f_globals.get("__name__")).startswith(OURS)


def take_away(system: str) -> None:
    """Make this process lack what `system` lacks, for our modules."""
    names = {lack.name for lack in LACKING if system in lack.on}
    attributes = {name for name in names if "." in name}
    modules = {name for name in names if name.isidentifier()}
    for module in (os, errno, signal, __import__("resource")):
        hidden = {
            name.partition(".")[2] for name in attributes if name.startswith(f"{module.__name__}.")
        }
        _hide(module, hidden, {})
    _hide(sys, set(), {"platform": system})
    _wrap(
        builtins,
        "__import__",
        lambda name, *_: name in modules,
        lambda name, *_: ModuleNotFoundError(f"No module named {name!r}"),
    )
    for owner, function in (
        (builtins, "open"),
        (io, "open"),
        (os, "open"),
        (os, "readlink"),
        (os, "listdir"),
    ):
        _wrap(
            owner,
            function,
            _is_of_the_kernel,
            lambda path, *_, **__: FileNotFoundError(errno.ENOENT, "no such file", path),
        )
    for owner in (builtins, io):
        _wrap(
            owner,
            "open",
            _is_in_the_encoding_of_the_system,
            lambda path, *_, **__: EncodingWarning(path),
        )
    if system == "win32":
        _take_away_files()
    multiprocessing.set_start_method("spawn", force=True)


def _take_away_files() -> None:
    shutil._use_fd_functions = False  # type: ignore[attr-defined]  # rmtree goes by names there
    _wrap(
        os,
        "open",
        lambda path, *_, **__: os.path.isdir(path),
        lambda *_, **__: PermissionError(errno.EACCES, "Permission denied"),
    )
    _wrap(os, "fsync", _is_read_only, lambda *_: OSError(errno.EBADF, "Bad file descriptor"))
    for name in ("replace", "rename"):
        _wrap(
            os,
            name,
            lambda *paths, **__: any(is_in_use(path) for path in paths),
            lambda *_, **__: _in_use(),
        )
    _wrap(
        os,
        "rename",
        lambda _, new: os.path.lexists(new),
        lambda *_, **__: FileExistsError(errno.EEXIST, "File exists"),
    )
    for name in ("unlink", "remove"):
        _wrap(os, name, is_in_use, lambda *_, **__: _in_use())


def _hide(module: ModuleType, hidden: set[str], changed: dict[str, str]) -> None:
    """Let our modules find no such attributes in a module, and other values in some."""

    class Lacking(type(module)):  # type: ignore[misc]
        def __getattribute__(self, name: str) -> Any:
            if (name in hidden or name in changed) and is_ours(sys._getframe(1)):
                if name in hidden:
                    raise AttributeError(f"module {module.__name__!r} has no attribute {name!r}")
                return changed[name]
            return super().__getattribute__(name)

    module.__class__ = Lacking


def _wrap(
    owner: ModuleType, name: str, refuses: Callable[..., bool], error: Callable[..., Exception]
) -> None:
    """Let a function fail when our modules call it with some arguments."""
    original = getattr(owner, name)

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if is_ours(sys._getframe(1)) and refuses(*args, **kwargs):
            raise error(*args, **kwargs)
        return original(*args, **kwargs)

    setattr(owner, name, wrapped)


def _is_of_the_kernel(path: Any, *_: Any, **__: Any) -> bool:
    return isinstance(path, str | os.PathLike) and os.fspath(path).startswith(
        ("/proc/", "/sys/", "/dev/fd/")
    )


def _is_in_the_encoding_of_the_system(
    _: Any, mode: str = "r", buffering: int = -1, encoding: str | None = None, *__: Any, **___: Any
) -> bool:
    return "b" not in mode and encoding in (None, "locale")


def _is_read_only(file: int) -> bool:
    return fcntl.fcntl(file, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY


def is_in_use(path: Any, *_: Any, dir_fd: int | None = None, **__: Any) -> bool:
    """Whether this process has the file, or one in the folder, open or mapped into memory."""
    folder = os.getcwd() if dir_fd is None else READLINK(f"/proc/self/fd/{dir_fd}")
    place = os.path.realpath(os.path.join(folder, os.fspath(path)))
    with OPEN("/proc/self/maps", encoding="utf-8") as maps:
        used = {line.split(maxsplit=5)[5].rstrip("\n") for line in maps if "/" in line}
    for number in LISTDIR("/proc/self/fd"):
        try:
            used.add(READLINK(f"/proc/self/fd/{number}"))
        except FileNotFoundError:  # the listing's own
            continue
    return any(
        file == place or (file.startswith(f"{place}/") and not os.path.isdir(file)) for file in used
    )


def _in_use() -> PermissionError:
    error = PermissionError(
        errno.EACCES,
        "The process cannot access the file because it is being used by another process",
    )
    error.winerror = SHARING_VIOLATION  # type: ignore[attr-defined]
    return error


def run(file: str) -> None:
    """Run the file as if it were one of our modules' callers."""
    code = compile(pathlib.Path(file).read_text(encoding="utf-8"), file, "exec")
    exec(code, {"__name__": "__main__", "__file__": file})


if __name__ == "__main__":
    THROUGH.add("__main__")  # which this module is now
    system, file, *others = sys.argv[1:]
    for module in others:
        __import__(module)
    if system != "linux":
        take_away(system)
    run(file)
