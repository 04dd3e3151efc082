"""The loss of unCLIP's prior: the error of the predicted CLIP embedding of a picture.

    L = E_{e, y, eps, t} [ || f(a_t z_0 + s_t eps, t, y) - z_0 ||^2 ],    z_0 = (e - mean) / std

(Ramesh et al. 2022, arXiv:2204.06125, section 2.2.) The norm is a mean over the embedding's values. Texts are
dropped at random for classifier-free guidance, in the paper one in ten.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ldm_core.noise import randn
from ldm_core.noise_schedule import NoiseSchedule
from ldm_core.prior import Prior
from ldm_core.training.objective import Batch, Metrics, Objective, require_float32, uniform


class PriorObjective(Objective):
    """Trains the network of a prior, whose text encoder is frozen. The prior's mean and std must be set.

    condition_dropout: the probability of replacing a text by the empty one, in [0, 1].
    Batches have "embedding" (B, D), CLIP's of pictures, and "text". Of a sample's texts, one is drawn.
    Raises ValueError for 16-bit weights, and for a probability outside its range.
    """

    def __init__(self, prior: Prior, *, condition_dropout: float = 0.1) -> None:
        super().__init__()
        require_float32(prior.network, "prior")
        if not 0 <= condition_dropout <= 1:
            raise ValueError(f"condition_dropout must be in [0, 1], not {condition_dropout}")
        self.prior = prior  # not a module, so that the text encoder is not among the parameters
        self.condition_dropout = condition_dropout
        self.network = prior.network.requires_grad_(True)
        for statistic in (self.network.mean, self.network.std):
            if statistic is not None:
                statistic.requires_grad_(False)
        schedule = NoiseSchedule(prior.noise_schedule)
        self._a = schedule.alphas_cumprod.sqrt().float()
        self._s = (1 - schedule.alphas_cumprod).sqrt().float()

    def loss(self, batch: Batch, generators: Sequence[torch.Generator], step: int) -> tuple[Tensor, Metrics]:
        """Each generator draws a timestep, the text and the noise, in this order.

        "cosine" is that of the predicted and the true embedding, of which 1 is the best.
        """
        like = self.network.out.weight
        t = (uniform(generators) * len(self._a)).long()
        with torch.no_grad():
            text, hidden, mask = self.prior.encode(self._texts(batch["text"], generators))
        embeddings = batch["embedding"].to(like)
        z0 = self.network.normalised(embeddings)
        noise = randn(z0.shape, generators).to(z0)
        a, s = (table[t].to(z0)[:, None] for table in (self._a, self._s))
        found = self.network(a * z0 + s * noise, t.to(like.device), text.to(like), hidden.to(like), mask)
        loss = (found.float() - z0).square().mean()
        cosine = torch.cosine_similarity(self.network.embeddings(found.detach()), embeddings).mean()
        return loss, {"cosine": cosine}

    def _texts(self, texts: Sequence[Sequence[str]], generators: Sequence[torch.Generator]) -> list[str]:
        """One text per sample, or the empty one."""
        drops, choices = uniform(generators).tolist(), uniform(generators).tolist()
        return [
            "" if drop < self.condition_dropout or not text else text[int(choice * len(text))]
            for text, drop, choice in zip(texts, drops, choices)
        ]
