"""Writing checkpoint files as a stream: each tensor is made, written and forgotten before the next.

`safetensors.torch.save_file` and `torch.save` want all tensors at once, so a cast on the way would hold a
second copy of the model. Both formats say where every tensor lies before the first is written, and for that
dtypes and shapes are enough. The files are those of the two libraries: safetensors (its "Format" section on
github.com/huggingface/safetensors) and PyTorch's zip, which `torch_zip` describes.
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

ALIGNMENT = 64  # bytes; where torch.save puts the members of its archives, so that they can be mapped

# The readers' tables, inverted.
_SAFETENSORS_CODES = {dtype: code for code, dtype in DTYPES.items()}
_TORCH_DTYPES = {known for known in KNOWN.values() if isinstance(known, torch.dtype)}
_STORAGE_CLASSES = {
    known.dtype: getattr(torch, name.removeprefix("torch."))
    for name, known in KNOWN.items()
    if isinstance(known, StorageType) and name.count(".") == 1  # torch.FloatStorage, not torch.cuda's
}


@dataclass(frozen=True)
class Pending:
    """A tensor that is made when its turn to be written comes.

    `make` may return any device and strides; it is called once, and its tensor must be of `dtype` and
    `shape`. One that is not contiguous is copied as it is written.
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
    """Whether it is spread over several processes, as a `DTensor`, and this one has a slice of it only."""
    return hasattr(tensor, "full_tensor")


def require_whole(tensor: Tensor, name: str) -> Tensor:
    """Raises CheckpointError for a tensor of which this process has a slice only."""
    if is_sliced(tensor):
        raise CheckpointError(
            f"{name} is sliced over several processes, as fsdp leaves it: in one process, give a model or an "
            "adapter the weights of the run's state with ldm_core.training.load_weights, and save that"
        )
    return tensor


def write_safetensors(tensors: Mapping[str, Pending], metadata: Mapping[str, str], target: Path) -> None:
    """Write a safetensors file with `metadata` as its `__metadata__`.

    Larger dtypes come first, then names in order, as the library sorts them: so every tensor is aligned.
    Raises OSError, what a tensor's `make` raises, and CheckpointError for no tensors, a dtype or a name
    that the format lacks, or a tensor that is not what was announced.
    """
    _check(tensors, _SAFETENSORS_CODES, "safetensors files")
    if "__metadata__" in tensors:
        raise CheckpointError("a tensor in a safetensors file cannot have the name '__metadata__'")
    ordered = dict(sorted(tensors.items(), key=lambda item: (-item[1].dtype.itemsize, item[0])))
    header = _safetensors_header(ordered, metadata)
    with target.open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        for name, pending in ordered.items():
            file.write(_make_bytes(name, pending))


