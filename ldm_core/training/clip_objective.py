"""CLIP's training objective: match the images and captions of a batch.

The loss is that of `ldm_core.training.contrastive` (Radford et al. 2021, arXiv:2103.00020, figure 3).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ldm_core.clip.model import CLIP
from ldm_core.training.contrastive import clamp_log_scale_, contrastive_loss, gather_rows
from ldm_core.training.distributed import several_processes
from ldm_core.training.objective import Batch, Metrics, Objective, require_float32, uniform

Augment = Callable[[Tensor, Sequence[torch.Generator]], Tensor]  # images (B, 3, H, W) in [0, 1]


class ContrastiveObjective(Objective):
    """Trains both encoders of a CLIP and its temperature. Batches have "image", in [-1, 1], and "text".

    augment: random augmentation of images (B, 3, H, W) in [0, 1]; must draw from the given generators only.
    gather: use the negatives of all processes' batches, so that several processes compute the loss of one; by
        default, if there are several processes.

    With gradient accumulation, negatives come from the same micro-batch only. Of a sample's captions, one is
    drawn at random. Raises ValueError for 16-bit weights, and in `loss` for a sample without a caption.
    """

    def __init__(self, clip: CLIP, *, augment: Augment | None = None, gather: bool | None = None) -> None:
        super().__init__()
        require_float32(clip, "CLIP")
        self.clip = clip.requires_grad_(True)
        self.augment, self.gather = augment, gather

    def loss(self, batch: Batch, generators: Sequence[torch.Generator], step: int) -> tuple[Tensor, Metrics]:
        """The contrastive loss; "found" is the image-to-text accuracy within the batch."""
        clamp_log_scale_(self.clip.logit_scale)  # after the last optimizer step
        images = batch["image"].to(self.clip.logit_scale) / 2 + 0.5
        texts = self.clip.encode_text(self._tokens(batch["text"], generators))
        images = self.clip.encode_image(images if self.augment is None else self.augment(images, generators))
        gather = several_processes() if self.gather is None else self.gather
        loss = contrastive_loss(images, texts, self.clip.logit_scale, gather=gather)
        with torch.no_grad():
            if gather:
                images, texts = gather_rows(images), gather_rows(texts)
            similarity = torch.nn.functional.normalize(images, dim=-1) @ texts.T / texts.norm(dim=-1)
            own = torch.arange(len(images), device=images.device)
            found = (similarity.argmax(dim=1) == own).float().mean()
        return loss, {"found": found, "scale": self.clip.logit_scale.detach().exp()}

    def _tokens(self, texts: Sequence[Sequence[str]], generators: Sequence[torch.Generator]) -> Tensor:
        """Token ids (B, N) of one caption per sample, cut after the last end token.

        A text's embedding is taken at its end token, and attention is causal: later tokens have no effect.
        """
        if not all(texts):
            place = next(k for k, text in enumerate(texts) if not text)
            raise ValueError(f"expected a caption for each image, got none for image {place} of the batch")
        choices = uniform(generators).tolist()
        ids = self.clip.tokenizer([text[int(choice * len(text))] for text, choice in zip(texts, choices)])
        longest = int(ids.argmax(dim=1).max()) + 1  # the end token has the largest id
        return ids[:, :longest]
