"""Pictures and captions from folders, shards and caches, whole or damaged, and the order they come in."""

from __future__ import annotations

import csv
import io
import json
import tarfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import DataLoader
from training_runs import losses, pictures, rows, run

from ldm_core.autoencoder import AutoencoderKL
from ldm_core.checkpoint import CheckpointError
from ldm_core.training import BadSample, CachedLatents, ImageFolder, TarShards, TensorSamples
from ldm_core.training.latents import fingerprint
from ldm_core.training.order import Order, noise_streams
from ldm_core.training.samples import Readable, collate

COLOURS = {"a": (255, 0, 0), "b": (0, 255, 0), "c": (0, 0, 255)}


def png(colour: tuple[int, int, int], size: tuple[int, int] = (12, 8), kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, kind)
    return file.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "deep").mkdir()
    for name, path in (("a", "a.png"), ("b", "b.PNG"), ("c", "deep/c.png")):
        (tmp_path / path).write_bytes(png(COLOURS[name]))
    return tmp_path


def quietly(make: Callable[[], Any]) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return make()


def metadata(folder: Path, *rows: dict[str, Any], ending: str = "jsonl") -> None:
    with (folder / f"metadata.{ending}").open("w", newline="", encoding="utf-8") as file:
        if ending == "jsonl":
            file.write("".join(json.dumps(row) + "\n" for row in rows))
        else:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)


# --- folders ---


@pytest.mark.parametrize("ending", ["jsonl", "csv"])
def test_a_folder_with_metadata(folder: Path, ending: str) -> None:
    metadata(
        folder,
        {"file_name": "deep/c.png", "text": 'blue, "deep"\nand far'},
        {"file_name": "./a.png", "text": "red"},
        {"file_name": "b.PNG", "text": "green"},
        {"file_name": "a.png", "text": "crimson"},
        ending=ending,
    )
    samples = quietly(lambda: ImageFolder(folder, 6))
    assert samples.names == ["a.png", "b.PNG", "deep/c.png"]
    assert samples.texts == [("red", "crimson"), ("green",), ('blue, "deep" and far',)]
    image = samples[0]["image"]
    assert image.shape == (3, 6, 6)
    assert image.dtype == torch.float32
    assert image[:, 2, 3].tolist() == [1.0, -1.0, -1.0]


def test_lists_of_captions(folder: Path) -> None:
    rows = [{"file_name": name, "text": ["one", "two"]} for name in ("a.png", "b.PNG", "deep/c.png")]
    metadata(folder, *rows)
    assert quietly(lambda: ImageFolder(folder, 6)).texts == [("one", "two")] * 3


def test_the_datasets_library_reads_the_same_metadata_as_columns(folder: Path) -> None:
    """Its convention: a column `file_name`, any others beside it."""
    metadata(folder, {"file_name": "a.png", "text": "red", "extra": 3}, ending="csv")
    with pytest.warns(UserWarning, match=r"pictures without a caption are left out: b\.PNG, deep/c\.png"):
        assert ImageFolder(folder, 6).texts == [("red",)]


def test_captions_beside_pictures(folder: Path) -> None:
    (folder / "a.txt").write_text("  red\n disc ")
    (folder / "deep" / "c.txt").write_text("blue")
    (folder / "b.txt").write_text("  \n")
    with pytest.warns(UserWarning, match=r"pictures without a caption are left out: b.PNG \(1 in all\)"):
        samples = ImageFolder(folder, 4)
    assert list(zip(samples.names, samples.texts)) == [("a.png", ("red disc",)), ("deep/c.png", ("blue",))]


def test_lines_end_at_line_feeds_only(folder: Path) -> None:
    """Unicode has more ends of lines, and they may stand in a caption."""
    text = "red\u2028disc\x85\x0b\x0cfar"
    for ending in ("jsonl", "csv"):
        metadata(
            folder, *({"file_name": n, "text": text} for n in ("a.png", "b.PNG", "deep/c.png")), ending=ending
        )
        assert quietly(lambda: ImageFolder(folder, 4)).texts == [("red disc far",)] * 3
        (folder / f"metadata.{ending}").unlink()
    lines = "".join(
        json.dumps({"file_name": n, "text": text}, ensure_ascii=False) + "\r\n"
        for n in ("a.png", "b.PNG", "deep/c.png")
    )
    (folder / "metadata.jsonl").write_bytes(lines.encode())
    assert quietly(lambda: ImageFolder(folder, 4)).texts == [("red disc far",)] * 3


