"""What the tests of training run: a small problem with noise in it, and processes that can be killed."""

from __future__ import annotations

import multiprocessing
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from support.configs import TINY
from torch import Tensor, nn

from ldm_core import build
from ldm_core.noise import randn
from ldm_core.training import DiffusionObjective, Objective, TensorDataset, Trainer, TrainingSettings
from ldm_core.training.logs import read_table

Rows = list[dict[str, float]]
FORK = multiprocessing.get_context("fork")  # imports of half a second each would be most of a test


def pictures(count: int = 20, size: int = 8, seed: int = 0) -> TensorDataset:
    images = torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return TensorDataset(images, [f"picture {i}" for i in range(count)])


class Denoise(Objective):
    """Guesses a picture from a noisy copy of it. `fails` says what is added to the loss of a step."""

    def __init__(self, width: int = 8, fails: Callable[[int], float] | None = None) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.layers = nn.Sequential(
            nn.Conv2d(3, width, 3, padding=1), nn.SiLU(), nn.Conv2d(width, 3, 3, padding=1)
        )
        for parameter in self.parameters():
            parameter.data = 0.2 * torch.randn(parameter.shape, generator=generator)
        self.fails = fails

    def loss(self, batch: Any, generators: Any, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        images = batch["image"]
        noisy = images + randn(images.shape, generators)
        loss = (self.layers(noisy) - images).square().mean()
        if self.fails is not None:
            loss = loss + self.fails(step)
        return loss, {"twice": 2 * loss.detach()}


def diffusion(**options: Any) -> DiffusionObjective:
    """A tiny latent diffusion model, the same one each time."""
    torch.manual_seed(0)
    return DiffusionObjective(build(TINY["sd1"]).to("cpu"), **options)


def settings(**changes: Any) -> TrainingSettings:
    values: dict[str, Any] = {
        "steps": 12,
        "batch_size": 6,
        "learning_rate": 0.01,
        "warmup": 3,
        "log_every": 1,
        "save_every": 3,
        "ema_decay": 0.9,
        "seed": 5,
    }
    return TrainingSettings(**values | changes)


def run(folder: Path, objective: Objective | None = None, **options: Any) -> Trainer:
    samples = options.pop("samples", None) or pictures()
    others = {k: options.pop(k) for k in ("world", "parallel", "picture") if k in options}
    trainer = Trainer(objective or Denoise(), samples, folder, settings(**options), quiet=True, **others)
    trainer.run()
    return trainer


def rows(folder: Path) -> Rows:
    return read_table(folder / "metrics.csv")[1]


def losses(folder: Path) -> list[float]:
    return [row["loss"] for row in rows(folder)]


def started(target: Callable[..., None], *arguments: Any) -> Any:
    process = FORK.Process(target=target, args=arguments)
    process.start()
    return process


def wait_for_rows(folder: Path, count: int, process: Any, seconds: float = 60) -> None:
    """Until the run has logged so many steps."""
    limit = time.monotonic() + seconds
    while time.monotonic() < limit and process.is_alive():
        if len(rows(folder)) >= count:
            return
        time.sleep(0.002)
    raise AssertionError(f"{len(rows(folder))} rows, wanted {count}; exit code {process.exitcode}")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def in_processes(size: int, target: Callable[..., None], *arguments: Any) -> list[int]:
    """Run `target` in `size` processes with torchrun's environment variables; returns their exit codes.

    Once more if one never comes to an end: a fork of a process with threads may hang in its first moments.
    """
    codes = _exit_codes(size, target, *arguments)
    return codes if None not in codes else _exit_codes(size, target, *arguments)


def _exit_codes(size: int, target: Callable[..., None], *arguments: Any) -> list[int]:
    port = free_port()

    def body(rank: int) -> None:
        os.environ.update(
            RANK=str(rank),
            LOCAL_RANK=str(rank),
            WORLD_SIZE=str(size),
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=str(port),
        )
        target(*arguments)

    processes = [started(body, rank) for rank in range(size)]
    limit = time.monotonic() + 90
    for process in processes:
        process.join(max(0.0, limit - time.monotonic()))
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
    return codes
