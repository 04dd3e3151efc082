"""A database of image embeddings, searched by cosine: the neighbours of retrieval-augmented diffusion.

    the k images x with the largest <q, e(x)> / (|q| |e(x)|)        q: the query's embedding, e: CLIP's

(Blattmann et al. 2022, arXiv:2204.11824, section 3.1). The search is exact: all products are computed, in
parts of bounded memory. Above a million images it uses faiss (`pip install ldm_core[retrieval]`), if that is
installed, which compares a query with the images of the nearest clusters only. CompVis's counterpart is
`Searcher` of `scripts/knn2img.py`, with ScaNN.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ldm_core.checkpoint import CheckpointError, read
from ldm_core.checkpoint.npz import Array, is_npz, read_npz
from ldm_core.checkpoint.writer import Pending, write_safetensors, write_then_move
from ldm_core.clip import CLIP, preprocess_stretched
from ldm_core.images import open_picture, picture_files
from ldm_core.support.limits import MAX_SIZE, is_whole
from ldm_core.support.printable import few, shown, shown_error

Method = Literal["auto", "exact", "faiss"]
MANY = 1_000_000  # images above which "auto" uses faiss
CHUNK = 2**24  # numbers of the embeddings, and of the cosines, that are computed at a time
CLUSTERS_PROBED = 64


class Found(NamedTuple):
    """The k nearest images of B queries, the nearest first: cosines and indices, each (B, k)."""

    cosines: Tensor
    indices: Tensor


class Retriever:
    """N image embeddings, and optionally a name for each.

    embeddings: (N, D), of any length, kept as they are. names: N strings.
    method: "exact", "faiss", or "auto": faiss for more than a million images if it is installed.
    `skipped` has the pictures that `of_folder` could not read, with the reasons.
    Raises ValueError for embeddings of another shape, with NaN or infinity, or of length 0.
    """

    def __init__(
        self, embeddings: Tensor, names: Sequence[str] | None = None, *, method: Method = "auto"
    ) -> None:
        if not isinstance(embeddings, Tensor) or embeddings.ndim != 2 or not embeddings.is_floating_point():
            found = type(embeddings).__name__
            if isinstance(embeddings, Tensor):
                found = f"{tuple(embeddings.shape)} of {embeddings.dtype}"
            raise ValueError(f"expected embeddings as a floating-point tensor (N, D), got {found}")
        if len(embeddings) == 0 or not 0 < embeddings.shape[1] <= MAX_SIZE:
            raise ValueError(f"expected embeddings of images (N, D), got {tuple(embeddings.shape)}")
        if method not in get_args(Method):
            raise ValueError(f"method must be 'auto', 'exact' or 'faiss', not {shown(method)}")
        if method == "faiss" and find_spec("faiss") is None:
            raise ValueError("method 'faiss' needs the package faiss: pip install ldm_core[retrieval]")
        self.embeddings = embeddings.detach()
        self.names = None if names is None else _checked_names(names, len(embeddings))
        self.skipped: dict[str, str] = {}
        many = method == "auto" and len(embeddings) > MANY and find_spec("faiss") is not None
        self.method: Method = "faiss" if method == "faiss" or many else "exact"
        self._index: Any = None  # faiss's, built by the first search
        self._check_lengths()

    @classmethod
    @torch.no_grad()
    def of_folder(
        cls, folder: str | Path, clip: CLIP, *, batch_size: int = 32, method: Method = "auto"
    ) -> Retriever:
        """Embed all pictures in a folder and its subfolders. Their names are their paths in the folder.

        A picture that cannot be read is skipped with a warning. Raises ValueError if there are no others.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise ValueError(f"{folder}: the folder does not exist")
        if not is_whole(batch_size, 1, MAX_SIZE):
            raise ValueError(f"batch_size must be an int in 1..{MAX_SIZE}, not {shown(batch_size)}")
        names: list[str] = []
        skipped: dict[str, str] = {}
        rows: list[Tensor] = []
        batch: list[Tensor] = []
        paths = sorted(picture_files(folder))
        for path in paths:
            name = path.relative_to(folder).as_posix()
            try:
                config = clip.config.image_encoder
                batch.append(preprocess_stretched(open_picture(path), config, antialias=False))
                names.append(name)
            except (OSError, ValueError) as error:
                skipped[name] = shown_error(error)
            if len(batch) == batch_size or (batch and path is paths[-1]):
                pixels = torch.cat(batch).to(clip.logit_scale)  # with the model's device and dtype
                rows.append(clip.image_encoder(pixels).float().cpu())
                batch = []
        if skipped:
            reasons = few([f"{shown(name)} ({reason})" for name, reason in skipped.items()], 3)
            warnings.warn(f"{folder}: skipped pictures that cannot be read: {reasons}", stacklevel=3)
        if not rows:
            raise ValueError(f"{folder}: no pictures that can be read in the folder or its subfolders")
        retriever = cls(torch.cat(rows), names, method=method)
        retriever.skipped = skipped
        return retriever

    @classmethod
    def load(cls, path: str | Path, *, method: Method = "auto") -> Retriever:
        """Read the file of `save`, or any other file with embeddings.

        path: a `.safetensors` or PyTorch file with a tensor `embeddings` (N, D), or a `.npz` file with an
            array `embeddings` or `embedding` (N, D) and optionally `names`, N texts.
        Raises CheckpointError, a ValueError, for other files and invalid embeddings.
        """
        arrays: dict[str, Any]
        if is_npz(path):
            arrays = dict(read_npz(path, ("embeddings", "embedding", "names")))
        else:
            arrays = dict(read(path).tensors)
        embeddings = arrays.get("embeddings", arrays.get("embedding"))
        if embeddings is None:
            raise CheckpointError(f"{path}: the file has no tensor or array with the name 'embeddings'")
        try:
            return cls(embeddings, _names_of(arrays.get("names")), method=method)
        except ValueError as error:
            raise CheckpointError(f"{path}: {error}") from error

    def save(self, path: str | Path) -> None:
        """Write embeddings and names to a `.safetensors` file. Raises CheckpointError if that fails."""
        if Path(path).suffix != ".safetensors":
            raise CheckpointError(f"{path}: expected a file name that ends in .safetensors")
        tensors = {"embeddings": self.embeddings}
        if self.names is not None:
            text = "\0".join(self.names).encode("utf-8", "surrogatepass")
            tensors["names"] = torch.from_numpy(np.frombuffer(text, np.uint8).copy())
        pending = {
            name: Pending(tensor.dtype, tuple(tensor.shape), lambda tensor=tensor: tensor)  # type: ignore[misc]
            for name, tensor in tensors.items()
        }
        write_then_move(Path(path), lambda target: write_safetensors(pending, {}, target))

    def __len__(self) -> int:
        return len(self.embeddings)

    @property
    def width(self) -> int:
        """D, the length of an embedding."""
        return self.embeddings.shape[1]

    def search(self, queries: Tensor, k: int) -> Found:
        """The k nearest images of queries (B, D) of any length. Raises ValueError for other queries or k."""
        if not is_whole(k, 1, len(self)):
            raise ValueError(f"k must be an int in 1..{len(self)}, the number of images, not {shown(k)}")
        if not isinstance(queries, Tensor) or queries.ndim != 2 or queries.shape[1] != self.width:
            found = tuple(queries.shape) if isinstance(queries, Tensor) else type(queries).__name__
            raise ValueError(f"expected queries of (B, {self.width}), got {found}")
        queries = unit_vectors(queries.detach().float().cpu(), "queries")
        return self._approximate(queries, k) if self.method == "faiss" else self._exact(queries, k)

    def neighbours(self, queries: Tensor, k: int) -> Tensor:
        """The embeddings of the k nearest images of queries (B, D), normalised: (B, k, D), float32."""
        indices = self.search(queries, k).indices
        rows = self.embeddings[indices.flatten().to(self.embeddings.device)].float().cpu()
        return F.normalize(rows, dim=-1).view(*indices.shape, self.width)

    def _exact(self, queries: Tensor, k: int) -> Found:
        parts = [self._nearest(part, k) for part in queries.split(1024)]
        return Found(*(torch.cat(tensors) for tensors in zip(*parts)))

    def _nearest(self, queries: Tensor, k: int) -> Found:
        best = Found(torch.empty(len(queries), 0), torch.empty(len(queries), 0, dtype=torch.long))
        for first, chunk in self._chunks(len(queries)):
            cosines = queries @ chunk.T  # (B, rows)
            values, places = cosines.topk(min(k, len(chunk)))
            values = torch.cat([best.cosines, values], dim=1)
            indices = torch.cat([best.indices, places + first], dim=1)
            values, order = values.topk(min(k, values.shape[1]))
            best = Found(values, indices.gather(1, order))
        return best

    def _chunks(self, queries: int = 1) -> Iterator[tuple[int, Tensor]]:
        """Normalised embeddings (rows, D) in float32 on the CPU, each with the index of its first row."""
        rows = max(1, CHUNK // max(self.width, queries))
        for first in range(0, len(self), rows):
            chunk = self.embeddings[first : first + rows].float().cpu()
            yield first, F.normalize(chunk, dim=-1)

    def _check_lengths(self) -> None:
        for first, chunk in self._chunks():
            bad = (chunk.isfinite().all(dim=1) & (chunk.norm(dim=1) > 0.5)).logical_not().nonzero().flatten()
            if len(bad):
                row = first + int(bad[0])
                name = "" if self.names is None else f" ({shown(self.names[row])})"
                raise ValueError(
                    "expected finite embeddings with lengths above 0, got NaN, infinity or zeros in row "
                    f"{row}{name}"
                )

    def _approximate(self, queries: Tensor, k: int) -> Found:
        if self._index is None:
            self._index = self._build()
        cosines, indices = (torch.from_numpy(array) for array in self._index.search(queries.numpy(), k))
        few_found = (indices < 0).any(dim=1)  # the probed clusters have fewer than k images
        if bool(few_found.any()):
            exact = self._exact(queries[few_found], k)
            cosines[few_found], indices[few_found] = exact.cosines, exact.indices
        return Found(cosines, indices)

    def _build(self) -> Any:
        """faiss's index: images in clusters, of which a search probes the CLUSTERS_PROBED nearest."""
        import faiss

        # faiss recommends about 4 sqrt(N) clusters, and 39 images or more for each.
        clusters = max(1, min(int(4 * math.sqrt(len(self))), len(self) // 39))
        index = faiss.index_factory(self.width, f"IVF{clusters},Flat", faiss.METRIC_INNER_PRODUCT)
        step = max(1, len(self) // (64 * clusters))
        index.train(F.normalize(self.embeddings[::step].float().cpu(), dim=-1).numpy())
        for _, chunk in self._chunks():
            index.add(chunk.numpy())
        index.nprobe = CLUSTERS_PROBED
        return index


def unit_vectors(vectors: Tensor, name: str) -> Tensor:
    """Vectors (..., D) divided by their lengths. Raises ValueError for NaN, infinity, and a length of 0."""
    lengths = vectors.norm(dim=-1, keepdim=True)
    if not bool((lengths.isfinite() & (lengths > 0)).all()):
        raise ValueError(f"expected {name} to be finite, with lengths above 0, got NaN, infinity or zeros")
    return vectors / lengths


def _checked_names(names: Sequence[str], count: int) -> list[str]:
    if isinstance(names, str) or not isinstance(names, Sequence) or len(names) != count:
        found = len(names) if isinstance(names, Sequence) else type(names).__name__
        raise ValueError(f"expected {count} names, one per embedding, got {found}")
    for name in names:
        if not isinstance(name, str) or "\0" in name:
            raise ValueError(f"expected names as strings without NUL, got {shown(name)}")
    return list(names)


def _names_of(array: Array | None) -> list[str] | None:
    """The names in a file: texts, or the bytes of texts with NUL between them, or numbers."""
    if not isinstance(array, Tensor):
        return array
    if array.dtype == torch.uint8:
        return array.flatten().numpy().tobytes().decode("utf-8", "surrogatepass").split("\0")
    return [str(value) for value in array.flatten().tolist()]
