"""CLIP embeddings as a Condition: those of a text or picture and of similar pictures, one token each.

Retrieval-augmented diffusion (Blattmann et al. 2022, arXiv:2204.11824; Rombach et al. 2022,
arXiv:2207.13038). CompVis's counterparts are `scripts/knn2img.py` and an `Identity` cond stage.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ldm_core.clip import CLIP, preprocess_stretched
from ldm_core.condition import Condition
from ldm_core.conditioners.retriever import Retriever, unit_vectors
from ldm_core.conditioners.text import as_prompts
from ldm_core.support.limits import MAX_SIZE, is_whole, require_whole
from ldm_core.support.printable import shown


@dataclass(frozen=True)
class RetrievalConfig:
    """width: of the CLIP embeddings."""

    width: int = 768

    def __post_init__(self) -> None:
        require_whole("retrieval", self, "width", 1, MAX_SIZE)

    @property
    def context_dim(self) -> int:
        """The width of the context."""
        return self.width


@dataclass(frozen=True, eq=False)
class Retrieval:
    """CLIP embeddings, texts or pictures as a Condition with context (B, 1 + k, width), each of length 1.

    Inputs: embeddings (B, n, width), used as they are but for their lengths; or, with a `clip`, a text or a
    list of texts, or a picture, a list of pictures, or a tensor (B, 3, H, W) in [0, 1]. A text or picture
    gives its own embedding as the first token, and with a `retriever` those of its `neighbours` nearest
    pictures after it, the nearest first.

    clip: ViT-L/14 for the published model. The model's file does not contain it, so it is not one of the
        conditioner's `modules`, and moves by its own `to`.
    """

    clip: CLIP | None = None
    retriever: Retriever | None = None
    neighbours: int = 10
    config: RetrievalConfig = RetrievalConfig()

    unconditional: ClassVar[None] = None
    modules: ClassVar[dict[str, nn.Module]] = {}
    guidance_scale: ClassVar[float] = 5.0

    def __post_init__(self) -> None:
        width = self.config.width
        if self.clip is not None and self.clip.config.image_encoder.projection_dim != width:
            found = self.clip.config.image_encoder.projection_dim
            raise ValueError(f"expected a CLIP with embeddings of {width} numbers, got {found}")
        if self.retriever is None:
            return
        if self.retriever.width != width:
            raise ValueError(
                f"expected a retriever of embeddings of {width} numbers, got {self.retriever.width}"
            )
        if not is_whole(self.neighbours, 0, len(self.retriever)):
            raise ValueError(
                f"neighbours must be an int in 0..{len(self.retriever)}, the retriever's number of images, "
                f"not {shown(self.neighbours)}"
            )

    def count(self, inputs: Any, name: str = "inputs") -> int:
        """The number of images of the inputs. Raises ValueError, naming `name`, for invalid inputs."""
        if isinstance(inputs, Tensor) and inputs.ndim == 3:
            return len(self._tokens(inputs, name))
        self._clip(name)
        return len(as_prompts(inputs, name) if _is_text(inputs) else self._pixels(inputs, name))

    def __call__(self, inputs: Any) -> Condition:
        if isinstance(inputs, Tensor) and inputs.ndim == 3:
            return Condition(context=self._tokens(inputs, "inputs"))
        clip = self._clip("inputs")
        if _is_text(inputs):
            embeddings = clip.encode_text(as_prompts(inputs, "inputs"))
        else:
            pixels = self._pixels(inputs, "inputs")
            embeddings = clip.image_encoder(pixels.to(clip.logit_scale))  # with its device and dtype
        query = unit_vectors(embeddings.float().cpu(), "CLIP's embeddings")
        tokens = query[:, None]
        if self.retriever is not None and self.neighbours > 0:
            found = self.retriever.neighbours(query, self.neighbours)
            tokens = torch.cat([tokens, found], dim=1)
        return Condition(context=tokens)

    def unconditional_for(self, condition: Condition) -> Condition:
        """The unconditional Condition of guidance: zeros in the shape of the condition's context."""
        if condition.context is None:
            raise ValueError("expected a condition with a context, got one without")
        return Condition(context=torch.zeros_like(condition.context))

    @property
    def _shape(self) -> str:
        return f"in a floating-point tensor (B, n, {self.config.width})"

    def _clip(self, name: str) -> CLIP:
        if self.clip is None:
            raise ValueError(f"expected {name} as embeddings {self._shape}; texts and pictures need a clip")
        return self.clip

    def _tokens(self, inputs: Tensor, name: str) -> Tensor:
        if inputs.shape[2] != self.config.width or inputs.numel() == 0 or not inputs.is_floating_point():
            found = f"{tuple(inputs.shape)} of {inputs.dtype}"
            raise ValueError(f"expected {name} as embeddings {self._shape}, got {found}")
        return unit_vectors(inputs.detach().float(), name)

    def _pixels(self, inputs: Any, name: str) -> Tensor:
        """Pictures as CLIP's encoder takes them."""
        try:
            return preprocess_stretched(inputs, self._clip(name).config.image_encoder, antialias=False)
        except ValueError as error:
            raise ValueError(f"{name}: expected embeddings, texts or pictures: {error}") from error


def _is_text(inputs: Any) -> bool:
    several = isinstance(inputs, Sequence) and len(inputs) > 0 and isinstance(inputs[0], str)
    return isinstance(inputs, str) or several
