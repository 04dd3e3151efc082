"""Checkpoints are written tensor by tensor, and every reader reads back the same bits."""

from __future__ import annotations

import math
import os
import struct
import weakref
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from stat import S_ISDIR
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.checkpoint_files import largest_file, torch_bytes, zip_members
from support.examples import examples
from torch import Tensor

from ldm_core.checkpoint.file_bytes import FileBytes
from ldm_core.checkpoint.pickle_globals import KNOWN
from ldm_core.checkpoint.reader import read
from ldm_core.checkpoint.safetensors_reader import DTYPES
from ldm_core.checkpoint.writer import Pending, write_safetensors, write_then_move, write_torch_zip
from ldm_core.checkpoint.zip_directory import data_offset, read_directory
from ldm_core.errors import CheckpointError

# Torch says of complex32 that it is experimental; it is written all the same.
pytestmark = pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")

SAFETENSORS_DTYPES = list(DTYPES.values())
TORCH_DTYPES = sorted({known for known in KNOWN.values() if isinstance(known, torch.dtype)}, key=str)
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda tensor: tensor,
    "transposed": lambda tensor: tensor.transpose(0, -1) if tensor.ndim else tensor,
    "channels last": lambda tensor: tensor.movedim(-1, 1).clone() if tensor.ndim == 4 else tensor,
    "every other": lambda tensor: tensor[..., ::2] if tensor.ndim else tensor,
    "expanded": lambda tensor: tensor.expand(3, *tensor.shape),
    "part": lambda tensor: tensor[1:] if tensor.ndim else tensor,
}
Write = Callable[[Mapping[str, Pending], Mapping[str, str], Path], None]
WRITERS: dict[str, Write] = {
    "safetensors": write_safetensors,
    "torch": write_torch_zip,
}


@pytest.fixture(params=list(WRITERS))
def write(request: pytest.FixtureRequest) -> Write:
    return WRITERS[request.param]


def pending(tensor: Tensor) -> Pending:
    return Pending(tensor.dtype, tuple(tensor.shape), lambda: tensor)


def fail() -> Tensor:
    raise KeyError("gone")


def all_pending(tensors: dict[str, Tensor]) -> dict[str, Pending]:
    return {name: pending(tensor) for name, tensor in tensors.items()}


def filled(dtype: torch.dtype, shape: tuple[int, ...], seed: int = 0) -> Tensor:
    """A tensor of random bits, NaNs among them."""
    generator = torch.Generator().manual_seed(seed)
    size = (math.prod(shape) * dtype.itemsize,)
    raw = torch.randint(2 if dtype == torch.bool else 256, size, dtype=torch.uint8, generator=generator)
    return raw.view(dtype).reshape(shape)


def bits(tensor: Tensor) -> bytes:
    copy = tensor.detach().clone(memory_format=torch.contiguous_format)
    return copy.reshape(-1).view(torch.uint8).numpy().tobytes()


