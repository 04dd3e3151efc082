"""What a data set is: numbered samples, of which some may turn out to be unreadable.

A sample is a dictionary: "image" (3, H, W) in [-1, 1] and "text", a tuple of captions of which training draws
one, or whatever else an objective asks for. A damaged picture among a million must not end a run, so a
data set raises `BadSample` for it, and `Readable` reports it and takes the next one.
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


class Samples(Protocol):
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


class Readable:
    """Samples of which none is bad: the place of a bad one is taken by the next good one.

    What takes its place depends on the data alone, so that every process and every repeated run sees the
    same. A sample's "skipped" has the messages of the bad ones before it.
    """

    def __init__(self, samples: Samples) -> None:
        self.samples = samples
        self._bad: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        skipped: list[str] = []
        for k in range(len(self)):
            place = (index + k) % len(self)
            if place not in self._bad:
                try:
                    return self.samples[place] | {"skipped": tuple(skipped)}
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


class Captioned:
    """The pictures of another data set, each with these captions: `Captioned(samples, "a sks dog")`."""

    def __init__(self, samples: Samples, texts: str | Sequence[str]) -> None:
        self.samples = samples
        self.texts = (texts,) if isinstance(texts, str) else tuple(texts)

    @property
    def fingerprint(self) -> str:
        return self.samples.fingerprint

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        return self.samples[index] | {"text": self.texts}

    def text(self, index: int) -> tuple[str, ...]:
        return self.texts


class TensorSamples:
    """Samples that are in memory: images (n, 3, H, W) in [-1, 1], and a caption or several for each."""

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
