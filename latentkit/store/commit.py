"""Gives a finished file its final name, which the first commit keeps, and flushes it to disk.

File systems offer different operations. ext4, NTFS, APFS and NFS have hard links. exFAT, FAT and
SMB have none, but their drivers rename without replacing. FUSE mounts (rclone, gcsfuse and others)
may have neither; there a file lock makes other processes wait between the check and the rename. The
kernel releases the lock of a dead process, so a kill leaves nothing behind. Such a lock may not
reach other machines; claims keep those apart.
"""

from __future__ import annotations

import ctypes
import errno
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

AT_FDCWD = -100
RENAME_NOREPLACE = 1
"""Linux: rename only if the new name is free."""

RENAME_EXCL = 4
"""macOS: rename only if the new name is free."""

IN_USE = (5, 32, 33)
"""Windows' errors "access denied", "sharing violation" and "lock violation" while a file is
open.
"""

MAX_TRIES = 40
PAUSE_SECONDS = 0.05

NO_FOLDER_SYNC = {
    errno.EACCES,
    errno.EPERM,
    errno.EINVAL,
    errno.EBADF,
    errno.EISDIR,
    errno.ENOSYS,
    errno.ENOTSUP,
    errno.EOPNOTSUPP,
}
"""Errors of Windows, and of file systems, that can't flush a folder."""


def give_final_name(part: Path, target: Path) -> None:
    """Rename the closed file `part` to `target` in one step. The caller removes a `part` that is
    left.

    Raises:
        FileExistsError: the name exists already, and that file is kept.
        OSError: the file system refuses, or supports none of the methods.
    """
    for way in RENAME_METHODS[:-1]:
        # No error code distinguishes "not supported" from a failure: for a hard link exFAT
        # says EPERM, SMB ENOTSUP, rclone EIO. A real failure occurs again with the last method.
        try:
            return way(part, target)
        except FileExistsError:
            raise
        except OSError:
            continue
    RENAME_METHODS[-1](part, target)


def rename_without_replacing(part: Path, target: Path) -> None:
    """Rename a file if the new name is free.

    Raises:
        FileExistsError, OSError: as for `give_final_name`.
    """
    if sys.platform == "win32":
        retry_while_in_use(os.rename, part, target)  # on Windows this replaces nothing
        return
    c_library = ctypes.CDLL(None, use_errno=True)
    source, destination = os.fsencode(part), os.fsencode(target)
    try:
        if sys.platform == "darwin":
            failed = c_library.renamex_np(source, destination, RENAME_EXCL)
        else:
            failed = c_library.renameat2(AT_FDCWD, source, AT_FDCWD, destination, RENAME_NOREPLACE)
    except AttributeError as error:  # the C library lacks the function
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS), str(target)) from error
    if failed:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(part), None, str(target))


def rename_under_lock(part: Path, target: Path) -> None:
    """Rename a file if the new name is free, while other processes that do the same wait for the
    lock.

    Raises:
        FileExistsError, OSError: as for `give_final_name`.
    """
    if sys.platform == "win32":
        raise OSError(errno.ENOSYS, "Windows renames without replacing")
    import fcntl

    handle = os.open(target.parent, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError as error:
            lacks = "no hard links, no rename that keeps an existing file, and no file locks"
            advice = "write to another disk, or to a URL, and copy the result"
            text = f"{error.strerror}: this file system has {lacks}; {advice}"
            raise OSError(error.errno, text, str(target)) from error
        if target.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
        os.replace(part, target)
    finally:
        os.close(handle)


RENAME_METHODS = (
    (rename_without_replacing,)
    if sys.platform == "win32"
    else (os.link, rename_without_replacing, rename_under_lock)
)
"""Methods, best first."""


def retry_while_in_use(operation: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Return what `operation` returns, retried while Windows refuses because the file is open
    elsewhere.

    Raises:
        OSError: Windows refuses for more than two seconds, or for another reason.
    """
    for _ in range(MAX_TRIES - 1):
        try:
            return operation(*args, **kwargs)
        except PermissionError as error:
            if getattr(error, "winerror", None) not in IN_USE:
                raise
        time.sleep(PAUSE_SECONDS)
    return operation(*args, **kwargs)


def sync(path: Path) -> None:
    """Wait until a file, or a folder if the file system supports it, is on disk.

    Raises:
        OSError: the file is missing or the disk fails.
    """
    mode = os.O_RDWR if sys.platform == "win32" else os.O_RDONLY  # which Windows doesn't flush
    try:
        handle = os.open(path, mode)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        if error.errno not in NO_FOLDER_SYNC or not path.is_dir():
            raise
