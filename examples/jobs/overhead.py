"""What a job costs besides the sampler, per picture, at the bundled model's speed.

    python overhead.py --rows 16

Prints the processor time in the sampler and in everything else: reading rows, recipes, PNG files, checksums,
and writing the shard. The time of the shards' files reaching the disk is in the wall time alone.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ldm_core
from ldm_core import jobs


class Timed(jobs.Draw):
    """The core, with the seconds that the sampler takes."""

    processor = wall = 0.0

    def _sample(self, tasks: Sequence[Any]) -> Any:
        before = time.process_time(), time.perf_counter()
        images = super()._sample(tasks)
        self.processor += time.process_time() - before[0]
        self.wall += time.perf_counter() - before[1]
        return images


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--batch-size", type=int, default=8)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.txt"
        path.write_text("red apple\n" * args.rows)
        draw = Timed(ldm_core.load(), jobs.Options(steps=args.steps, batch_size=args.batch_size))
        draw([{"id": "warm", "prompt": "panda"}])
        draw.processor = draw.wall = 0.0
        before = time.process_time(), time.perf_counter()
        job = jobs.open_job(jobs.open_rows(path), draw, Path(folder) / "out", shard_size=args.batch_size)
        jobs.run(job)
        processor, wall = time.process_time() - before[0], time.perf_counter() - before[1]
    for name, sampler, total in (("processor", draw.processor, processor), ("wall", draw.wall, wall)):
        print(
            f"{name} time per picture: {1000 * sampler / args.rows:.1f} ms in the sampler, "
            f"{1000 * (total - sampler) / args.rows:.2f} ms elsewhere ({total / sampler - 1:.2%})"
        )


if __name__ == "__main__":
    main()
