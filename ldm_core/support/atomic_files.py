"""Writing files and folders that appear all at once, and locks that end with their process.

A file is written under a temporary name beside its place, brought to the disk, and only then given its name,
in one step: whenever the process is killed or the power fails, the name stands for the old file or for the
new one, whole. A process that is killed leaves its temporary file, `.NAME.x.part` with a random x. That file
is locked (`flock`) while its writer lives, so the next writer of NAME can tell leftovers, which it removes,
from live files.
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
except ImportError:  # Windows: there leftovers stay, and `exclusive` keeps nobody out
    fcntl = None  # type: ignore[assignment]

# For os.open, where the system has them: a link that somebody planted is not followed, a pipe does not block.
_SAFE = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)

# At each try another process may have come first. Some file systems in user space always tell an open file
# from its name; these count as file systems without locks.
_TRIES = 100
_LONGEST_NAME = 255  # bytes

_held: set[io.FileIO] = set()  # the locks of this process


def write_whole(path: Path, write: Callable[[Path], object], *, overwrite: bool = True) -> None:
    """Let `write` fill the temporary file that it is given, then give the file its name.

    overwrite: replace a file that is there, and keep its permissions; otherwise FileExistsError is raised,
        also for a file that appeared while this one was written.

    Raises OSError, with `path` as its file name, where the file cannot be written, and what `write` raises;
    what was at `path` is then as it was.
    """
    if not overwrite and os.path.lexists(path):
        raise _already_there(path)
    with unfinished_file(path) as temporary:
        write(temporary)
        move_into_place(temporary, path, overwrite=overwrite)


@contextmanager
def unfinished_file(path: Path) -> Iterator[Path]:
    """An empty file beside `path` with a name of its own; unless it is moved away, it is deleted at the end.

    Pass it to `move_into_place`, which may use another name than `path`. Raises OSError; errors of the
    temporary file have `path` as their file name.
    """
    mode = path.stat().st_mode & 0o777 | 0o600 if path.is_file() else 0o666  # less what the umask takes
    with _named(path), _temporary(path, lambda name: os.close(_open_new(name, mode))) as temporary:
        try:
            yield temporary
        finally:
            temporary.unlink(missing_ok=True)


def move_into_place(temporary: Path, path: Path, *, overwrite: bool = True) -> None:
    """Bring a file's bytes to the disk, then give the file its name. See `write_whole` for `overwrite`."""
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
    # FAT and some network drives have no hard links. There an empty file takes the name first: a process that
    # is killed between the two steps leaves it, but two processes still cannot take the same name.
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
    """Let `fill` put files into the temporary folder that it is given, then give the folder its name.

    Raises FileExistsError, also for what appeared meanwhile, if there is anything but an empty folder at
    `path`; OSError where nothing can be written; and what `fill` raises.
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
    """Hold the lock that the file `path` stands for, in the block or until the process dies.

    wait: until the lock is free; otherwise BlockingIOError names the process and machine that hold it. Where
    there are no such locks (Windows, some network drives) everybody gets in.
    """
    _let_go_in_children()
    with open(_acquire(path, wait), "r+b", buffering=0) as file:
        _held.add(file)
        with suppress(OSError):  # a full disk keeps nobody from holding the lock
            file.truncate(0)
            file.write(f"process {os.getpid()} on {platform.node()}\n".encode())
        try:
            yield
        finally:
            _held.discard(file)
            with suppress(OSError):
                path.unlink()  # whoever has it open already will see that it is gone


@cache
def _let_go_in_children() -> None:
    """A child that lives longer would keep the locks. No hook can be taken back, so there is one for all."""
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
    """Make the file or open it: just for reading where another user has left it, whose process was killed."""
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | _SAFE, 0o666)
    except PermissionError:
        if not os.path.lexists(path):
            raise
        return os.open(path, os.O_RDONLY | _SAFE)


def _holder(handle: int) -> str:
    """Who wrote the lock's file, which may hold anything."""
    match = re.match(rb"process [0-9]{1,10} on [\w.-]{1,64}\n", os.read(handle, 100))
    return match[0].decode().strip() if match else "another process"


def _lock(handle: int, path: Path, wait: bool = False) -> bool:
    """Lock an open file; False if it is no longer what `path` names, as when its former holder deleted it.

    Raises BlockingIOError where another has the lock, and other OSErrors where there are no locks.
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
    """A file or folder that `make` makes beside `path`, locked; leftovers of killed processes go first."""
    _remove_leftovers(path)
    temporary, handle = _create(path, make)
    try:
        yield temporary
    finally:
        if handle is not None:
            os.close(handle)


def _create(path: Path, make: Callable[[Path], object]) -> tuple[Path, int | None]:
    """A new temporary file or folder, and where there are locks, the handle that holds its lock."""
    for left in reversed(range(_TRIES)):
        temporary = path.with_name(f"{_stem(path)}{secrets.token_hex(6)}.part")
        make(temporary)
        try:
            return temporary, _claim(temporary)
        except (BlockingIOError, FileNotFoundError):  # another process may have taken it for a leftover
            if not left:
                return temporary, None
            with suppress(OSError):
                temporary.rmdir() if temporary.is_dir() else temporary.unlink()
        except OSError:
            return temporary, None
    raise AssertionError("the last try returns")


def _stem(path: Path) -> str:
    """How the names of the temporary files of `path` begin, cut where they would be too long."""
    room = _LONGEST_NAME - len("..0123456789ab.part")
    name = os.fsencode(path.name)
    return f".{path.name if len(name) <= room else name[:room].decode(errors='ignore')}."


def _remove_leftovers(path: Path) -> None:
    """Remove the temporary files of `path` whose lock is free: their writers are dead."""
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

    Raises BlockingIOError or FileNotFoundError where another process has it or removes it, and other
    OSErrors where there are no locks.
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
    """Bring a file's bytes, or the names in a folder, to the disk."""
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
    with suppress(OSError):  # not every file system has it
        if hasattr(fcntl, "F_FULLFSYNC"):  # macOS, where fsync leaves bytes in the disk's own memory
            fcntl.fcntl(handle, fcntl.F_FULLFSYNC)
            return
    os.fsync(handle)


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Errors of a temporary file, or of a handle, which have no name, as errors of `path`."""
    try:
        yield
    except OSError as error:
        prefix = str(path.with_name(_stem(path)))
        if error.filename is not None and not str(error.filename).startswith(prefix):
            raise
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error
