"""The loop: take samples, average their losses' gradients, step, keep the average of the weights, save.

    trainer = Trainer(objective, dataset, "runs/first", TrainingSettings(steps=10_000, batch_size=64))
    trainer.run()        # and again after it was cut off: it goes on where the last saved state was

What it needs to know of a task is in the objective; what a run was, is in its folder: `state.safetensors`,
`metrics.csv`, `tensorboard/`, `samples/`. CompVis has Lightning's `Trainer` in this place.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ldm_core.support.atomic_files import exclusive
from ldm_core.support.printable import shown
from ldm_core.training.data_order import ResumableBatchSampler, noise_generators
from ldm_core.training.dataset import Dataset, SkipUnreadable, collate
from ldm_core.training.distributed import Parallel, World, full_tensor, gradient_sync, parallelize, unsharded
from ldm_core.training.ema import WeightAverage
from ldm_core.training.gradient_checkpointing import enable_gradient_checkpointing
from ldm_core.training.learning_rate import warmup_cosine
from ldm_core.training.logs import RunLog
from ldm_core.training.muon import Muon, matrix_weights
from ldm_core.training.objective import Objective
from ldm_core.training.signals import catch_signals, exit_by_signal, ignore_signals
from ldm_core.training.state import TrainingState, load_state, save_state

if TYPE_CHECKING:
    from PIL.Image import Image

STATE = "state.safetensors"
LOCK = ".lock"
# Settings that may change within a run, which gives the same losses with them but for rounding.
CHANGE_NO_LOSS = {
    *("gradient_checkpointing", "workers", "save_every", "log_every", "picture_every"),
    "optimizer",  # which must not change at all
}


class TrainingError(RuntimeError):
    """A run that cannot go on, such as one whose loss is no number."""


@dataclass(frozen=True)
class TrainingSettings:
    """How to train.

    batch_size: samples a step, over all processes. accumulate: in how many passes one after the other.
    optimizer: see `ldm_core.training.muon` for "muon".
    warmup, final_rate: steps of rising learning rate, and the share of it that the cosine ends at.
    clip: the largest norm of a parameter group's gradient; None for any.
    ema_decay: of the average of the weights; None for no average.
    precision: what networks compute in (autocast); weights, their average and the loss stay float32.
    workers: processes that read data; 0 reads it between the steps.
    save_every, log_every, picture_every: in steps.
    """

    steps: int
    batch_size: int
    accumulate: int = 1
    learning_rate: float = 1e-4
    warmup: int = 0
    final_rate: float = 0.0
    optimizer: Literal["adamw", "muon"] = "adamw"
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.01
    clip: float | None = 1.0
    ema_decay: float | None = 0.9999
    precision: Literal["float32", "bfloat16"] = "float32"
    gradient_checkpointing: bool = False
    seed: int = 0
    workers: int = 0
    save_every: int = 1000
    log_every: int = 10
    picture_every: int = 1000

    def __post_init__(self) -> None:
        counts = ("steps", "batch_size", "accumulate", "save_every", "log_every", "picture_every")
        for name, least in [*((name, 1) for name in counts), ("seed", 0), ("warmup", 0), ("workers", 0)]:
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be {least} or more, not {getattr(self, name)}")
        if self.precision not in ("float32", "bfloat16"):
            raise ValueError(f"precision must be 'float32' or 'bfloat16', not {self.precision!r}")
        if self.optimizer not in ("adamw", "muon"):
            raise ValueError(f"optimizer must be 'adamw' or 'muon', not {self.optimizer!r}")
        for name in ("learning_rate", "clip"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be positive, not {value}")
        for name in ("final_rate", "weight_decay"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be 0 or more, not {getattr(self, name)}")
        decays = [*(("betas", beta) for beta in self.betas), ("ema_decay", self.ema_decay)]
        for name, decay in decays:
            if decay is not None and not 0 <= decay < 1:
                raise ValueError(f"{name} must be in [0, 1), not {decay}")


class Trainer:
    """Trains an objective's networks, in place and where they are.

    dataset: see `ldm_core.training.dataset`. folder: where the run is kept, one for all processes;
        a state that is in it is taken up by `run`.
    world, parallel: this process among several, from `distributed.join()`, and how they share the work.
    picture: draws what the networks make of something; called with the averaged weights, by every process.
    quiet: show no progress bar.

    step   how many steps were taken
    """

    def __init__(
        self,
        objective: Objective,
        dataset: Dataset,
        folder: str | Path,
        settings: TrainingSettings,
        *,
        world: World | None = None,
        parallel: Parallel = "ddp",
        picture: Callable[[], Image] | None = None,
        quiet: bool = False,
    ) -> None:
        self.world = world or World()
        turns = settings.accumulate * self.world.size
        if settings.batch_size % turns:
            raise ValueError(
                f"batch_size {settings.batch_size} is not a multiple of {turns}, "
                f"{settings.accumulate} passes in each of {self.world.size} processes"
            )
        if len(dataset) == 0:
            raise ValueError("expected at least one sample to train on, got none")
        self.objective, self.dataset, self.folder = objective, dataset, Path(folder)
        self.settings, self.quiet, self.picture = settings, quiet, picture
        # Of a data set of files it takes a look at every one.
        self._fingerprint = getattr(dataset, "fingerprint", None) if self.world.is_first else None
        self.step = self.position = 0
        self._saved = -1  # the step whose state is on disk
        if settings.gradient_checkpointing:
            for network in objective.networks():
                enable_gradient_checkpointing(network)
        self._module = parallelize(objective, self.world, parallel)
        self._groups = objective.parameter_groups()
        if not any(group["params"] for group in self._groups):
            raise ValueError("the objective has no parameters to train")
        self._optimizer = self._new_optimizer(parallel)
        decay = settings.ema_decay
        self._average = None if decay is None else WeightAverage(objective, decay)
        self._trained = TrainingState(objective, self._optimizer, self._average)
        self._seen: set[str] = set()  # messages of samples that were skipped

    @property
    def state_path(self) -> Path:
        return self.folder / STATE

    def _new_optimizer(self, parallel: Parallel) -> torch.optim.Optimizer:
        settings = self.settings
        common: dict[str, Any] = {
            "lr": settings.learning_rate,
            "betas": settings.betas,
            "weight_decay": settings.weight_decay,
        }
        if settings.optimizer == "adamw":
            return torch.optim.AdamW(self._groups, **common)
        if parallel == "fsdp" and self.world.size > 1:
            raise ValueError("muon wants whole kernels, of which fsdp gives each process a slice: use ddp")
        return Muon(self._groups, matrix_weights(self.objective), **common)

    def run(self) -> None:
        """Train up to `settings.steps`, from the state in the folder if there is one, and save.

        Ctrl-C (SIGINT) and SIGTERM, to any process of the run, end all of them after the step at hand and
        after saving: with KeyboardInterrupt, or with SystemExit. Raises TrainingError where a loss or a
        gradient is not finite, before it touches the weights, and where another run uses the folder; and
        CheckpointError for a state that does not fit or cannot be written.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._folder_to_itself():
            self._train()

    @contextmanager
    def _folder_to_itself(self) -> Iterator[None]:
        """Keep other runs out of the folder. Raises TrainingError, in every process, if it cannot."""
        with ExitStack() as stack:
            problem = ""
            if self.world.is_first:
                try:
                    stack.enter_context(exclusive(self.folder / LOCK))
                except BlockingIOError as error:
                    problem = f"another run uses this folder: {error.strerror}"
                except OSError as error:
                    problem = f"its lock cannot be opened: {error.strerror}"
            if self.world.mean({"problem": bool(problem)})["problem"]:
                problem = problem or "another run uses this folder, or its lock cannot be opened"
                raise TrainingError(f"{self.folder}: {problem}")
            yield

    def _train(self) -> None:
        self._resume()
        log = None
        if self.world.is_first:
            log = RunLog(self.folder, step=self.step, steps=self.settings.steps, quiet=self.quiet)
        batches = iter(self._loader())
        stopping = False
        try:
            with catch_signals() as caught:
                while self.step < self.settings.steps and not stopping:
                    stopping = self._advance(batches, log, caught)
                    if self.step % self.settings.save_every == 0:
                        self.save()
                self.save()
        finally:
            del batches  # ends the processes that read ahead
            if log is not None:
                log.close()
        if stopping or caught:
            exit_by_signal(caught)

    def save(self) -> None:
        """Write the state, unless it is that of the step that was written last."""
        if self.step != self._saved:
            progress = {
                "step": self.step,
                "position": self.position,
                "length": len(self.dataset),
                "data": self._fingerprint,
                "settings": asdict(self.settings),
            }
            save_state(self.state_path, self._trained, progress, self.world)
            self._saved = self.step

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Inside the block the networks have their averaged weights, if an average is kept."""
        with self._average.applied() if self._average is not None else nullcontext():
            yield

    def _resume(self) -> None:
        there = self.state_path.exists()
        if self.world.mean({"there": there})["there"] not in (0.0, 1.0):
            raise TrainingError(
                f"{self.state_path} is there for some processes and not for others: the folder must be shared"
            )
        if not there:
            self.save()  # so that there is a state to go back to, whatever happens
            return
        progress = load_state(self.state_path, self._trained, self._require_same_optimizer)
        self.step, self.position = progress["step"], progress["position"]
        self._saved = self.step
        now = asdict(self.settings) | {"samples": len(self.dataset), "betas": list(self.settings.betas)}
        then = progress["settings"] | {"samples": progress["length"]}
        changes = [
            f"{name} {now[name]}, where it was {shown(then[name])}"
            for name in sorted(now.keys() & then.keys() - CHANGE_NO_LOSS)
            if now[name] != then[name]
        ]
        data = {self._fingerprint, progress.get("data")} - {None}
        if len(data) > 1 and now["samples"] == then["samples"]:
            changes.append("other samples, or files that were written since")
        for change in changes:
            warnings.warn(f"resumed at step {self.step} with {change}", stacklevel=4)

    def _require_same_optimizer(self, progress: Mapping[str, Any]) -> None:
        used, asked = progress["settings"].get("optimizer", "adamw"), self.settings.optimizer
        if used != asked:
            raise TrainingError(f"{self.state_path}: the state of a run with {used!r}, asked for {asked!r}")

    def _loader(self) -> Iterator[dict[str, Any]]:
        settings = self.settings
        order = ResumableBatchSampler(
            len(self.dataset),
            settings.seed,
            settings.batch_size // settings.accumulate // self.world.size,
            position=self.position,
            rank=self.world.rank,
            size=self.world.size,
        )
        loader: DataLoader[dict[str, Any]] = DataLoader(
            SkipUnreadable(self.dataset),  # type: ignore[arg-type]
            batch_sampler=order,
            num_workers=settings.workers,
            collate_fn=collate,
            worker_init_fn=ignore_signals,
            generator=torch.Generator(),  # else it would draw from the global one
        )
        turns = count(self.position, order.batch_size * order.size)
        for batch, position in zip(loader, turns):
            yield batch | {"generators": noise_generators(settings.seed, order.positions(position))}

    def _advance(self, batches: Iterator[dict[str, Any]], log: RunLog | None, caught: list[int]) -> bool:
        """One step, logged; returns whether to stop after it, which all processes do at the same one."""
        settings = self.settings
        rate = warmup_cosine(
            self.step, steps=settings.steps, warmup=settings.warmup, final=settings.final_rate
        )
        for group in self._optimizer.param_groups:
            group["lr"] = settings.learning_rate * rate * group.get("scale", 1.0)
        metrics = self.world.mean(self._gradients(batches) | {"stop": float(bool(caught))})
        stopping = metrics.pop("stop") > 0
        self._let_wait()
        metrics["gradient"] = self._clip()
        self._require_finite(metrics)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self.step += 1
        self.position += settings.batch_size
        if self._average is not None:
            self._average.update(self.step)

        due = self.step % settings.log_every == 0 or self.step == settings.steps
        if log is not None:
            log.advance(metrics["loss"])
            if due:
                log.numbers(self.step, metrics | {"learning_rate": settings.learning_rate * rate})
        if self.picture is not None and self.step % settings.picture_every == 0:
            with self.averaged(), unsharded(self.objective), torch.no_grad():
                image = self.picture()
            if log is not None:
                log.picture(self.step, image)
        return stopping

    def _gradients(self, batches: Iterator[dict[str, Any]]) -> dict[str, float]:
        """Fill the parameters' gradients with the step's mean; the loss and the metrics of this process."""
        passes = self.settings.accumulate
        sums: dict[str, Tensor | float] = {}
        for k in range(passes):
            batch = next(batches)
            generators = batch.pop("generators")
            self._report(batch.pop("skipped"))
            with gradient_sync(self._module, wanted=k == passes - 1):
                with self._autocast():
                    loss, metrics = self._module(batch, generators, self.step)
                (loss / passes).backward()
            for name, value in {"loss": loss.detach(), **metrics}.items():
                sums[name] = sums.get(name, 0.0) + value
        return {name: float(value) / passes for name, value in sums.items()}

    def _autocast(self) -> Any:
        if self.settings.precision == "float32":
            return nullcontext()
        device = next(self.objective.parameters()).device
        return torch.autocast(device.type, torch.bfloat16)

    def _let_wait(self) -> None:
        """Groups whose turn has not come have no gradients: an optimizer would count even zeros as steps."""
        for group in self._groups:
            if self.step < group.get("start", 0):
                for parameter in group["params"]:
                    parameter.grad = None

    def _clip(self) -> float:
        """Shorten each group's gradient to `clip`; returns the largest norm that there was."""
        limit = math.inf if self.settings.clip is None else self.settings.clip
        norms: list[Tensor] = [
            torch.nn.utils.clip_grad_norm_(group["params"], limit)
            for group in self._groups
            if group["params"]
        ]
        return max(
            (float(full_tensor(norm)) for norm in norms), key=lambda n: n if math.isfinite(n) else math.inf
        )

    def _require_finite(self, metrics: dict[str, float]) -> None:
        wrong = [f"{name} is {value}" for name, value in metrics.items() if not math.isfinite(value)]
        if wrong:
            self._optimizer.zero_grad(set_to_none=True)
            last = self.position + self.settings.batch_size - 1
            raise TrainingError(
                f"step {self.step + 1} (samples {self.position}..{last} of the run): {', '.join(wrong)}. The "
                f"weights are those of step {self.step}; the state that is saved, {self.state_path}, is that "
                f"of step {self._saved}"
            )

    def _report(self, skipped: list[tuple[str, ...]]) -> None:
        for message in (m for messages in skipped for m in messages if m not in self._seen):
            self._seen.add(message)
            warnings.warn(f"skipped: {message}", stacklevel=2)