def test_captions_beside_pictures_are_utf_8(folder: Path) -> None:
    (folder / "a.txt").write_text("red disc", encoding="utf-8-sig")
    (folder / "b.txt").write_text("green", encoding="utf-16")
    (folder / "deep" / "c.txt").write_text("blue")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        samples = ImageFolder(folder, 4)
    assert samples.texts == [("red disc",), ("blue",)]
    assert [str(w.message).split(": ")[0].rsplit("/", 1)[-1] for w in caught] == ["b.txt", folder.name]
    assert "not UTF-8" in str(caught[0].message)


def test_pictures_are_cut_square_in_the_middle(tmp_path: Path) -> None:
    wide = np.zeros((8, 16, 3), np.uint8)
    wide[:, 4:12] = 255
    Image.fromarray(wide).save(tmp_path / "wide.png")
    image = ImageFolder(tmp_path, 8, captions=False)[0]["image"]
    assert torch.equal(image, torch.ones(3, 8, 8))


def test_folders_that_cannot_be_used(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    empty = tmp_path_factory.mktemp("empty")
    (empty / "notes.md").write_text("no picture")
    with pytest.raises(ValueError, match="there is no such folder"):
        ImageFolder(folder / "elsewhere", 8)
    with pytest.raises(ValueError, match=r"no pictures in it or below it \(.png, .jpg"):
        ImageFolder(empty, 8)
    with pytest.raises(ValueError, match=r"none of its 3 pictures has a .txt file beside it with a caption"):
        ImageFolder(folder, 8)
    assert len(quietly(lambda: ImageFolder(folder, 8, captions=False))) == 3
    metadata(folder, {"file_name": "x.png", "text": "a"}, {"file_name": "y.png", "text": "b"})
    with (
        pytest.warns(UserWarning, match=r"names pictures that are not there: x.png, y.png \(2 in all\)"),
        pytest.raises(ValueError, match=r"none of its 3 pictures is named with a caption in metadata.jsonl"),
    ):
        ImageFolder(folder, 8)
    with pytest.raises(ValueError, match="size must be a positive number"):
        ImageFolder(folder, 0)


def test_a_caption_file_may_name_missing_pictures(folder: Path) -> None:
    metadata(folder, *({"file_name": f"{name}.png", "text": name} for name in "axyzvwu"))
    with pytest.warns(UserWarning, match=r"not there: u.png, v.png, w.png, x.png, y.png, … \(6 in all\)"):
        assert ImageFolder(folder, 8).names == ["a.png"]


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("metadata.jsonl", b'{"file_name": "a.png", "text": "x"}\n{"file', "line 2: not JSON"),
        ("metadata.jsonl", b'["a.png", "x"]', "line 1: expected 'file_name' and 'text'"),
        ("metadata.jsonl", b'{"file_name": "a.png"}', "line 1: expected 'file_name' and 'text'"),
        ("metadata.jsonl", b'{"text": "x"}', "line 1: expected a file_name, got None"),
        ("metadata.jsonl", b'{"file_name": "a.png", "text": "\xff"}', "not UTF-8"),
        (
            "metadata.csv",
            b"name,caption\na.png,x\n",
            "expected the columns file_name and text, got name, cap",
        ),
        ("metadata.csv", b"", "expected the columns file_name and text, got none"),
        ("metadata.csv", b'file_name,text\na.png,"x\n', "not CSV"),
    ],
)
def test_metadata_that_cannot_be_understood(folder: Path, name: str, data: bytes, message: str) -> None:
    (folder / name).write_bytes(data)
    with pytest.raises(ValueError, match=message):
        ImageFolder(folder, 8)


