"""Tar files whose headers lie: each costs samples, with a warning, or is refused in words."""

from __future__ import annotations

import io
import json
import os
import random
import tarfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
from support.training_pictures import COLOURS, png

from ldm_core.training import BadSample, TarShards
from ldm_core.training.shards import MAX_CAPTION, MAX_PICTURE

PNG = png(COLOURS["a"])
SECONDS = 3  # of computing for one shard; it takes a tenth at most


def member(
    name: str,
    data: bytes,
    *,
    size: int | None = None,
    form: int = tarfile.GNU_FORMAT,
    pax: dict[str, str] | None = None,
) -> bytes:
    """A header and its data, which may be fewer bytes than the header says."""
    info = tarfile.TarInfo(name)
    info.size = len(data) if size is None else size
    info.pax_headers = pax or {}
    return info.tobuf(form) + data + bytes(-len(data) % 512)


GOOD = member("0.png", PNG) + member("0.txt", b"red")
END = bytes(1024)


def old_sparse(name: str, data: bytes, origin: int) -> bytes:
    """A member in GNU's first sparse format: one run of data at byte 4096 of a file of `origin` bytes."""
    info = tarfile.TarInfo(name)
    info.size, info.type = len(data), tarfile.GNUTYPE_SPARSE
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[386:398], header[398:410] = b"%011o\0" % 4096, b"%011o\0" % len(data)
    header[483:495] = b"%011o\0" % origin
    header[148:156] = b"        "
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + data + bytes(-len(data) % 512)


def chained(count: int) -> bytes:
    """Headers of long names, one after another."""
    info = tarfile.TarInfo("x")
    info.size, info.type = 1, tarfile.GNUTYPE_LONGNAME
    return (info.tobuf(tarfile.GNU_FORMAT) + b"x" + bytes(511)) * count


def long_header(kind: bytes, size: int) -> bytes:
    info = tarfile.TarInfo("x")
    info.size, info.type = size, kind
    return info.tobuf(tarfile.GNU_FORMAT)


PAX = tarfile.PAX_FORMAT
LIES: dict[str, Callable[[], bytes]] = {
    "a picture of 2**62 bytes": lambda: member("1.png", b"", size=2**62),
    "a caption of 2**62 bytes": lambda: member("1.png", PNG) + member("1.txt", b"", size=2**62),
    "a size of 2**80": lambda: member("1.png", b"", size=2**80),
    "a negative size": lambda: member("1.png", b"", size=-1024),
    "a size in PAX": lambda: member("1.png", PNG, form=PAX, pax={"size": str(2**62)}),
    "a negative size in PAX": lambda: member("1.png", PNG, form=PAX, pax={"size": "-2048"}),
    "many digits in PAX": lambda: member("1.png", PNG, form=PAX, pax={"size": "9" * 400}),
    "sparse": lambda: old_sparse("1.png", PNG, 4096 + len(PNG)),
    "sparse, of 2**33 bytes": lambda: old_sparse("1.png", PNG, 2**33 - 1),
    "sparse in PAX 1.0": lambda: member(
        "1.png", b"1\n0\n3\n", form=PAX,
        pax={"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": str(2**62)},
    ),
    "sparse in PAX 0.1": lambda: member(
        "1.png", PNG, form=PAX, pax={"GNU.sparse.map": "0,1,x", "GNU.sparse.size": "9"}
    ),
    "a long name of 2**40 bytes": lambda: long_header(tarfile.GNUTYPE_LONGNAME, 2**40),
    "a PAX header of 2**62 bytes": lambda: long_header(tarfile.XHDTYPE, 2**62),
    "a global PAX header of 2**30 bytes": lambda: long_header(tarfile.XGLTYPE, 2**30),
    "5,000 long names": lambda: chained(5_000),
}  # fmt: skip


def readable(path: Path) -> tuple[int, list[str]]:
    """How many samples of a shard can be read, and what is said of the rest; a BadSample is no harm."""
    said: list[str] = []
    read = 0
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            samples = TarShards([path], 8)
        except ValueError as error:
            return 0, [str(error)]
        for i in range(len(samples)):
            try:
                assert samples[i]["image"].shape == (3, 8, 8)
                read += 1
            except BadSample as error:
                said.append(str(error))
    return read, said + [str(one.message) for one in caught]


@pytest.mark.parametrize("lie", LIES)
def test_a_header_that_lies(lie: str, tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(GOOD + LIES[lie]() + END)
    start = time.process_time()
    read, said = readable(path)
    assert time.process_time() - start < SECONDS
    assert read == 1
    assert said, "something is said of the rest"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_pipe_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="not a regular file"):
        TarShards([tmp_path / "pipe"], 8)


def test_sparse_members_are_left_out_by_name(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(GOOD + old_sparse("1\x1b.png", PNG, 4096 + len(PNG)) + member("2.png", PNG) + END)
    with pytest.warns(UserWarning, match=r"skipped 1 sparse files, for example 1\\x1b.png"):
        samples = TarShards([path], 8, captions=False)
    assert len(samples) == 2


def test_what_is_too_large_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    caption = b"red " * (MAX_CAPTION // 4 + 1)
    path.write_bytes(member("0.png", PNG) + member("0.txt", caption) + END)
    with pytest.raises(BadSample, match=r"a.tar/0.txt: .* more than 1,048,576"):
        TarShards([path], 8)[0]
    with path.open("wb") as file:  # a hole in the place of the picture
        file.write(member("0.txt", b"red") + member("0.png", b"", size=MAX_PICTURE + 512))
        file.seek(MAX_PICTURE + 512, 1)
        file.write(END)
    with pytest.raises(BadSample, match=r"a.tar/0.png: .* more than 268,435,456"):
        TarShards([path], 8)[0]
    deep = json.dumps({"text": "red"})[:-1] + ', "x": ' + "[" * 50_000 + "}"
    path.write_bytes(member("0.png", PNG) + member("0.json", deep.encode()) + END)
    with pytest.raises(BadSample, match=r"its \.json: not valid JSON"):
        TarShards([path], 8)[0]


def test_mutations_of_a_shard_cost_samples_and_no_more(tmp_path: Path) -> None:
    """Bytes of headers, with checksums that fit again, so that the lie is believed."""
    long = member("n" * 120 + ".png", PNG) + member("p/" + "ü" * 60 + ".txt", b"red", form=PAX)
    whole = GOOD + long + old_sparse("4.png", PNG, 8192) + member("5.png", PNG) + END
    with tarfile.open(fileobj=io.BytesIO(whole)) as archive:
        starts = [info.offset for info in archive]
    chance = random.Random(0)
    path = tmp_path / "a.tar"
    for _ in range(300):
        data = bytearray(whole)
        start = chance.choice(starts)
        for _ in range(chance.randint(1, 4)):
            at = chance.choice(
                [chance.randrange(512), 156, chance.randrange(124, 136), chance.randrange(386, 495)]
            )
            data[start + at] = chance.choice([0, 0x80, 0xFF, 0x30, 0x37, *b"xgLKS", chance.randrange(256)])
        header = data[start : start + 512]
        header[148:156] = b"        "
        data[start + 148 : start + 156] = b"%06o\0 " % sum(header)
        path.write_bytes(data)
        began = time.process_time()
        readable(path)
        assert time.process_time() - began < SECONDS
