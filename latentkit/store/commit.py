"""How a finished file gets its name, which the first to come has for good, and how a file system is told to keep it.

No file system has all the ways there are. ext4, NTFS, APFS and NFS have hard links. exFAT, FAT and SMB have none, but their drivers
rename without replacing. Mounts through FUSE (rclone, gcsfuse, sshfs ...) may have neither: there a file lock makes the others wait
between the look and the rename. The kernel drops the lock of a process that dies, so nothing is left behind by a kill. A lock like
that may not reach other machines; claims keep those apart.
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
"""What Windows answers (access denied, sharing violation, lock violation) while another process has the file open."""

MOST_TRIES = 40
PAUSE_SECONDS = 0.05

NO_FOLDER_SYNC = {errno.EACCES, errno.EPERM, errno.EINVAL, errno.EBADF, errno.EISDIR, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}
"""Answers of a file system, or of Windows, that can't flush a folder; it then keeps names in its own time."""


def publish(part: Path, target: Path) -> None:
    """Give the closed file `part` the name `target` in one step; `part` may be left, for the caller to remove.

    Raises:
        FileExistsError: something has that name already, and keeps it.
        OSError: the file system refuses, or has none of the ways there are.
    """
    for way in WAYS[:-1]:
        # Which answer means "not here" can't be told: for a hard link exFAT says EPERM, SMB ENOTSUP, rclone EIO. A real failure fails
        # in the last way as well.
        try:
            return way(part, target)
        except FileExistsError:
            raise
        except OSError:
            continue
    WAYS[-1](part, target)


def link(part: Path, target: Path) -> None:
    """Give a file a second name.

    Raises:
        FileExistsError, OSError: as for `publish`.
    """
    os.link(part, target)


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
    """Rename a file, unless the new name is taken, while the folder is locked against everybody else who does this.

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
            what = f"{error.strerror}: this file system has no hard links, no rename that keeps an existing file, and no file locks"
            raise OSError(error.errno, f"{what}; write to another disk, or to a URL, and copy the result", str(target)) from error
        if target.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
        os.replace(part, target)
    finally:
        os.close(handle)


WAYS = (rename_new,) if sys.platform == "win32" else (link, rename_new, rename_locked)
"""From the best to the last."""


def patiently(operation: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """What `operation` gives, tried again while Windows refuses because another process has the file open.

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
    try:
        handle = os.open(path, os.O_RDWR if sys.platform == "win32" else os.O_RDONLY)  # Windows flushes only what may be written
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        if error.errno not in NO_FOLDER_SYNC or not path.is_dir():
            raise
