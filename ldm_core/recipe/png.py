"""The recipe in a picture's PNG file, in two text chunks (ISO/IEC 15948, section 11.3.3).

ldm_core     JSON, complete and exact
parameters   the text of `parameters_text`, which is read only if the first chunk is missing
"""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from ldm_core.recipe.fields import Recipe, from_json, to_json
from ldm_core.recipe.parameters_text import from_parameters_text, to_parameters_text
from ldm_core.support.atomic_files import write_whole
from ldm_core.support.regular_file import open_regular

if TYPE_CHECKING:
    from PIL.Image import Image

SIGNATURE = b"\x89PNG\r\n\x1a\n"
JSON_CHUNK, TEXT_CHUNK = "ldm_core", "parameters"
TEXT_KINDS = (b"tEXt", b"zTXt", b"iTXt")
LONGEST_KEYWORD = 79  # bytes
CRC_BYTES = 4
DEFLATE = b"\0"
MAX_TEXT = 2**22  # bytes of one recipe, a thousand times the size of a long one
MAX_CHUNKS = 2**20  # about 8 GB of pixels in chunks of the usual size


def write_png(image: Image, path: str | os.PathLike[str], recipe: Recipe) -> None:
    """Save a PIL image as a PNG file with its recipe, replacing an existing file.

    The file is written under a temporary name in the same folder and then renamed, so that it is never
    incomplete. Raises OSError if it cannot be written.
    """
    data = png_bytes(image, recipe)
    write_whole(Path(path), lambda target: target.write_bytes(data))


def png_bytes(image: Image, recipe: Recipe) -> bytes:
    """The bytes of the PNG file that `write_png` writes."""
    parameters = to_parameters_text(recipe).replace("\0", "\ufffd")  # PNG text cannot contain NUL
    return bytes_with_texts(image, {TEXT_CHUNK: parameters, JSON_CHUNK: to_json(recipe)})


def bytes_with_texts(image: Image, texts: Mapping[str, str], **info: Any) -> bytes:
    """The bytes of a PNG file with text chunks. info: what Pillow takes as arguments alone, as a profile."""
    from PIL.PngImagePlugin import PngInfo

    chunks = PngInfo()
    for keyword, text in texts.items():
        chunks.add_text(keyword, text)
    file = io.BytesIO()
    # Pillow stores the options in the image, where a concurrent save of it would use them: save a copy.
    image.copy().save(file, format="PNG", pnginfo=chunks, **info)
    return file.getvalue()


def read_recipe(path: str | os.PathLike[str]) -> Recipe:
    """The recipe in a PNG file: this package's JSON, or else another tool's text.

    The picture is not decoded. Raises OSError for a file that cannot be opened or is not a regular file, and
    ValueError, beginning with the path, for a file that is not a PNG file or has no valid recipe.
    """
    texts = read_texts(path)
    try:
        if JSON_CHUNK in texts:
            return from_json(texts[JSON_CHUNK])
        if TEXT_CHUNK in texts:
            return from_parameters_text(texts[TEXT_CHUNK])
    except ValueError as error:
        raise ValueError(f"{os.fspath(path)}: {error}") from None
    raise ValueError(f"{os.fspath(path)}: a PNG file without a recipe")


def read_texts(path: str | os.PathLike[str]) -> dict[str, str]:
    """The texts of the recipe chunks, by keyword. If a keyword is repeated, the last text counts.

    Nothing else is decoded, so that the picture and other texts cost neither time nor memory.
    """
    with open_regular(path) as file:
        if file.read(len(SIGNATURE)) != SIGNATURE:
            raise ValueError(f"{os.fspath(path)}: not a PNG file")
        try:
            return dict(_recipe_chunks(file))
        except ValueError as error:
            raise ValueError(f"{os.fspath(path)}: a damaged PNG file ({error})") from None


def _recipe_chunks(file: BinaryIO) -> Iterator[tuple[str, str]]:
    """The keyword and text of each recipe chunk. Raises ValueError for a damaged file."""
    keywords = {name.encode(): name for name in (JSON_CHUNK, TEXT_CHUNK)}
    for _ in range(MAX_CHUNKS):
        length, kind = struct.unpack(">I4s", _exactly(file, 8))
        if kind == b"IEND":
            return
        if not kind.isalpha():
            raise ValueError("a chunk has an invalid type")
        start = _exactly(file, min(length, LONGEST_KEYWORD + 1)) if kind in TEXT_KINDS else b""
        keyword = keywords.get(start.partition(b"\0")[0])
        if keyword is None:
            file.seek(length - len(start) + CRC_BYTES, os.SEEK_CUR)
            continue
        if length > MAX_TEXT:
            raise ValueError(f"a text of {length:,} bytes, more than {MAX_TEXT:,}")
        body = start + _exactly(file, length - len(start))
        if zlib.crc32(kind + body) != int.from_bytes(_exactly(file, CRC_BYTES), "big"):
            raise ValueError(f"wrong checksum of the text {keyword!r}")
        yield keyword, _text(kind, body[len(keyword) + 1 :])
    raise ValueError(f"more than {MAX_CHUNKS:,} chunks")


def _exactly(file: BinaryIO, count: int) -> bytes:
    data = file.read(count)
    if len(data) < count:
        raise ValueError("the file is truncated")
    return data


def _text(kind: bytes, data: bytes) -> str:
    """The text of a chunk's data after the keyword."""
    if kind == b"tEXt":
        return data.decode("latin-1")
    if kind == b"zTXt":
        if data[:1] != DEFLATE:
            raise ValueError("unknown compression of a text chunk")
        return _inflated(data[1:]).decode("latin-1")
    compressed, method = data[:1], data[1:2]
    _language, *translated_and_text = data[2:].split(b"\0", 2)
    if len(translated_and_text) != 2 or (compressed == b"\1" and method != DEFLATE):
        raise ValueError("incomplete text chunk")
    text = translated_and_text[1]
    return (_inflated(text) if compressed == b"\1" else text).decode("utf-8")


def _inflated(data: bytes) -> bytes:
    inflater = zlib.decompressobj()
    try:
        text = inflater.decompress(data, MAX_TEXT + 1)
    except zlib.error as error:
        raise ValueError(f"a text chunk: {error}") from None
    if len(text) > MAX_TEXT:
        raise ValueError(f"a compressed text of more than {MAX_TEXT:,} bytes")
    if not inflater.eof:
        raise ValueError("the compressed text of a chunk is truncated")
    return text
