"""Running a job in this process, or a part of it: the same code on one process, torchrun or an array of jobs.

The parts of N processes are fixed: process k finishes the shards k, k + N, k + 2 N, …. Processes exchange
nothing, so they may run at different times and on different machines, as long as all see the output folder.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from tqdm import tqdm

from ldm_core.jobs.job import REASONS, Job, Shard


@dataclass(frozen=True)
class Part:
    """Part `index` (from 0) of `count`. Raises ValueError for an index outside of 0..count-1."""

    index: int = 0
    count: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.count:
            raise ValueError(f"expected part K/N with K in 0..N-1, not {self.index}/{self.count}")

    def shards(self, total: int) -> range:
        """The numbers of the shards of this part, of `total`."""
        return range(self.index, total, self.count)

    def within(self, inner: Part) -> Part:
        """The part of a process, `inner`, of a machine that has this part."""
        return Part(self.index * inner.count + inner.index, self.count * inner.count)


@dataclass
class Summary:
    """What a run did. kept: shards that were finished before. reasons: the first failed rows."""

    shards: int = 0
    kept: int = 0
    drawn: int = 0
    failed: int = 0
    reasons: list[str] = field(default_factory=list)

    def add(self, shard: Shard) -> None:
        """Count a shard that was drawn or kept."""
        self.shards += 1
        self.kept += shard.kept
        self.drawn += shard.drawn
        self.failed += shard.failed
        self.reasons = [*self.reasons, *shard.reasons][:REASONS]


def torchrun_part(environment: Mapping[str, str] = os.environ) -> Part:
    """The part of this process among those that torchrun has started; all of the job without torchrun."""
    try:
        return Part(int(environment.get("RANK", 0)), int(environment.get("WORLD_SIZE", 1)))
    except ValueError as error:
        raise ValueError(f"RANK and WORLD_SIZE: {error}") from None


def run(
    job: Job,
    part: Part | None = None,
    *,
    retry_failed: bool = False,
    progress: bool | None = False,
    on_shard: Callable[[Shard], object] | None = None,
) -> Summary:
    """Finish the shards of a part of the job, by default of all of it, and return what was done.

    retry_failed: draw shards with failed rows again. progress: show a bar; None: if standard error is a
    terminal. on_shard: called after each shard.
    """
    part = Part() if part is None else part
    mine = part.shards(job.plan.shards)
    total = sum(len(job.plan.rows_of(number)) for number in mine)
    with tqdm(total=total, unit="picture", disable=None if progress is None else not progress) as bar:
        shards = (job.finish(number, retry_failed=retry_failed, on_row=bar.update) for number in mine)
        return summarize(_counted(shards, bar), on_shard)


def summarize(shards: Iterable[Shard], on_shard: Callable[[Shard], object] | None = None) -> Summary:
    """The summary of shards as they are finished. on_shard: called with each of them."""
    summary = Summary()
    for shard in shards:
        summary.add(shard)
        if on_shard is not None:
            on_shard(shard)
    return summary


def _counted(shards: Iterable[Shard], bar: tqdm[Any]) -> Iterator[Shard]:
    for shard in shards:
        if shard.kept:
            bar.update(shard.drawn + shard.failed)
        yield shard
