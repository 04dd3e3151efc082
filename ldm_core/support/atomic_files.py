"""Atomic writing of files and folders, and locks that end with their process.

A file is written under a temporary name in the same folder, flushed to disk, and then renamed. If the
process is killed or the power fails, the name refers to the complete old or new file. A killed process leaves
its temporary file, `.NAME.x.part` with a random x. Writers lock (`flock`) their temporary file, so the next
writer of NAME can distinguish leftovers, which it removes, from files in use.
"""

from __future__ import annotations

import errno
import io
import os
import platform
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows, where leftovers stay and `exclusive` has no effect
    fcntl = None  # type: ignore[assignment]

# Flags for os.open, if the system has them: symbolic links are not followed, and pipes do not block.
_SAFE = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)

# Another process may win each attempt. On some user-space file systems, an open file never equals the file of
# its name; they count as file systems without locks.
_TRIES = 100
_LONGEST_NAME = 255  # bytes

_held: set[io.FileIO] = set()  # the locks of this process


def write_whole(path: Path, write: Callable[[Path], object], *, overwrite: bool = True) -> None:
    """Call `write` with the path of a temporary file, then rename the file to `path`.

    overwrite: replace an existing file and keep its permissions. Otherwise FileExistsError is raised, also
        for a file that appeared in the meantime.

    Raises OSError, with `path` as its file name, if the file cannot be written, and the errors of `write`. An
    existing file at `path` is then unchanged.
    """
    if not overwrite and os.path.lexists(path):
        raise _already_there(path)
    with unfinished_file(path) as temporary:
        write(temporary)
        move_into_place(temporary, path, overwrite=overwrite)


@contextmanager
def unfinished_file(path: Path) -> Iterator[Path]:
    """A context manager of an empty temporary file beside `path`, which it deletes at the end unless moved.

    `move_into_place` gives the file its name, which may differ from `path`. Raises OSError; errors of the
    temporary file have `path` as their file name.
    """
    mode = (
        path.stat().st_mode & 0o777 | 0o600 if path.is_file() else 0o666
    )  # the umask removes some of these bits
    with _named(path), _temporary(path, lambda name: os.close(_open_new(name, mode))) as temporary:
        try:
            yield temporary
        finally:
            temporary.unlink(missing_ok=True)


def move_into_place(temporary: Path, path: Path, *, overwrite: bool = True) -> None:
    """Flush a file to disk and rename it to `path`. See `write_whole` for `overwrite`."""
    _sync(temporary)
    if overwrite:
        if path.is_file():
            temporary.chmod(path.stat().st_mode & 0o777)
        os.replace(temporary, path)
    else:
        _move_to_free_name(temporary, path)
    _sync(path.parent)


def _move_to_free_name(temporary: Path, path: Path) -> None:
    try:
        os.link(temporary, path)  # os.replace would overwrite
        return
    except FileExistsError:
        raise _already_there(path) from None
    except OSError:
        pass
    # FAT and some network drives have no hard links. Creating an empty file reserves the name there. If the
    # process is killed before the rename, the empty file stays, but two processes cannot get the same name.
    try:
        os.close(_open_new(path, 0o666))
    except FileExistsError:
        raise _already_there(path) from None
    try:
        os.replace(temporary, path)
    except OSError:
        path.unlink()
        raise


def write_whole_folder(path: Path, fill: Callable[[Path], object]) -> None:
    """Call `fill` with the path of a temporary folder, then rename the folder to `path`.

    Raises FileExistsError if `path` exists and is not an empty folder, even if it appeared in the meantime;
    OSError if the folder cannot be written; and the errors of `fill`.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise _already_there(path)
    with _named(path), _temporary(path, Path.mkdir) as temporary:
        try:
            fill(temporary)
            for file in [*temporary.rglob("*"), temporary]:
                _sync(file)
            try:
                try:
                    temporary.rename(path)
                except FileExistsError:  # on Windows also for an empty folder
                    path.rmdir()
                    temporary.rename(path)
            except OSError as error:
                if error.errno in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
                    raise _already_there(path) from None
                raise
            _sync(path.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def exclusive(path: Path, *, wait: bool = False) -> Iterator[None]:
    """Hold the lock of the file `path` during the block, or until the process ends.

    wait: wait until the lock is free; otherwise BlockingIOError names the process and machine that hold it.
    Without file locks (Windows, some network drives), the lock has no effect.
    """
    _let_go_in_children()
    with open(_acquire(path, wait), "r+b", buffering=0) as file:
        _held.add(file)
        with suppress(OSError):  # the lock is valid even if a full disk prevents this note
            file.truncate(0)
            file.write(f"process {os.getpid()} on {platform.node()}\n".encode())
        try:
            yield
        finally:
            _held.discard(file)
            with suppress(OSError):
                path.unlink()  # processes that have it open will detect this


@cache
def _let_go_in_children() -> None:
    """Close the locks in forked children. Hooks cannot be removed, so there is only one for all locks."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_let_go)


