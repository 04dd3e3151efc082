"""Running a job on a Ray cluster, or on several actors of this machine, with Ray Data.

The data set is that of the shards' numbers. An actor loads the model once and finishes one shard at a time;
what passes through Ray are numbers, paths and reasons. If an actor or its machine dies, Ray starts another,
which gets its shards again and keeps those that are finished.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ldm_core.jobs.job import Job, Shard
from ldm_core.jobs.running import Summary, summarize
from ldm_core.jobs.tables import imported

MAX_BLOCKS = 10_000  # of Ray's data set; a block is what an actor gets at a time
CONNECT_SECONDS = 10
SCHEMES = ("auto", "local")


def run_on_ray(
    build: Callable[[], Job],
    *,
    actors: int = 1,
    num_gpus: float = 0,
    num_cpus: float = 1,
    address: str | None = None,
    runtime_env: Mapping[str, Any] | None = None,
    retry_failed: bool = False,
    progress: bool | None = False,
    on_shard: Callable[[Shard], object] | None = None,
) -> Summary:
    """Finish all shards of a job on Ray actors, and return what was done.

    build: makes the job; called in each actor, and once in a task with the same resources before. It must be
        a function that Ray can pickle, and every machine must see the same files.
    actors: how many. num_gpus, num_cpus: of each actor.
    address: of a running cluster ("auto", "HOST:PORT", "ray://HOST:PORT"); None: RAY_ADDRESS if that is set,
        otherwise Ray is started on this machine. A Ray that is initialized already is used.
    runtime_env: as in `ray.init`. The other arguments are those of `run`.

    Raises ValueError without the package ray, or if no cluster answers; and the errors of `build` and
    `Job.finish`.
    """
    ray = imported("ray", "'ray[data]'")
    data = imported("ray.data", "'ray[data]'")
    started = not ray.is_initialized()
    if started:
        _connect(ray, address, runtime_env)
    try:
        resources = {"num_gpus": num_gpus, "num_cpus": num_cpus}
        try:
            rows = ray.get(ray.remote(**resources)(_rows_of_shards).remote(build))
            data.DataContext.get_current().enable_progress_bars = False
            # Not data.range, whose tasks would wait for a CPU while the actors hold all of them.
            numbers = data.from_items(
                [{"id": k} for k in range(len(rows))], override_num_blocks=min(len(rows), MAX_BLOCKS)
            )
            done = numbers.map_batches(
                _Actor,
                fn_constructor_args=(build, retry_failed),
                batch_size=1,
                compute=data.ActorPoolStrategy(size=min(actors, len(rows)), max_tasks_in_flight_per_actor=1),
                **resources,
            )
            with tqdm(
                total=sum(rows), unit="picture", disable=None if progress is None else not progress
            ) as bar:
                return summarize(_shards(done.iter_batches(batch_size=1, prefetch_batches=0), bar), on_shard)
        except ray.exceptions.RayError as error:
            raise _cause(error) from error
    finally:
        if started:
            ray.shutdown()


def _connect(ray: Any, address: str | None, runtime_env: Mapping[str, Any] | None) -> None:
    """Raise ValueError if no cluster answers. Ray itself would try for minutes, or end the process."""
    if address is not None and address not in SCHEMES:
        host, _, port = address.removeprefix("ray://").rpartition(":")
        try:
            socket.create_connection((host, int(port)), CONNECT_SECONDS).close()
        except (OSError, ValueError) as error:
            raise ValueError(f"no Ray cluster answers at {address!r:.200} ({error})") from None
    options = {} if runtime_env is None else {"runtime_env": dict(runtime_env)}
    try:
        ray.init(address=address, log_to_driver=False, logging_level="ERROR", **options)
    except Exception as error:  # a plain Exception, where a node does not start in time
        reason = (str(error) or type(error).__name__).splitlines()[0]
        what = "Ray does not start" if address is None else f"no Ray cluster answers at {address!r:.200}"
        raise ValueError(f"{what} ({reason:.200})") from None


def _rows_of_shards(build: Callable[[], Job]) -> list[int]:
    """The numbers of rows of all shards. It also checks the job before the actors start."""
    plan = build().plan
    return [len(plan.rows_of(number)) for number in range(plan.shards)]


class _Actor:
    """Finishes the shards of batches of numbers."""

    def __init__(self, build: Callable[[], Job], retry_failed: bool) -> None:
        self.job, self.retry_failed = build(), retry_failed

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, list[str]]:
        shards = [self.job.finish(int(k), retry_failed=self.retry_failed) for k in batch["id"]]
        values = [vars(shard) | {"path": str(shard.path)} for shard in shards]
        return {"shard": [json.dumps(one) for one in values]}


def _shards(batches: Any, bar: tqdm[Any]) -> Iterator[Shard]:
    for batch in batches:
        for text in batch["shard"]:
            values = json.loads(str(text))
            values |= {"path": Path(values["path"]), "reasons": tuple(values["reasons"])}
            shard = Shard(**values)
            bar.update(shard.drawn + shard.failed)
            yield shard


def _cause(error: BaseException) -> BaseException:
    """The innermost error of our own code that Ray has wrapped, or a ValueError that says what Ray says."""
    own, inner = None, getattr(error, "cause", None) or error.__cause__
    while inner is not None:
        if not type(inner).__module__.startswith("ray."):
            own = inner
        inner = getattr(inner, "cause", None) or inner.__cause__
    if isinstance(own, (ValueError, OSError, MemoryError, RuntimeError)):
        return own
    lines = (str(error) or type(error).__name__).strip().splitlines()
    return ValueError(f"Ray: {lines[-1]:.500}")
