"""The limit on what reading a file's pickles may cost, in time and in memory.

A pickle of a few kilobytes can name one value a million times, and so ask for any amount of work. Whatever
the reader does, from the first instruction to the last tensor, is therefore charged to one budget, which
grows with the bytes of the pickles. No good file comes near it: a Stable Diffusion checkpoint with its
optimizer spends less than an eighth of the constant. A small file that spends all of it is refused after
about a second.
"""

from __future__ import annotations

from ldm_core.errors import CheckpointError

# The unit is a byte that is copied or compared. What else is done counts as so many bytes:
INSTRUCTION = 128  # of a pickle, which takes about a microsecond
ITEM = 32  # an item of a container that is copied
CONTAINER = 256  # an empty list, dictionary or set
TENSOR = 1024  # a tensor that is made

CONSTANT = 2**27
PER_BYTE = 8  # of the pickles


class Budget:
    """The work that is left to a file with `size` bytes of pickles."""

    def __init__(self, size: int) -> None:
        self._left = CONSTANT + PER_BYTE * size

    def spend(self, cost: int) -> None:
        """Charge for work before it is done. Raises CheckpointError when the budget is spent."""
        self._left -= cost
        if self._left < 0:
            raise CheckpointError("its pickle asks for far more work than a checkpoint of its size needs")