def assert_same(actual: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert set(actual) == set(expected)
    for name, tensor in expected.items():
        assert (actual[name].dtype, actual[name].shape) == (tensor.dtype, tensor.shape), name
        assert bits(actual[name]) == bits(tensor), name


def assert_safetensors_holds(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    assert_same(safetensors.torch.load_file(path), tensors)
    with safetensors.safe_open(path, "pt") as file:
        assert (file.metadata() or {}) == metadata
    checkpoint = read(path)
    assert (checkpoint.format, checkpoint.metadata) == ("safetensors", metadata)
    assert_same(checkpoint.tensors, tensors)


def assert_torch_zip_holds(path: Path, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
    for mmap in (False, True):
        loaded = torch.load(path, weights_only=True, mmap=mmap)
        assert list(loaded) == ["state_dict", *metadata]
        assert_same(loaded["state_dict"], tensors)
        assert {name: loaded[name] for name in metadata} == metadata
    checkpoint = read(path)
    assert (checkpoint.format, checkpoint.metadata) == ("torch-zip", metadata)
    assert checkpoint.foreign == ()
    assert list(checkpoint.tensors) == list(tensors)
    assert_same(checkpoint.tensors, tensors)
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None


def tensors_of(dtypes: list[torch.dtype]) -> st.SearchStrategy[dict[str, Tensor]]:
    """Tensors of any name, dtype, shape and strides."""
    shape = st.lists(st.integers(0, 5), max_size=4).map(tuple)
    tensor = st.builds(
        lambda dtype, shape, seed, layout: LAYOUTS[layout](filled(dtype, shape, seed)),
        st.sampled_from(dtypes), shape, st.integers(0, 9), st.sampled_from(list(LAYOUTS)),
    )  # fmt: skip
    return st.dictionaries(st.text(max_size=80), tensor, min_size=1, max_size=6)


@examples(150)
@given(tensors=tensors_of(SAFETENSORS_DTYPES), metadata=st.dictionaries(st.text(), st.text(), max_size=3))
def test_any_safetensors_file_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, tensors: dict[str, Tensor], metadata: dict[str, str]
) -> None:
    path = tmp_path_factory.mktemp("any") / "model.safetensors"
    write_safetensors(all_pending(tensors), metadata, path)
    assert_safetensors_holds(path, tensors, metadata)


@examples(150)
@given(
    tensors=tensors_of(TORCH_DTYPES),
    metadata=st.dictionaries(
        st.text().filter(lambda name: name != "state_dict"),
        st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.floats(allow_nan=False) | st.text(),
        max_size=3,
    ),
)
def test_any_torch_zip_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, tensors: dict[str, Tensor], metadata: dict[str, Any]
) -> None:
    path = tmp_path_factory.mktemp("any") / "model.ckpt"
    write_torch_zip(all_pending(tensors), metadata, path)
    assert_torch_zip_holds(path, tensors, metadata)


def every_kind(dtypes: list[torch.dtype]) -> dict[str, Tensor]:
    """For each dtype a scalar, an empty tensor, and one of each layout that random ones may miss."""
    tensors: dict[str, Tensor] = {}
    for dtype in dtypes:
        tensors |= {f"{dtype} scalar": filled(dtype, ()), f"{dtype} empty": filled(dtype, (3, 0))}
        four = filled(dtype, (2, 4, 6, 8))
        tensors |= {f"{dtype} {name}": layout(four) for name, layout in LAYOUTS.items()}
        tensors[f"{dtype} odd"] = filled(dtype, (3,))
    return tensors


def test_every_dtype_and_layout(tmp_path: Path) -> None:
    tensors = every_kind(SAFETENSORS_DTYPES)
    write_safetensors(all_pending(tensors), {"format": "pt"}, tmp_path / "model.safetensors")
    assert_safetensors_holds(tmp_path / "model.safetensors", tensors, {"format": "pt"})
    tensors = every_kind(TORCH_DTYPES)
    write_torch_zip(all_pending(tensors), {"format": "pt"}, tmp_path / "model.ckpt")
    assert_torch_zip_holds(tmp_path / "model.ckpt", tensors, {"format": "pt"})


def some_tensors() -> dict[str, Tensor]:
    return {
        "out.bias": filled(torch.float16, (7,)),
        "out.weight": filled(torch.float16, (3, 5)),
        "é \"\\\n\x1f\x7f": filled(torch.float32, (2, 2)),
        "flag": torch.tensor(True),
        "flags": filled(torch.bool, (3,)),
        "ids": torch.arange(5)[None],
        "empty": torch.empty(0, 3),
    }  # fmt: skip


@pytest.mark.parametrize("metadata", [{}, {"format": "ü"}])
def test_a_safetensors_file_is_the_librarys_byte_for_byte(tmp_path: Path, metadata: dict[str, str]) -> None:
    tensors = some_tensors()
    write_safetensors(all_pending(tensors), metadata, tmp_path / "model")
    assert (tmp_path / "model").read_bytes() == safetensors.torch.save(tensors, metadata or None)


def test_a_torch_zip_has_the_pickle_and_the_storages_that_torch_save_writes(tmp_path: Path) -> None:
    tensors = {**some_tensors(), "f8": filled(torch.float8_e5m2, (3, 2)), "u4": filled(torch.uint32, (2,))}
    metadata = {"format": "pt", "epoch": 7}
    write_torch_zip(all_pending(tensors), metadata, tmp_path / "model")
    ours = zip_members((tmp_path / "model").read_bytes())
    theirs = zip_members(torch_bytes({"state_dict": tensors, **metadata}))
    assert ours == {name: theirs[name] for name in ours}
    assert all(name.startswith("archive/.") for name in set(theirs) - set(ours))


def test_storages_are_aligned_so_that_they_can_be_mapped(tmp_path: Path) -> None:
    path = tmp_path / "model.ckpt"
    # Names of every length, data/9 and data/10, and sizes that leave the next member anywhere.
    write_torch_zip(all_pending({str(n): filled(torch.uint8, (n,)) for n in range(150)}), {}, path)
    with FileBytes(path) as file:
        offsets = [data_offset(file, member) for member in read_directory(file).values()]
    assert len(offsets) == 153
    assert not any(offset % 64 for offset in offsets)


def test_parameters_conjugates_and_negations(tmp_path: Path, write: Write) -> None:
    complex_ = torch.randn(3, dtype=torch.complex64)
    tensors = {
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "conjugate": complex_.conj(),
        "negation": complex_[:1].conj().imag,  # of one element, so contiguous as it is
    }
    assert tensors["conjugate"].is_conj()
    assert tensors["negation"].is_neg()
    write(all_pending(tensors), {}, tmp_path / "model")
    expected = {name: tensor.detach().resolve_conj().resolve_neg() for name, tensor in tensors.items()}
    assert_same(read(tmp_path / "model").tensors, expected)


def test_large_files_have_64_bit_fields(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, tensors = tmp_path / "model.ckpt", some_tensors() | {"large": filled(torch.float32, (50,))}
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 100)  # bytes, in the place of 2 GiB
    write_torch_zip(all_pending(tensors), {"epoch": 1}, path)
    monkeypatch.undo()
    assert_torch_zip_holds(path, tensors, {"epoch": 1})
    data = path.read_bytes()
    assert b"PK\6\6" in data  # the 64-bit end of the directory
    with FileBytes(path) as file:
        for member in read_directory(file).values():
            (compressed_size,) = struct.unpack_from("<L", data, member.header + 18)
            assert compressed_size == (0xFFFFFFFF if member.size > 100 else member.size)
            assert data_offset(file, member) % 64 == 0


@pytest.mark.slow
def test_a_tensor_of_over_4_gib(tmp_path: Path, write: Write) -> None:
    path, count = tmp_path / "model", 2**32 + 5

    def make() -> Tensor:
        tensor = torch.zeros(count, dtype=torch.uint8)
        tensor[-3:] = 7
        return tensor

    behind = filled(torch.uint8, (1000,))
    write({"a": Pending(torch.uint8, (count,), make), "b": pending(behind)}, {}, path)
    if write is write_safetensors:
        loaded = safetensors.torch.load_file(path)
    else:
        loaded = torch.load(path, weights_only=True, mmap=True)["state_dict"]
        with zipfile.ZipFile(path) as archive:
            assert archive.testzip() is None
    for tensors in (loaded, read(path).tensors):
        assert tensors["a"].shape == (count,)
        assert tensors["a"][-5:].tolist() == [0, 0, 7, 7, 7]
        assert torch.equal(tensors["b"], behind)
    path.unlink()


def test_each_tensor_is_made_when_the_one_before_is_gone(tmp_path: Path, write: Write) -> None:
    made: list[weakref.ref[np.ndarray]] = []

    def make() -> Tensor:
        assert not any(array() is not None for array in made)
        # Torch holds the array for as long as anything holds the tensor's memory.
        array = np.zeros((4, 5), np.float32)
        made.append(weakref.ref(array))
        return torch.from_numpy(array)

    write({str(n): Pending(torch.float32, (4, 5), make) for n in range(20)}, {}, tmp_path / "model")
    assert len(made) == 20


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads the resident size from /proc")
def test_writing_250_mb_occupies_little_more_than_a_tensor_and_its_copy(tmp_path: Path, write: Write) -> None:
    side, resident = 1600, []  # 10 MB of float32

    def make() -> Tensor:
        resident.append(int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE"))
        return torch.ones(side, side).t()

    write({str(n): Pending(torch.float32, (side, side), make) for n in range(25)}, {}, tmp_path / "model")
    (tmp_path / "model").unlink()
    # The memory of the last ones, which malloc keeps for the next, counts too.
    assert max(resident) - resident[0] < 90e6


def test_no_tensors_are_refused(tmp_path: Path, write: Write) -> None:
    with pytest.raises(CheckpointError, match="no tensors to write"):
        write({}, {"format": "pt"}, tmp_path / "model")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("kind", "dtype"), [("safetensors", torch.complex128), ("torch", torch.quint8), ("torch", torch.bits8)]
)
def test_a_dtype_that_the_format_lacks_is_named_with_its_tensor(
    tmp_path: Path, kind: str, dtype: torch.dtype
) -> None:
    tensors = {"fine": pending(torch.ones(2)), "odd.weight": Pending(dtype, (1,), fail)}
    with pytest.raises(CheckpointError, match=rf"'odd\.weight' has the dtype {dtype}"):
        WRITERS[kind](tensors, {}, tmp_path / "model")
    assert not list(tmp_path.iterdir())


def test_names_that_a_format_needs_for_itself_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="__metadata__"):
        write_safetensors({"__metadata__": pending(torch.ones(1))}, {}, tmp_path / "model")
    with pytest.raises(CheckpointError, match="state_dict"):
        write_torch_zip({"w": pending(torch.ones(1))}, {"state_dict": "?"}, tmp_path / "model")


