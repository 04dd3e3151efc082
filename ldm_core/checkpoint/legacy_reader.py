"""What `torch.save` wrote before PyTorch 1.6, and writes with `_use_new_zipfile_serialization=False`.

Five pickles and then the numbers, one after another: a magic number, the format's version, facts about the
machine, the object itself, and the keys of its storages; then, for each key, the number of elements as 8
bytes and the elements. Nothing is aligned, so most storages are read into memory; those that the state
dict does not use (an optimizer's, say) are not read at all.
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
        raise CheckpointError("it does not begin with PyTorch's magic number")
    if PickleReader(budget).load(pickles) != PROTOCOL_VERSION:
        raise CheckpointError(f"its format is not version {PROTOCOL_VERSION}, which is the only known one")
    machine = PickleReader(budget).load(pickles)
    if not isinstance(machine, dict) or machine.get("little_endian") is not True:
        raise CheckpointError("it was written on a big-endian machine, which is not supported")
    reader = PickleReader(budget)
    with reader.naming_suspects():
        root = reader.load(pickles)
        keys = PickleReader(budget).load(pickles)
        places = _places(file, pickles.tell(), keys, reader.storages)
        tensors, metadata = split(root, partial(_fetch, file, places), budget)
    return tensors, metadata, tuple(reader.foreign)


def _fetch(file: FileBytes, places: dict[str, int], ref: StorageRef) -> torch.UntypedStorage:
    """The bytes of a storage; one of no bytes needs no place. Raises CheckpointError."""
    if ref.nbytes == 0:
        return file.storage(0, 0, 1)
    if ref.key not in places:
        raise CheckpointError(f"the numbers of a tensor are missing: {ref.key[:80]!a}")
    return file.storage(places[ref.key], ref.nbytes, ref.alignment)


def _places(file: FileBytes, position: int, keys: Any, storages: dict[str, StorageRef]) -> dict[str, int]:
    """Where each storage's numbers begin. Raises CheckpointError where the file ends before they do."""
    # Nothing but text is shown in errors: a pickle's lists can be endless.
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise CheckpointError("its list of storages is damaged")
    places: dict[str, int] = {}
    for key in keys:
        if key not in storages or key in places:
            raise CheckpointError(
                f"its list of storages names {key[:80]!a}, which its pickle does not use once"
            )
        count = int.from_bytes(file.read(position, 8), "little", signed=True)
        if count != storages[key].numel:
            raise CheckpointError(
                f"its pickle expects {storages[key].numel:,} elements in the storage {key[:80]!a}, "
                f"which has {count:,}"
            )
        places[key] = position + 8
        position += 8 + storages[key].nbytes
        if position > file.size:
            raise CheckpointError("the file is cut short: the numbers of its tensors are missing")
    return places
