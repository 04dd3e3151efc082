"""Identifies a file by its content: a checkpoint in one of three formats, or another kind of file.

Common mistakes are named in the error, such as the web page of a failed download, a git-lfs pointer, or a
model of another program.
"""

from __future__ import annotations

import re
from typing import Literal

from ldm_core.checkpoint.file_bytes import FileBytes
from ldm_core.checkpoint.pickle_reader import MAX_PICKLE_BYTES, PickleReader, PickleStream
from ldm_core.checkpoint.work_budget import Budget
from ldm_core.errors import CheckpointError

Format = Literal["safetensors", "torch-zip", "torch-legacy", "diffusers"]  # the last is a folder

_LEGACY_MAGIC = b"\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # the magic number as a pickle
_LEGACY_DIGITS = b"L119547037146038801333356L\n."  # the same, by the pickle protocols 0 and 1
_OTHER_MAGIC = (
    (b"GGUF", "a GGUF model (llama.cpp and stable-diffusion.cpp)"),
    (b"\x89PNG", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"GIF8", "a GIF image"),
    (b"%PDF", "a PDF document"),
    (b"\x89HDF\r\n", "an HDF5 file (Keras)"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"\x1f\x8b", "a gzip archive; unpack it first"),
    (b"BZh", "a bzip2 archive; unpack it first"),
    (b"\xfd7zXZ\0", "an xz archive; unpack it first"),
    (b"\x28\xb5\x2f\xfd", "a Zstandard archive; unpack it first"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive; unpack it first"),
    (b"Rar!", "a RAR archive; unpack it first"),
    (b"\x7fELF", "a program"),
    (b"MZ", "a Windows program"),
)
_TENSORFLOW_MAGIC = b"\x57\xfb\x80\x8b\x24\x75\x47\xdb"  # the last bytes of a TensorFlow index file


def identify(file: FileBytes) -> Format:
    """The checkpoint format of an open file. Raises CheckpointError, naming the kind of any other file."""
    head = file.read(0, min(file.size, 2048))
    if head.startswith((b"PK\3\4", b"PK\5\6")):
        return "torch-zip"
    if head.startswith(_LEGACY_DIGITS) or (head.startswith(b"\x80") and _LEGACY_MAGIC in head[:32]):
        return "torch-legacy"
    if head[8:9] == b"{":
        return "safetensors"
    raise CheckpointError(_something_else(file, head))


def _something_else(file: FileBytes, head: bytes) -> str:
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype", b"<html", b"<head", b"<?xml", b"<!--")):
        return "not a checkpoint but a web page; the download failed"
    if text.startswith(b"version https://git-lfs.github.com/spec/"):
        size = re.search(rb"^size (\d{1,18})\s*$", head, re.MULTILINE)
        of = f" of a file of {int(size[1]):,} bytes" if size else ""
        return f"not a checkpoint but the git-lfs pointer{of}; run `git lfs pull` to download the file"
    for magic, name in _OTHER_MAGIC:
        if head.startswith(magic):
            return f"not a checkpoint but {name}"
    if head[257:262] == b"ustar":
        return (
            "not a checkpoint but a tar archive; tar checkpoints of PyTorch before 0.1.10 are not supported"
        )
    if file.size >= 8 and file.read(file.size - 8, 8) == _TENSORFLOW_MAGIC:
        return "the index of a TensorFlow checkpoint, which is not supported"
    if head[:1] == b"\x08" and head[2:3] == b"\x12" and (b"pytorch" in head or b"onnx" in head):
        return "an ONNX model, which is not supported"
    if not head.strip(b"\0"):
        return "the file begins with zeros only; the download did not finish"
    if head[:1] in (b"\x80", b"(", b"c", b"]", b"}") and (reader := _pickle(file)) is not None:
        return f"a pickle that was not written by torch.save{reader.suspects()}"
    if file.size <= len(head) and text and all(32 <= byte < 127 or byte in b"\t\r\n" for byte in head):
        line = head.decode("ascii").split("\n")[0].strip()
        return f"not a checkpoint but a short text: {line[:80]!r}"
    return "neither a safetensors file nor a PyTorch checkpoint"


def _pickle(file: FileBytes) -> PickleReader | None:
    """The reader of this file's pickle, which lists the names in it; None if the file is not a pickle."""
    data = file.read(0, min(file.size, MAX_PICKLE_BYTES))
    reader = PickleReader(Budget(len(data)))
    try:
        reader.load(PickleStream(data))
    except CheckpointError:
        return None
    return reader
