"""The memory of a job over 100,000 rows, with a core that paints instead of sampling. Linux alone.

python memory.py --rows 100000
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

import ldm_core
from ldm_core import jobs


class Painted(jobs.Draw):
    """The core with grey pictures for all rows."""

    def _sample(self, tasks: Sequence[Any]) -> list[Image.Image]:
        return [Image.new("RGB", (8, 8), (task.recipe.seed % 256,) * 3) for task in tasks]


def resident() -> float:
    """MiB that this process holds."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        with path.open("w") as file:
            for k in range(args.rows):
                file.write(json.dumps({"id": f"row {k}", "prompt": f"a thing {k}"}) + "\n")
        draw = Painted(ldm_core.load(), jobs.Options(batch_size=64))
        print(f"before: {resident():.0f} MiB")
        job = jobs.open_job(jobs.open_rows(path), draw, Path(folder) / "out")
        print(f"after reading {args.rows:,} rows once: {resident():.0f} MiB")
        every, shards = max(1, job.plan.shards // 10), []

        def note(shard: jobs.Shard) -> None:
            shards.append(shard.number)
            if len(shards) % every == 0:
                print(f"after {len(shards) * job.plan.shard_size:,} rows: {resident():.0f} MiB", flush=True)

        summary = jobs.run(job, on_shard=note)
        report = jobs.verify(Path(folder) / "out")
        print(f"{summary.drawn:,} drawn; verified, {report.count} problems: {resident():.0f} MiB")


if __name__ == "__main__":
    main()
