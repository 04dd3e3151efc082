"""Pictures from strangers: they start no program, fill no memory, and damage in them is named."""

from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.cli_runs import Draw, Run
from support.training_pictures import png
from support.training_runs import losses
from support.training_runs import run as train

from ldm_core.images import MAX_PIXELS, image_to_tensor, mask_to_tensor, open_picture
from ldm_core.recipe.png import SIGNATURE
from ldm_core.training import BadSample, ImageFolder
from ldm_core.training.dataset import decode_picture

EPS = b"""%!PS-Adobe-3.0 EPSF-3.0
%%BoundingBox: 0 0 8 8
%%EndComments
showpage
%%EOF
"""
TURNED = (
    b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"  # a quarter turn to the right
)


@pytest.fixture
def ghostscript(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that the only Ghostscript on the PATH creates when it is started."""
    from PIL import EpsImagePlugin

    trace = tmp_path / "started"
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "gs"
    program.write_text(f"#!/bin/sh\ntouch {trace}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)  # Pillow looks for it once
    return trace


def jpeg(exif: bytes, size: tuple[int, int] = (12, 8)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, "red").save(file, "JPEG", exif=exif)
    return file.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG file that promises a size, and has no pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    crc = struct.pack(">I", zlib.crc32(header))
    return SIGNATURE + struct.pack(">I", 13) + header + crc + struct.pack(">I", 9) + b"IDAT"


def test_the_program_would_be_seen(ghostscript: Path) -> None:
    with pytest.raises(OSError), Image.open(io.BytesIO(EPS)) as image:  # the program writes no picture
        image.load()
    assert ghostscript.exists()


@pytest.mark.parametrize("name", ["a.png", "a.jpg"])
def test_a_picture_starts_no_program(ghostscript: Path, tmp_path: Path, name: str, run: Run) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    (folder / name).write_bytes(EPS)
    for source in (folder / name, EPS):
        with pytest.raises(BadSample, match="not a picture in one of the formats PNG, JPEG"):
            decode_picture(source, name, 8)
        with pytest.raises(ValueError, match="not a picture in one of the formats PNG, JPEG"):
            open_picture(source)
    with pytest.raises(BadSample, match="not a picture"):
        ImageFolder(folder, 8, captions=False)[0]
    result = run("img2img", "x", "--image", f"pictures/{name}")
    assert (result.status, len(result.err)) == (2, 1)
    assert ": not a picture in one of the formats PNG, JPEG" in result.err[0]
    assert not ghostscript.exists()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF"])
def test_the_formats_that_are_read(tmp_path: Path, kind: str) -> None:
    data = png((255, 0, 0), kind=kind)
    (tmp_path / "a").write_bytes(data)
    for source in (data, tmp_path / "a", str(tmp_path / "a")):
        picture = open_picture(source)
        assert picture.size == (12, 8)
        assert np.abs(np.asarray(picture.convert("RGB")).astype(int) - (255, 0, 0)).max() <= 2


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "WEBP"])
def test_the_first_frame_is_taken(kind: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    file = io.BytesIO()
    frames[0].save(file, kind, save_all=True, append_images=frames[1:])
    red, _, blue = open_picture(file.getvalue()).convert("RGB").getpixel((4, 4))  # type: ignore[misc]
    assert red > 250
    assert blue < 5


@pytest.mark.parametrize("limit", [Image.MAX_IMAGE_PIXELS, None], ids=["Pillow's limit", "none of Pillow"])
def test_size_is_checked_before_pixels_are_decoded(
    monkeypatch: pytest.MonkeyPatch, limit: int | None
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(ValueError, match=rf"400,?000,?000 pixels.* ({MAX_PIXELS}|{MAX_PIXELS:,})"):
        open_picture(png_header(20_000, 20_000))


BAD_EXIF = [
    b"Exif\0\0junk",
    b"Exif\0\0II*\0\xff\xff\xff\xff",
    b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01",
    b"Exif\0\0",
]


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize("exif", BAD_EXIF)
def test_a_picture_of_which_only_the_exif_data_is_damaged(tmp_path: Path, exif: bytes) -> None:
    data = jpeg(exif)
    (tmp_path / "a.jpg").write_bytes(data)
    assert open_picture(data).size == (12, 8)
    assert decode_picture(data, "a.jpg", 8).shape == (3, 8, 8)
    assert image_to_tensor(Image.open(tmp_path / "a.jpg")).shape == (1, 3, 8, 12)
    assert mask_to_tensor(Image.open(tmp_path / "a.jpg")).shape == (1, 1, 8, 12)


def test_orientation_is_used_where_it_can_be_read() -> None:
    assert open_picture(jpeg(TURNED)).size == (8, 12)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_damaged_exif_data_does_not_end_a_run(tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i, exif in enumerate(BAD_EXIF):
        (folder / f"{i}.jpg").write_bytes(jpeg(exif))
    train(tmp_path / "run", samples=ImageFolder(folder, 8, captions=False), batch_size=2)
    assert len(losses(tmp_path / "run")) == 12


def test_damaged_exif_data_on_the_command_line(draw: Draw, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(jpeg(BAD_EXIF[0], (64, 64)))
    assert draw("img2img", "x", "--image", "a.jpg", "--strength", "0.5", "-o", "b.png") == ["b.png"]


def test_a_picture_that_is_damaged_where_it_is_used(tmp_path: Path) -> None:
    """Pillow opens pictures without decoding them, so the damage shows where they become numbers."""
    noise = np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, "PNG")
    (tmp_path / "a.png").write_bytes(file.getvalue()[:-200])
    for convert in (image_to_tensor, mask_to_tensor):
        with pytest.raises(ValueError, match="the picture cannot be decoded") as caught:
            convert(Image.open(tmp_path / "a.png"))
        assert "\n" not in str(caught.value)
