"""The order of the data and the random numbers of each sample, as functions of the seed and a position.

A run is an endless sequence of samples at positions 0, 1, …; each epoch of n positions is a permutation of
the data. A step takes the next positions and divides them among the processes. The position is therefore the
only state to save, and a run can resume on any number of processes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np
import torch
from torch.utils.data import Sampler

_ORDER, _NOISE = 0, 1  # domains of the seeds of epochs and of positions


def epoch_permutation(seed: int, epoch: int, length: int) -> Sequence[int]:
    """The permutation of 0..length-1 in an epoch."""
    generator = _generator(seed, _ORDER, epoch)
    return torch.randperm(length, generator=generator).numpy()  # type: ignore[return-value]


def noise_generators(seed: int, positions: Sequence[int]) -> list[torch.Generator]:
    """One CPU generator for each position of a run."""
    return [_generator(seed, _NOISE, position) for position in positions]


def _generator(*numbers: int) -> torch.Generator:
    # SeedSequence decorrelates neighbouring seeds; PyTorch's CPU generator uses 32 bits.
    seed = int(np.random.SeedSequence(numbers).generate_state(1)[0])
    return torch.Generator("cpu").manual_seed(seed)


class ResumableBatchSampler(Sampler[list[int]]):
    """An infinite batch sampler of one process, starting at a position of the run.

    length: of the dataset. batch_size: of a micro-batch in this process. rank, size: of this process and the
    number of processes; of each size * batch_size positions, rank k takes the k-th batch_size.
    """

    def __init__(
        self, length: int, seed: int, batch_size: int, *, position: int = 0, rank: int = 0, size: int = 1
    ) -> None:
        self.batch_size, self.position, self.rank, self.size = batch_size, position, rank, size
        self.length, self.seed = length, seed
        self._epoch = lru_cache(maxsize=2)(lambda epoch: epoch_permutation(seed, epoch, length))

    def index(self, position: int) -> int:
        """The dataset index at a position of the run."""
        epoch, place = divmod(position, self.length)
        return int(self._epoch(epoch)[place])

    def positions(self, position: int) -> range:
        """The positions of this process in the micro-batch that begins at `position`."""
        first = position + self.rank * self.batch_size
        return range(first, first + self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        position = self.position
        while True:
            yield [self.index(p) for p in self.positions(position)]
            position += self.size * self.batch_size
