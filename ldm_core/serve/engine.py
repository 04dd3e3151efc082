"""The engine: one queue of orders, and one thread that owns the model and draws them.

    engine = Engine([Source("emoji", ldm_core.load, source_file(path), steps=25, guidance_scale=4)])
    job = engine.submit(Order("a cat"))
    for report in job.reports():
        print(report.state, report.step, report.total)
    report.result.pictures[0].save("cat.png")
    engine.close()

It knows no web framework. Users name a model by its name; where its file is, only `Source.load` knows.
"""

from __future__ import annotations

import logging
import threading
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from ldm_core.conditioners import TextConditioner
from ldm_core.model import LatentDiffusion
from ldm_core.recipe import SourceFile
from ldm_core.serve.drawing import LoadedModel, draw
from ldm_core.serve.job import Cancelled, Job, Result
from ldm_core.serve.order import BadOrder, Limits, ModelInfo, Order, TooBusy, complete

LOG = logging.getLogger("ldm_core.serve")
OUT_OF_MEMORY = "There is not enough memory for this picture. Try a smaller size."
UNEXPECTED = "Something went wrong while drawing. The server's log says what."
GUIDANCE = 7.5  # as `Sampler.sample`
NOTES = 5  # warnings that are shown


@dataclass(frozen=True)
class Source:
    """A model that the server offers.

    name: what users call it. load: reads it into memory. file: its record in recipes, whose path is left out.
    steps, guidance_scale: the defaults of orders; None: the guidance that `Sampler.sample` takes.
    """

    name: str
    load: Callable[[], LatentDiffusion]
    file: SourceFile
    steps: int = 50
    guidance_scale: float | None = None


class Engine:
    """Draws orders one after another with the models of `sources`, of which one at a time is in memory.

    scheduler: the name of the default one, in `ldm_core.schedulers.named.SCHEDULERS`.

    Every model is loaded once at the start, so that a damaged file is found before there are users.
    Raises ValueError for a model that takes no prompts, for two of one name, or as the sources' `load` does.
    """

    def __init__(
        self, sources: Sequence[Source], limits: Limits | None = None, *, scheduler: str = "ddim"
    ) -> None:
        if not sources or len({source.name for source in sources}) < len(sources):
            raise ValueError(f"expected models of different names, got {[one.name for one in sources]}")
        self.limits = Limits() if limits is None else limits
        self.scheduler = scheduler
        self._sources = {source.name: source for source in sources}
        infos: dict[str, ModelInfo] = {}
        self._name = ""
        self._loaded: LoadedModel | None = None
        for source in reversed(sources):  # the first one stays in memory
            infos[source.name] = _info(source, self._load(source.name).model)
        self.models = {name: infos[name] for name in self._sources}
        self._changed = threading.Condition()
        self._waiting: list[Job] = []
        self._running: Job | None = None
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="ldm_core.serve", daemon=True)
        self._thread.start()

    def submit(self, order: Order) -> Job:
        """Put an order into the queue. Raises BadOrder if it is invalid, and TooBusy if the queue is full."""
        order = replace(order, scheduler=order.scheduler or self.scheduler)
        job = Job(complete(order, self.models, self.limits), self._forget)
        with self._changed:
            if self._closed:
                raise TooBusy("The server is shutting down.")
            if len(self._waiting) >= self.limits.waiting:
                raise TooBusy(
                    f"The server is busy: {len(self._waiting)} others are waiting. Try again in a while."
                )
            self._waiting.append(job)
            self._tell_positions()
            self._changed.notify_all()
        return job

    def close(self) -> None:
        """Cancel all jobs, and wait until the thread has ended, which is after the current step."""
        with self._changed:
            self._closed = True
            jobs = [*self._waiting, *([self._running] if self._running else [])]
            self._changed.notify_all()
        for job in jobs:
            job.cancel()
        self._thread.join()

    def _forget(self, job: Job) -> None:
        """Take a cancelled job from the queue. The running one ends by itself."""
        with self._changed:
            if job in self._waiting:
                self._waiting.remove(job)
                job.update(state="cancelled")
                self._tell_positions()

    def _tell_positions(self) -> None:
        ahead = int(self._running is not None)
        for k, job in enumerate(self._waiting):
            job.update(position=k + ahead)

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or self._waiting)
                if self._closed:
                    return
                job = self._running = self._waiting.pop(0)
                self._tell_positions()
            self._run(job)
            with self._changed:
                self._running = None
                self._tell_positions()

    def _run(self, job: Job) -> None:
        """Draw one job. Whatever happens, the job ends and this thread lives on."""
        notes: dict[str, None] = {}
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always", UserWarning)
                loaded = self._load(job.order.model, job)
                job.update(state="drawing", position=0)
                result = _drawn(job, loaded)
                notes = {str(one.message): None for one in caught if one.category is UserWarning}
            job.update(state="done", result=result, notes=tuple(notes)[:NOTES])
        except Cancelled:
            job.update(state="cancelled")
        except Exception as error:
            bad = as_bad_order(error)
            job.update(state="failed", message=str(bad or UNEXPECTED), refused=bad is not None)

    def _load(self, name: str, job: Job | None = None) -> LoadedModel:
        if self._loaded is None or self._name != name:
            if job is not None:
                job.update(state="loading", position=0)
            self._loaded = None  # before the next one is read, so that two need not fit into memory
            source = self._sources[name]
            self._loaded = LoadedModel(source.load(), replace(source.file, path=None))
            self._name = name
        return self._loaded


def _info(source: Source, model: LatentDiffusion) -> ModelInfo:
    if not isinstance(model.conditioner, TextConditioner):
        kind = type(model.conditioner).__name__
        raise ValueError(f"{source.name}: serve takes models of prompts, not one with {kind}")
    return ModelInfo(
        name=source.name,
        size=model.config.image_size,
        multiple=model.config.size_multiple,
        most_steps=len(model.noise_schedule),
        steps=source.steps,
        guidance_scale=GUIDANCE if source.guidance_scale is None else source.guidance_scale,
    )


def _drawn(job: Job, loaded: LoadedModel) -> Result:
    """The result of a job. Unlike errors of reading a model, those of drawing are the user's: BadOrder."""
    try:
        return draw(job, loaded)
    except ValueError as error:
        raise BadOrder(str(error)) from error


def as_bad_order(error: Exception) -> BadOrder | None:
    """The error in words for users. Others, which may tell of the server's files, are only logged."""
    if isinstance(error, BadOrder):
        return error
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate" in str(error):
        LOG.warning("out of memory: %s", error)
        return BadOrder(OUT_OF_MEMORY, "size")
    LOG.error("an order could not be drawn", exc_info=error)
    return None
