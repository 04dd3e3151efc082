"""The prior of unCLIP: from a text to the CLIP embedding of a picture of it."""

from ldm_core.prior.config import KARLO, PriorConfig
from ldm_core.prior.network import PriorTransformer
from ldm_core.prior.sampling import Prior

__all__ = ["KARLO", "Prior", "PriorConfig", "PriorTransformer"]
