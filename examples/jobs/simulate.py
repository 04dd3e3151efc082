"""A job on 10,000 machines that fail and differ in speed: how much work is lost, and how long it takes.

    python simulate.py

A machine that fails loses the shard that it was drawing and comes back after `--restart` seconds. Machines
differ in speed by `--spread` (the standard deviation of its logarithm), and `--stragglers` of them are
`--slow` times slower. "static" is striding, as with torchrun or an array of jobs: a machine has its own
shards. "dynamic" is a queue, as with Ray: a machine takes the next shard.

Expected: a failure loses half a shard on average, so of all work about s / (2 m) is done twice, where s is
the time of a shard and m the mean time between failures.
"""

from __future__ import annotations

import argparse
import heapq
from collections.abc import Iterator

import numpy as np


def speeds(args: argparse.Namespace, random: np.random.Generator) -> np.ndarray:
    """Seconds per picture of each machine."""
    seconds = args.seconds * np.exp(random.normal(0, args.spread, args.workers))
    slow = random.random(args.workers) < args.stragglers
    return np.where(slow, seconds * args.slow, seconds)


def shard_times(work: float, args: argparse.Namespace, random: np.random.Generator) -> tuple[float, float]:
    """Seconds until a shard that takes `work` seconds is finished, and how many of them were lost."""
    total = lost = 0.0
    while (until := random.exponential(args.between_failures)) < work:
        lost += until
        total += until + args.restart
    return total + work, lost


def simulate(shard: int, dynamic: bool, args: argparse.Namespace) -> tuple[float, float]:
    """Hours until the last shard is finished, and the fraction of the work that was lost."""
    random = np.random.default_rng(args.seed)
    each = speeds(args, random)
    count = -(-args.rows // shard)
    lost = done = 0.0
    if dynamic:
        free = [(0.0, k) for k in range(args.workers)]
        heapq.heapify(free)
        end = 0.0
        for _ in range(count):
            now, k = heapq.heappop(free)
            taken, wasted = shard_times(each[k] * shard, args, random)
            end, lost, done = max(end, now + taken), lost + wasted, done + each[k] * shard
            heapq.heappush(free, (now + taken, k))
        return end / 3600, lost / done
    ends = []
    for k in range(min(args.workers, count)):
        now = 0.0
        for _ in range(k, count, args.workers):
            taken, wasted = shard_times(each[k] * shard, args, random)
            now, lost, done = now + taken, lost + wasted, done + each[k] * shard
        ends.append(now)
    return max(ends) / 3600, lost / done


def table(args: argparse.Namespace) -> Iterator[str]:
    ideal = args.rows / np.sum(1 / speeds(args, np.random.default_rng(args.seed))) / 3600
    yield f"{args.rows:,} rows on {args.workers:,} machines; without failures and waiting: {ideal:.2f} h"
    yield "| rows of a shard | shards | expected loss | lost, static | dynamic | hours, static | dynamic |"
    yield "|---|---|---|---|---|---|---|"
    for shard in args.shards:
        expected = args.seconds * shard / (2 * args.between_failures)
        static, queue = simulate(shard, False, args), simulate(shard, True, args)
        yield (
            f"| {shard} | {-(-args.rows // shard):,} | {expected:.3%} | {static[1]:.3%} | {queue[1]:.3%} "
            f"| {static[0]:.2f} | {queue[0]:.2f} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--workers", type=int, default=10_000)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--shards", type=int, nargs="+", default=[16, 64, 256, 1024])
    parser.add_argument("--seconds", type=float, default=1.0, help="per picture")
    parser.add_argument("--between-failures", type=float, default=24 * 3600.0, help="seconds, of one machine")
    parser.add_argument("--restart", type=float, default=300.0)
    parser.add_argument("--spread", type=float, default=0.1)
    parser.add_argument("--stragglers", type=float, default=0.01)
    parser.add_argument("--slow", type=float, default=3.0)
    parser.add_argument("--seed", type=int, default=0)
    print("\n".join(table(parser.parse_args())))


if __name__ == "__main__":
    main()
