"""Guidance of a model that edits pictures: one scale for the picture, and one for the instruction.

    guided = e_0 + s_I (e_I - e_0) + s_T (e_TI - e_I)

e_TI sees the picture and the instruction, e_I the picture alone, and e_0 neither: its picture's latents are
zero. Brooks et al. 2023, "InstructPix2Pix: Learning to Follow Image Editing Instructions" (arXiv:2211.09800,
equation 3). At s_I = s_T = 1 it is e_TI; at s_I = 1 it is classifier-free guidance by the instruction.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from ldm_core.condition import Condition
from ldm_core.guidance.classifier_free import ClassifierFreeGuidance, Guidance, Network

IMAGE_SCALE = 1.5  # the default of the authors' script


@dataclass(frozen=True)
class ImageAndTextGuidance:
    """Guidance with an image scale s_I; the sampler's `guidance_scale` is s_T.

    The conditional side has the picture as `concat`. The unconditional side has an empty instruction or a
    negative prompt. Predictions with a weight of 0 are not evaluated.

    image_scale: larger values keep more of the picture. batched: as in `ClassifierFreeGuidance`.
    Raises ValueError for an image_scale that is not finite.
    """

    image_scale: float = IMAGE_SCALE
    batched: bool = True

    def __post_init__(self) -> None:
        scale = self.image_scale
        if not isinstance(scale, Real) or isinstance(scale, bool) or not math.isfinite(scale):
            raise ValueError(f"image_scale must be a finite number, not {scale!r:.60}")

    def __call__(
        self,
        network: Network,
        x: Tensor,
        t: float,
        cond: Condition,
        uncond: Condition,
        scale: float,
        progress: float,
    ) -> Tensor:
        if cond.concat is None:
            raise ValueError(
                "ImageAndTextGuidance requires a condition with concat, the latents of a picture: it is for "
                "models that edit pictures"
            )
        image = cond.concat
        weights = {"text and image": scale, "image": self.image_scale - scale, "none": 1 - self.image_scale}
        conditions = {
            "text and image": cond,
            "image": uncond.having(concat=image, objects=uncond.objects),
            "none": uncond.having(concat=torch.zeros_like(image), objects=uncond.objects),
        }
        used = [name for name, weight in weights.items() if weight != 0]
        predictions = self._predictions(network, x, t, [conditions[name] for name in used])
        guided = weights[used[0]] * predictions[0]
        for name, prediction in zip(used[1:], predictions[1:]):
            guided = guided + weights[name] * prediction
        return guided

    def _predictions(
        self, network: Network, x: Tensor, t: float, conditions: list[Condition]
    ) -> list[Tensor]:
        if not self.batched:
            return [network(x, t, condition) for condition in conditions]
        both = network(torch.cat([x] * len(conditions)), t, Condition.cat(conditions))
        return list(both.chunk(len(conditions)))


def default_guidance(conditioner: Any) -> Guidance:
    """The guidance of a model with this conditioner, as its authors sample."""
    scale: float | None = getattr(conditioner, "image_guidance_scale", None)
    return ClassifierFreeGuidance() if scale is None else ImageAndTextGuidance(scale)
