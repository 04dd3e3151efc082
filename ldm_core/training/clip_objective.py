"""Training a CLIP: pictures and their captions must find one another in a batch.

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

Augment = Callable[
    [Tensor, Sequence[torch.Generator]], Tensor
]  # images (B, 3, H, W) in [0, 1] to the same, changed at random


class ContrastiveObjective(Objective):
    """Trains both encoders of a CLIP and its temperature. Batches have "image", in [-1, 1], and "text".

    augment: changes the pictures at random, drawing from their generators only.
    gather: whether the wrong answers are those of all processes' batches, so that several processes give the
        losses of one; True, if not given, where there are several.

    Passes that are accumulated have each their own wrong answers, and fewer of them. A sample of several
    captions shows one of them, at random. Raises ValueError for weights in 16 bits, and, when it meets one,
    for a sample without a caption.
    """

    def __init__(self, clip: CLIP, *, augment: Augment | None = None, gather: bool | None = None) -> None:
        super().__init__()
        require_float32(clip, "CLIP")
        self.clip = clip.requires_grad_(True)
        self.augment, self.gather = augment, gather

    def loss(self, batch: Batch, generators: Sequence[torch.Generator], step: int) -> tuple[Tensor, Metrics]:
        """The loss of the batch, and how many pictures find their own text first."""
        clamp_log_scale_(self.clip.logit_scale)  # what the step before may have passed
        images = batch["image"].to(self.clip.logit_scale) / 2 + 0.5
        texts = self.clip.encode_text(self._tokens(batch["text"], generators))
        images = self.clip.encode_image(images if self.augment is None else self.augment(images, generators))
        gather = several_processes() if self.gather is None else self.gather
        loss = contrastive_loss(images, texts, self.clip.logit_scale, gather=gather)
        with torch.no_grad():
            if gather:
                images, texts = gather_rows(images), gather_rows(texts)
            likeness = torch.nn.functional.normalize(images, dim=-1) @ texts.T / texts.norm(dim=-1)
            found = (likeness.argmax(dim=1) == torch.arange(len(images), device=images.device)).float().mean()
        return loss, {"found": found, "scale": self.clip.logit_scale.detach().exp()}

    def _tokens(self, texts: Sequence[Sequence[str]], generators: Sequence[torch.Generator]) -> Tensor:
        """One caption of each sample, as ids (B, N) without padding that all of them have.

        A text's vector is taken at its end token, which attends to nothing after it.
        """
        if not all(texts):
            place = next(k for k, text in enumerate(texts) if not text)
            raise ValueError(f"expected a caption for each picture, got none for number {place}")
        choices = uniform(generators).tolist()
        ids = self.clip.tokenizer([text[int(choice * len(text))] for text, choice in zip(texts, choices)])
        longest = int(ids.argmax(dim=1).max()) + 1  # the end token has the largest id
        return ids[:, :longest]
