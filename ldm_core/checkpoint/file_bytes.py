"""Access to the bytes of a file: reads for headers, and a memory map for tensors.

The map is private (copy on write). A mapped tensor uses no memory before its values are read, and writing to
it never changes the file. As with every memory map, truncating the file while its tensors are in use ends the
process. Replacing the file by a rename is safe.
"""

from __future__ import annotations

import mmap
import os
import stat
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Literal

import torch
from torch import Tensor

from ldm_core.errors import CheckpointError

Access = Literal["map", "copy", "small", "none"]
SMALL = 2**14  # bytes: more than a noise schedule's tables or a bias, less than a layer's weights


class FileBytes:
    """An open file, for use in a `with` block. Its tensors stay valid after the block."""

    def __init__(self, path: Path, access: Access = "map") -> None:
        """Raises OSError if the file cannot be opened, CheckpointError if it is empty or not a regular file.

        access: the memory of tensors: "map" for a memory map, "copy" for copies, "small" for copies of small
        tensors, "none" for no values. Tensors without values are on the meta device.
        """
        # Check the kind of the file before open(), which would block on a pipe.
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise CheckpointError("not a regular file")
        self._file: BinaryIO = open(path, "rb")  # noqa: SIM115  closed by __exit__
        try:
            self.size = os.fstat(self._file.fileno()).st_size
            if self.size == 0:
                raise CheckpointError("the file is empty")
            self.access = access
            self._map = _map(self._file) if access == "map" else None
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> FileBytes:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # The tensors keep the map open; the last one frees it.
        self._file.close()

    def read(self, offset: int, length: int) -> bytes:
        """`length` bytes from `offset`. Raises CheckpointError if the file is too short."""
        self._check(offset, length)
        self._file.seek(offset)
        data = self._file.read(length)
        if len(data) != length:
            raise CheckpointError("the file was truncated while it was read")
        return data

    def leaves_out(self, nbytes: int) -> bool:
        """Whether a tensor of this many bytes is left on the meta device."""
        return self.access == "none" or (self.access == "small" and nbytes > SMALL)

    def storage(self, offset: int, nbytes: int, alignment: int) -> torch.UntypedStorage:
        """`nbytes` from `offset` as a storage: mapped if aligned, otherwise copied.

        PyTorch does not support misaligned storages, which are common in old safetensors files and legacy
        pickles.
        """
        self._check(offset, nbytes)
        if self.leaves_out(nbytes):
            return torch.UntypedStorage(nbytes, device="meta")
        if nbytes == 0:
            return torch.UntypedStorage(0)
        if self._map is not None and offset % alignment == 0:
            mapped = torch.frombuffer(self._map, dtype=torch.uint8, count=nbytes, offset=offset)
            return mapped.untyped_storage()
        copy: Tensor = torch.empty(nbytes, dtype=torch.uint8)
        view = copy.numpy().data
        self._file.seek(offset)
        done = 0
        while done < nbytes:
            count = self._file.readinto(view[done:])  # type: ignore[attr-defined]
            if not count:
                raise CheckpointError("the file was truncated while it was read")
            done += count
        return copy.untyped_storage()

    def _check(self, offset: int, length: int) -> None:
        if offset < 0 or length < 0 or offset + length > self.size:
            raise CheckpointError(
                f"the file is truncated or damaged: expected {length:,} bytes at offset {offset:,}, "
                f"but the file has {self.size:,} bytes"
            )


def _map(file: BinaryIO) -> mmap.mmap:
    try:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    except (OSError, ValueError, OverflowError) as error:
        raise CheckpointError(f"the file cannot be mapped into memory ({error}); try mmap=False") from error
