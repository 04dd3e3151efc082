"""A picture and an instruction as a Condition: InstructPix2Pix, which edits pictures.

The mode of the picture's latents, not multiplied by the latent scale, joins the U-Net's input (Brooks et al.
2023, arXiv:2211.09800, section 3.2). The authors' counterpart is `LatentDiffusion` of
`ldm.models.diffusion.ddpm_edit` with the conditioning key "hybrid".
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from ldm_core.condition import Condition
from ldm_core.conditioners.fields import Fields, one_image, require_one_size, split_fields
from ldm_core.conditioners.first_stage import Encode, encoder_of
from ldm_core.conditioners.text import TextConditioner
from ldm_core.images import to_rgb
from ldm_core.protocols import Autoencoder
from ldm_core.support.limits import MAX_SIZE, require_whole

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class InstructionConfig:
    """downsampling: the first stage's factor f from pixels to latents; channels: of its latents."""

    downsampling: int = 8
    channels: int = 4

    def __post_init__(self) -> None:
        require_whole("instruction", self, "downsampling channels", 1, MAX_SIZE)

    @property
    def concat_channels(self) -> int:
        """The channels that are joined to the latent."""
        return self.channels


@dataclass(frozen=True)
class Instruction:
    """Pictures and instructions as a Condition with context and concat (B, C, H / f, W / f).

    Inputs: {"prompt": str, "image": picture}, or a list of them with pictures of one size, whose sides are
    multiples of f. A picture is a PIL image or a tensor (3, H, W) in [0, 1]. The prompt says what to change,
    such as "make it winter". A prompt alone, as for guidance, gives the context alone.

    encode: images (B, 3, H, W) in [-1, 1], float32 on the CPU, to latents (B, C, H / f, W / f). A model sets
        it to its own autoencoder, which is therefore not one of the conditioner's `modules`.
    """

    text: TextConditioner
    encode: Encode | None = None
    config: InstructionConfig = InstructionConfig()

    unconditional: ClassVar[str] = ""
    image_guidance_scale: ClassVar[float] = 1.5

    @property
    def modules(self) -> dict[str, nn.Module]:
        """The networks of the conditioner, by name. They move and are saved with the model."""
        return self.text.modules

    def with_autoencoder(self, autoencoder: Autoencoder) -> Instruction:
        """The same conditioner with this first stage."""
        return replace(self, encode=encoder_of(autoencoder))

    def count(self, inputs: Any, name: str = "inputs") -> int:
        """The number of images of the inputs. Raises ValueError, naming `name`, for invalid inputs."""
        prompts, rows = split_fields(inputs, name, ("image",))
        if rows is not None:
            self._pictures(rows, name)
        return len(prompts)

    def latent_size(self, inputs: Any) -> tuple[int, int] | None:
        """Rows and columns (h, w) of the latents. Raises ValueError for prompts without pictures."""
        rows = split_fields(inputs, "inputs", ("image",))[1]
        if rows is None:
            raise ValueError(
                "this model edits pictures: call edit(image, 'make it winter'), or pass inputs as "
                "{'prompt': 'make it winter', 'image': picture}"
            )
        height, width = self._pictures(rows, "inputs")[0].shape[2:]
        return height // self.config.downsampling, width // self.config.downsampling

    def __call__(self, inputs: Any) -> Condition:
        prompts, rows = split_fields(inputs, "inputs", ("image",))
        context = self.text(prompts).context
        if rows is None:
            return Condition(context=context)
        if self.encode is None:
            raise ValueError("an Instruction outside a model needs encode=, its first stage")
        distinct = {id(row["image"]): picture for row, picture in zip(rows, self._pictures(rows, "inputs"))}
        latents = {key: self.encode(picture * 2 - 1) for key, picture in distinct.items()}
        return Condition(context=context, concat=torch.cat([latents[id(row["image"])] for row in rows]))

    def _pictures(self, rows: list[Fields], name: str) -> list[Tensor]:
        """The pictures, each (1, 3, H, W) in [0, 1]."""
        if any(row.get("image") is None for row in rows):
            raise ValueError(f"{name}: expected an image to edit, got none")
        pictures = [one_image(row["image"], name) for row in rows]
        require_one_size(pictures, name)
        height, width = pictures[0].shape[2:]
        if height % self.config.downsampling or width % self.config.downsampling:
            raise ValueError(
                f"{name}: expected pictures whose sides are multiples of {self.config.downsampling}, got "
                f"{width}x{height}; `fitted` crops them"
            )
        return pictures


def fitted(image: Image, size: int = 512, unit: int = 64) -> Image:
    """A PIL image in RGB as the authors' script takes it: scaled to about `size`, and cropped a little.

    Where the longer side is `size`, the shorter one is rounded up to a multiple of `unit`. The picture is
    scaled to this shorter side, and its longer one cropped to a multiple (Lanczos).
    Raises ValueError for a picture that is too narrow for this.
    """
    from PIL import Image as PIL
    from PIL import ImageOps

    image = to_rgb(image)
    width, height = image.size
    factor = size / max(width, height)
    factor = math.ceil(min(width, height) * factor / unit) * unit / min(width, height)
    target = (int(width * factor) // unit * unit, int(height * factor) // unit * unit)
    if min(target) < 1 or max(target) > 4 * size:
        raise ValueError(
            f"expected a picture that is less narrow, got {width}x{height} pixels, which would become "
            f"{target[0]}x{target[1]}"
        )
    return ImageOps.fit(image, target, PIL.Resampling.LANCZOS)
