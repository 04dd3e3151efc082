"""Finds NaN and infinity: a latent that has them decodes to a black picture.

Half types overflow, a guidance scale can be too much for a model or a scheduler, and weights can be damaged.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from ldm_core.support.printable import few

SHOWN = 4  # images that a warning names


class FiniteCheck:
    """Finds the images of a batch with NaN or infinity, and the step since which they have them.

    The flags stay on the latents' device until the end, so that no step waits for it.
    """

    def __init__(self) -> None:
        self._latents: list[Tensor] = []  # a (B,) of flags for each step: True where all is finite
        self._pixels: Tensor | None = None

    def note(self, latent: Tensor) -> None:
        """Look at the latents (B, C, h, w) after the next step."""
        self._latents.append(_finite_rows(latent))

    def note_pixels(self, images: Tensor) -> None:
        """Look at the decoded images (B, 3, H, W)."""
        self._pixels = _finite_rows(images)

    def found(self) -> dict[int, str]:
        """What was not finite, by the number of the image in the batch; empty where all is well."""
        found: dict[int, str] = {}
        if self._latents:
            finite = torch.stack(self._latents).cpu()  # (steps, B)
            for image in _false(finite[-1]):
                first = _false(finite[:, image])[0] + 1
                found[image] = f"latent with NaN or infinity since step {first} of {len(finite)}"
        for image in [] if self._pixels is None else _false(self._pixels):
            found.setdefault(image, "decoded to NaN or infinity")
        return found

    def warn(self) -> dict[int, str]:
        """What `found` returns, with a warning that names the images if there are any."""
        found = self.found()
        if found:
            named = few([f"image {image}: {what}" for image, what in found.items()], SHOWN, "; ")
            warnings.warn(
                f"{named}. The picture is unusable. Try dtype=torch.float32 or torch.bfloat16, or a lower "
                "guidance_scale, and check the weights",
                stacklevel=4,
            )
        return found


def _finite_rows(tensor: Tensor) -> Tensor:
    return tensor.isfinite().flatten(1).all(dim=1)


def _false(flags: Tensor) -> list[int]:
    """The places of the flags that are False."""
    places: list[int] = (~flags).nonzero().flatten().tolist()
    return places
