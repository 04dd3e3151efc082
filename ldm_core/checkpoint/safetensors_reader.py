"""Reads the safetensors format (github.com/huggingface/safetensors, "Format") and validates its header.

The first eight bytes are the length of a JSON header, `{name: {"dtype", "shape", "data_offsets": [begin,
end]}}` with an optional `__metadata__` of strings. The tensors' bytes follow without gaps. In contrast to the
safetensors library, this reader describes each defect in its error, has the same limits as the reader of
pickles, and uses the same memory map.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from typing import Any, NoReturn

import torch
from torch import Tensor

from ldm_core.checkpoint.file_bytes import FileBytes
from ldm_core.checkpoint.pickle_values import MAX_DIMENSIONS, MAX_ELEMENTS
from ldm_core.checkpoint.state_dict import MAX_NAME
from ldm_core.errors import CheckpointError

MAX_HEADER = 2**25  # bytes; the largest headers record the tags of a training set, a few MB

_DTYPE_NAMES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E8M0": "float8_e8m0fnu",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U64": "uint64",
    "U32": "uint32",
    "U16": "uint16",
    "U8": "uint8",
    "BOOL": "bool",
    "C64": "complex64",
}
# By name, because older versions of PyTorch lack some.
DTYPES = {code: getattr(torch, name) for code, name in _DTYPE_NAMES.items() if hasattr(torch, name)}


def read_safetensors(file: FileBytes) -> tuple[dict[str, Tensor], dict[str, Any], tuple[str, ...]]:
    """(tensors, metadata, no foreign names). Raises CheckpointError."""
    start, header = _header(file)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise CheckpointError("__metadata__ is not a mapping from text to text")
    entries = {name: _entry(name, entry) for name, entry in header.items()}
    _check_layout(entries, file.size - start)
    tensors: dict[str, Tensor] = {}
    for name, (dtype, shape, begin, end) in entries.items():
        storage = file.storage(start + begin, end - begin, dtype.itemsize)
        flat = torch.empty(0, dtype=dtype, device=storage.device)
        tensors[name] = (flat.set_(storage) if begin < end else flat).reshape(shape)
    if not tensors:
        raise CheckpointError("the file contains no tensors")
    return tensors, metadata, ()


_Entry = tuple[torch.dtype, tuple[int, ...], int, int]


def _header(file: FileBytes) -> tuple[int, dict[str, Any]]:
    """(offset of the tensors' bytes, parsed header)."""
    length = int.from_bytes(file.read(0, 8), "little")
    if length > file.size - 8:
        raise CheckpointError(
            f"the file is truncated or damaged: the header should have {length:,} bytes, "
            f"the file has {file.size:,}"
        )
    if length > MAX_HEADER:
        raise CheckpointError(f"expected a header of at most {MAX_HEADER:,} bytes, got {length:,}")
    try:
        header = json.loads(
            file.read(8, length).decode("utf-8"),
            object_pairs_hook=_unique,
            parse_constant=_refuse_number,
            parse_float=_refuse_number,
            parse_int=lambda digits: int(digits) if len(digits) <= 19 else _refuse_number(digits),
        )
    except CheckpointError:
        raise
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"the header is not valid JSON ({error})") from error
    if not isinstance(header, dict):
        raise CheckpointError(f"the header must be a mapping, not a {type(header).__name__}")
    return 8 + length, header


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise CheckpointError(f"the header has the entry {ascii(twice)[:80]} twice")
    for name, value in pairs:
        for text in (name, value):
            if isinstance(text, str):
                text.encode("utf-8")  # raises for halves of surrogate pairs, which JSON's \\u can make
    return result


def _refuse_number(text: str) -> NoReturn:
    raise CheckpointError(f"the header has the number {text[:40]}, which is not a size or an offset")


def _entry(name: str, entry: Any) -> _Entry:
    """(dtype, shape, begin, end) of one tensor. Raises CheckpointError for an inconsistent entry."""
    where = f"the header's entry for {name[:80]!a}"
    if len(name) > MAX_NAME:
        raise CheckpointError(f"{where}… has a name of more than {MAX_NAME} characters")
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise CheckpointError(f"{where} does not have exactly dtype, shape and data_offsets")
    code, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    dtype = DTYPES.get(code) if isinstance(code, str) else None
    if dtype is None:
        raise CheckpointError(f"{where} has the unknown dtype {ascii(code)[:40]}")
    if (
        not _are_sizes(shape)
        or len(shape) > MAX_DIMENSIONS
        or math.prod(n or 1 for n in shape) > MAX_ELEMENTS
    ):
        raise CheckpointError(f"{where} has the impossible shape {ascii(shape)[:80]}")
    if not _are_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise CheckpointError(f"{where} has the impossible data_offsets {ascii(offsets)[:80]}")
    begin, end = offsets
    if math.prod(shape) * dtype.itemsize != end - begin:
        raise CheckpointError(
            f"{where} is inconsistent: {code} of shape {shape} takes "
            f"{math.prod(shape) * dtype.itemsize:,} bytes, its data_offsets span {end - begin:,}"
        )
    return dtype, tuple(shape), begin, end


def _are_sizes(values: Any) -> bool:
    return isinstance(values, list) and all(type(n) is int and n >= 0 for n in values)


def _check_layout(entries: dict[str, _Entry], available: int) -> None:
    """Raise CheckpointError unless the tensors fill the rest of the file without gaps and overlaps."""
    position = 0
    for name, (_, _, begin, end) in sorted(entries.items(), key=lambda item: item[1][2:]):
        if begin != position:
            problem = "overlaps another tensor" if begin < position else "has a gap before it"
            raise CheckpointError(
                f"the header is inconsistent: {ascii(name)[:80]} at byte {begin:,} {problem}"
            )
        position = end
    if position != available:
        problem = "the file is truncated" if position > available else "the file has extra bytes at its end"
        raise CheckpointError(
            f"{problem}: the header describes {position:,} bytes of tensors, the file has {available:,}"
        )
