"""Reads the format of `torch.save` before PyTorch 1.6 (`_use_new_zipfile_serialization=False`).

A file consists of five pickles (a magic number, the format's version, properties of the machine, the object,
and the keys of its storages), followed by the number of elements, in 8 bytes, and the elements of each
storage. The storages are not aligned, so most of them are copied. Storages outside of the state dict, such as
those of an optimizer, are not read.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from ldm_core.checkpoint.file_bytes import FileBytes
from ldm_core.checkpoint.pickle_reader import MAX_PICKLE_BYTES, PickleReader, PickleStream
from ldm_core.checkpoint.pickle_values import StorageRef
from ldm_core.checkpoint.state_dict import split
from ldm_core.checkpoint.work_budget import Budget
from ldm_core.errors import CheckpointError

MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
PROTOCOL_VERSION = 1001


def read_legacy(file: FileBytes) -> tuple[dict[str, Tensor], dict[str, Any], tuple[str, ...]]:
    """(tensors, metadata, foreign names). Raises CheckpointError."""
    head = file.read(0, min(file.size, MAX_PICKLE_BYTES))
    pickles, budget = PickleStream(head), Budget(len(head))
    if PickleReader(budget).load(pickles) != MAGIC_NUMBER:
        raise CheckpointError("the file does not begin with PyTorch's magic number")
    if PickleReader(budget).load(pickles) != PROTOCOL_VERSION:
        raise CheckpointError(f"unknown version of the format; expected version {PROTOCOL_VERSION}")
    machine = PickleReader(budget).load(pickles)
    if not isinstance(machine, dict) or machine.get("little_endian") is not True:
        raise CheckpointError("the file was written on a big-endian machine, which is not supported")
    reader = PickleReader(budget)
    with reader.naming_suspects():
        root = reader.load(pickles)
        keys = PickleReader(budget).load(pickles)
        places = _places(file, pickles.tell(), keys, reader.storages)
        tensors, metadata = split(root, partial(_fetch, file, places), budget)
    return tensors, metadata, tuple(reader.foreign)


def _fetch(file: FileBytes, places: dict[str, int], ref: StorageRef) -> torch.UntypedStorage:
    """The storage of a reference. An empty one needs no place. Raises CheckpointError."""
    if ref.nbytes == 0:
        return file.storage(0, 0, 1)
    if ref.key not in places:
        raise CheckpointError(f"the storage {ref.key[:80]!a} is missing")
    return file.storage(places[ref.key], ref.nbytes, ref.alignment)


def _places(file: FileBytes, position: int, keys: Any, storages: dict[str, StorageRef]) -> dict[str, int]:
    """The offset of each storage's elements. Raises CheckpointError if the file is too short."""
    # Errors quote text only, since a pickle's lists can be endless.
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise CheckpointError("the list of storages is damaged")
    places: dict[str, int] = {}
    for key in keys:
        if key not in storages or key in places:
            raise CheckpointError(
                f"the list of storages names {key[:80]!a} twice, or without a use in the pickle"
            )
        count = int.from_bytes(file.read(position, 8), "little", signed=True)
        if count != storages[key].numel:
            raise CheckpointError(
                f"the pickle expects {storages[key].numel:,} elements in the storage {key[:80]!a}, "
                f"which has {count:,}"
            )
        places[key] = position + 8
        position += 8 + storages[key].nbytes
        if position > file.size:
            raise CheckpointError("the file is truncated: the elements of its tensors are missing")
    return places
