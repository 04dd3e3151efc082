"""The database of embeddings: search against plain loops, its files, and files that are damaged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support.tiny_clip import tiny_clip
from torch import Tensor

import ldm_core
from ldm_core.clip import preprocess_stretched
from ldm_core.conditioners import Retriever, retriever

EMBEDDINGS = torch.randn(300, 8, generator=torch.Generator().manual_seed(0)) * torch.arange(1, 301)[:, None]
QUERIES = torch.randn(4, 8, generator=torch.Generator().manual_seed(1))


def reference(queries: Tensor, k: int) -> list[list[tuple[float, int]]]:
    """Cosines and indices, sorted by a plain sort."""
    found = []
    for query in queries.double():
        pairs = []
        for i, row in enumerate(EMBEDDINGS.double()):
            pairs.append((float(query @ row / query.norm() / row.norm()), i))
        found.append(sorted(pairs, reverse=True)[:k])
    return found


@pytest.mark.parametrize("k", [1, 10, 300])
@pytest.mark.parametrize("chunk", [8, 8 * 7, 2**24])
def test_search_finds_the_nearest(monkeypatch: pytest.MonkeyPatch, k: int, chunk: int) -> None:
    """With any size of parts: of 1 row, of 7 rows, and of all."""
    monkeypatch.setattr(retriever, "CHUNK", chunk)
    found = Retriever(EMBEDDINGS).search(QUERIES, k)
    for cosines, indices, expected in zip(found.cosines, found.indices, reference(QUERIES, k)):
        assert indices.tolist() == [index for _, index in expected]
        assert float((cosines - torch.tensor([cosine for cosine, _ in expected])).abs().max()) < 1e-5


def test_neighbours_are_normalised() -> None:
    database = Retriever(EMBEDDINGS)
    found = database.neighbours(QUERIES, 3)
    indices = database.search(QUERIES, 3).indices
    expected = EMBEDDINGS[indices] / EMBEDDINGS[indices].norm(dim=-1, keepdim=True)
    torch.testing.assert_close(found, expected)
    assert (len(database), database.width) == (300, 8)
    assert torch.equal(database.search(QUERIES * 7, 3).indices, indices)
    half = Retriever(EMBEDDINGS.half())
    assert half.neighbours(QUERIES, 3).dtype == torch.float32


def test_faiss_finds_nearly_the_same() -> None:
    pytest.importorskip("faiss")
    rows = torch.randn(4000, 16, generator=torch.Generator().manual_seed(2))
    queries = torch.randn(50, 16, generator=torch.Generator().manual_seed(3))
    exact, near = (Retriever(rows, method=m).search(queries, 10) for m in ("exact", "faiss"))
    common = [len(set(a) & set(b)) for a, b in zip(exact.indices.tolist(), near.indices.tolist())]
    assert sum(common) >= 0.95 * 500
    assert float((exact.cosines[:, 0] - near.cosines[:, 0]).abs().median()) < 1e-5
    few = Retriever(EMBEDDINGS, method="faiss")
    assert torch.equal(few.search(QUERIES, 300).indices, Retriever(EMBEDDINGS).search(QUERIES, 300).indices)


def test_methods(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retriever, "MANY", 100)
    monkeypatch.setattr(retriever, "find_spec", lambda name: object())
    assert Retriever(EMBEDDINGS).method == "faiss"
    assert Retriever(EMBEDDINGS, method="exact").method == Retriever(EMBEDDINGS[:100]).method == "exact"
    monkeypatch.setattr(retriever, "find_spec", lambda name: None)
    assert Retriever(EMBEDDINGS).method == "exact"
    with pytest.raises(ValueError, match=r"needs the package faiss: pip install ldm_core\[retrieval\]"):
        Retriever(EMBEDDINGS, method="faiss")


def test_a_folder_of_pictures(tmp_path: Path) -> None:
    clip = tiny_clip()
    pictures = {}
    for k, name in enumerate(["b.png", "a.jpg", "deep/c.webp", "d.png", "e.png"]):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        pictures[name] = Image.effect_noise((20 + 9 * k, 30), 60).convert("RGB")
        pictures[name].save(path, quality=95)
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    (tmp_path / "z\x1b[1m.png").write_text("text")
    (tmp_path / "notes.txt").write_text("no picture")
    with pytest.warns(UserWarning, match=r"skipped pictures that cannot be read: 'broken.png' \(") as warned:
        database = Retriever.of_folder(tmp_path, clip, batch_size=2)
    assert "\x1b" not in str(warned[0].message)
    assert database.names == ["a.jpg", "b.png", "d.png", "deep/c.webp", "e.png"]
    assert set(database.skipped) == {"broken.png", "z\x1b[1m.png"}
    pixels = preprocess_stretched(pictures["b.png"], clip.config.image_encoder, antialias=False)
    with torch.no_grad():
        torch.testing.assert_close(database.embeddings[1:2], clip.image_encoder(pixels))
    assert not database.embeddings.requires_grad
    for folder, words in (
        (tmp_path / "none", "does not exist"),
        (tmp_path / "empty", "no pictures that can"),
    ):
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises(ValueError, match=words):
            Retriever.of_folder(folder, clip)
    with pytest.raises(ValueError, match="batch_size must be an int"):
        Retriever.of_folder(tmp_path, clip, batch_size=0)


@pytest.mark.parametrize("names", [None, [f"picture {i}\n\udcff é" for i in range(300)], [""] * 300])
def test_saved_and_loaded(tmp_path: Path, names: Any) -> None:
    path = tmp_path / "database.safetensors"
    Retriever(EMBEDDINGS, names).save(path)
    again = Retriever.load(path)
    assert torch.equal(again.embeddings, EMBEDDINGS)
    assert again.names == names
    again.save(path)
    assert torch.equal(Retriever.load(path).search(QUERIES, 5).indices, again.search(QUERIES, 5).indices)


def test_files_of_others(tmp_path: Path) -> None:
    values = EMBEDDINGS.numpy()
    names = [f"n{i}" for i in range(300)]
    np.savez(tmp_path / "a.npz", embeddings=values, names=np.array(names))
    np.savez_compressed(tmp_path / "b.npz", embedding=values.astype(np.float16), names=np.arange(300))
    torch.save({"embeddings": EMBEDDINGS}, tmp_path / "c.pt")
    first, second, third = (Retriever.load(tmp_path / name) for name in ("a.npz", "b.npz", "c.pt"))
    assert first.names == names
    assert second.names == [str(i) for i in range(300)]
    assert third.names is None
    for database in (first, second, third):
        assert torch.equal(database.embeddings.float(), EMBEDDINGS.to(database.embeddings.dtype).float())


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"vectors": np.zeros((2, 3))}, "no tensor or array with the name 'embeddings'"),
        (
            {"embeddings": np.zeros((2, 3), np.int32)},
            r"floating-point tensor \(N, D\), got \(2, 3\) of torch.int32",
        ),
        ({"embeddings": np.array(["a"])}, "got list"),
        ({"embeddings": np.ones(3)}, r"got \(3,\)"),
        ({"embeddings": np.ones((0, 3))}, r"got \(0, 3\)"),
        (
            {"embeddings": np.ones((2, 3)), "names": np.array(["a"])},
            "expected 2 names, one per embedding, got 1",
        ),
        (
            {"embeddings": np.array([[1.0, 2], [np.nan, 1]]), "names": ["a", "b\x1b"]},
            r"in row 1 \('b\\x1b'\)",
        ),
        ({"embeddings": np.array([[1.0, 2], [0, 0]])}, "got NaN, infinity or zeros in row 1$"),
        ({"embeddings": np.array([[np.inf, 2]])}, "in row 0$"),
        ({"embeddings": np.array([[None]])}, "expected an array of numbers or texts"),
    ],
)
def test_bad_files(tmp_path: Path, arrays: dict[str, Any], words: str) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, **arrays)
    with pytest.raises(ldm_core.checkpoint.CheckpointError, match=words) as error:
        Retriever.load(path)
    assert str(error.value).startswith(str(path))


def test_bad_arguments(tmp_path: Path) -> None:
    database = Retriever(EMBEDDINGS)
    for queries, k, words in (
        (QUERIES, 0, r"k must be an int in 1\.\.300, the number of images, not 0"),
        (QUERIES, 301, "not 301"),
        (QUERIES[:, :7], 1, r"expected queries of \(B, 8\), got \(4, 7\)"),
        (QUERIES[0], 1, r"got \(8,\)"),
        ("a cat", 1, "got str"),
        (QUERIES * 0, 1, "expected queries to be finite"),
        (QUERIES * torch.nan, 1, "expected queries to be finite"),
    ):
        with pytest.raises(ValueError, match=words):
            database.search(queries, k)  # type: ignore[arg-type]
    for path in (tmp_path / "a.npz", tmp_path / "none" / "a.safetensors"):
        with pytest.raises(ldm_core.checkpoint.CheckpointError):
            database.save(path)
    with pytest.raises(ldm_core.checkpoint.CheckpointError, match="no such file"):
        Retriever.load(tmp_path / "none")
    with pytest.raises(ValueError, match="method must be"):
        Retriever(EMBEDDINGS, method="scann")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="without NUL"):
        Retriever(EMBEDDINGS[:1], ["a\0b"])