def _safetensors_header(ordered: Mapping[str, Pending], metadata: Mapping[str, str]) -> bytes:
    """The JSON header, without its length, for tensors that lie in the file in this order."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    position = 0
    for name, pending in ordered.items():
        end = position + pending.nbytes
        code = _SAFETENSORS_CODES[pending.dtype]
        header[name] = {"dtype": code, "shape": list(pending.shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    return text + b" " * (-len(text) % 8)


def write_torch_zip(tensors: Mapping[str, Pending], metadata: Mapping[str, Any], target: Path) -> None:
    """Write what `torch.save({"state_dict": tensors, **metadata}, target)` does, with a storage per tensor.

    `metadata` should be plain values, as nothing else can be read with `weights_only`.
    Raises OSError, what a tensor's `make` raises, and CheckpointError for no tensors, a dtype that PyTorch
    cannot read back, metadata named `state_dict`, or a tensor that is not what was announced.
    """
    _check(tensors, _TORCH_DTYPES, "PyTorch's files")
    if "state_dict" in metadata:
        raise CheckpointError("metadata cannot have the name 'state_dict', which is that of the tensors")
    state_dict = {name: _Pickled(str(key), tensor) for key, (name, tensor) in enumerate(tensors.items())}
    pickled = io.BytesIO()
    _Pickler(pickled, protocol=2).dump({"state_dict": state_dict, **metadata})
    with target.open("wb") as file, zipfile.ZipFile(file, "w") as archive:
        _add_member(file, archive, "data.pkl", pickled.getbuffer())
        _add_member(file, archive, "byteorder", memoryview(b"little"))
        for key, (name, pending) in enumerate(tensors.items()):
            _add_member(file, archive, f"data/{key}", _make_bytes(name, pending))
        _add_member(file, archive, "version", memoryview(b"3\n"))


@dataclass(frozen=True)
class _Storage:
    """What the pickle holds in the place of a storage: a persistent id."""

    persistent_id: tuple[str, type, str, str, int]  # "storage", class, key, device, number of elements


@dataclass(frozen=True)
class _Pickled:
    """A tensor as the pickle describes it: a call that makes a view of the storage named `key`."""

    key: str
    pending: Pending

    def __reduce__(self) -> tuple[Callable[..., Tensor], tuple[Any, ...]]:
        """As `torch.Tensor.__reduce_ex__`; dtypes without a storage class have an untyped one, in bytes."""
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
    """Append a member to the archive in `file`, with its bytes at a multiple of ALIGNMENT."""
    info = zipfile.ZipInfo(f"archive/{name}")
    wide = data.nbytes > zipfile.ZIP64_LIMIT
    # 30 bytes of header, the name, 20 bytes of 64-bit sizes, and the 4 that begin the padding's field.
    unpadded = file.tell() + 30 + len(info.filename) + (20 if wide else 0) + 4
    padding = -unpadded % ALIGNMENT
    info.extra = b"FB" + struct.pack("<H", padding) + b"Z" * padding
    with archive.open(info, "w", force_zip64=wide) as member:
        member.write(data)


def _check(tensors: Mapping[str, Pending], dtypes: Collection[torch.dtype], files: str) -> None:
    """Raise CheckpointError for what `files` cannot hold, or what the readers would refuse."""
    if not tensors:
        raise CheckpointError("there are no tensors to write")
    for name, pending in tensors.items():
        if pending.dtype not in dtypes:
            raise CheckpointError(f"the tensor {name!r} is of {pending.dtype}, which {files} cannot hold")


def _make_bytes(name: str, pending: Pending) -> memoryview:
    """Make a tensor: its elements' bytes in row-major order. Only the result keeps them in memory."""
    tensor = pending.make()
    if (tensor.dtype, tuple(tensor.shape)) != (pending.dtype, tuple(pending.shape)):
        raise CheckpointError(
            f"the tensor {name!r} should be of {pending.dtype} and shape {tuple(pending.shape)}, "
            f"got {tensor.dtype} and {tuple(tensor.shape)}"
        )
    plain = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
    # reshape(-1) would keep the stride of a lone element, whatever it is, and only 1 can be viewed as bytes.
    return plain.as_strided((pending.numel,), (1,)).view(torch.uint8).numpy().data


def write_then_move(path: Path, write: Callable[[Path], object], *, overwrite: bool = True) -> None:
    """`write_whole` with CheckpointError in place of OSError.

    Raises CheckpointError where the file cannot be written, FileExistsError for one that is there and not to
    be overwritten, and what `write` raises; `path` is then as it was.
    """
    with checkpoint_errors(path):
        write_whole(path, write, overwrite=overwrite)


@contextmanager
def checkpoint_errors(path: Path) -> Iterator[None]:
    """Turns every OSError except FileExistsError into a CheckpointError that names `path`."""
    try:
        yield
    except FileExistsError:
        raise
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be written: {error.strerror or error}") from error


def write_bytes(path: Path, data: bytes) -> None:
    """`write_then_move` for a small file that is in memory."""
    write_then_move(path, lambda target: target.write_bytes(data))


WRITERS = {".safetensors": write_safetensors, ".ckpt": write_torch_zip, ".pt": write_torch_zip}
