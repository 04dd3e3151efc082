"""A picture with a hole as a Condition: the visible part's latents and the mask join the U-Net's input.

The inpainting of the latent diffusion paper (arXiv:2112.10752, section 4.5; configuration inpainting_big).
CompVis's counterpart is `scripts/inpaint.py`:

    c = [E(2 (1 - m) x - 1), 2 m' - 1]      m: 1 where the picture x is repainted; m': m at the latents' size

In contrast to Stable Diffusion's inpainting (`ldm_core.inpainting`), hidden pixels are black, the mask
follows the latents, and its values are -1 and 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm_core.condition import Condition
from ldm_core.conditioners.first_stage import encoder_of
from ldm_core.images import image_to_tensor, mask_to_tensor
from ldm_core.protocols import Autoencoder
from ldm_core.support.limits import MAX_SIZE, require_whole


@dataclass(frozen=True)
class MaskedImageConfig:
    """downsampling: the first stage's factor f from pixels to latents."""

    downsampling: int = 4

    def __post_init__(self) -> None:
        require_whole("masked image", self, "downsampling", 1, MAX_SIZE)


@dataclass(frozen=True)
class MaskedImage:
    """Pairs (image, mask) as a Condition with concat (B, C + 1, H / f, W / f).

    Inputs: a tuple (image, mask), or a list of such tuples of one size. The image is a PIL image or a tensor
    (3, H, W) or (B, 3, H, W) in [0, 1], the mask a PIL image or a tensor (H, W), (1, H, W) or (B, 1, H, W) in
    [0, 1]; pixels with a mask of 0.5 or more are repainted.

    encode: images (B, 3, H, W) in [-1, 1], float32 on the CPU, to latents (B, C, H / f, W / f): the first
        stage, before its quantisation and without a scale factor. A model sets it to its own autoencoder,
        which is therefore not one of the conditioner's `modules`.
    """

    encode: Callable[[Tensor], Tensor] | None = None
    config: MaskedImageConfig = MaskedImageConfig()

    unconditional: ClassVar[None] = None
    modules: ClassVar[dict[str, nn.Module]] = {}
    hides_masked: ClassVar[bool] = True

    def with_autoencoder(self, autoencoder: Autoencoder) -> MaskedImage:
        """The same conditioner with this first stage."""
        return replace(self, encode=encoder_of(autoencoder))

    def count(self, inputs: Any, name: str = "inputs") -> int:
        """The number of images of the inputs. Raises ValueError, naming `name`, for invalid inputs."""
        return len(self._pairs(inputs, name)[0])

    def latent_size(self, inputs: Any) -> tuple[int, int]:
        """Rows and columns (h, w) of the latents."""
        height, width = self._pairs(inputs, "inputs")[0].shape[2:]
        return height // self.config.downsampling, width // self.config.downsampling

    def __call__(self, inputs: Any) -> Condition:
        image, mask = self._pairs(inputs, "inputs")
        if self.encode is None:
            raise ValueError("a MaskedImage outside a model needs encode=, its first stage")
        hard = (mask >= 0.5).to(image)
        latents = self.encode((1 - hard) * image * 2 - 1)
        small = F.interpolate(hard, size=latents.shape[2:], mode="nearest")
        return Condition(concat=torch.cat([latents, (small * 2 - 1).to(latents)], dim=1))

    def _pairs(self, inputs: Any, name: str) -> tuple[Tensor, Tensor]:
        image, mask = _pairs(inputs, name)
        if min(image.shape[2:]) < self.config.downsampling:
            raise ValueError(
                f"expected {name} of at least {self.config.downsampling} pixels a side, got "
                f"{tuple(image.shape)}"
            )
        return image, mask


def _pairs(inputs: Any, name: str) -> tuple[Tensor, Tensor]:
    """The images (B, 3, H, W) and masks (B, 1, H, W) in [0, 1]."""
    pairs = [inputs] if isinstance(inputs, tuple) else inputs
    if not isinstance(pairs, Sequence) or isinstance(pairs, str) or len(pairs) == 0:
        raise ValueError(f"expected {name} as a tuple (image, mask) or a list of them, got {_kind(inputs)}")
    images, masks = [], []
    for pair in pairs:
        if not isinstance(pair, tuple) or len(pair) != 2:
            raise ValueError(f"expected {name} as tuples (image, mask), got {_kind(pair)}")
        image, mask = image_to_tensor(pair[0]), mask_to_tensor(pair[1])
        if image.shape[2:] != mask.shape[2:] or len(mask) not in (1, len(image)) or image.numel() == 0:
            raise ValueError(
                f"expected an image and a mask of the same size, got {tuple(image.shape)} and "
                f"{tuple(mask.shape)}"
            )
        images.append(image)
        masks.append(mask.expand(len(image), -1, -1, -1))
    return image_to_tensor(images), mask_to_tensor(masks)


def _kind(value: Any) -> str:
    return f"{len(value)} values" if isinstance(value, tuple) else type(value).__name__
