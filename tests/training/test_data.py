"""Pictures and captions from folders, whole or damaged."""

from __future__ import annotations

import csv
import io
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from support.examples import examples
from support.training_pictures import COLOURS, png, quietly
from support.training_runs import losses, rows, run

from ldm_core.training import BadSample, ImageFolder, TensorDataset
from ldm_core.training import dataset as training_dataset
from ldm_core.training.dataset import SkipUnreadable


def metadata(folder: Path, *rows: dict[str, Any], ending: str = "jsonl") -> None:
    with (folder / f"metadata.{ending}").open("w", newline="", encoding="utf-8") as file:
        if ending == "jsonl":
            file.write("".join(json.dumps(row) + "\n" for row in rows))
        else:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)


# --- folders ---


def test_an_error_without_words_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def lack(_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(training_dataset, "open_picture", lack)
    with pytest.raises(BadSample, match=r"cannot be read as an image \(MemoryError\)"):
        training_dataset.decode_picture(b"", "a.png", 8)


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
    with pytest.warns(UserWarning, match=r"skipped images without a caption: b\.PNG, deep/c\.png"):
        assert ImageFolder(folder, 6).texts == [("red",)]


def test_captions_beside_pictures(folder: Path) -> None:
    (folder / "a.txt").write_text("  red\n disc ")
    (folder / "deep" / "c.txt").write_text("blue")
    (folder / "b.txt").write_text("  \n")
    with pytest.warns(UserWarning, match=r"skipped images without a caption: b.PNG$"):
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
    with pytest.raises(ValueError, match="the folder does not exist"):
        ImageFolder(folder / "elsewhere", 8)
    with pytest.raises(ValueError, match=r"no images in the folder or its subfolders \(.png, .jpg"):
        ImageFolder(empty, 8)
    with pytest.raises(ValueError, match=r"none of its 3 images has a caption in a .txt file"):
        ImageFolder(folder, 8)
    assert len(quietly(lambda: ImageFolder(folder, 8, captions=False))) == 3
    metadata(folder, {"file_name": "x.png", "text": "a"}, {"file_name": "y.png", "text": "b"})
    with (
        pytest.warns(UserWarning, match=r"images do not exist: x.png, y.png$"),
        pytest.raises(ValueError, match=r"none of its 3 images has a caption in metadata.jsonl"),
    ):
        ImageFolder(folder, 8)
    with pytest.raises(ValueError, match="size must be a positive number"):
        ImageFolder(folder, 0)


def test_a_caption_file_may_name_missing_pictures(folder: Path) -> None:
    metadata(folder, *({"file_name": f"{name}.png", "text": name} for name in "axyzvwu"))
    with pytest.warns(UserWarning, match=r"do not exist: u.png, v.png, w.png, x.png, y.png, … \(6 in all\)"):
        assert ImageFolder(folder, 8).names == ["a.png"]


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("metadata.jsonl", b'{"file_name": "a.png", "text": "x"}\n{"file', "line 2: not valid JSON"),
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


@examples(60)
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


@examples(100)
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
    assert message == "" or message.startswith("a.png: cannot be read as an image")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
def test_pictures_cut_in_the_middle_are_bad(tmp_path: Path, kind: str) -> None:
    """Pillow fills what is missing with grey if it is asked to, which would teach grey."""
    noise = np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, kind)
    (tmp_path / f"a.{kind.lower()}").write_bytes(file.getvalue()[: len(file.getvalue()) // 2])
    with pytest.raises(BadSample, match=rf"a\.{kind.lower()}: cannot be read as an image \(.+\)"):
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
    assert messages == [f"skipped: {n}.png: cannot be read as an image" for n in (2, 4)]
    assert len(losses(tmp_path / "run")) == 12
    with pytest.warns(UserWarning, match="skipped"):
        run(tmp_path / "workers", samples=ImageFolder(folder, 8, captions=False), batch_size=3, workers=2)
    assert rows(tmp_path / "workers") == rows(tmp_path / "run")


def test_the_next_good_sample_takes_the_place_of_a_bad_one() -> None:
    class Some(TensorDataset):
        bad: tuple[int, ...] = (1, 2, 5)

        def __getitem__(self, index: int) -> Any:
            if index in self.bad:
                raise BadSample(f"number {index}")
            return {"image": index}

    samples = Some(torch.zeros(6, 3, 2, 2))
    readable = SkipUnreadable(samples)
    assert [readable[i]["image"] for i in range(6)] == [0, 3, 3, 3, 4, 0]
    assert readable[1]["skipped"] == ("number 1", "number 2")
    samples.bad = tuple(range(6))
    with pytest.raises(ValueError, match="none of the 6 samples can be read, for example number 0"):
        SkipUnreadable(samples)[0]
