"""How much faster two processes finish a job than one, against what two processes can reach here at all.

    python scaling.py --rows 32 --rounds 3

The limit is that of two processes that sample without a job, at the same time. The rounds of all four
measurements alternate, so that other work on the machine meets them alike; the best round of each counts.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

WORKER = """
import os, sys, time
import torch
torch.set_num_threads(1)
import ldm_core
from ldm_core import jobs
kind, rows, output, rank, size, steps, batch = sys.argv[1:]
options = jobs.Options(steps=int(steps), batch_size=int(batch), guidance_scale=4.0)
draw = jobs.Draw(ldm_core.load(), options)
draw([{"id": "warm", "prompt": "panda"}])
print("ready", flush=True)
sys.stdin.readline()
if kind == "job":
    job = jobs.open_job(jobs.open_rows(rows), draw, output, shard_size=int(batch))
    jobs.run(job, jobs.Part(int(rank), int(size)))
else:
    prompts = open(rows).read().split("\\n")[:-1]
    chunks = [prompts[k : k + int(batch)] for k in range(0, len(prompts), int(batch))]
    for chunk in chunks[int(rank) :: int(size)]:
        draw.sampler.txt2img(chunk, steps=int(steps), guidance_scale=4.0, seed=1)
"""


def seconds(kind: str, processes: int, rows: Path, args: argparse.Namespace) -> float:
    """The time of all rows, from the moment when all processes have loaded the model."""
    with tempfile.TemporaryDirectory() as output:
        common = (kind, str(rows), output + "/out")
        running = [
            subprocess.Popen(
                [
                    sys.executable,
                    "-c",
                    WORKER,
                    *common,
                    str(k),
                    str(processes),
                    str(args.steps),
                    str(args.batch_size),
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
            for k in range(processes)
        ]
        for process in running:
            assert process.stdout is not None
            process.stdout.readline()
        start = time.perf_counter()
        for process in running:
            assert process.stdin is not None
            process.stdin.write(b"\n")
            process.stdin.flush()
        if any(process.wait() for process in running):
            raise SystemExit("a process failed")
        return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    best: dict[tuple[str, int], float] = {}
    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder) / "rows.txt"
        rows.write_text("red apple\n" * args.rows)
        for _ in range(args.rounds):
            for case in (("plain", 1), ("job", 1), ("plain", 2), ("job", 2)):
                best[case] = min(best.get(case, float("inf")), seconds(*case, rows, args))
    for (kind, processes), time_taken in best.items():
        print(f"{kind}, {processes} process(es): {args.rows / time_taken:.2f} pictures/s")
    limit = best["plain", 1] / best["plain", 2]
    speedup = best["job", 1] / best["job", 2]
    print(f"two processes: {speedup:.2f} times as fast; limit {limit:.2f}; {speedup / limit:.2f} of it")


if __name__ == "__main__":
    main()
