"""Files that are no checkpoints, or broken ones: a CheckpointError of one line says what is wrong."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from support.checkpoint_files import (
    fake_class,
    safetensors_bytes,
    tensor_pickle,
    torch_bytes,
    torch_zip,
    zip_bytes,
)

from ldm_core.checkpoint.reader import read
from ldm_core.errors import CheckpointError


def write(tmp_path: Path, data: bytes, name: str = "model.ckpt") -> Path:
    path = tmp_path / name
    path.write_bytes(data)
    return path


def half(data: bytes) -> bytes:
    return data[: len(data) // 2]


def lfs_pointer() -> bytes:
    return b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 4265380512\n"


GOOD = {"w": torch.arange(1000.0)}
NOT_CHECKPOINTS: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "the file is empty"),
    "zip cut in half": (half(torch_bytes(GOOD)), "truncated"),
    "legacy cut in half": (half(torch_bytes(GOOD, legacy=True)), "truncated"),
    "legacy cut in its pickle": (torch_bytes(GOOD, legacy=True)[:150], "truncated"),
    "safetensors cut in half": (half(safetensors.torch.save(GOOD)), "truncated"),
    "safetensors cut in its header": (safetensors.torch.save(GOOD)[:30], "truncated"),
    "web page": (b"\n<!DOCTYPE html><html><body>404</body></html>", "web page.*download failed"),
    "lfs pointer": (lfs_pointer(), r"git-lfs pointer of a file of 4,265,380,512 bytes; run `git lfs pull`"),
    "text": (b"Invalid username or password.", "a short text: 'Invalid username or password.'"),
    "text that begins as a pickle": (b"could not\nread it\n", "a short text: 'could not'"),
    "other zip": (zip_bytes({"a.txt": b"", "b/c.txt": b""}), "archive that contains 'a.txt', 'b/c.txt'"),
    "zipped checkpoint": (zip_bytes({"sd.ckpt": b"x"}), "unpack it and use 'sd.ckpt'"),
    "empty zip": (zip_bytes({}), "zip archive that contains nothing"),
    "torchscript": (torch_zip(tensor_pickle(), {"0": bytes(16)}, **{"constants.pkl": b""}), "TorchScript"),
    "gguf": (b"GGUF" + bytes(100), "GGUF"),
    "png": (b"\x89PNG\r\n\x1a\n" + bytes(100), "a PNG image"),
    "onnx": (b"\x08\x07\x12\x07pytorch" + bytes(100), "ONNX"),
    "tensorflow": (b"abc" * 50 + b"\x57\xfb\x80\x8b\x24\x75\x47\xdb", "TensorFlow"),
    "tar": (b"x".ljust(257, b"\0") + b"ustar" + bytes(300), "tar"),
    "gzip": (b"\x1f\x8b" + bytes(100), "gzip.*unpack"),
    "zeros": (bytes(5000), "did not finish"),
    "noise": (bytes(range(200, 256)) * 10, "neither a safetensors file nor a PyTorch checkpoint"),
    "bare pickle": (pickle.dumps({"a": 1}), "a pickle that was not written by torch.save"),
    "no tensors": (torch_bytes({"epoch": 3, "n": 1}), "contains no tensors; the entries are 'epoch', 'n"),
    "empty state dict": (torch_bytes({"state_dict": {}}), "contains no tensors; the dictionary is empty"),
    "one tensor": (torch_bytes(torch.ones(3)), "expected a dictionary of tensors, got <tensor torch.float32"),
    "a list": (torch_bytes([torch.ones(3)]), "expected a dictionary of tensors, got <list of length 1>"),
    "safetensors without tensors": (safetensors.torch.save({}), "contains no tensors"),
}  # fmt: skip


@pytest.mark.parametrize("name", NOT_CHECKPOINTS)
def test_what_is_no_checkpoint_is_named(tmp_path: Path, name: str) -> None:
    data, message = NOT_CHECKPOINTS[name]
    path = write(tmp_path, data)
    for mmap in (True, False):
        with pytest.raises(CheckpointError, match=message) as caught:
            read(path, mmap=mmap)
        assert str(caught.value).startswith(f"{path}: ")
        assert "\n" not in str(caught.value)


def test_paths_that_are_no_files(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nowhere\.ckpt: no such file"):
        read(tmp_path / "nowhere.ckpt")
    with pytest.raises(
        CheckpointError,
        match=r"not a diffusers folder \(no model_index.json\); the folder contains nothing",
    ):
        read(tmp_path)
    write(tmp_path, b"", "sd.ckpt")
    with pytest.raises(CheckpointError, match=r"not a diffusers folder .*; the folder contains sd\.ckpt"):
        read(tmp_path)
    (tmp_path / "model_index.json").write_text("{}")
    with pytest.raises(CheckpointError, match="the folder contains no weights"):
        read(tmp_path)
    with pytest.raises(CheckpointError, match="cannot be read"):
        read("a\0b")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(CheckpointError, match="not a regular file"):
        read(tmp_path / "pipe")


def entry(dtype: Any = "F32", shape: Any = (4,), offsets: Any = (0, 16)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


lying = safetensors_bytes


def one(claim: dict[str, Any], size: int, length: int | None = None) -> bytes:
    """A file with one tensor, `size` bytes of numbers, and any length of its header."""
    return safetensors_bytes({"w": claim}, bytes(size), length=length)


LYING_HEADERS: dict[str, tuple[bytes, str]] = {
    "too long": (one(entry(), 16, length=10_000), "truncated or damaged: the header should have"),
    "huge": (one(entry(), 16, length=2**63), "truncated or damaged: the header should have"),
    "too short": (one(entry(), 16, length=20), "not valid JSON"),
    "swallows the data": (one(entry(), 16, length=70), "not valid JSON"),
    "zero": (one(entry(), 16, length=0), "not valid JSON"),
    "not JSON": (lying(b"{nothing}"), "not valid JSON"),
    "not UTF-8": (lying(b'{"\xff": 1}'), "not valid JSON"),
    "nested deep": (lying(b'{"a":' + b"[" * 100_000), "not valid JSON"),
    "half a surrogate": (lying(b'{"\\ud800": {}}'), "not valid JSON"),
    "not a number": (lying(b'{"a": NaN}'), "number NaN"),
    "endless number": (lying(b'{"a": ' + b"9" * 5000 + b"}"), "not a size or an offset"),
    "duplicate": (lying(b'{"a": {}, "a": {}}'), "'a' twice"),
    "entry no mapping": (lying({"w": 3}), "does not have exactly"),
    "entry lacks shape": (lying({"w": {"dtype": "F32", "data_offsets": [0, 0]}}), "not have exactly"),
    "unknown dtype": (one(entry("F31"), 16), "unknown dtype 'F31'"),
    "dtype no text": (one(entry([]), 16), "unknown dtype"),
    "negative size": (one(entry(shape=[-4]), 16), "impossible shape"),
    "huge size": (one(entry(shape=[0, 2**62]), 0), "impossible shape"),
    "true as size": (one(entry(shape=[True]), 16), "impossible shape"),
    "fraction as size": (one(entry(shape=[4.0]), 16), "not a size or an offset"),
    "negative offset": (one(entry(offsets=[-16, 0]), 16), "impossible data_offsets"),
    "backward offsets": (one(entry(offsets=[16, 0]), 16), "impossible data_offsets"),
    "three offsets": (one(entry(offsets=[0, 8, 16]), 16), "impossible data_offsets"),
    "size and shape differ": (one(entry(shape=[5]), 20), "takes 20 bytes.*span 16"),
    "out of bounds": (one(entry(offsets=[0, 16]), 8), "truncated"),
    "hole": (one(entry(offsets=[4, 20]), 20), "has a gap"),
    "overlap": (lying({"v": entry(), "w": entry(offsets=[8, 24])}, bytes(24)), "overlaps"),
    "same bytes twice": (lying({"v": entry(), "w": entry()}, bytes(16)), "overlaps"),
    "bytes left over": (one(entry(), 17), "extra bytes at its end"),
    "metadata of numbers": (lying({"__metadata__": {"a": 1}}), "__metadata__"),
    "metadata no mapping": (lying({"__metadata__": "a"}), "__metadata__"),
}  # fmt: skip


@pytest.mark.parametrize("name", LYING_HEADERS)
def test_safetensors_headers_that_lie(tmp_path: Path, name: str) -> None:
    data, message = LYING_HEADERS[name]
    with pytest.raises(CheckpointError, match=message):
        read(write(tmp_path, data))
    assert read(write(tmp_path, one(entry(), 16))).tensors["w"].shape == (4,)  # this one does not


def test_the_error_of_a_whole_module_names_its_class(tmp_path: Path) -> None:
    with fake_class("somebodys_project.models", "Net") as net:
        data = torch_bytes(net())
    with pytest.raises(CheckpointError, match=r"got <somebodys_project\.models\.Net object>"):
        read(write(tmp_path, data))
