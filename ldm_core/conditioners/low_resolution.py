"""A small picture as a Condition: it is joined to the U-Net's input as it is, and the result is larger.

The super-resolution of the latent diffusion paper (arXiv:2112.10752, section 4.4). CompVis's counterpart is
an `Identity` cond stage with the conditioning key "concat" (the configuration bsr_sr).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from ldm_core.condition import Condition
from ldm_core.images import image_to_tensor
from ldm_core.support.printable import shown


@dataclass(frozen=True)
class LowResolutionConfig:
    """Has no fields: there are no weights, and the picture's three channels are those of any picture."""

    concat_channels: ClassVar[int] = 3


@dataclass(frozen=True)
class LowResolution:
    """Small pictures as a Condition with concat (B, 3, h, w) in [-1, 1].

    Inputs: a PIL image, a tensor (3, h, w) or (B, 3, h, w) in [0, 1], or a list of either. A picture of h x w
    pixels gives latents of h x w, so the result is f times as large.
    """

    config: LowResolutionConfig = LowResolutionConfig()

    unconditional: ClassVar[None] = None
    modules: ClassVar[dict[str, nn.Module]] = {}

    def count(self, inputs: Any, name: str = "inputs") -> int:
        """The number of images of the inputs. Raises ValueError, naming `name`, for invalid inputs."""
        return len(small_pictures(inputs, name))

    def latent_size(self, inputs: Any) -> tuple[int, int]:
        """Rows and columns (h, w) of the picture."""
        height, width = small_pictures(inputs).shape[2:]
        return height, width

    def upscaling_inputs(self, images: Tensor, prompt: Any, noise_level: Any) -> Tensor:
        """The inputs for `Sampler.upscale`. Raises ValueError for a prompt or a noise level."""
        for name, value in (("prompt", prompt), ("noise_level", noise_level)):
            if value is not None:
                raise ValueError(f"this model takes no {name}, got {shown(value)}")
        return images

    def __call__(self, inputs: Any) -> Condition:
        return Condition(concat=small_pictures(inputs) * 2 - 1)


def small_pictures(inputs: Any, name: str = "inputs") -> Tensor:
    """Pictures as (B, 3, h, w) in [0, 1]. Raises ValueError for other inputs, or without pixels."""
    try:
        images = image_to_tensor(inputs)
        if images.numel() == 0:
            raise ValueError(f"expected an image with pixels, got {tuple(images.shape)}")
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    return images
