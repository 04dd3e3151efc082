"""The limit on the time and memory for reading a file's pickles.

A pickle of a few kilobytes can use one value a million times and so cause any amount of work. All work of the
reader is therefore charged to one budget, which grows with the bytes of the pickles. Valid files stay far
below it: a Stable Diffusion checkpoint with its optimizer spends less than an eighth of the constant. A small
file that spends the whole budget is rejected after about a second.
"""

from __future__ import annotations

from ldm_core.errors import CheckpointError

# The unit is the work to copy or compare a byte. The costs of other work:
INSTRUCTION = 128  # one instruction of a pickle, about a microsecond
ITEM = 32  # one item of a copied container
CONTAINER = 256  # an empty list, dictionary or set
TENSOR = 1024  # the creation of a tensor

CONSTANT = 2**27
PER_BYTE = 8  # for each byte of the pickles


class Budget:
    """The remaining budget of a file with `size` bytes of pickles."""

    def __init__(self, size: int) -> None:
        self._left = CONSTANT + PER_BYTE * size

    def spend(self, cost: int) -> None:
        """Charge for work before doing it. Raises CheckpointError if the budget is exceeded."""
        self._left -= cost
        if self._left < 0:
            raise CheckpointError("the pickle needs far more work than a checkpoint of its size")
