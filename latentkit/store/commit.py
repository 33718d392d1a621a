"""How a finished file gets its name, which the first commit keeps, and how it is flushed to disk.

File systems differ in what they offer. ext4, NTFS, APFS and NFS have hard links. exFAT, FAT and SMB
have none, but their drivers rename without replacing. Mounts through FUSE (rclone, gcsfuse ...) may
have neither: there a file lock makes others wait between the check and the rename. The kernel drops
the lock of a process that dies, so a kill leaves nothing behind. Such a lock may not reach other
machines; claims keep those apart.
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
"""Linux: rename unless the new name is taken."""

RENAME_EXCL = 4
"""macOS: the same."""

IN_USE = (5, 32, 33)
"""Windows answers access denied, sharing violation or lock violation while a file is open."""

MOST_TRIES = 40
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
"""Answers of Windows, and of file systems, that can't flush a folder."""


def publish(part: Path, target: Path) -> None:
    """Give the closed file `part` the name `target` in one step; the caller removes a `part` left.

    Raises:
        FileExistsError: something has that name already, and keeps it.
        OSError: the file system refuses, or has none of the ways there are.
    """
    for way in WAYS[:-1]:
        # No answer tells "not on this disk" from a failure: for a hard link exFAT says EPERM, SMB
        # ENOTSUP, rclone EIO. A real failure happens again in the last way.
        try:
            return way(part, target)
        except FileExistsError:
            raise
        except OSError:
            continue
    WAYS[-1](part, target)


def rename_new(part: Path, target: Path) -> None:
    """Rename a file, unless the new name is taken.

    Raises:
        FileExistsError, OSError: as for `publish`.
    """
    if sys.platform == "win32":
        patiently(os.rename, part, target)  # which replaces nothing there
        return
    c_library = ctypes.CDLL(None, use_errno=True)
    source, destination = os.fsencode(part), os.fsencode(target)
    try:
        if sys.platform == "darwin":
            failed = c_library.renamex_np(source, destination, RENAME_EXCL)
        else:
            failed = c_library.renameat2(AT_FDCWD, source, AT_FDCWD, destination, RENAME_NOREPLACE)
    except AttributeError as error:  # a C library without it
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS), str(target)) from error
    if failed:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(part), None, str(target))


def rename_locked(part: Path, target: Path) -> None:
    """Rename a file, unless the new name is taken, while others who do this wait for the lock.

    Raises:
        FileExistsError, OSError: as for `publish`.
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


WAYS = (rename_new,) if sys.platform == "win32" else (os.link, rename_new, rename_locked)
"""From the best to the last."""


def patiently(operation: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """What `operation` gives, retried while Windows refuses because the file is open elsewhere.

    Raises:
        OSError: it refuses for longer than two seconds, or for another reason.
    """
    for _ in range(MOST_TRIES - 1):
        try:
            return operation(*args, **kwargs)
        except PermissionError as error:
            if getattr(error, "winerror", None) not in IN_USE:
                raise
        time.sleep(PAUSE_SECONDS)
    return operation(*args, **kwargs)


def sync(path: Path) -> None:
    """Wait until a file or folder is on disk; of a folder, where that can be waited for.

    Raises:
        OSError: it isn't there, or the disk fails.
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
