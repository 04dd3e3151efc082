"""Contracts for parts of one's own: call the check of a seam, and learn what a part breaks.

    from ldm_core.testing import check_scheduler
    check_scheduler(MyScheduler())      # None, or a ContractError that lists every broken clause

One check for each seam of the package (`ldm_core.protocols`, `ldm_core.schedulers.Scheduler`,
`ldm_core.guidance.Guidance`, `ldm_core.attention.AttentionFunction`). A part may be a module, a function or
any object that fits. Checks run in seconds, change neither the part nor the global random state, and need
no trained weights. What they cannot know is whether a network is any good.
"""

from ldm_core.testing.attention import check_attention
from ldm_core.testing.autoencoder import check_autoencoder
from ldm_core.testing.contract import ContractError
from ldm_core.testing.guidance import check_guidance
from ldm_core.testing.image_encoder import check_image_encoder
from ldm_core.testing.scheduler import check_scheduler
from ldm_core.testing.text_encoder import check_text_encoder
from ldm_core.testing.tokenizer import check_tokenizer
from ldm_core.testing.unet import check_unet

__all__ = [
    "ContractError",
    "check_attention",
    "check_autoencoder",
    "check_guidance",
    "check_image_encoder",
    "check_scheduler",
    "check_text_encoder",
    "check_tokenizer",
    "check_unet",
]
