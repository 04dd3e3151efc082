"""The learning rate of each step: a linear rise from 0, then half a cosine down.

A function of the step alone, so that a resumed run needs no state of it (Loshchilov and Hutter 2017,
arXiv:1608.03983, equation 5 without restarts; the warm-up is Goyal et al.'s, arXiv:1706.02677).
CompVis's counterpart: `LambdaWarmUpCosineScheduler` of `ldm.lr_scheduler`.
"""

from __future__ import annotations

import math


def warmup_cosine(step: int, *, steps: int, warmup: int = 0, final: float = 0.0) -> float:
    """The factor of the peak learning rate at step 0..steps-1, in (0, 1].

    warmup: steps of the rise, whose last has factor 1. final: what the cosine ends at; 1 for no fall.
    """
    if step < warmup:
        return (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, steps - warmup))
    return final + (1 - final) * (1 + math.cos(math.pi * progress)) / 2
