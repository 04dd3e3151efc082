"""Tar files of pictures and captions, as webdataset lays them out."""

from __future__ import annotations

import io
import tarfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.examples import examples
from support.training_pictures import COLOURS, png, quietly
from torch.utils.data import DataLoader

from ldm_core.training import BadSample, TarShards
from ldm_core.training.dataset import SkipUnreadable, collate

# --- shards ---


def shard(path: Path, *members: tuple[str, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def test_shards_are_read_as_webdataset_reads_and_writes_them(tmp_path: Path) -> None:
    import webdataset

    paths = []
    for k in range(2):
        paths.append(tmp_path / f"{k}.tar")
        with webdataset.TarWriter(str(paths[-1])) as writer:
            for i in range(3):
                colour = (80 * i, 100 * k, 7)
                sample: dict[str, Any] = {
                    "__key__": f"s{k}/{i:04d}",
                    "png": np.full((8, 8, 3), colour, np.uint8),
                }
                sample |= {"json": {"text": f"number {i}"}} if k else {"txt": f"number {i}"}
                writer.write(sample)
    theirs = webdataset.WebDataset([str(path) for path in paths], shardshuffle=False).decode("torchrgb")
    samples = quietly(lambda: TarShards(paths, 8))
    expected = list(theirs)
    assert len(samples) == len(expected) == 6
    for i, sample in enumerate(expected):
        torch.testing.assert_close(samples[i]["image"], sample["png"] * 2 - 1)
        text = sample["txt"] if "txt" in sample else sample["json"]["text"]
        assert samples[i]["text"] == (text,) == samples.text(i)
    loaded = DataLoader(SkipUnreadable(samples), batch_size=3, num_workers=2, collate_fn=collate)  # type: ignore[arg-type]
    assert torch.cat([batch["image"] for batch in loaded]).shape == (6, 3, 8, 8)


def test_shards_that_are_damaged(tmp_path: Path) -> None:
    good = [(f"{i}.{e}", d) for i in range(3) for e, d in (("png", png(COLOURS["a"])), ("txt", b"red"))]
    path = shard(tmp_path / "a.tar", *good)
    whole = path.read_bytes()
    path.write_bytes(whole[: 1024 * 4 + 700])
    with pytest.warns(UserWarning, match="damaged or truncated after"):
        samples = TarShards([path], 8)
    assert 2 <= len(samples) <= 3
    assert samples[0]["text"] == ("red",)

    # tarfile ends in silence at a header that is none, at half a header and between two files.
    second = 512 + 512 * -(-len(png(COLOURS["a"])) // 512)
    for damaged in (
        whole[: second + 3] + b"?" + whole[second + 4 :],
        whole[: second + 100],
        whole[:second],
    ):
        path.write_bytes(damaged)
        with pytest.warns(UserWarning, match="damaged or truncated after 1 samples"):
            assert len(TarShards([path], 8, captions=False)) == 1

    path.write_bytes(whole)
    samples = quietly(lambda: TarShards([path], 8))
    path.write_bytes(whole[:900])
    with pytest.raises(BadSample, match=r"a.tar/2.png: the shard is truncated"):
        samples[2]

    bad = shard(tmp_path / "b.tar", ("0.png", b"no picture"), ("0.txt", b"x"), ("1.png", png(COLOURS["b"])))
    with pytest.warns(UserWarning, match="skipped 1 images without a caption, for example 1.png"):
        samples = TarShards([bad], 8)
    with pytest.raises(BadSample, match=r"b.tar/0.png: cannot be read as an image"):
        samples[0]
    odd = shard(tmp_path / "c.tar", ("0.png", png(COLOURS["b"])), ("0.json", b"{no json"))
    with pytest.raises(BadSample, match=r"c.tar/0.png: its .json: not valid JSON"):
        TarShards([odd], 8)[0]
    foreign = shard(tmp_path / "e.tar", ("0.png", png(COLOURS["b"])), ("0.txt", "red".encode("utf-16")))
    with pytest.raises(BadSample, match=r"e.tar/0.png: the caption is not UTF-8"):
        TarShards([foreign], 8)[0]
    none = shard(tmp_path / "d.tar", ("0.png", png(COLOURS["b"])), ("0.json", b'{"title": 3}'))
    with pytest.raises(BadSample, match=r"d.tar/0.png: no caption"):
        TarShards([none], 8)[0]


@examples(60)
@given(cut=st.integers(0, 10240), noise=st.binary(max_size=40), at=st.integers(0, 5000))
def test_any_damage_of_a_shard_costs_samples_and_no_more(
    tmp_path_factory: pytest.TempPathFactory, cut: int, noise: bytes, at: int
) -> None:
    members = [(f"{i}.{e}", d) for i in range(3) for e, d in (("png", png(COLOURS["a"])), ("txt", b"red"))]
    path = shard(tmp_path_factory.mktemp("shard") / "a.tar", *members)
    data = bytearray(path.read_bytes())
    data[at : at + len(noise)] = noise
    path.write_bytes(bytes(data[:cut]))
    read, message = 0, str(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            samples = TarShards([path], 4)
            for i in range(len(samples)):
                try:
                    assert samples[i]["image"].shape == (3, 4, 4)
                    read += 1
                except BadSample as error:
                    message = str(error)
        except ValueError as error:
            message = str(error)
    assert read <= 3
    assert "a.tar" in message or "no images in 1 shards" in message or "has a caption" in message


def test_shards_that_cannot_be_used(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar.gz", "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("a.png"))
    with pytest.raises(ValueError, match="cannot be read as an uncompressed tar file"):
        TarShards([tmp_path / "x.tar.gz"], 8)
    with pytest.raises(ValueError, match="cannot be read as an uncompressed tar file"):
        TarShards([tmp_path / "none.tar"], 8)
    with pytest.raises(ValueError, match="no images in 1 shards"):
        TarShards([shard(tmp_path / "e.tar", ("a.txt", b"x"))], 8)
    bare = shard(tmp_path / "f.tar", ("a.png", png(COLOURS["a"])))
    with pytest.raises(ValueError, match="none of 1 images has a caption"):
        TarShards([bare], 8)
    assert len(TarShards([bare], 8, captions=False)) == 1
