"""Files appear whole or not at all, wherever their writer is killed, and locks end with their process."""

from __future__ import annotations

import errno
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from support.kills import die, killed

from ldm_core.support import atomic_files
from ldm_core.support.atomic_files import exclusive, write_whole, write_whole_folder

pytestmark = pytest.mark.skipif(os.name != "posix", reason="kills and locks are POSIX")


def write_half_and_die(target: Path) -> None:
    target.write_bytes(b"ha")
    die()


def save(path: Path, data: bytes = b"new", **options: Any) -> None:
    write_whole(path, lambda target: target.write_bytes(data), **options)


def leftovers(folder: Path) -> list[Path]:
    return list(folder.glob(".*.part"))


@pytest.mark.parametrize("old", [None, b"old"])
@pytest.mark.parametrize("where", ["write", "fsync", "replace"])
def test_a_kill_leaves_the_old_file_or_none(tmp_path: Path, where: str, old: bytes | None) -> None:
    path = tmp_path / "model.ckpt"
    if old is not None:
        path.write_bytes(old)

    def body() -> None:
        if where != "write":
            setattr(os, where, die)
        write_whole(path, write_half_and_die if where == "write" else lambda target: target.touch())

    killed(body)
    assert (path.read_bytes() if path.exists() else None) == old
    assert len(leftovers(tmp_path)) == 1
    save(path)
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path], "what the killed process left is cleared"


@pytest.mark.parametrize("where", ["link", "unlink"])
def test_a_kill_around_the_link_leaves_a_whole_file_or_none(tmp_path: Path, where: str) -> None:
    path = tmp_path / "a.png"

    def body() -> None:
        if where == "link":
            os.link = die
        else:
            Path.unlink = die  # type: ignore[method-assign, assignment]
        save(path, overwrite=False)

    killed(body)
    assert path.exists() == (where == "unlink")
    save(path)
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_is_being_written_is_not_cleared(tmp_path: Path) -> None:
    path = tmp_path / "model.ckpt"

    def write(target: Path) -> None:
        target.write_bytes(b"first")
        save(path, b"second")
        assert leftovers(tmp_path) == [target]

    write_whole(path, write)
    assert path.read_bytes() == b"first"
    assert list(tmp_path.iterdir()) == [path]


def test_only_the_targets_own_leftovers_are_cleared(tmp_path: Path) -> None:
    others = [
        ".b.part",
        ".b.012345678901.parts",
        ".b.0123456789.part",
        ".a.b.0123456789ab.part",
        ".b.0123456789ab",
    ]
    for name in others:
        (tmp_path / name).touch()
    (tmp_path / ".b.0123456789ab.part").symlink_to(tmp_path / ".b.part")
    (tmp_path / ".b.0123456789ac.part").touch()
    save(tmp_path / "b")
    assert {path.name for path in tmp_path.iterdir()} == {*others, ".b.0123456789ab.part", "b"}


def test_a_writer_whose_file_was_taken_for_a_leftover_makes_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may happen between the making of the file and its lock."""
    lock, taken = atomic_files._lock, []

    def lock_late(handle: int, path: Path, wait: bool = False) -> bool:
        if not taken:
            taken.append(path)
            path.unlink()
        return lock(handle, path, wait)

    monkeypatch.setattr(atomic_files, "_lock", lock_late)
    save(tmp_path / "b")
    assert taken
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


@pytest.mark.parametrize("links", [True, False])
def test_a_name_that_is_taken_meanwhile_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    """Also on file systems without hard links, such as FAT."""
    path = tmp_path / "a.png"
    if not links:

        def no_links(*_: Any, **__: Any) -> None:
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

        monkeypatch.setattr(os, "link", no_links)
    save(path, b"mine", overwrite=False)
    with pytest.raises(FileExistsError) as caught:
        save(path, b"yours", overwrite=False)
    assert caught.value.filename == str(path)

    def write(target: Path) -> None:
        path.write_bytes(b"theirs")

    path.unlink()
    with pytest.raises(FileExistsError):
        write_whole(path, write, overwrite=False)
    assert path.read_bytes() == b"theirs"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["n" * 255, "ü" * 127 + "n"], ids=["ASCII", "umlauts"])
def test_the_longest_names(tmp_path: Path, name: str) -> None:
    path = tmp_path / name

    def body() -> None:
        write_whole(path, write_half_and_die)

    killed(body)
    assert len(leftovers(tmp_path)) == 1
    save(path)
    assert list(tmp_path.iterdir()) == [path]

    def write(target: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))

    with pytest.raises(OSError, match="No space") as caught:
        write_whole(path, write)
    assert caught.value.filename == str(path)


def test_bytes_go_past_the_disks_own_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On macOS fsync leaves them there."""
    calls: list[int] = []
    monkeypatch.setattr(atomic_files.fcntl, "F_FULLFSYNC", 51, raising=False)
    monkeypatch.setattr(atomic_files.fcntl, "fcntl", lambda handle, command: calls.append(command))
    save(tmp_path / "a")
    assert calls == [51, 51], "the file and its folder"