@pytest.mark.parametrize(
    ("second", "error", "message"),
    [
        (Pending(torch.float32, (2,), fail), KeyError, "gone"),
        (
            Pending(torch.float32, (2,), lambda: torch.ones(2).half()),
            CheckpointError,
            r"'second' with dtype torch.float32 and shape \(2,\), got torch.float16 and \(2,\)",
        ),
        (
            Pending(torch.float32, (2, 3), lambda: torch.ones(3, 2)),
            CheckpointError,
            r"'second' with dtype torch.float32 and shape \(2, 3\), got torch.float32 and \(3, 2\)",
        ),
    ],
)
def test_a_tensor_that_fails_leaves_the_old_file_alone(
    tmp_path: Path,
    write: Write,
    second: Pending,
    error: type[Exception],
    message: str,
) -> None:
    path = tmp_path / "model.ckpt"
    path.write_bytes(b"old")
    tensors = {"first": pending(torch.ones(5000)), "second": second}
    with pytest.raises(error, match=message):
        write_then_move(path, lambda target: write(tensors, {}, target))
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("limit", [0, 100, 50_000, 1_000_100])
def test_a_full_disk_leaves_the_old_file_alone(tmp_path: Path, write: Write, limit: int) -> None:
    path = tmp_path / "model.ckpt"
    path.write_bytes(b"old")
    tensors = {name: pending(torch.ones(125_000)) for name in "ab"}
    with largest_file(limit), pytest.raises(CheckpointError, match=r"model\.ckpt: cannot be written: File"):
        write_then_move(path, lambda target: write(tensors, {}, target))
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"model: cannot be written: No such file"):
        write_then_move(tmp_path / "none" / "model", lambda target: None)


def test_the_bytes_are_on_the_disk_before_the_file_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, synced, sync = tmp_path / "model", [], os.fsync

    def fsync(handle: int) -> None:
        synced.append(("folder" if S_ISDIR(os.fstat(handle).st_mode) else "file", path.exists()))
        sync(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    write_then_move(path, lambda target: write_torch_zip(all_pending(some_tensors()), {}, target))
    assert synced == [("file", False), ("folder", True)]


def test_the_file_has_the_permissions_of_any_new_file(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    write_then_move(tmp_path / "model", Path.touch)
    assert (tmp_path / "model").stat().st_mode == (tmp_path / "plain").stat().st_mode