def _let_go() -> None:
    for file in _held:
        file.close()
    _held.clear()


def _acquire(path: Path, wait: bool) -> int:
    for left in reversed(range(_TRIES)):
        handle = _open_lock(path)
        try:
            if _lock(handle, path, wait) or not left:
                return handle
        except BlockingIOError:
            holder = _holder(handle)
            os.close(handle)
            raise BlockingIOError(errno.EAGAIN, holder, str(path)) from None
        except OSError:
            return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)
    raise AssertionError("the last try returns")


def _open_lock(path: Path) -> int:
    """Create or open the file; for reading only if a killed process of another user left it."""
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | _SAFE, 0o666)
    except PermissionError:
        if not os.path.lexists(path):
            raise
        return os.open(path, os.O_RDONLY | _SAFE)


def _holder(handle: int) -> str:
    """The process named in the lock's file, whose content is untrusted."""
    match = re.match(rb"process [0-9]{1,10} on [\w.-]{1,64}\n", os.read(handle, 100))
    return match[0].decode().strip() if match else "another process"


def _lock(handle: int, path: Path, wait: bool = False) -> bool:
    """Lock an open file. Returns False if `path` no longer names it, since its former holder deleted it.

    Raises BlockingIOError if another process holds the lock, and other OSErrors without file locks.
    """
    if fcntl is None:
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))
    fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    try:
        return os.path.samestat(os.fstat(handle), os.lstat(path))
    except FileNotFoundError:
        return False


def _already_there(path: Path) -> FileExistsError:
    return FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))


def _open_new(path: Path, mode: int) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | _SAFE, mode)


@contextmanager
def _temporary(path: Path, make: Callable[[Path], object]) -> Iterator[Path]:
    """Remove leftovers of killed processes, then let `make` create a locked file or folder beside `path`."""
    _remove_leftovers(path)
    temporary, handle = _create(path, make)
    try:
        yield temporary
    finally:
        if handle is not None:
            os.close(handle)


def _create(path: Path, make: Callable[[Path], object]) -> tuple[Path, int | None]:
    """A new temporary file or folder, and the handle of its lock, or None without file locks."""
    for left in reversed(range(_TRIES)):
        temporary = path.with_name(f"{_stem(path)}{secrets.token_hex(6)}.part")
        make(temporary)
        try:
            return temporary, _claim(temporary)
        except (BlockingIOError, FileNotFoundError):  # another process may remove it as a leftover
            if not left:
                return temporary, None
            with suppress(OSError):
                temporary.rmdir() if temporary.is_dir() else temporary.unlink()
        except OSError:
            return temporary, None
    raise AssertionError("the last try returns")


def _stem(path: Path) -> str:
    """The beginning of the temporary files' names for `path`, shortened if they would be too long."""
    room = _LONGEST_NAME - len("..0123456789ab.part")
    name = os.fsencode(path.name)
    return f".{path.name if len(name) <= room else name[:room].decode(errors='ignore')}."


def _remove_leftovers(path: Path) -> None:
    """Remove the temporary files of `path` that no process has locked."""
    ours = re.compile(rf"{re.escape(_stem(path))}[0-9a-f]{{12}}\.part")
    with suppress(OSError):
        for name in os.listdir(path.parent):
            if ours.fullmatch(name):
                _remove_leftover(path.with_name(name))


def _remove_leftover(path: Path) -> None:
    with suppress(OSError):
        handle = _claim(path)
        try:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
        finally:
            os.close(handle)


def _claim(path: Path) -> int:
    """Open and lock a temporary file or folder.

    Raises BlockingIOError or FileNotFoundError if another process holds or removes it, and other OSErrors
    without file locks.
    """
    handle = os.open(path, (os.O_RDONLY if path.is_dir() else os.O_RDWR) | _SAFE)
    try:
        if not _lock(handle, path):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
    except BaseException:
        os.close(handle)
        raise
    return handle


def _sync(path: Path) -> None:
    """Flush a file's bytes, or the names in a folder, to disk."""
    if not path.is_dir():
        with path.open("rb+") as file:
            _flush(file.fileno())
        return
    with suppress(OSError):  # Windows cannot open folders, and some file systems do not sync them
        handle = os.open(path, os.O_RDONLY)
        try:
            _flush(handle)
        finally:
            os.close(handle)


def _flush(handle: int) -> None:
    with suppress(OSError):  # not all file systems support this
        if hasattr(fcntl, "F_FULLFSYNC"):  # on macOS, fsync does not flush the disk's cache
            fcntl.fcntl(handle, fcntl.F_FULLFSYNC)
            return
    os.fsync(handle)


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Re-raise errors of a temporary file or of an unnamed handle with `path` as their file name."""
    try:
        yield
    except OSError as error:
        prefix = str(path.with_name(_stem(path)))
        if error.filename is not None and not str(error.filename).startswith(prefix):
            raise
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error