@settings(max_examples=60, deadline=None)
@given(
    data=st.binary(max_size=200) | st.text(max_size=100).map(str.encode),
    kind=st.sampled_from(["jsonl", "csv"]),
)
def test_any_metadata_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, kind: str
) -> None:
    folder = tmp_path_factory.mktemp("any")
    (folder / "a.png").write_bytes(png(COLOURS["a"]))
    if kind == "csv":
        data = b"file_name,text\n" + data
    (folder / f"metadata.{kind}").write_bytes(data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            names, message = ImageFolder(folder, 4).names, str(folder)
        except ValueError as error:
            names, message = ["a.png"], str(error)
    assert names == ["a.png"]
    assert str(folder) in message, "an error says where"


# --- bad pictures ---


@settings(max_examples=100, deadline=None)
@given(
    cut=st.integers(0, 400),
    noise=st.binary(max_size=6),
    at=st.integers(0, 400),
    kind=st.sampled_from(["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"]),
)
def test_any_damage_is_a_bad_sample_or_a_picture(
    tmp_path_factory: pytest.TempPathFactory, cut: int, noise: bytes, at: int, kind: str
) -> None:
    data = bytearray(png(COLOURS["a"], kind=kind))
    data[at : at + len(noise)] = noise
    folder = tmp_path_factory.mktemp("bad")
    (folder / "a.png").write_bytes(bytes(data[:cut]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's own
        try:
            image, message = ImageFolder(folder, 4, captions=False)[0]["image"], ""
        except BadSample as error:
            image, message = torch.ones(3, 4, 4), str(error)
    assert image.shape == (3, 4, 4)
    assert message == "" or message.startswith("a.png: cannot be read as a picture")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
def test_pictures_cut_in_the_middle_are_bad(tmp_path: Path, kind: str) -> None:
    """Pillow fills what is missing with grey if it is asked to, which would teach grey."""
    noise = np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, kind)
    (tmp_path / f"a.{kind.lower()}").write_bytes(file.getvalue()[: len(file.getvalue()) // 2])
    with pytest.raises(BadSample, match=rf"a\.{kind.lower()}: cannot be read as a picture \(.+\)"):
        ImageFolder(tmp_path, 8, captions=False)[0]


def test_bad_pictures_are_reported_once_and_skipped(tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(6):
        (folder / f"{i}.png").write_bytes(png((40 * i, 0, 0)))
    (folder / "2.png").write_bytes((folder / "2.png").read_bytes()[:45])
    (folder / "4.png").write_bytes(b"")
    samples = ImageFolder(folder, 8, captions=False)
    with pytest.warns(UserWarning, match="skipped") as caught:
        run(tmp_path / "run", samples=samples, batch_size=3)
    messages = sorted(str(w.message).split(" (")[0] for w in caught if "skipped" in str(w.message))
    assert messages == [f"skipped: {n}.png: cannot be read as a picture" for n in (2, 4)]
    assert len(losses(tmp_path / "run")) == 12
    with pytest.warns(UserWarning, match="skipped"):
        run(tmp_path / "workers", samples=ImageFolder(folder, 8, captions=False), batch_size=3, workers=2)
    assert rows(tmp_path / "workers") == rows(tmp_path / "run")


def test_the_next_good_sample_takes_the_place_of_a_bad_one() -> None:
    class Some(TensorSamples):
        bad: tuple[int, ...] = (1, 2, 5)

        def __getitem__(self, index: int) -> Any:
            if index in self.bad:
                raise BadSample(f"number {index}")
            return {"image": index}

    samples = Some(torch.zeros(6, 3, 2, 2))
    readable = Readable(samples)
    assert [readable[i]["image"] for i in range(6)] == [0, 3, 3, 3, 4, 0]
    assert readable[1]["skipped"] == ("number 1", "number 2")
    samples.bad = tuple(range(6))
    with pytest.raises(ValueError, match="none of the 6 samples can be read, such as number 0"):
        Readable(samples)[0]


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
    loaded = DataLoader(Readable(samples), batch_size=3, num_workers=2, collate_fn=collate)  # type: ignore[arg-type]
    assert torch.cat([batch["image"] for batch in loaded]).shape == (6, 3, 8, 8)


def test_shards_that_are_damaged(tmp_path: Path) -> None:
    good = [(f"{i}.{e}", d) for i in range(3) for e, d in (("png", png(COLOURS["a"])), ("txt", b"red"))]
    path = shard(tmp_path / "a.tar", *good)
    whole = path.read_bytes()
    path.write_bytes(whole[: 1024 * 4 + 700])
    with pytest.warns(UserWarning, match="damaged or cut short after"):
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
        with pytest.warns(UserWarning, match="damaged or cut short after 1 samples"):
            assert len(TarShards([path], 8, captions=False)) == 1

    path.write_bytes(whole)
    samples = quietly(lambda: TarShards([path], 8))
    path.write_bytes(whole[:900])
    with pytest.raises(BadSample, match=r"a.tar/2.png: the shard is cut short"):
        samples[2]

    bad = shard(tmp_path / "b.tar", ("0.png", b"no picture"), ("0.txt", b"x"), ("1.png", png(COLOURS["b"])))
    with pytest.warns(UserWarning, match="1 pictures without a caption are left out, such as 1.png"):
        samples = TarShards([bad], 8)
    with pytest.raises(BadSample, match=r"b.tar/0.png: cannot be read as a picture"):
        samples[0]
    odd = shard(tmp_path / "c.tar", ("0.png", png(COLOURS["b"])), ("0.json", b"{no json"))
    with pytest.raises(BadSample, match=r"c.tar/0.png: its .json cannot be read"):
        TarShards([odd], 8)[0]
    foreign = shard(tmp_path / "e.tar", ("0.png", png(COLOURS["b"])), ("0.txt", "red".encode("utf-16")))
    with pytest.raises(BadSample, match=r"e.tar/0.png: its caption is not UTF-8"):
        TarShards([foreign], 8)[0]
    none = shard(tmp_path / "d.tar", ("0.png", png(COLOURS["b"])), ("0.json", b'{"title": 3}'))
    with pytest.raises(BadSample, match=r"d.tar/0.png: has no caption"):
        TarShards([none], 8)[0]


@settings(max_examples=60, deadline=None)
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
    assert "a.tar" in message or "no pictures in 1 shards" in message or "has a caption" in message


def test_shards_that_cannot_be_used(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar.gz", "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("a.png"))
    with pytest.raises(ValueError, match="cannot be read as an uncompressed tar file"):
        TarShards([tmp_path / "x.tar.gz"], 8)
    with pytest.raises(ValueError, match="cannot be read as an uncompressed tar file"):
        TarShards([tmp_path / "none.tar"], 8)
    with pytest.raises(ValueError, match="no pictures in 1 shards"):
        TarShards([shard(tmp_path / "e.tar", ("a.txt", b"x"))], 8)
    bare = shard(tmp_path / "f.tar", ("a.png", png(COLOURS["a"])))
    with pytest.raises(ValueError, match="none of 1 pictures has a caption"):
        TarShards([bare], 8)
    assert len(TarShards([bare], 8, captions=False)) == 1


# --- order ---


@settings(max_examples=50, deadline=None)
@given(
    length=st.integers(1, 30),
    batch=st.integers(1, 7),
    size=st.integers(1, 4),
    seed=st.integers(0, 2**40),
    start=st.integers(0, 5),
)
def test_every_epoch_has_every_sample_once_however_it_is_shared(
    length: int, batch: int, size: int, seed: int, start: int
) -> None:
    turns = 3 * length // (batch * size) + start + 2
    alone = Order(length, seed, batch * size)
    everything = [index for _, indices in zip(range(turns), alone) for index in indices]
    for epoch in range(len(everything) // length):
        assert sorted(everything[epoch * length : (epoch + 1) * length]) == list(range(length))
    position = start * batch * size
    ranks = [iter(Order(length, seed, batch, position=position, rank=r, size=size)) for r in range(size)]
    shared = [index for _ in range(turns - start) for rank in ranks for index in next(rank)]
    assert shared == everything[position:]


def test_orders_and_noise_depend_on_seed_epoch_and_position() -> None:
    order = Order(100, 1, 1)
    first, second = ([order.index(100 * epoch + k) for k in range(100)] for epoch in (0, 1))
    assert first != second
    assert first != [Order(100, 2, 1).index(k) for k in range(100)]
    draws = {
        float(torch.rand((), generator=stream)) for s in (0, 1) for stream in noise_streams(s, range(500))
    }
    assert len(draws) > 990
    again = noise_streams(1, [7])[0]
    assert float(torch.rand((), generator=again)) in draws


# --- latents on disk ---


@pytest.fixture
def autoencoder() -> AutoencoderKL:
    torch.manual_seed(0)
    return AutoencoderKL(TINY["sd1"].autoencoder).eval()


def test_latents_are_the_encoders_and_are_computed_once(
    tmp_path: Path, autoencoder: AutoencoderKL, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples, path = pictures(5, 16), tmp_path / "new" / "latents.npy"
    cached = quietly(lambda: CachedLatents(samples, autoencoder, path, batch_size=2))
    with torch.no_grad():
        posterior = autoencoder.encode(samples.images)
    for i in range(5):
        torch.testing.assert_close(cached[i]["mean"], posterior.mean[i], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(cached[i]["logvar"], posterior.logvar[i], rtol=1e-4, atol=1e-5)
        assert cached[i]["text"] == samples.text(i)
    assert isinstance(cached._latents, np.memmap)
    monkeypatch.setattr(AutoencoderKL, "encode", None)
    again = quietly(lambda: CachedLatents(samples, autoencoder, path))
    assert torch.equal(again[3]["mean"], cached[3]["mean"])
    with torch.no_grad():
        autoencoder.decoder.conv_in.weight += 1
    quietly(lambda: CachedLatents(samples, autoencoder, path))  # the decoder makes no latents


def test_stale_latents_are_noticed(tmp_path: Path, autoencoder: AutoencoderKL) -> None:
    samples, path = pictures(3, 16), tmp_path / "latents.npy"
    CachedLatents(samples, autoencoder, path)
    before = fingerprint(autoencoder)
    with torch.no_grad():
        autoencoder.encoder.conv_in.bias[0] += 1e-6
    assert fingerprint(autoencoder) != before
    with pytest.warns(UserWarning, match="its latents are of another autoencoder; computed again"):
        CachedLatents(samples, autoencoder, path)
    with pytest.warns(UserWarning, match="its pictures differ; computed again"):
        CachedLatents(pictures(3, 16, seed=1), autoencoder, path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.warns(UserWarning, match="damaged"):
        CachedLatents(pictures(3, 16, seed=1), autoencoder, path)
    quietly(lambda: CachedLatents(pictures(3, 16, seed=1), autoencoder, path))
    path.with_suffix(".json").write_text("[]")
    with pytest.warns(UserWarning, match=r"damaged \(latents.json is no such note\)"):
        CachedLatents(pictures(3, 16, seed=1), autoencoder, path)
    with pytest.raises(ValueError, match=r"expected a name that ends in .npy"):
        CachedLatents(samples, autoencoder, tmp_path / "latents.bin")


def test_a_changed_picture_makes_latents_stale(folder: Path, autoencoder: AutoencoderKL) -> None:
    def make() -> CachedLatents:
        return CachedLatents(ImageFolder(folder, 16, captions=False), autoencoder, folder / "latents.npy")

    quietly(make)
    quietly(make)
    (folder / "a.png").write_bytes(png((9, 9, 9), (20, 20)))
    with pytest.warns(UserWarning, match="its pictures differ"):
        make()


def test_bad_pictures_have_no_latents(folder: Path, autoencoder: AutoencoderKL) -> None:
    (folder / "a.png").write_bytes(b"")
    samples = ImageFolder(folder, 16, captions=False)
    for _ in range(2):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            cached = CachedLatents(samples, autoencoder, folder / "latents.npy")
        with pytest.raises(BadSample, match=r"a.png: cannot be read"):
            cached[0]
        assert cached[1]["mean"].abs().sum() > 0
    assert caught == [], "reported when they were read"


def test_a_full_disk_leaves_no_half_cache(
    tmp_path: Path, autoencoder: AutoencoderKL, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: Any, **options: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np.lib.format, "write_array_header_1_0", full)
    with pytest.raises(CheckpointError, match="No space left on device"):
        CachedLatents(pictures(3, 16), autoencoder, tmp_path / "latents.npy")
    monkeypatch.undo()
    assert list(tmp_path.iterdir()) == []
    quietly(lambda: CachedLatents(pictures(3, 16), autoencoder, tmp_path / "latents.npy"))


def test_tensors_and_captions_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match=r"expected images \(n, 3, H, W\) and n captions"):
        TensorSamples(torch.zeros(2, 3, 4, 4), ["one"])
