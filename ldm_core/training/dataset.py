"""The dataset interface, datasets in memory, and wrappers of datasets.

A sample is a dictionary: "image" (3, H, W) in [-1, 1] and "text", a tuple of captions of which training draws
one at random, or other entries that an objective needs. A dataset raises `BadSample` for an unreadable
sample; `SkipUnreadable` replaces it, so that a damaged image does not end a run.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import default_collate

from ldm_core.images import image_to_tensor, open_picture, to_rgb
from ldm_core.support.printable import shown_error

Sample = dict[str, Any]


def digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of the tensors' names, dtypes, shapes and bytes, in hexadecimal."""
    result = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        tensor = tensor.detach().cpu().contiguous()
        result.update(repr((name, str(tensor.dtype), tuple(tensor.shape))).encode())
        result.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return result.hexdigest()


def files_fingerprint(settings: tuple[object, ...], files: Iterable[tuple[str, Path]]) -> str:
    """SHA-256 of settings and of (name, path)s' names, sizes and modification times, in hexadecimal."""
    stats = [(name, path.stat()) for name, path in files]
    facts = [(name, s.st_size, s.st_mtime_ns) for name, s in stats]
    return hashlib.sha256(repr((*settings, facts)).encode()).hexdigest()


def clean_captions(texts: Iterable[str]) -> tuple[str, ...]:
    """Captions with runs of white space replaced by single spaces, without empty ones."""
    return tuple(" ".join(text.split()) for text in texts if text.strip())


class BadSample(ValueError):
    """A sample cannot be read. The message names the sample and the reason."""


class Dataset(Protocol):
    """A map-style dataset, like `torch.utils.data.Dataset`. `dataset[index]` raises BadSample if unreadable.

    text          the captions of a sample, possibly none, without reading its image
    fingerprint   a string that changes when the images change
    """

    @property
    def fingerprint(self) -> str: ...
    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Sample: ...
    def text(self, index: int, /) -> tuple[str, ...]: ...


def decode_picture(source: Path | bytes, name: str, size: int) -> Tensor:
    """Decode an image, resize its shorter side and crop its centre: (3, size, size) in [-1, 1].

    source: a path, or the bytes of a file; see `ldm_core.images.open_picture` for formats and limits.
    name: how errors name it. Raises BadSample if it cannot be decoded.
    """
    from PIL import Image, ImageOps

    try:
        square = ImageOps.fit(to_rgb(open_picture(source)), (size, size), Image.Resampling.LANCZOS)
        return image_to_tensor(square)[0] * 2 - 1
    except Exception as error:  # includes images too narrow to be resized or too large for memory
        raise BadSample(f"{name}: cannot be read as an image ({shown_error(error)})") from error


class SkipUnreadable:
    """Replaces each unreadable sample with the next readable one.

    The replacement depends on the data alone, so every process and every repeated run gets the same one.
    sample["skipped"] holds the error messages of the samples that it replaces.
    """

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset
        self._bad: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Sample:
        skipped: list[str] = []
        for k in range(len(self)):
            place = (index + k) % len(self)
            if place not in self._bad:
                try:
                    return self.dataset[place] | {"skipped": tuple(skipped)}
                except BadSample as error:
                    self._bad[place] = str(error)
            skipped.append(self._bad[place])
        raise ValueError(f"none of the {len(self)} samples can be read, for example {skipped[0]}")


def collate(samples: list[Sample]) -> dict[str, Any]:
    """Collate samples to a batch: tensors and numbers are stacked, other values become lists."""
    return {
        key: default_collate(values) if isinstance(values[0], (Tensor, int, float)) else values
        for key in samples[0]
        for values in [[sample[key] for sample in samples]]
    }


class CaptionedDataset:
    """Replaces the captions of another dataset: `CaptionedDataset(dataset, "a sks dog")`."""

    def __init__(self, dataset: Dataset, texts: str | Sequence[str]) -> None:
        self.dataset = dataset
        self.texts = (texts,) if isinstance(texts, str) else tuple(texts)

    @property
    def fingerprint(self) -> str:
        """A string that changes when the images change."""
        return self.dataset.fingerprint

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Sample:
        return self.dataset[index] | {"text": self.texts}

    def text(self, index: int) -> tuple[str, ...]:
        """The captions of one image, without reading the image."""
        return self.texts


class TensorDataset:
    """A dataset in memory: images (n, 3, H, W) in [-1, 1], with one or more captions each."""

    def __init__(self, images: Tensor, texts: list[str] | list[tuple[str, ...]] | None = None) -> None:
        if images.ndim != 4 or (texts is not None and len(texts) != len(images)):
            found = "none" if texts is None else len(texts)
            raise ValueError(
                f"expected images (n, 3, H, W) and n captions, got {tuple(images.shape)} and {found}"
            )
        self.images = images
        self.texts = [(t,) if isinstance(t, str) else tuple(t) for t in texts or [()] * len(images)]

    @property
    def fingerprint(self) -> str:
        """A string that changes when the images change."""
        return digest({"images": self.images})

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Sample:
        return {"image": self.images[index].to(torch.float32), "text": self.text(index)}

    def text(self, index: int) -> tuple[str, ...]:
        """The captions of one image, without reading the image."""
        return self.texts[index]
