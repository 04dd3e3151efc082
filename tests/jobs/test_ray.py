"""Jobs on a real Ray cluster of this machine."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from support.job_runs import contents, many, painted_job, write_rows

from ldm_core.jobs import run, run_on_ray, verify

ray = pytest.importorskip("ray")
pytestmark = pytest.mark.slow  # a cluster takes a quarter of a minute to start


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    paths = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]
    environment = {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    own = (
        {} if "RAY_ADDRESS" in os.environ else {"num_cpus": 2, "include_dashboard": False}
    )  # the actors take all
    # The actors take all CPUs.
    ray.init(**own, log_to_driver=False, runtime_env={"env_vars": environment})
    yield
    ray.shutdown()


def build(rows: Path, output: Path, fatal: Path | None = None) -> Any:
    """The job; the process that first draws row "r5" dies of it."""
    job = painted_job(rows, output)
    if fatal is None:
        return job
    stream = job.draw.stream

    def deadly(values: Any) -> Iterator[Any]:
        for drawn in stream(values):
            time.sleep(0.05)
            if drawn.id == "r5" and not fatal.exists():
                fatal.write_text(str(os.getpid()))
                os.kill(os.getpid(), 9)
            yield drawn

    job.draw.stream = deadly
    return job


@pytest.mark.usefixtures("cluster")
def test_actors_write_the_same_files_though_one_is_killed(tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", [*many(39), {"id": "bad", "prompt": ""}])
    one = run(painted_job(rows, tmp_path / "one"))
    fatal = tmp_path / "fatal"
    shards: list[Any] = []
    summary = run_on_ray(
        partial(build, rows, tmp_path / "ray", fatal), actors=2, num_cpus=1, on_shard=shards.append
    )
    assert int(fatal.read_text()) > 0
    assert (summary.shards, summary.drawn, summary.failed) == (10, 39, 1)
    assert (summary.drawn, summary.reasons) == (one.drawn, one.reasons)
    assert {shard.number for shard in shards} == set(range(10))
    assert contents(tmp_path / "one") == contents(tmp_path / "ray")
    assert verify(tmp_path / "ray").problems == []
    again = run_on_ray(partial(build, rows, tmp_path / "ray"), actors=2)
    assert again.kept == 10


@pytest.mark.usefixtures("cluster")
def test_errors_of_the_job_arrive_as_they_are(tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", [*many(3), *many(2)])
    with pytest.raises(ValueError, match="doubled ids: 'r0' of rows 1 and 4") as error:
        run_on_ray(partial(build, rows, tmp_path / "out"))
    assert "\n" not in str(error.value)
