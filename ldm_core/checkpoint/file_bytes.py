"""The bytes of one file: read in pieces for its headers, mapped into memory for its tensors.

The map is private (copy on write): a tensor in it costs nothing until its values are used, and writing to
it changes this process's copy and never the file. As with every memory map, cutting the file short while
its tensors are in use ends the process; replacing it by renaming another over it is harmless.
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
SMALL = 2**14  # bytes: a noise schedule's tables and a bias are smaller, a layer's weights are not


class FileBytes:
    """An open file. Use in a `with` block; tensors made from it stay valid afterwards."""

    def __init__(self, path: Path, access: Access = "map") -> None:
        """Raises OSError where the file cannot be opened, CheckpointError where it is empty or no file.

        `access` says what tensors are made of: a memory map, copies, copies of the small ones only, or
        nothing (the rest is on the meta device).
        """
        # A pipe would block in open(), so what the path is comes first.
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise CheckpointError("is not a regular file")
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
        # The map is left alone: tensors hold it, and the last of them frees it.
        self._file.close()

    def read(self, offset: int, length: int) -> bytes:
        """`length` bytes from `offset`. Raises CheckpointError where the file does not have them."""
        self._check(offset, length)
        self._file.seek(offset)
        data = self._file.read(length)
        if len(data) != length:
            raise CheckpointError("the file was cut short while it was read")
        return data

    def leaves_out(self, nbytes: int) -> bool:
        """Whether numbers of so many bytes are not read."""
        return self.access == "none" or (self.access == "small" and nbytes > SMALL)

    def storage(self, offset: int, nbytes: int, alignment: int) -> torch.UntypedStorage:
        """`nbytes` from `offset` as a storage: mapped where aligned, else copied.

        Torch computes with misaligned numbers at its own risk, so those, which old safetensors files and
        legacy pickles are full of, are read into memory.
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
                raise CheckpointError("the file was cut short while it was read")
            done += count
        return copy.untyped_storage()

    def _check(self, offset: int, length: int) -> None:
        if offset < 0 or length < 0 or offset + length > self.size:
            raise CheckpointError(
                f"the file is cut short or damaged: {length:,} bytes should lie at {offset:,}, "
                f"but it has only {self.size:,}"
            )


def _map(file: BinaryIO) -> mmap.mmap:
    try:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    except (OSError, ValueError, OverflowError) as error:
        raise CheckpointError(f"cannot be mapped into memory ({error}); try mmap=False") from error
