"""Reads the ZIP archive that `torch.save` writes since PyTorch 1.6.

All members are in one folder. The pickle `data.pkl` refers by number to `data/0`, `data/1` …, which contain
the little-endian elements of one storage each, uncompressed and aligned to 64 bytes, so that they can be
mapped into memory. Other members, such as `version` and `.data/serialization_id`, are ignored.

`torch.jit.save`, which wrote OpenAI's CLIP files, adds a program in `code` and `constants.pkl`. Its
`data.pkl` is a tree of modules, whose tensors are read. The program is ignored.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ldm_core.checkpoint.file_bytes import FileBytes
from ldm_core.checkpoint.pickle_reader import MAX_PICKLE_BYTES, PickleReader, PickleStream
from ldm_core.checkpoint.pickle_values import StorageRef
from ldm_core.checkpoint.state_dict import split, split_script
from ldm_core.checkpoint.work_budget import Budget
from ldm_core.checkpoint.zip_directory import (
    Member,
    data_offset,
    is_intact,
    most_inflated,
    read_directory,
    read_member,
)
from ldm_core.errors import CheckpointError
from ldm_core.support.printable import few


def read_torch_zip(file: FileBytes) -> tuple[dict[str, Tensor], dict[str, Any], tuple[str, ...]]:
    """(tensors, metadata, foreign names). Raises CheckpointError."""
    members = read_directory(file)
    folder = _folder(members)
    order = members.get(f"{folder}byteorder")
    if order is not None and read_member(file, order, 16) != b"little":
        raise CheckpointError("the file was written on a big-endian machine, which is not supported")
    pickle = read_member(file, members[f"{folder}data.pkl"], MAX_PICKLE_BYTES)
    # A compressed pickle can be a thousand times the file's size.
    budget = Budget(min(len(pickle), file.size))
    reader = PickleReader(budget)
    storages = _Storages(file, members, folder)
    is_script = f"{folder}constants.pkl" in members
    with reader.naming_suspects():
        root = reader.load(PickleStream(pickle))
        tensors, metadata = (split_script if is_script else split)(root, storages.fetch, budget)
    # The classes of a program's modules are defined in the archive.
    foreign = [name for name in reader.foreign if not (is_script and name.startswith("__torch__."))]
    return tensors, metadata, tuple(foreign)


def verify_torch_zip(file: FileBytes) -> None:
    """Read all members and raise CheckpointError, naming those with a wrong checksum."""
    members = read_directory(file)
    if sum(member.size for member in members.values() if not member.is_stored) > most_inflated(file):
        raise CheckpointError("the compressed members are too large to be verified")
    damaged = [ascii(name) for name, member in members.items() if not is_intact(file, member)]
    if damaged:
        raise CheckpointError(f"wrong checksums of {few(damaged)}")


class _Storages:
    """The storages in the archive, by their key in the pickle."""

    def __init__(self, file: FileBytes, members: dict[str, Member], folder: str) -> None:
        self._file, self._members, self._folder = file, members, folder
        self._may_inflate = most_inflated(file)

    def fetch(self, ref: StorageRef) -> torch.UntypedStorage:
        """The storage of a reference. An empty one needs no member. Raises CheckpointError."""
        if ref.nbytes == 0:
            return self._file.storage(0, 0, 1)
        member = self._members.get(f"{self._folder}data/{ref.key}")
        if member is None:
            raise CheckpointError(f"the storage data/{ref.key[:80]!a} is missing")
        if member.size != ref.nbytes:
            raise CheckpointError(
                f"the pickle expects {ref.nbytes:,} bytes in {member.name!a}, which has {member.size:,}"
            )
        offset = data_offset(self._file, member)
        if member.is_stored:
            return self._file.storage(offset, member.size, ref.alignment)
        if member.size > self._may_inflate:
            raise CheckpointError(f"the compressed tensors are too large, including {member.name!a}")
        self._may_inflate -= member.size
        if self._file.leaves_out(member.size):
            return torch.UntypedStorage(member.size, device="meta")
        data = read_member(self._file, member, member.size)
        return torch.frombuffer(data, dtype=torch.uint8).untyped_storage()


def _folder(members: dict[str, Member]) -> str:
    """The folder of the archive's only `data.pkl`, with a slash. Raises CheckpointError without one."""
    pickles = [name for name in members if name.endswith("/data.pkl") and name.count("/") == 1]
    folders = [name.removesuffix("data.pkl") for name in pickles]
    if len(folders) == 1:
        return folders[0]
    if folders:
        raise CheckpointError("not a checkpoint but a zip archive with several pickles")
    shown = ", ".join(ascii(name)[:60] for name in list(members)[:5]) or "nothing"
    inner = next((n for n in members if n.endswith((".ckpt", ".safetensors", ".pt", ".pth", ".bin"))), None)
    advice = f"; unpack it and use {ascii(inner)[:60]}" if inner else ""
    raise CheckpointError(f"not a checkpoint but a zip archive that contains {shown}{advice}")
