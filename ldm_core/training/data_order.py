"""Which sample comes when, and which random numbers it meets: functions of the seed and of a position alone.

A run is one endless sequence of samples, position 0, 1, …; each epoch of n positions is a permutation of the
data. A step takes the next positions, whatever the number of processes that share them. So nothing of this
needs saving but the position, and a resumed run, or one on other machines, goes on as if nothing had been.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np
import torch
from torch.utils.data import Sampler

_ORDER, _NOISE = 0, 1  # so that an epoch's and a position's numbers have nothing to do with one another


def epoch_permutation(seed: int, epoch: int, length: int) -> Sequence[int]:
    """The permutation of 0..length-1 of an epoch."""
    generator = _generator(seed, _ORDER, epoch)
    return torch.randperm(length, generator=generator).numpy()  # type: ignore[return-value]


def noise_generators(seed: int, positions: Sequence[int]) -> list[torch.Generator]:
    """The random stream of each position of a run."""
    return [_generator(seed, _NOISE, position) for position in positions]


def _generator(*numbers: int) -> torch.Generator:
    # Seeds that are near one another must give generators that are not; PyTorch's generator takes 32 bits.
    seed = int(np.random.SeedSequence(numbers).generate_state(1)[0])
    return torch.Generator("cpu").manual_seed(seed)


class ResumableBatchSampler(Sampler[list[int]]):
    """The batches of data indices that one process takes, from a position on, without end.

    length: of the data. batch_size: of this process, in one forward pass. rank of size: which process of how
    many; at each turn rank 0 takes the first `batch_size` positions, rank 1 the next ones, ….
    """

    def __init__(
        self, length: int, seed: int, batch_size: int, *, position: int = 0, rank: int = 0, size: int = 1
    ) -> None:
        self.batch_size, self.position, self.rank, self.size = batch_size, position, rank, size
        self.length, self.seed = length, seed
        self._epoch = lru_cache(maxsize=2)(lambda epoch: epoch_permutation(seed, epoch, length))

    def index(self, position: int) -> int:
        """The data's index at a position of the run."""
        epoch, place = divmod(position, self.length)
        return int(self._epoch(epoch)[place])

    def positions(self, position: int) -> range:
        """What this process takes of the turn that begins at `position`."""
        first = position + self.rank * self.batch_size
        return range(first, first + self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        position = self.position
        while True:
            yield [self.index(p) for p in self.positions(position)]
            position += self.size * self.batch_size
