"""Whether two models have the same weights."""

from __future__ import annotations

import torch

from ldm_core.loading.save import file_tensors
from ldm_core.model import LatentDiffusion


def same_weights(a: LatentDiffusion, b: LatentDiffusion) -> bool:
    ours, theirs = file_tensors(a), file_tensors(b)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)
