"""Fixtures of the tests of loading and saving models."""

from support.diffusers_pipelines import models, theirs
from support.small_checkpoints import small
from support.wild_models import sd1, sd2

__all__ = [
    "models",
    "sd1",
    "sd2",
    "small",
    "theirs",
]
