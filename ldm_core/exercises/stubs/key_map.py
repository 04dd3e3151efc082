"""Exercise 12: a key map."""

from collections.abc import Sequence


def file_key(name: str, blocks: int, attends: Sequence[bool]) -> str:
    """The key in a CompVis checkpoint of a parameter of the U-Net, without "model.diffusion_model.".

    name: of the parameter in this package, such as "down.1.blocks.0.res.conv1.weight".
    blocks: residual blocks of a level on the way down, 1 or more; a level has one more on the way up.
    attends: whether level l has transformers, finest level first; up.0 is the coarsest level.
    """
    raise NotImplementedError
