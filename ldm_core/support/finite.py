"""Finds NaN and infinity in latents, which decode to black pictures.

They come from overflow in 16-bit types, from a guidance scale that is too high, and from damaged weights.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ldm_core.support.printable import few
from ldm_core.support.warn import warn

SHOWN = 4  # images that a warning names


class FiniteCheck:
    """Finds the images of a batch with NaN or infinity, and the step of their first occurrence.

    The flags stay on the latents' device until the end, so that no step has to synchronise with it.
    """

    def __init__(self) -> None:
        self._latents: list[Tensor] = []  # one (B,) of flags per step: True if all values are finite
        self._pixels: Tensor | None = None

    def note(self, latent: Tensor) -> None:
        """Check the latents (B, C, h, w) after the next step."""
        self._latents.append(_finite_rows(latent))

    def note_pixels(self, images: Tensor) -> None:
        """Check the decoded images (B, 3, H, W)."""
        self._pixels = _finite_rows(images)

    def found(self) -> dict[int, str]:
        """A description for each image in the batch with NaN or infinity, by its index."""
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
        """Return `found`, and warn if it names any image."""
        found = self.found()
        if found:
            named = few([f"image {image}: {what}" for image, what in found.items()], SHOWN, "; ")
            warn(
                f"{named}. The picture is unusable. Try dtype=torch.float32 or torch.bfloat16, or a lower "
                "guidance_scale, and check the weights"
            )
        return found


def _finite_rows(tensor: Tensor) -> Tensor:
    return tensor.isfinite().flatten(1).all(dim=1)


def _false(flags: Tensor) -> list[int]:
    """The indices of the flags that are False."""
    return (~flags).nonzero().flatten().tolist()
