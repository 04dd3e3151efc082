"""RetinaFace as a detector: from a photo to faces.

A photo whose shorter side has fewer than `side` pixels is enlarged to it, as in CodeFormer's script, which
never shrinks one; facexlib, which GFPGAN's uses, takes every photo as it is. Of the anchors whose score is
above the threshold, each suppresses those with lower scores that overlap with it by more than OVERLAP.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ldm_core.restoration.face import Face, suppress
from ldm_core.restoration.inputs import placement
from ldm_core.restoration.mtcnn.cascade import area_band
from ldm_core.restoration.photo import open_photo
from ldm_core.restoration.retinaface.anchors import Found, decode
from ldm_core.restoration.retinaface.network import RetinaFace
from ldm_core.restoration.warping import Pixels, resize
from ldm_core.support.limits import is_number, is_whole
from ldm_core.support.printable import shown

SIDE = 640  # pixels
THRESHOLD = 0.8  # CodeFormer's; facexlib's is 0.97
OVERLAP = 0.4  # intersection over union
MOST_PIXELS = 2**23  # of a scaled photo: larger ones are scaled less, or down
MOST = 5000  # candidates; the best ones are kept


@dataclass(frozen=True)
class FaceDetector:
    """The faces in a photo by a RetinaFace, the most probable first; `detector=` of `detect` and `restore`.

    network    what `restoration.load(…).network` is for a file of RetinaFace
    threshold  in [0, 1]; faces have a score above it
    side       the fewest pixels of the shorter side of the photo for the network; photos over 8 megapixels
               are made smaller. None: the photo as it is, whose memory grows with the photo

    Raises ValueError for other values.
    """

    network: RetinaFace
    threshold: float = THRESHOLD
    side: int | None = SIDE

    def __post_init__(self) -> None:
        if not isinstance(self.network, RetinaFace):
            raise ValueError(f"expected a RetinaFace as the network, not {type(self.network).__name__}")
        if not (is_number(self.threshold) and 0 <= self.threshold <= 1):
            raise ValueError(f"threshold must be a number in [0, 1], not {shown(self.threshold)}")
        if self.side is not None and not is_whole(self.side, 16, 4096):
            raise ValueError(f"side must be a whole number in 16..4096, or None, not {shown(self.side)}")

    def __call__(self, photo: Any) -> list[Face]:
        """photo: a PIL image of any mode, upright or with an orientation, or a tensor (3, H, W) in [0, 1].

        Raises ValueError for other photos.
        """
        return self.find(open_photo(photo).levels())

    @torch.inference_mode()
    def find(self, pixels: Pixels) -> list[Face]:
        """The faces in a photo (H, W, 3), uint8 RGB."""
        height, width = pixels.shape[:2]
        *size, scale = self._size(height, width)
        x = _scaled(pixels, (size[0], size[1])).to(**placement(self.network))
        boxes, logits, points = (one.float() for one in self.network(x))  # 16-bit types hold no positions
        found = decode((boxes, logits, points), *size)
        return _faces(found, self.threshold, 1 / scale)

    def _size(self, height: int, width: int) -> tuple[int, int, float]:
        """The height and width for the network, and the scale by which both were multiplied and rounded."""
        if self.side is None:
            return height, width, 1.0
        scale = min(max(1.0, self.side / min(height, width)), (MOST_PIXELS / (height * width)) ** 0.5)
        return max(1, int(height * scale)), max(1, int(width * scale)), scale


def _scaled(pixels: Pixels, size: tuple[int, int]) -> Tensor:
    """(H, W, 3) as (1, 3, h, w), float32, in [0, 255]: means of areas if it is smaller, else bilinear."""
    if size[0] < pixels.shape[0]:
        return area_band(pixels, range(size[0]), *size)
    if size != tuple(pixels.shape[:2]):
        pixels = resize(pixels, size, "bilinear", lambda band: (band + 0.5).floor())
    return pixels[:].permute(2, 0, 1)[None].float()


def _faces(found: Found, threshold: float, scale: float) -> list[Face]:
    """The faces of the first photo of a batch, with places that are multiplied by `scale`."""
    boxes, scores, points = (one[0].float().cpu() for one in (found.boxes, found.scores, found.points))
    likely = scores > threshold
    boxes, scores, points = boxes[likely], scores[likely], points[likely]
    best = scores.argsort(descending=True, stable=True)[:MOST]
    kept = [int(best[k]) for k in suppress(boxes[best].numpy(), scores[best].numpy(), OVERLAP)]
    return [Face(boxes[k] * scale, float(scores[k]), points[k] * scale) for k in kept]
