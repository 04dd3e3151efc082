"""What a data set is: numbered samples, of which some may turn out to be unreadable.

A sample is a dictionary: "image" (3, H, W) in [-1, 1] and "text", a tuple of captions of which training draws
one, or whatever else an objective asks for. A damaged picture among a million must not end a run, so a
data set raises `BadSample` for it, and `SkipUnreadable` reports it and takes the next one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import default_collate

from ldm_core.images import image_to_tensor, open_picture, to_rgb
from ldm_core.support.printable import shown_error

Sample = dict[str, Any]
ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")  # of pictures


def digest(tensors: Mapping[str, Tensor]) -> str:
    """A fingerprint of tensors: SHA-256 of their names, types, shapes and bytes."""
    result = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        tensor = tensor.detach().cpu().contiguous()
        result.update(repr((name, str(tensor.dtype), tuple(tensor.shape))).encode())
        result.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return result.hexdigest()


class BadSample(ValueError):
    """A sample that cannot be read; the message names it and says why."""


class Dataset(Protocol):
    """A data set: `len(samples)`, and `samples[index]`, which raises BadSample where it is damaged.

    text          a sample's captions alone, which may be none
    fingerprint   a text that changes when the pictures do
    """

    @property
    def fingerprint(self) -> str: ...
    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Sample: ...
    def text(self, index: int, /) -> tuple[str, ...]: ...


def decode_picture(source: Path | bytes, name: str, size: int) -> Tensor:
    """A picture's file or its bytes to (3, size, size) in [-1, 1]: its shorter side scaled, its middle cut
    out.

    See `ldm_core.images.open_picture` for formats and limits. Raises BadSample, whatever is wrong with it.
    """
    from PIL import Image, ImageOps

    try:
        square = ImageOps.fit(to_rgb(open_picture(source)), (size, size), Image.Resampling.LANCZOS)
        return image_to_tensor(square)[0] * 2 - 1
    except Exception as error:  # also a picture that is too narrow to be scaled, or too large for memory
        raise BadSample(f"{name}: cannot be read as a picture ({shown_error(error)})") from error


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
        raise ValueError(f"none of the {len(self)} samples can be read, such as {skipped[0]}")


def collate(samples: list[Sample]) -> dict[str, Any]:
    """A batch: tensors and numbers are stacked, everything else becomes a list."""
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
        return self.dataset.fingerprint

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Sample:
        return self.dataset[index] | {"text": self.texts}

    def text(self, index: int) -> tuple[str, ...]:
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
        return digest({"images": self.images})

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Sample:
        return {"image": self.images[index].to(torch.float32), "text": self.text(index)}

    def text(self, index: int) -> tuple[str, ...]:
        return self.texts[index]
