"""A job that is killed at random moments loses no finished shard and doubles no row."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import pytest
from support.job_runs import contents, many, painted_job, write_rows

from ldm_core.jobs import Job, run, verify


def killed_after(seconds: float, job: Job) -> bool:
    """Run the job in a process that is killed after this time. Whether it was killed before it ended."""
    pid = os.fork()
    if pid == 0:
        try:
            run(job)
        finally:
            os._exit(0)
    time.sleep(seconds)
    os.kill(pid, signal.SIGKILL)
    return os.WIFSIGNALED(os.waitpid(pid, 0)[1])


def finished(folder: Path) -> dict[str, bytes]:
    """The files of the shards that have their JSON."""
    files = contents(folder)
    return {name: data for name, data in files.items() if Path(name).stem + ".json" in files}


@pytest.mark.parametrize(
    ("kills", "rows"),
    [pytest.param(3, 60, id="few"), pytest.param(50, 1200, id="fifty", marks=pytest.mark.slow)],
)
def test_kills_lose_and_double_nothing(kills: int, rows: int, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", many(rows))
    start = time.perf_counter()
    run(painted_job(path, tmp_path / "whole"))
    whole = time.perf_counter() - start
    source, count = random.Random(kills), 0
    before: dict[str, bytes] = {}
    for _ in range(kills):
        job = painted_job(path, tmp_path / "out")
        count += killed_after(source.uniform(0, whole / kills), job)
        now = finished(tmp_path / "out")
        assert {name: now.get(name) for name in before} == before
        before = now
    assert count > kills // 4  # a run may end before its kill, being faster than the first, which warms up
    job = painted_job(path, tmp_path / "out")
    summary = run(job)
    assert (summary.drawn, summary.failed) == (rows, 0)
    assert summary.kept == sum(name.endswith(".tar") for name in before)
    report = verify(tmp_path / "out", redraw=3, draw=job.draw)
    assert (report.drawn, report.problems) == (rows, [])
    assert contents(tmp_path / "out") == contents(tmp_path / "whole"), "nor is a temporary file left"
