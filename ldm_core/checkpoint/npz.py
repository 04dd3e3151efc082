"""Reads NumPy's `.npz` archives: a ZIP archive with one `.npy` file per array.

An `.npy` file is a short header, a Python literal with dtype, order and shape, and the array's bytes (NumPy's
documentation, `numpy.lib.format`). The literal is matched with the form that NumPy writes, not evaluated, and
compared with the file's size before anything is allocated. Arrays of objects, which are pickles, have another
form.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Collection
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ldm_core.checkpoint.file_bytes import FileBytes
from ldm_core.checkpoint.reader import errors_named
from ldm_core.checkpoint.zip_directory import most_inflated, read_directory, read_member
from ldm_core.errors import CheckpointError

Array = Tensor | list[str]

_MAGIC = re.compile(rb"\x93NUMPY([\x01-\x03])\x00", re.DOTALL)
_HEADER = re.compile(
    r"\{'descr': '(?P<dtype>[<>|](?:b1|[iu][1248]|f[248]|[SU][1-9]\d{0,5}))', "
    r"'fortran_order': (?P<fortran>True|False), "
    r"'shape': \((?P<shape>(?:\d{1,18}, ?)*(?:\d{1,18})?)\),? ?\} *\n?"
)
_MAX_HEADER = 10_000  # bytes, NumPy's own limit


def is_npz(path: str | os.PathLike[str]) -> bool:
    """Whether a file is an archive of `.npy` files. Raises CheckpointError for a file that cannot be read."""
    path = Path(path)
    with errors_named(path), FileBytes(path, "none") as file:
        if file.size < 4 or file.read(0, 4) not in (b"PK\3\4", b"PK\5\6"):
            return False
        return any(name.endswith(".npy") for name in read_directory(file))


def read_npz(path: str | os.PathLike[str], names: Collection[str]) -> dict[str, Array]:
    """The arrays of these names that the archive contains: numbers as tensors, texts as lists.

    Raises CheckpointError, in one line that begins with the path, for a file that is missing or damaged, and
    for an array of another kind.
    """
    path = Path(path)
    with errors_named(path), FileBytes(path, "none") as file:
        members = read_directory(file)
        left = most_inflated(file)
        arrays: dict[str, Array] = {}
        for name in names:
            member = members.get(f"{name}.npy")
            if member is not None:
                data = read_member(file, member, member.size if member.is_stored else left)
                left -= 0 if member.is_stored else len(data)
                arrays[name] = _array(name, data)
        return arrays


def _array(name: str, data: bytes | bytearray) -> Array:
    magic = _MAGIC.match(data)
    width = 2 if magic is None or magic[1] == b"\1" else 4  # bytes of the header's length
    start = 8 + width + int.from_bytes(data[8 : 8 + width], "little")
    header = data[8 + width : min(start, _MAX_HEADER)].decode("latin-1")
    match = _HEADER.fullmatch(header)
    if magic is None or match is None or start > len(data):
        raise CheckpointError(
            f"expected an array of numbers or texts in the .npy format for {name!a}, got the header "
            f"{header[:80]!a}"
        )
    dtype = np.dtype(match["dtype"])
    shape = tuple(int(length) for length in match["shape"].split(",") if length.strip())
    if math.prod(shape) * dtype.itemsize != len(data) - start:
        raise CheckpointError(
            f"the array {name!a} of {match['dtype']} and shape {str(shape)[:80]} does not fit its "
            f"{len(data) - start:,} bytes"
        )
    if dtype.kind in "US":
        # Not by NumPy, whose `tolist` raises SystemError for numbers that are no characters.
        encoding = "utf-8" if dtype.kind == "S" else "utf-32-be" if dtype.str[0] == ">" else "utf-32-le"
        return [
            data[at : at + dtype.itemsize].decode(encoding, "surrogatepass").rstrip("\0")
            for at in range(start, len(data), dtype.itemsize)
        ]
    flat = np.frombuffer(data, dtype, offset=start) if len(data) > start else np.empty(0, dtype)
    values = flat.reshape(shape, order="F" if match["fortran"] == "True" else "C")
    return torch.from_numpy(np.array(values, dtype.newbyteorder("="), order="C"))  # a copy, to be written to
