"""The training loop: gradients, optimizer steps, weight averaging, logging and checkpoints.

    trainer = Trainer(objective, dataset, "runs/first", TrainingSettings(steps=10_000, batch_size=64))
    trainer.run()        # resumes from the last saved state if there is one

A run's folder holds `state.safetensors`, `metrics.csv`, `tensorboard/` and `samples/`. CompVis uses
Lightning's `Trainer` instead.
"""

from __future__ import annotations

import math
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
from ldm_core.support.warn import warn
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
# Settings that may change when a run is resumed: they change the losses by rounding only.
CHANGE_NO_LOSS = {
    *("gradient_checkpointing", "workers", "save_every", "log_every", "picture_every"),
    "optimizer",  # must not change; checked separately
}


class TrainingError(RuntimeError):
    """A training run that cannot continue, for example because its loss is not finite."""


@dataclass(frozen=True)
class TrainingSettings:
    """Hyperparameters of a training run.

    steps: the total number of optimizer steps.
    batch_size: samples per step, over all processes.
    accumulate: micro-batches per step and process (gradient accumulation).
    learning_rate: at the peak, after the warm-up.
    warmup: steps of linear warm-up.
    final_rate: the final learning rate of the cosine decay, as a fraction of the peak.
    optimizer: for "muon", see `ldm_core.training.muon`.
    clip: the largest gradient norm of a parameter group; None disables clipping.
    ema_decay: decay of the moving average of the weights; None disables it.
    precision: the autocast type. Weights, their average and the loss stay in float32.
    workers: data loading processes; 0 loads data in the main process.
    save_every, log_every, picture_every: intervals in steps.
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
    """Trains an objective's networks in place, on their device.

    dataset: see `ldm_core.training.dataset`.
    folder: the run's folder, shared by all processes. `run` resumes from the state in it.
    world: this process among several, from `init_distributed()`. parallel: "ddp" or "fsdp".
    picture: returns an image to log; called with the averaged weights in every process.
    quiet: hide the progress bar.

    step   the number of steps taken
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
        micro_batches = settings.accumulate * self.world.size
        if settings.batch_size % micro_batches:
            raise ValueError(
                f"batch_size {settings.batch_size} is not a multiple of {micro_batches} "
                f"({settings.accumulate} micro-batches in each of {self.world.size} processes)"
            )
        if len(dataset) == 0:
            raise ValueError("expected at least one sample to train on, got none")
        self.objective, self.dataset, self.folder = objective, dataset, Path(folder)
        self.settings, self.quiet, self.picture = settings, quiet, picture
        # Computed once: for a dataset of files it reads the status of each.
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
        self._seen: set[str] = set()  # messages of skipped samples

    @property
    def state_path(self) -> Path:
        """The file of the run's state, from which it resumes."""
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
            raise ValueError("optimizer='muon' needs unsharded weights: use parallel='ddp', not 'fsdp'")
        return Muon(self._groups, matrix_weights(self.objective), **common)

    def run(self) -> None:
        """Train up to `settings.steps`, resuming from the folder's state if there is one, and save the state.

        SIGINT (Ctrl-C) or SIGTERM to any process makes all of them finish the current step, save, and exit
        with KeyboardInterrupt or SystemExit.

        Raises TrainingError if a loss or gradient is not finite, before the weights change, or if another run
        uses the folder. Raises CheckpointError if the state does not fit or cannot be written.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._locked_folder():
            self._train()

    @contextmanager
    def _locked_folder(self) -> Iterator[None]:
        """Lock the folder against other runs. Raises TrainingError in every process if that fails."""
        with ExitStack() as stack:
            problem = ""
            if self.world.is_first:
                try:
                    stack.enter_context(exclusive(self.folder / LOCK))
                except BlockingIOError as error:
                    problem = f"another run uses this folder: {error.strerror}"
                except OSError as error:
                    problem = f"its lock file cannot be opened: {error.strerror}"
            if self.world.mean({"problem": bool(problem)})["problem"]:
                problem = problem or "another run uses this folder, or its lock file cannot be opened"
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
                    stopping = self._train_step(batches, log, caught)
                    if self.step % self.settings.save_every == 0:
                        self.save()
                self.save()
        finally:
            del batches  # ends the data loading processes
            if log is not None:
                log.close()
        if stopping or caught:
            exit_by_signal(caught)

    def save(self) -> None:
        """Save the state, unless the current step is already saved."""
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
        """Context manager: the networks have their averaged weights, if an average is kept."""
        with self._average.applied() if self._average is not None else nullcontext():
            yield

    def _resume(self) -> None:
        exists = self.state_path.exists()
        if self.world.mean({"exists": exists})["exists"] not in (0.0, 1.0):
            raise TrainingError(
                f"{self.state_path} exists for some processes only: all processes must share the folder"
            )
        if not exists:
            self.save()  # so that a failure in the first steps leaves a state, too
            return
        progress = load_state(self.state_path, self._trained, self._require_same_optimizer)
        self.step, self.position = progress["step"], progress["position"]
        self._saved = self.step
        now = asdict(self.settings) | {"samples": len(self.dataset), "betas": list(self.settings.betas)}
        then = progress["settings"] | {"samples": progress["length"]}
        changes = [
            f"{name}={now[name]} instead of {shown(then[name])}"
            for name in sorted(now.keys() & then.keys() - CHANGE_NO_LOSS)
            if now[name] != then[name]
        ]
        data = {self._fingerprint, progress.get("data")} - {None}
        if len(data) > 1 and now["samples"] == then["samples"]:
            changes.append("another dataset, or files that have changed since")
        for change in changes:
            warn(f"resumed at step {self.step} with {change}")

    def _require_same_optimizer(self, progress: Mapping[str, Any]) -> None:
        started, wanted = progress["settings"].get("optimizer", "adamw"), self.settings.optimizer
        if started != wanted:
            raise TrainingError(
                f"{self.state_path}: this run was started with optimizer {shown(started)} and cannot be "
                f"resumed with {wanted!r}"
            )

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
            generator=torch.Generator(),  # by default it draws from the global generator
        )
        positions = count(self.position, order.batch_size * order.size)
        for batch, position in zip(loader, positions):
            yield batch | {"generators": noise_generators(settings.seed, order.positions(position))}

    def _train_step(self, batches: Iterator[dict[str, Any]], log: RunLog | None, caught: list[int]) -> bool:
        """Take and log one step. Returns whether to stop, which is the same in all processes."""
        settings = self.settings
        rate = warmup_cosine(
            self.step, steps=settings.steps, warmup=settings.warmup, final=settings.final_rate
        )
        for group in self._optimizer.param_groups:
            group["lr"] = settings.learning_rate * rate * group.get("scale", 1.0)
        metrics = self.world.mean(self._gradients(batches) | {"stop": float(bool(caught))})
        stopping = metrics.pop("stop") > 0
        self._drop_early_gradients()
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
        """Compute the step's mean gradients. Returns the loss and metrics of this process."""
        micro_batches = self.settings.accumulate
        sums: dict[str, Tensor | float] = {}
        for k in range(micro_batches):
            batch = next(batches)
            generators = batch.pop("generators")
            self._warn_skipped(batch.pop("skipped"))
            with gradient_sync(self._module, enabled=k == micro_batches - 1):
                with self._autocast():
                    loss, metrics = self._module(batch, generators, self.step)
                (loss / micro_batches).backward()
            for name, value in {"loss": loss.detach(), **metrics}.items():
                sums[name] = sums.get(name, 0.0) + value
        return {name: float(value) / micro_batches for name, value in sums.items()}

    def _autocast(self) -> Any:
        if self.settings.precision == "float32":
            return nullcontext()
        device = next(self.objective.parameters()).device
        return torch.autocast(device.type, torch.bfloat16)

    def _drop_early_gradients(self) -> None:
        """Remove gradients before a group's "start": optimizers count even zero gradients as steps."""
        for group in self._groups:
            if self.step < group.get("start", 0):
                for parameter in group["params"]:
                    parameter.grad = None

    def _clip(self) -> float:
        """Clip each group's gradient norm to `clip`. Returns the largest norm before clipping."""
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
                f"weights are those of step {self.step}; the last saved state, {self.state_path}, is "
                f"of step {self._saved}"
            )

    def _warn_skipped(self, skipped: list[tuple[str, ...]]) -> None:
        for message in (m for messages in skipped for m in messages if m not in self._seen):
            self._seen.add(message)
            warn(f"skipped: {message}")
