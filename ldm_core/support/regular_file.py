"""Opening a file whose path may come from an untrusted source."""

from __future__ import annotations

import errno
import os
import stat
from io import BufferedReader


def open_regular(path: str | os.PathLike[str], max_bytes: int | None = None) -> BufferedReader:
    """A regular file, opened for reading bytes.

    Raises OSError, with the path, if the file cannot be opened, has more than `max_bytes` bytes, or is a
    folder, pipe, device or socket, since reading these may block or never end.
    """
    _require_regular(os.stat(path), path, max_bytes)  # before opening, which has side effects on a device
    file = open(path, "rb", opener=_without_waiting)  # noqa: SIM115  closed by the caller
    try:
        _require_regular(os.fstat(file.fileno()), path, max_bytes)  # the file may have been replaced
    except BaseException:
        file.close()
        raise
    return file


def _without_waiting(path: str, flags: int) -> int:
    """Open without blocking. Windows has no such flag, and no named pipes in its file system."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _require_regular(found: os.stat_result, path: str | os.PathLike[str], max_bytes: int | None) -> None:
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "not a regular file", os.fspath(path))
    if max_bytes is not None and found.st_size > max_bytes:
        reason = f"has {found.st_size:,} bytes, more than {max_bytes:,}"
        raise OSError(errno.EFBIG, reason, os.fspath(path))
