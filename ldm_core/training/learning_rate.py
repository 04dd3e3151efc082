"""The learning rate schedule: linear warm-up, then cosine decay.

A function of the step alone, so it has no state to save (Loshchilov and Hutter 2017, arXiv:1608.03983,
equation 5 without restarts; warm-up as in Goyal et al. 2017, arXiv:1706.02677).
CompVis's counterpart: `LambdaWarmUpCosineScheduler` of `ldm.lr_scheduler`.
"""

from __future__ import annotations

import math


def warmup_cosine(step: int, *, steps: int, warmup: int = 0, final: float = 0.0) -> float:
    """The factor of the peak learning rate at step 0..steps-1.

    warmup: the number of warm-up steps; the last one has factor 1. final: the factor at the end of the
    cosine; 1 for a constant rate.
    """
    if step < warmup:
        return (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, steps - warmup))
    return final + (1 - final) * (1 + math.cos(math.pi * progress)) / 2
