"""Writes checkpoint files as a stream: each tensor is computed, written and freed before the next one.

`safetensors.torch.save_file` and `torch.save` need all tensors at once, so that casting a model needs memory
for a second copy. Here, dtypes and shapes determine the position of every tensor in advance. The formats are
safetensors (section "Format" on github.com/huggingface/safetensors) and PyTorch's zip archive (see
`torch_zip`).
"""

from __future__ import annotations

import io
import json
import math
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from ldm_core.checkpoint.pickle_globals import KNOWN
from ldm_core.checkpoint.pickle_values import StorageType
from ldm_core.checkpoint.safetensors_reader import DTYPES
from ldm_core.errors import CheckpointError
from ldm_core.support.atomic_files import write_whole

ALIGNMENT = 64  # bytes; the alignment of members in torch.save's archives, for mapping them

# The inverses of the readers' tables.
_SAFETENSORS_CODES = {dtype: code for code, dtype in DTYPES.items()}
_TORCH_DTYPES = {known for known in KNOWN.values() if isinstance(known, torch.dtype)}
_STORAGE_CLASSES = {
    known.dtype: getattr(torch, name.removeprefix("torch."))
    for name, known in KNOWN.items()
    if isinstance(known, StorageType) and name.count(".") == 1  # torch.FloatStorage, not torch.cuda's
}


@dataclass(frozen=True)
class Pending:
    """A tensor that is computed just before it is written.

    make: called once; returns a tensor of `dtype` and `shape`, on any device and with any strides. A tensor
    that is not contiguous is copied.
    """

    dtype: torch.dtype
    shape: tuple[int, ...]
    make: Callable[[], Tensor]

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.numel * self.dtype.itemsize


def is_sliced(tensor: Tensor) -> bool:
    """Whether the tensor is a `DTensor`, of which this process may have a slice only."""
    return hasattr(tensor, "full_tensor")


def require_whole(tensor: Tensor, name: str) -> Tensor:
    """Return the tensor. Raises CheckpointError if this process has a slice of it only."""
    if is_sliced(tensor):
        raise CheckpointError(
            f"{name} is sharded over several processes (FSDP); load the weights of the run's state into a "
            "model or adapter in one process with ldm_core.training.load_weights, and save that"
        )
    return tensor


def write_safetensors(tensors: Mapping[str, Pending], metadata: Mapping[str, str], target: Path) -> None:
    """Write a safetensors file with `metadata` as its `__metadata__`.

    As in the safetensors library, tensors are sorted by decreasing size of dtype, then by name, so that every
    tensor is aligned. Raises OSError, the errors of a tensor's `make`, and CheckpointError if there are no
    tensors, for a dtype or name that the format does not support, and for a tensor with another dtype or
    shape.
    """
    _check(tensors, _SAFETENSORS_CODES, "safetensors files")
    if "__metadata__" in tensors:
        raise CheckpointError("a tensor in a safetensors file must not have the name '__metadata__'")
    ordered = dict(sorted(tensors.items(), key=lambda item: (-item[1].dtype.itemsize, item[0])))
    header = _safetensors_header(ordered, metadata)
    with target.open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        for name, pending in ordered.items():
            file.write(_make_bytes(name, pending))


