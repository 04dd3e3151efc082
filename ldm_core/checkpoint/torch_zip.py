"""The ZIP archive that `torch.save` writes since PyTorch 1.6.

All members lie in one folder: `data.pkl`, the pickle, refers by number to `data/0`, `data/1` …, which hold
the raw little-endian numbers of one storage each, uncompressed and aligned to 64 bytes, so that they can be
mapped into memory where they lie. `version`, `.format_version`, `.data/serialization_id` and their like say
nothing that is needed here.

`torch.jit.save`, whose files OpenAI published CLIP in, writes the same archive with a program beside it, in
`code` and `constants.pkl`. Its `data.pkl` is a tree of modules: their tensors are read, the program is not.
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
from ldm_core.checkpoint.zip_directory import Member, data_offset, is_intact, read_directory, read_member
from ldm_core.errors import CheckpointError
from ldm_core.support.printable import few

MAX_INFLATION = 8  # times the file's size that its compressed storages may become; weights hardly compress
MIN_INFLATED = 2**26  # bytes that are always allowed


def read_torch_zip(file: FileBytes) -> tuple[dict[str, Tensor], dict[str, Any], tuple[str, ...]]:
    """(tensors, metadata, foreign names). Raises CheckpointError."""
    members = read_directory(file)
    folder = _folder(members)
    order = members.get(f"{folder}byteorder")
    if order is not None and read_member(file, order, 16) != b"little":
        raise CheckpointError("it was written on a big-endian machine, which is not supported")
    pickle = read_member(file, members[f"{folder}data.pkl"], MAX_PICKLE_BYTES)
    budget = Budget(min(len(pickle), file.size))  # deflated, it may be a thousand times the file
    reader = PickleReader(budget)
    storages = _Storages(file, members, folder)
    is_script = f"{folder}constants.pkl" in members
    with reader.naming_suspects():
        root = reader.load(PickleStream(pickle))
        tensors, metadata = (split_script if is_script else split)(root, storages.fetch, budget)
    # A program's modules are of classes that its own archive defines.
    foreign = [name for name in reader.foreign if not (is_script and name.startswith("__torch__."))]
    return tensors, metadata, tuple(foreign)


def verify_torch_zip(file: FileBytes) -> None:
    """Read every member, and raise CheckpointError naming those that do not agree with their checksums."""
    members = read_directory(file)
    if sum(member.size for member in members.values() if not member.is_stored) > _most_inflated(file):
        raise CheckpointError("its compressed members are too large to be verified")
    damaged = [ascii(name) for name, member in members.items() if not is_intact(file, member)]
    if damaged:
        raise CheckpointError(f"its checksums show damage in {few(damaged)}")


def _most_inflated(file: FileBytes) -> int:
    return max(MIN_INFLATED, MAX_INFLATION * file.size)


class _Storages:
    """The raw numbers in the archive, by the key that the pickle gives."""

    def __init__(self, file: FileBytes, members: dict[str, Member], folder: str) -> None:
        self._file, self._members, self._folder = file, members, folder
        self._may_inflate = _most_inflated(file)

    def fetch(self, ref: StorageRef) -> torch.UntypedStorage:
        """The bytes of a storage; one of no bytes needs no member. Raises CheckpointError."""
        if ref.nbytes == 0:
            return self._file.storage(0, 0, 1)
        member = self._members.get(f"{self._folder}data/{ref.key}")
        if member is None:
            raise CheckpointError(f"the numbers of a tensor are missing: data/{ref.key[:80]!a}")
        if member.size != ref.nbytes:
            raise CheckpointError(
                f"its pickle expects {ref.nbytes:,} bytes in {member.name!a}, which has {member.size:,}"
            )
        offset = data_offset(self._file, member)
        if member.is_stored:
            return self._file.storage(offset, member.size, ref.alignment)
        if member.size > self._may_inflate:
            raise CheckpointError(f"its compressed tensors are too large, {member.name!a} among them")
        self._may_inflate -= member.size
        if self._file.leaves_out(member.size):
            return torch.UntypedStorage(member.size, device="meta")
        data = read_member(self._file, member, member.size)
        return torch.frombuffer(bytearray(data), dtype=torch.uint8).untyped_storage()


def _folder(members: dict[str, Member]) -> str:
    """The folder of the archive's only pickle, with its slash. Raises CheckpointError where it has none."""
    pickles = [name for name in members if name.endswith("/data.pkl") and name.count("/") == 1]
    folders = [name.removesuffix("data.pkl") for name in pickles]
    if len(folders) == 1:
        return folders[0]
    if folders:
        raise CheckpointError("a zip archive with several pickles, not a checkpoint")
    shown = ", ".join(ascii(name)[:60] for name in list(members)[:5]) or "nothing"
    inner = next((n for n in members if n.endswith((".ckpt", ".safetensors", ".pt", ".pth", ".bin"))), None)
    advice = f"; unpack it first and give {ascii(inner)[:60]}" if inner else ""
    raise CheckpointError(f"a zip archive, but no checkpoint: it holds {shown}{advice}")
