"""Checks of custom parts: one function for each replaceable part of the package.

    from ldm_core.testing import check_scheduler
    check_scheduler(MyScheduler())      # returns None, or raises a ContractError that lists every violation

There is a check for each protocol (`ldm_core.protocols`, `ldm_core.schedulers.Scheduler`,
`ldm_core.guidance.Guidance`, `ldm_core.attention.AttentionFunction`). A part may be a module, a function or
any object that implements the protocol. Checks take seconds, modify neither the part nor the global random
state, and need no trained weights. They do not measure the quality of a network.
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