def _safetensors_header(ordered: Mapping[str, Pending], metadata: Mapping[str, str]) -> bytes:
    """The JSON header, without its length, for tensors in this order."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    position = 0
    for name, pending in ordered.items():
        end = position + pending.nbytes
        code = _SAFETENSORS_CODES[pending.dtype]
        header[name] = {"dtype": code, "shape": list(pending.shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    return text + b" " * (-len(text) % 8)


def write_torch_zip(
    tensors: Mapping[str, Pending], metadata: Mapping[str, Any], target: Path, entry: str = "state_dict"
) -> None:
    """Write the file of `torch.save({entry: tensors, **metadata}, target)`, with one storage per tensor.

    With an empty `entry` it is that of `torch.save(tensors, target)`, which has no place for metadata.
    `metadata` must consist of plain values to be readable with `weights_only`.
    Raises OSError, the errors of a tensor's `make`, and CheckpointError if there are no tensors, for a dtype
    that PyTorch cannot read, metadata named as the entry, and a tensor with another dtype or shape.
    """
    _check(tensors, _TORCH_DTYPES, "PyTorch's files")
    if entry in metadata:
        raise CheckpointError(f"metadata must not have the name {entry!r}, which is reserved for the tensors")
    state_dict = {name: _Pickled(str(key), tensor) for key, (name, tensor) in enumerate(tensors.items())}
    pickled = io.BytesIO()
    _Pickler(pickled, protocol=2).dump({entry: state_dict, **metadata} if entry else state_dict)
    with target.open("wb") as file, zipfile.ZipFile(file, "w") as archive:
        _add_member(file, archive, "data.pkl", pickled.getbuffer())
        _add_member(file, archive, "byteorder", memoryview(b"little"))
        for key, (name, pending) in enumerate(tensors.items()):
            _add_member(file, archive, f"data/{key}", _make_bytes(name, pending))
        _add_member(file, archive, "version", memoryview(b"3\n"))


@dataclass(frozen=True)
class _Storage:
    """The persistent id that represents a storage in the pickle."""

    persistent_id: tuple[str, type, str, str, int]  # "storage", class, key, device, number of elements


@dataclass(frozen=True)
class _Pickled:
    """A tensor in the pickle: a call that creates a view of the storage named `key`."""

    key: str
    pending: Pending

    def __reduce__(self) -> tuple[Callable[..., Tensor], tuple[Any, ...]]:
        """As `torch.Tensor.__reduce_ex__`. Dtypes without a storage class use an untyped storage."""
        dtype, shape = self.pending.dtype, tuple(self.pending.shape)
        typed = _STORAGE_CLASSES.get(dtype)
        length = self.pending.numel if typed else self.pending.nbytes
        storage = _Storage(("storage", typed or torch.UntypedStorage, self.key, "cpu", length))
        stride = torch.empty(shape, device="meta").stride()
        # Offset 0, no gradient, no hooks.
        args: tuple[Any, ...] = (storage, 0, shape, stride, False, OrderedDict())
        if typed:
            return torch._utils._rebuild_tensor_v2, args
        return torch._utils._rebuild_tensor_v3, (*args, dtype)


class _Pickler(pickle.Pickler):
    def persistent_id(self, obj: Any) -> Any:
        return obj.persistent_id if isinstance(obj, _Storage) else None


def _add_member(file: BinaryIO, archive: zipfile.ZipFile, name: str, data: memoryview) -> None:
    """Append a member to the archive, with its data at a multiple of ALIGNMENT."""
    info = zipfile.ZipInfo(f"archive/{name}")
    wide = data.nbytes > zipfile.ZIP64_LIMIT
    # 30 bytes of header, the name, 20 bytes of 64-bit sizes, and 4 bytes of the padding field's header.
    unpadded = file.tell() + 30 + len(info.filename) + (20 if wide else 0) + 4
    padding = -unpadded % ALIGNMENT
    info.extra = b"FB" + struct.pack("<H", padding) + b"Z" * padding
    with archive.open(info, "w", force_zip64=wide) as member:
        member.write(data)


def _check(tensors: Mapping[str, Pending], dtypes: Collection[torch.dtype], files: str) -> None:
    """Raise CheckpointError if there are no tensors, or for a dtype that the format does not support."""
    if not tensors:
        raise CheckpointError("there are no tensors to write")
    for name, pending in tensors.items():
        if pending.dtype not in dtypes:
            raise CheckpointError(
                f"the tensor {name!r} has the dtype {pending.dtype}, which {files} do not support"
            )


def _make_bytes(name: str, pending: Pending) -> memoryview:
    """Compute a tensor and return its bytes in row-major order, which the result keeps in memory."""
    tensor = pending.make()
    if (tensor.dtype, tuple(tensor.shape)) != (pending.dtype, tuple(pending.shape)):
        raise CheckpointError(
            f"expected the tensor {name!r} with dtype {pending.dtype} and shape {tuple(pending.shape)}, "
            f"got {tensor.dtype} and {tuple(tensor.shape)}"
        )
    plain = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
    # A single element can have any stride, which reshape(-1) keeps, but a view as bytes needs stride 1.
    return plain.as_strided((pending.numel,), (1,)).view(torch.uint8).numpy().data


def write_then_move(path: Path, write: Callable[[Path], object], *, overwrite: bool = True) -> None:
    """`write_whole` with CheckpointError in place of OSError.

    Raises CheckpointError if the file cannot be written, FileExistsError for an existing file that must not
    be overwritten, and the errors of `write`. An existing file at `path` is then unchanged.
    """
    with checkpoint_errors(path):
        write_whole(path, write, overwrite=overwrite)


@contextmanager
def checkpoint_errors(path: Path) -> Iterator[None]:
    """Convert every OSError except FileExistsError to a CheckpointError that names `path`."""
    try:
        yield
    except FileExistsError:
        raise
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be written: {error.strerror or error}") from error


def write_bytes(path: Path, data: bytes) -> None:
    """`write_then_move` for bytes in memory."""
    write_then_move(path, lambda target: target.write_bytes(data))


WRITERS = {".safetensors": write_safetensors, ".ckpt": write_torch_zip, ".pt": write_torch_zip}
