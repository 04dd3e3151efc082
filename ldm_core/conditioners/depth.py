"""A depth map and a prompt as a Condition: the map joins the input of Stable Diffusion 2's depth U-Net.

    c = 2 (d - min d) / (max d - min d + 0.001) - 1        d: the map at the latents' size

d is MiDaS's inverse depth (Ranftl et al. 2020, arXiv:1907.01341): larger values are nearer. Stability AI's
counterpart is `LatentDepth2ImageDiffusion` of `ldm.models.diffusion.ddpm`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm_core.condition import Condition
from ldm_core.conditioners.fields import Fields, one_image, require_one_size, split_fields
from ldm_core.conditioners.text import TextConditioner
from ldm_core.support.limits import MAX_SIZE, require_whole


@dataclass(frozen=True)
class DepthConfig:
    """downsampling: the first stage's factor f from pixels to latents."""

    downsampling: int = 8

    concat_channels: ClassVar[int] = 1

    def __post_init__(self) -> None:
        require_whole("depth", self, "downsampling", 1, MAX_SIZE)


@dataclass(frozen=True)
class Depth:
    """Depth maps and prompts as a Condition with context and concat (B, 1, H / f, W / f) in [-1, 1].

    Inputs: {"prompt": str, "depth": map} or {"prompt": str, "image": picture}, or a list of them with maps of
    one size. A depth map is a tensor (H, W) or (1, H, W) of any finite values, or a PIL image of grey values
    (mode L, I, I;16 or F); larger values are nearer. It has the size of the result in pixels, unless an
    "image" of that size is given, too. The prompt is empty by default, and a picture alone is
    {"image": picture}. A prompt alone, as for guidance, gives the context alone.

    estimate: a picture (1, 3, H, W) in [0, 1] to its depth map of any size, for images without a map.
    """

    text: TextConditioner
    estimate: Callable[[Tensor], Tensor] | None = None
    config: DepthConfig = DepthConfig()

    unconditional: ClassVar[str] = ""

    @property
    def modules(self) -> dict[str, nn.Module]:
        """The networks of the conditioner, by name. They move and are saved with the model."""
        return self.text.modules

    def count(self, inputs: Any, name: str = "inputs") -> int:
        """The number of images of the inputs. Raises ValueError, naming `name`, for invalid inputs."""
        prompts, rows = split_fields(inputs, name, ("depth", "image"))
        if rows is not None:
            self._sized(rows, name)
        return len(prompts)

    def latent_size(self, inputs: Any) -> tuple[int, int] | None:
        """Rows and columns (h, w) of the latents; None for prompts alone."""
        rows = split_fields(inputs, "inputs", ("depth", "image"))[1]
        return None if rows is None else self._size(self._sized(rows, "inputs")[0])

    def __call__(self, inputs: Any) -> Condition:
        prompts, rows = split_fields(inputs, "inputs", ("depth", "image"))
        context = self.text(prompts).context
        if rows is None:
            return Condition(context=context)
        size = self._size(self._sized(rows, "inputs")[0])
        concat = torch.cat([relative_depth(self._map(row, "inputs"), size) for row in rows])
        return Condition(context=context, concat=concat)

    def _size(self, sized: Tensor) -> tuple[int, int]:
        return sized.shape[-2] // self.config.downsampling, sized.shape[-1] // self.config.downsampling

    def _sized(self, rows: list[Fields], name: str) -> list[Tensor]:
        """For each image, the picture or map that has the result's size."""
        tensors = []
        for row in rows:
            image, depth = row.get("image"), row.get("depth")
            if image is None and depth is None:
                raise ValueError(f"{name}: expected a depth map or an image, got neither")
            if depth is None and self.estimate is None:
                raise ValueError(
                    f"{name}: an image without a depth map needs estimate= of the conditioner, a function "
                    "from a picture (1, 3, H, W) in [0, 1] to its depth"
                )
            given = [] if depth is None else [as_depth(depth, name)]
            tensors.append(given[0] if image is None else one_image(image, name))
        require_one_size(tensors, name)
        if min(self._size(tensors[0])) < 1:
            found = tuple(tensors[0].shape[-2:])
            raise ValueError(
                f"{name}: expected {self.config.downsampling} pixels or more, got {found} (H, W)"
            )
        return tensors

    def _map(self, row: Fields, name: str) -> Tensor:
        """The depth map (1, 1, H, W), given or estimated."""
        if row.get("depth") is not None:
            return as_depth(row["depth"], name)
        assert self.estimate is not None
        return as_depth(self.estimate(one_image(row["image"], name)), f"{name}: the result of estimate")


def as_depth(depth: Any, name: str) -> Tensor:
    """A depth map as (1, 1, H, W), float32 on the CPU. Raises ValueError for anything else, and for NaN."""
    import numpy as np
    from PIL import Image as PIL

    if isinstance(depth, PIL.Image) and depth.mode in ("L", "I", "I;16", "F"):
        depth = torch.from_numpy(np.array(depth).astype(np.float32))
    if not isinstance(depth, Tensor):
        found = f"an image of mode {depth.mode}" if isinstance(depth, PIL.Image) else type(depth).__name__
        raise ValueError(f"{name}: expected depth as a tensor (H, W) or a grey PIL image, got {found}")
    single = all(length == 1 for length in depth.shape[:-2])
    if depth.ndim not in (2, 3, 4) or not single or depth.numel() == 0 or depth.is_complex():
        raise ValueError(
            f"{name}: expected depth of (H, W) or (1, H, W), got {tuple(depth.shape)} of {depth.dtype}"
        )
    depth = depth.detach().cpu().float().reshape(1, 1, *depth.shape[-2:])
    if not bool(depth.isfinite().all()):
        raise ValueError(f"{name}: expected finite depth values, got NaN or infinity")
    return depth


def relative_depth(depth: Tensor, size: tuple[int, int]) -> Tensor:
    """A depth map (1, 1, H, W) at another size (h, w) and with values in [-1, 1]: (1, 1, h, w)."""
    small = F.interpolate(depth, size, mode="bicubic", align_corners=False)
    low, high = small.aminmax()
    return 2 * (small - low) / (high - low + 0.001) - 1
