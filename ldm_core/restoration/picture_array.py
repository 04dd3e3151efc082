"""A PIL image as an array of levels, without a copy of it: parts of it are read and written as tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from PIL.Image import Image

# channels, type and level of white of the modes
MODES: dict[str, tuple[int, torch.dtype, int]] = {
    "L": (1, torch.uint8, 255),
    "LA": (2, torch.uint8, 255),
    "RGB": (3, torch.uint8, 255),
    "RGBA": (4, torch.uint8, 255),
    "I;16": (1, torch.int32, 65535),
}


class PictureArray:
    """image[rows, columns] is a tensor (h, w, C); rows and columns are slices without a step.

    shape, dtype: of the array (H, W, C), as a tensor's. top: the level of white.
    """

    def __init__(self, image: Image) -> None:
        channels, self.dtype, self.top = MODES[image.mode]
        self.image = image
        self.shape = (image.height, image.width, channels)

    @classmethod
    def blank(cls, size: tuple[int, int], mode: str) -> PictureArray:
        from PIL import Image as PIL

        return cls(PIL.new(mode, size[::-1]))

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, where: Any) -> Tensor:
        import numpy as np

        left, top, right, bottom = self._box(where)
        size = (max(bottom - top, 0), max(right - left, 0))
        if 0 in size:
            return torch.zeros(*size, self.shape[2], dtype=self.dtype)
        values = np.asarray(self.image.crop((left, top, right, bottom)))
        values = values.astype(np.int32 if self.dtype == torch.int32 else np.uint8)  # its own memory
        return torch.from_numpy(values).reshape(*size, self.shape[2])

    def __setitem__(self, where: Any, pixels: Tensor) -> None:
        import numpy as np
        from PIL import Image as PIL

        left, top, right, bottom = self._box(where)
        values = pixels.expand(bottom - top, right - left, self.shape[2]).numpy()
        values = values.astype(np.uint16 if self.dtype == torch.int32 else np.uint8)
        self.image.paste(PIL.fromarray(values[..., 0] if self.shape[2] == 1 else values), (left, top))

    def clone(self) -> PictureArray:
        return PictureArray(self.image.copy())

    def _box(self, where: Any) -> tuple[int, int, int, int]:
        """left, top, right, bottom of a slice of rows, or of slices of rows and columns."""
        rows, columns = where if isinstance(where, tuple) else (where, slice(None))
        top, bottom, _ = rows.indices(self.shape[0])
        left, right, _ = columns.indices(self.shape[1])
        return left, top, right, bottom
