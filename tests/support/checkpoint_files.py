"""Builds checkpoint files byte for byte: what the reader's tests read, whole and broken."""

from __future__ import annotations

import contextlib
import io
import json
import pickle
import struct
import sys
import types
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

LEGACY_PREFIX = b"".join(
    pickle.dumps(value, protocol=2)
    for value in (
        0x1950A86A20F9469CFC6C,
        1001,
        {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}},
    )
)


def torch_bytes(value: Any, *, legacy: bool = False, protocol: int = 2) -> bytes:
    """What torch.save writes."""
    buffer = io.BytesIO()
    torch.save(value, buffer, pickle_protocol=protocol, _use_new_zipfile_serialization=not legacy)
    return buffer.getvalue()


def zip_bytes(members: dict[str, bytes] | list[tuple[str, bytes]], compression: int = 0) -> bytes:
    """A zip archive by the standard library; a list may name a member twice."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, data in members.items() if isinstance(members, dict) else members:
            archive.writestr(name, data)
    return buffer.getvalue()


def torch_zip(pickled: bytes, storages: dict[str, bytes] | None = None, **others: bytes) -> bytes:
    """A torch archive around any pickle."""
    data = {f"archive/data/{key}": value for key, value in (storages or {}).items()}
    return zip_bytes({"archive/data.pkl": pickled, **data, **{f"archive/{k}": v for k, v in others.items()}})


def zip_members(data: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def legacy_file(pickled: bytes, keys: Any = (), storages: bytes = b"") -> bytes:
    """A legacy torch file around any pickle."""
    return LEGACY_PREFIX + pickled + pickle.dumps(list(keys), protocol=2) + storages


def safetensors_bytes(header: Any, data: bytes = b"", *, length: int | None = None) -> bytes:
    """A safetensors file around any header (JSON values, or the raw bytes)."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw + data


def tensor_pickle(
    *,
    key: Any = "0",
    numel: Any = 4,
    offset: Any = 0,
    size: Any = (4,),
    stride: Any = (1,),
    storage: str = "FloatStorage",
    tag: str = "storage",
    name: str = "w",
) -> bytes:
    """The pickle of {name: tensor}, with any claims about the tensor."""

    def push(value: Any) -> bytes:
        return pickle.dumps(value, protocol=2)[2:-1]

    identity = (
        b"(" + push(tag) + f"ctorch\n{storage}\n".encode() + push(key) + push("cpu") + push(numel) + b"tQ"
    )
    args = b"(" + identity + push(offset) + push(size) + push(stride) + push(False) + b"NtR"
    return b"\x80\x02}(" + push(name) + b"ctorch._utils\n_rebuild_tensor_v2\n" + args + b"u."


@contextlib.contextmanager
def fake_class(module: str, name: str, base: type = object) -> Iterator[type]:
    """A class that can be pickled now and imported never again."""
    parts = module.split(".")
    names = [".".join(parts[: n + 1]) for n in range(len(parts))]
    assert not any(n in sys.modules for n in names), f"{module} exists"
    made = type(name, (base,), {"__module__": module})
    try:
        for n in names:
            sys.modules[n] = types.ModuleType(n)
        setattr(sys.modules[module], name, made)
        yield made
    finally:
        for n in names:
            sys.modules.pop(n, None)


def write_sparse_zip(path: Path, pickled: bytes, storages: dict[str, int], *, zip64: bool = False) -> None:
    """A torch archive whose storages (key: bytes) are holes in the file. `zip64` uses the wide fields."""
    sizes = {"archive/data.pkl": len(pickled), **{f"archive/data/{k}": n for k, n in storages.items()}}
    directory = b""
    with open(path, "wb") as file:
        for name, size in sizes.items():
            header, raw = file.tell(), name.encode()
            crc = zlib.crc32(pickled if name.endswith("data.pkl") else bytes(size)) if size < 2**20 else 0
            padding = -(header + 30 + len(raw) + 4) % 64
            extra = struct.pack("<HH", 0x4246, padding) + b"Z" * padding
            small = 0xFFFFFFFF if zip64 else size
            file.write(
                struct.pack("<4s5H3L2H", b"PK\3\4", 45, 0, 0, 0, 0, crc, small, small, len(raw), len(extra))
            )
            file.write(raw + extra)
            file.write(pickled) if name.endswith("data.pkl") else file.seek(size, 1)
            wide = struct.pack("<HHQQQ", 1, 24, size, size, header) if zip64 else b""
            directory += struct.pack(
                "<4s6H3L5H2L", b"PK\1\2", 45, 45, 0, 0, 0, 0, crc, small, small, len(raw), len(wide),
                0, 0, 0, 0, 0xFFFFFFFF if zip64 else header,
            ) + raw + wide  # fmt: skip
        start, count = file.tell(), len(sizes)
        file.write(directory)
        if zip64:
            end64 = file.tell()
            file.write(
                struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, count, count, len(directory), start)
            )
            file.write(struct.pack("<4sLQL", b"PK\6\7", 0, end64, 1))
            file.write(struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0))
        else:
            file.write(struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, count, count, len(directory), start, 0))


@contextlib.contextmanager
def largest_file(nbytes: int) -> Iterator[None]:
    """A file system that takes no larger files."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
