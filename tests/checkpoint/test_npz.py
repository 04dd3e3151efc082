"""Archives of arrays: the same values as NumPy's own reader, and nothing but an error for damaged ones."""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.examples import examples

from ldm_core.checkpoint import CheckpointError
from ldm_core.checkpoint.npz import is_npz, read_npz

ARRAYS: dict[str, Any] = {
    "embeddings": np.arange(12, dtype=np.float32).reshape(3, 4),
    "half": np.arange(6, dtype=np.float16).reshape(2, 3),
    "big_endian": np.arange(5, dtype=">f4"),
    "columns": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "none": np.zeros((0, 7), np.float32),
    "number": np.array(3),
    "names": np.array(["a", "böse", "€ 3"]),
    "bytes": np.array([b"a", b"bc"]),
}


def npz(**arrays: Any) -> bytes:
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)
    return stream.getvalue()


def with_member(data: bytes, name: str = "a.npy") -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, data)
    return stream.getvalue()


def npy(header: str, data: bytes = b"") -> bytes:
    text = header.encode("latin-1")
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + data


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_values_are_numpys(tmp_path: Path, save: Any) -> None:
    path = tmp_path / "a.npz"
    save(path, **ARRAYS)
    assert is_npz(path)
    found = read_npz(path, [*ARRAYS, "missing"])
    assert found.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        value = found[name]
        if array.dtype.kind in "US":
            assert value == [text if isinstance(text, str) else text.decode() for text in array.tolist()]
        else:
            assert isinstance(value, torch.Tensor)
            assert np.array_equal(value.numpy(), array)
            assert value.numpy().dtype == array.dtype.newbyteorder("=")


def test_other_files_are_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    torch.save({"a": torch.zeros(2)}, path)
    assert not is_npz(path)
    path.write_bytes(b"PK")
    assert not is_npz(path)
    for missing in (tmp_path, tmp_path / "none"):
        with pytest.raises(CheckpointError, match=str(tmp_path)):
            is_npz(missing)


HEADER = "{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000,), }"
NO_HEADER = "expected an array of numbers or texts in the .npy format for 'a', got the header "


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (npy(HEADER.replace("<f4", "|O"), pickle.dumps([print])), NO_HEADER),
        (npy(HEADER, b"1234"), r"'a' of <f4 and shape \(1000000000000,\) does not fit its 4 bytes"),
        (npy(HEADER.replace("<f4", "<U0")), NO_HEADER),
        (npy(HEADER.replace("<f4", "<f16")), NO_HEADER),
        (npy(HEADER.replace("<f4", "<b8")), NO_HEADER),
        (npy(HEADER.replace("1000000000000", "-1")), NO_HEADER),
        (npy(HEADER.replace("1000000000000", "9" * 18 + ", 0, 3")), "cannot be read"),
        (npy("(" * 5000), NO_HEADER),
        (npy("{'descr': '<f4', 'fortran_order': False, 'shape': (" + "1," * 9000), NO_HEADER),
        (npy("__import__('os').abort()"), NO_HEADER),
        (npy(HEADER)[:9], NO_HEADER),
        (b"", NO_HEADER),
        (
            npy(HEADER.replace("<f4", "<U1").replace("1000000000000", "1"), b"\xff\xff\xff\x7f"),
            "cannot be read",
        ),
    ],
)
def test_hostile_arrays(tmp_path: Path, data: bytes, words: str) -> None:
    path = tmp_path / "a.npz"
    path.write_bytes(with_member(data))
    with pytest.raises(CheckpointError, match=words):
        read_npz(path, ["a"])


def test_an_archive_cannot_inflate_without_limit(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    shape = 2**27
    zeros = npy(f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({shape},)}}\n", bytes(shape))
    path.write_bytes(with_member(zeros))
    assert path.stat().st_size < 2**18
    with pytest.raises(CheckpointError, match=r"expected at most 67,108,864 bytes"):
        read_npz(path, ["a"])


SEED = npz(a=np.arange(6, dtype=np.float32), b=np.array(["x", "yz"]))


@given(st.integers(0, len(SEED) - 1), st.binary(min_size=1, max_size=6))
@examples(200)
def test_damage_raises_checkpoint_errors_only(tmp_path_factory: Any, at: int, noise: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "damaged.npz"
    path.write_bytes(SEED[:at] + noise + SEED[at + len(noise) :])
    message = str(path)
    try:
        read_npz(path, ["a", "b"])
    except CheckpointError as error:
        message = str(error)
    assert message.startswith(str(path))
    assert "\n" not in message