def test_a_private_file_stays_private(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.touch(mode=0o600)
    modes: list[int] = []
    write_whole(path, lambda target: modes.append(target.stat().st_mode & 0o777))
    assert (modes, path.stat().st_mode & 0o777) == ([0o600], 0o600)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    def write(target: Path) -> None:
        Path("/dev/full").write_bytes(b"x")

    with pytest.raises(OSError, match="No space left") as caught:
        write_whole(tmp_path / "a.png", write)
    assert caught.value.filename == str(tmp_path / "a.png")
    with pytest.raises(FileNotFoundError) as missing:
        save(tmp_path / "none" / "a.png")
    assert missing.value.filename == str(tmp_path / "none" / "a.png")


def test_a_folder_is_whole_or_not_there(tmp_path: Path) -> None:
    path = tmp_path / "model"

    def fill(folder: Path) -> None:
        (folder / "unet").mkdir()
        (folder / "unet" / "config.json").write_text("{}")

    def fill_and_die(folder: Path) -> None:
        fill(folder)
        die()

    killed(write_whole_folder, path, fill_and_die)
    assert not path.exists()
    assert len(leftovers(tmp_path)) == 1
    write_whole_folder(path, fill)
    assert list(tmp_path.iterdir()) == [path]
    assert (path / "unet" / "config.json").read_text() == "{}"


def test_an_empty_folder_is_replaced_where_renaming_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on Windows."""
    rename = Path.rename

    def rename_to_free_name(source: Path, target: Path) -> Path:
        if target.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(source))
        return rename(source, target)

    monkeypatch.setattr(Path, "rename", rename_to_free_name)
    path = tmp_path / "model"
    path.mkdir()
    write_whole_folder(path, lambda folder: (folder / "a").touch())
    assert list(tmp_path.rglob("*")) == [path, path / "a"]
    with pytest.raises(FileExistsError):
        write_whole_folder(path, lambda folder: None)


def test_a_folder_that_appears_meanwhile_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "model"

    def fill(folder: Path) -> None:
        path.mkdir()
        (path / "mine").touch()

    with pytest.raises(FileExistsError):
        write_whole_folder(path, fill)
    assert list(tmp_path.rglob("*")) == [path, path / "mine"]


# Locks


def test_a_lock_tells_who_holds_it(tmp_path: Path) -> None:
    lock = tmp_path / ".lock"
    with exclusive(lock):
        with pytest.raises(BlockingIOError, match=f"process {os.getpid()} on "), exclusive(lock):
            pass
        lock.write_text("\x1b[2Jprocess 1 on here\n")
        with pytest.raises(BlockingIOError, match="another process"), exclusive(lock):
            pass
    assert not lock.exists()
    with exclusive(lock):
        pass


def test_a_lock_ends_with_its_process_though_a_child_lives_on(tmp_path: Path) -> None:
    """As the processes that read data for a run do, for some seconds after it was killed."""
    lock, child = tmp_path / ".lock", tmp_path / "child"

    def body() -> None:
        with exclusive(lock):
            pid = os.fork()
            if pid == 0:
                time.sleep(120)
                os._exit(0)
            child.write_text(str(pid))
            die()

    killed(body)
    try:
        # The child lets go when it first runs, which may be a moment after its parent's death.
        with exclusive(lock, wait=True):
            os.kill(int(child.read_text()), 0)
    finally:
        os.kill(int(child.read_text()), signal.SIGKILL)


def test_a_lock_does_not_follow_a_link(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("data")
    (tmp_path / ".lock").symlink_to(tmp_path / "precious")
    with pytest.raises(OSError, match="symbolic"), exclusive(tmp_path / ".lock"):
        pass
    assert (tmp_path / "precious").read_text() == "data"


def test_without_locks_files_are_written_and_nothing_is_cleared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(atomic_files, "fcntl", None)
    leftover = tmp_path / ".a.0123456789ab.part"
    leftover.touch()
    with exclusive(tmp_path / ".lock"), exclusive(tmp_path / ".lock"):
        save(tmp_path / "a")
    assert {path.name for path in tmp_path.iterdir()} == {"a", leftover.name}


def test_where_a_handle_and_its_name_never_agree_there_are_no_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on some file systems in user space, whose numbers of files change."""
    asked: list[int] = []
    monkeypatch.setattr(os.path, "samestat", lambda *_: bool(asked.append(1)))
    leftover = tmp_path / ".a.0123456789ab.part"
    leftover.touch()
    with exclusive(tmp_path / ".lock"):
        save(tmp_path / "a")
        write_whole_folder(tmp_path / "b", lambda folder: (folder / "c").touch())
    assert {path.name for path in tmp_path.iterdir()} == {"a", "b", leftover.name}
    assert len(asked) < 1000


def test_the_lock_of_another_user_who_died(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a folder that several may write to, their files are often only readable."""
    lock, opened = tmp_path / ".lock", os.open

    def may_read(path: Any, flags: int, *mode: int) -> int:
        if Path(path) == lock and flags & (os.O_RDWR | os.O_CREAT):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return opened(path, flags, *mode)

    lock.write_text("process 1 on here\n")
    monkeypatch.setattr(os, "open", may_read)
    in_use = pytest.raises(BlockingIOError, match="process 1 on here")
    with exclusive(lock), in_use, exclusive(lock):
        pass
    assert not lock.exists()
    with pytest.raises(PermissionError), exclusive(lock):
        pass


def test_many_locks_are_one_hook_of_fork(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hooks: list[Any] = []
    atomic_files._let_go_in_children.cache_clear()
    monkeypatch.setattr(os, "register_at_fork", lambda **hook: hooks.append(hook))
    for _ in range(3):
        with exclusive(tmp_path / ".lock"):
            pass
    assert hooks == [{"after_in_child": atomic_files._let_go}]
    assert not atomic_files._held
