"""Zip archives and legacy files whose structure lies: refused, without unpacking what is too large."""

from __future__ import annotations

import os
import pickle
import struct
import time
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support.checkpoint_files import LEGACY_PREFIX, legacy_file, tensor_pickle, torch_zip, zip_bytes
from support.hostile_pickles import PICKLES

from ldm_core.checkpoint.reader import read
from ldm_core.errors import CheckpointError
from ldm_core.loading.doctor import inspect

PICKLE, STORAGE = "archive/data.pkl", "archive/data/0"
DEFLATED = zipfile.ZIP_DEFLATED
GOOD = torch_zip(tensor_pickle(), {"0": bytes(16)})
END = len(GOOD) - 22  # where the record at the end of the archive begins


def edited(offset: int, value: bytes, data: bytes = GOOD) -> bytes:
    return data[:offset] + value + data[offset + len(value) :]


def entry_edited(name: str, offset: int, value: bytes, data: bytes = GOOD) -> bytes:
    """With other bytes in a member's entry of the archive's directory."""
    entry = data.rindex(name.encode()) - 46
    assert data[entry : entry + 4] == b"PK\1\2"
    return edited(entry + offset, value, data)


def bomb(size: int, claimed: int) -> bytes:
    """A storage of `size` zeros, deflated, that the directory and the pickle say has `claimed` bytes."""
    pickled = tensor_pickle(numel=claimed // 4, size=(claimed // 4,))
    data = zip_bytes({PICKLE: pickled, STORAGE: bytes(size)}, DEFLATED)
    return entry_edited(STORAGE, 24, struct.pack("<I", claimed), data)


def overlapping() -> bytes:
    """Two members of which one lies within the other, as in bombs that need no recursion."""
    data = torch_zip(tensor_pickle(), {"0": bytes(16), "1": bytes(16)})
    return entry_edited(STORAGE, 20, struct.pack("<II", 40, 40), data)


ARCHIVES: dict[str, tuple[Callable[[], bytes], str]] = {
    "two pickles": (lambda: zip_bytes({"a/data.pkl": b"", "b/data.pkl": b""}), "several pickles"),
    "pickle twice": (
        lambda: zip_bytes([(PICKLE, tensor_pickle()), (PICKLE, PICKLES["reduce os.system"])]), "'.*' twice"),
    "storage twice": (
        lambda: zip_bytes([(PICKLE, tensor_pickle()), (STORAGE, bytes(16)), (STORAGE, bytes(16))]),
        "'.*' twice"),
    "archive in an archive": (lambda: zip_bytes({"a/inner.zip": GOOD}), "that contains 'a/inner.zip'"),
    "pickle above the folder": (lambda: zip_bytes({"../../data.pkl": tensor_pickle()}), "not a checkpoint"),
    "pickle without a folder": (lambda: zip_bytes({"data.pkl": tensor_pickle()}), "not a checkpoint"),
    "big-endian": (lambda: torch_zip(tensor_pickle(), {"0": bytes(16)}, byteorder=b"big"), "big-endian"),
    "byte order of a megabyte": (
        lambda: torch_zip(tensor_pickle(), {"0": bytes(16)}, byteorder=bytes(10**6)), "at most 16 bytes"),
    "bomb that tells its size": (lambda: bomb(100_000_000, 100_000_000), "too large"),
    "bomb that lies": (lambda: bomb(100_000_000, 16), "wrong size or checksum"),
    "storage that claims more": (lambda: bomb(16, 4096), "wrong size or checksum"),
    "pickle bomb": (lambda: zip_bytes({PICKLE: bytes(80_000_000)}, DEFLATED), "at most 67,108,864 bytes"),
    "overlapping members": (overlapping, "overlaps"),
    "encrypted": (lambda: entry_edited(PICKLE, 8, b"\1"), "encrypted"),
    "rare compression": (lambda: entry_edited(PICKLE, 10, b"\x63"), "unsupported compression"),
    "wrong local header": (lambda: GOOD.replace(b"data.pkl", b"DATA.pkl", 1), "contradicts the header"),
    "no local header": (lambda: edited(GOOD.rindex(b"PK\3\4"), b"PK\5\5"), "contradicts the header"),
    "offset beyond the file": (lambda: entry_edited(PICKLE, 42, b"\xff\xff\xff\x7f"), "overlaps"),
    "size beyond the file": (lambda: entry_edited(STORAGE, 20, b"\xff\xff\xff\x7f" * 2), "overlaps"),
    "two different sizes": (lambda: entry_edited(STORAGE, 20, b"\x0f"), "two different sizes"),
    "directory that is short": (lambda: edited(END + 8, struct.pack("<2H", 99, 99)), "directory is damaged"),
    "directory with another magic": (lambda: GOOD.replace(b"PK\1\2", b"PK\1\3"), "directory is damaged"),
    "several disks": (lambda: edited(END + 4, b"\1\0\0\0"), "one part of a multi-part archive"),
    "directory beyond the file": (lambda: edited(END + 16, b"\xfe\xff\xff\xff"), "outside of the file"),
    "wide directory that is missing": (lambda: edited(END + 16, b"\xff\xff\xff\xff"), "outside of the file"),
    "damaged deflate data": (
        lambda: edited(30 + len(PICKLE), b"\xff" * 30, zip_bytes({PICKLE: tensor_pickle()}, DEFLATED)),
        "is damaged"),
    "directory's end of 20 bytes": (lambda: b"PK\3\4" + GOOD[END : END + 16], "truncated"),
    "no directory": (lambda: GOOD[:END], "truncated"),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("name", ARCHIVES)
def test_hostile_archives(tmp_path: Path, name: str) -> None:
    make, message = ARCHIVES[name]
    path = tmp_path / "model.ckpt"
    path.write_bytes(make())
    tracemalloc.start()
    start = time.process_time()
    with pytest.raises(CheckpointError, match=message):
        read(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert time.process_time() - start < 5
    # The bombs hold 80 and 100 MB: what is refused for its size has not been unpacked.
    assert peak < 20e6
    path.write_bytes(GOOD)
    assert read(path).tensors["w"].tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, DEFLATED])
def test_verifying_names_the_damaged_members(tmp_path: Path, method: int) -> None:
    path = tmp_path / "model.ckpt"
    members = {PICKLE: tensor_pickle(), STORAGE: bytes(16), "archive/data/1": b"unused"}
    path.write_bytes(data := zip_bytes(members, method))
    assert inspect(path, verify=True).checksums == "every member of the archive matches its checksum"
    assert inspect(path).checksums is None
    header = data.index(b"archive/data/1")
    damaged = edited(header + len(b"archive/data/1"), b"\3", data)
    path.write_bytes(damaged)
    assert read(path).tensors["w"].tolist() == [0, 0, 0, 0]
    with pytest.raises(CheckpointError, match=r"wrong checksums of 'archive/data/1'$"):
        inspect(path, verify=True)


def test_a_damaged_pickle_needs_no_verifying(tmp_path: Path) -> None:
    path = tmp_path / "model.ckpt"
    path.write_bytes(GOOD.replace(b"cpu", b"gpu"))
    with pytest.raises(CheckpointError, match=r"'archive/data.pkl' is damaged: wrong checksum"):
        read(path)


def test_archives_without_checksums_are_not_damaged(tmp_path: Path) -> None:
    path = tmp_path / "model.ckpt"
    data = GOOD
    for name in (PICKLE, STORAGE):
        data = entry_edited(name, 16, bytes(4), data)  # as torch writes them without compute_crc32
    path.write_bytes(data)
    assert list(read(path, verify=True).tensors) == ["w"]


def test_a_bomb_is_not_unpacked_to_be_verified(tmp_path: Path) -> None:
    path = tmp_path / "model.ckpt"
    path.write_bytes(bomb(100_000_000, 100_000_000))
    with pytest.raises(CheckpointError, match="too large to be verified"):
        read(path, verify=True)
    path.write_bytes(bomb(100_000_000, 16))
    with pytest.raises(CheckpointError, match="wrong checksums of 'archive/data/0'"):
        read(path, verify=True)


def test_compressed_storages_may_grow_only_so_far(tmp_path: Path) -> None:
    path = tmp_path / "model.ckpt"
    path.write_bytes(bomb(60_000_000, 60_000_000))
    assert path.stat().st_size < 100_000
    assert read(path).tensors["w"].numel() == 15_000_000


def test_nothing_is_unpacked_into_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    climbing = ["../escaped", f"{tmp_path}/escaped", "archive/../../escaped", "..\\escaped"]
    members = {PICKLE: tensor_pickle(), STORAGE: bytes(16), **dict.fromkeys(climbing, b"x")}
    Path("model.ckpt").write_bytes(zip_bytes(members))
    assert list(read("model.ckpt").tensors) == ["w"]
    assert os.listdir(tmp_path) == ["here"]
    assert os.listdir() == ["model.ckpt"]


def storage(count: int, size: int = 16) -> bytes:
    return struct.pack("<q", count) + bytes(size)


def prefix(version: object = 1001, machine: object = None) -> bytes:
    magic = LEGACY_PREFIX[: LEGACY_PREFIX.index(b".") + 1]
    return magic + pickle.dumps(version, 2) + pickle.dumps(machine, 2)


def endless() -> list[object]:
    """A list that would take 2**60 letters to print."""
    value: list[object] = []
    for _ in range(60):
        value = [value, value]
    return value


LEGACY: dict[str, tuple[bytes, str]] = {
    "other version": (prefix(1002), "expected version 1001"),
    "no facts about the machine": (prefix(machine=[]), "big-endian"),
    "big-endian": (prefix(machine={"little_endian": False}), "big-endian"),
    "keys that are no list": (
        LEGACY_PREFIX + tensor_pickle() + pickle.dumps("0", 2),
        "list of storages is damaged",
    ),
    "version of endless lists": (prefix(endless()), "expected version 1001"),
    "keys of endless lists": (legacy_file(tensor_pickle(), [endless()]), "list of storages is damaged"),
    "key that nobody uses": (legacy_file(tensor_pickle(), ["7"], storage(4)), "without a use in the pickle"),
    "key that is a number": (legacy_file(tensor_pickle(), [0], storage(4)), "list of storages is damaged"),
    "key twice": (legacy_file(tensor_pickle(), ["0", "0"], storage(4) * 2), "names '0' twice"),
    "key that is missing": (legacy_file(tensor_pickle(), []), "the storage '0' is missing"),
    "negative count": (legacy_file(tensor_pickle(), ["0"], storage(-4)), "expects 4 .* which has -4"),
    "huge count": (legacy_file(tensor_pickle(), ["0"], storage(2**62)), "expects 4 "),
    "numbers missing": (legacy_file(tensor_pickle(), ["0"], storage(4, 15)), "truncated"),
    "count missing": (legacy_file(tensor_pickle(), ["0"], b"\4"), "truncated"),
}


@pytest.mark.parametrize("name", LEGACY)
def test_hostile_legacy_files(tmp_path: Path, name: str) -> None:
    data, message = LEGACY[name]
    path = tmp_path / "model.ckpt"
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=message):
        read(path)
    path.write_bytes(legacy_file(tensor_pickle(), ["0"], storage(4)))
    assert read(path).tensors["w"].tolist() == [0, 0, 0, 0]


def test_views_of_the_same_numbers_have_a_limit(tmp_path: Path) -> None:
    """Whoever looks for NaN in 200,000 numbers that 2,000 tensors show would read 1.6 GB."""
    numbers = torch.zeros(200_000)
    torch.save({f"w{k}": numbers[k:] for k in range(2000)}, tmp_path / "views.pt")
    with pytest.raises(CheckpointError, match="the tensors are too many views of the same storages"):
        read(tmp_path / "views.pt")
    torch.save({f"w{k}": numbers for k in range(14)}, tmp_path / "tied.pt")
    assert len(read(tmp_path / "tied.pt").tensors) == 14
