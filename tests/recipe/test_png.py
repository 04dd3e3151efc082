"""A recipe's text chunks in a PNG file: found wherever they are, and bounded in what they cost."""

from __future__ import annotations

import os
import struct
import zlib
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from support.examples import examples
from support.recipes import PICTURE, RECIPE

from ldm_core.recipe import Recipe, png, read_recipe, to_json, to_parameters_text, write_png
from ldm_core.recipe.png import SIGNATURE

JSON = to_json(RECIPE).encode()


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


HEADER = SIGNATURE + chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 8, 2, 0, 0, 0))
PIXELS = chunk(b"IDAT", b"no pixels that could be decoded")
END = chunk(b"IEND", b"")
TEXTS = {
    "tEXt": (b"tEXt", b"ldm_core\0" + JSON),
    "zTXt": (b"zTXt", b"ldm_core\0\0" + zlib.compress(JSON)),
    "iTXt": (b"iTXt", b"ldm_core\0\0\0en\0recipe\0" + JSON),
    "compressed iTXt": (b"iTXt", b"ldm_core\0\1\0\0\0" + zlib.compress(JSON)),
}


@pytest.mark.parametrize(("kind", "body"), TEXTS.values(), ids=TEXTS)
@pytest.mark.parametrize("after", [False, True], ids=["before the pixels", "after the pixels"])
def test_a_recipe_is_read_without_the_pixels(tmp_path: Path, kind: bytes, body: bytes, after: bool) -> None:
    text = chunk(kind, body)
    (tmp_path / "a.png").write_bytes(HEADER + (PIXELS + text if after else text + PIXELS) + END)
    assert read_recipe(tmp_path / "a.png") == RECIPE


def test_the_picture_may_be_as_large_as_it_likes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "open", None)
    write_png(PICTURE, tmp_path / "a.png", RECIPE)
    data = bytearray((tmp_path / "a.png").read_bytes())
    data[16:24] = struct.pack(">II", 2**31 - 1, 2**31 - 1)
    (tmp_path / "a.png").write_bytes(data)
    assert read_recipe(tmp_path / "a.png") == RECIPE


def test_this_package_comes_before_other_tools(tmp_path: Path) -> None:
    other = to_parameters_text(replace(RECIPE, prompt="other")).encode()
    texts = [chunk(b"tEXt", b"parameters\0" + other), chunk(*TEXTS["tEXt"])]
    for order in (texts, texts[::-1]):
        (tmp_path / "a.png").write_bytes(HEADER + b"".join(order) + PIXELS + END)
        assert read_recipe(tmp_path / "a.png") == RECIPE


LIMIT = 3000  # instead of the real ones, which take a while to exceed
DAMAGED = {
    "checksum": (HEADER + chunk(*TEXTS["tEXt"])[:-4] + b"\0\0\0\0" + END, "checksum"),
    "cut short": (HEADER + chunk(*TEXTS["tEXt"])[:-40], "the file is truncated"),
    "cut before the end": (HEADER + PIXELS, "the file is truncated"),
    "no chunk": (HEADER + bytes(12) + END, "a chunk has an invalid type"),
    "no text": (HEADER + chunk(b"iTXt", b"ldm_core\0") + END, "text chunk"),
    "no translation": (HEADER + chunk(b"iTXt", b"ldm_core\0\0\0") + END, "text chunk"),
    "no method": (HEADER + chunk(b"zTXt", b"ldm_core\0") + END, "text chunk"),
    "another method": (HEADER + chunk(b"zTXt", b"ldm_core\0\1") + END, "text chunk"),
    "not compressed": (HEADER + chunk(b"zTXt", b"ldm_core\0\0" + JSON) + END, "text chunk"),
    "compressed and cut": (
        HEADER + chunk(b"zTXt", TEXTS["zTXt"][1][:-9]) + END,
        "the compressed text of a chunk is truncated",
    ),
    "not UTF-8": (HEADER + chunk(b"iTXt", b"ldm_core\0\0\0\0\0\xff") + END, "utf-8"),
    "inflating": (HEADER + chunk(b"zTXt", b"ldm_core\0\0" + zlib.compress(bytes(LIMIT + 1))) + END, "more"),
    "too long": (HEADER + chunk(b"tEXt", b"ldm_core\0" + b" " * (LIMIT + 1)) + END, "more than"),
    "too many": (HEADER + chunk(b"teSt", b"") * (LIMIT + 1) + END, "chunks"),
}  # fmt: skip


@pytest.mark.parametrize(("data", "message"), DAMAGED.values(), ids=DAMAGED)
def test_damaged_chunks_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: bytes, message: str
) -> None:
    monkeypatch.setattr(png, "MAX_TEXT", LIMIT)
    monkeypatch.setattr(png, "MAX_CHUNKS", LIMIT)
    (tmp_path / "a.png").write_bytes(data)
    with pytest.raises(ValueError, match=f"a.png: a damaged PNG file .*{message}"):
        read_recipe(tmp_path / "a.png")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_pipe_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(OSError, match="not a regular file"):
        read_recipe(tmp_path / "a.png")


bodies = st.binary(max_size=60) | st.sampled_from([body for _, body in TEXTS.values()])
kinds = st.sampled_from([b"tEXt", b"zTXt", b"iTXt", b"IDAT", b"eXIf"]) | st.binary(min_size=4, max_size=4)
keywords = st.sampled_from([b"", b"ldm_core\0", b"parameters\0", b"ldm_core\0\0", b"parameters\0\1\0\0\0"])


chunks = st.lists(st.builds(lambda kind, key, body: chunk(kind, key + body), kinds, keywords, bodies))


@examples(100)
@given(chunks, st.binary())
def test_any_chunks_are_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, chunks: list[bytes], rest: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "chunks.png"
    path.write_bytes(HEADER + b"".join(chunks) + rest)
    try:
        outcome: Recipe | str = read_recipe(path)
    except ValueError as error:
        outcome = str(error)
    assert isinstance(outcome, Recipe) or outcome.startswith(f"{path}: ")
