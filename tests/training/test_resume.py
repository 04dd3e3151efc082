"""A run may be killed, told to stop, filled up or fed nonsense: nothing that it had is lost."""

from __future__ import annotations

import errno
import hashlib
import math
import os
import signal
import time
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from support.training_runs import (
    Denoise,
    diffusion,
    losses,
    pictures,
    rows,
    run,
    settings,
    started,
    wait_for_rows,
)
from support.whole_runs import same_state
from torch import nn

from ldm_core.checkpoint import CheckpointError, read
from ldm_core.support.atomic_files import exclusive
from ldm_core.training import Trainer, TrainingError
from ldm_core.training.distributed import World
from ldm_core.training.loop import LOCK


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


# --- what may befall a run ---


@pytest.mark.slow  # several processes
@pytest.mark.parametrize("save_every", [7, pytest.param(1, marks=pytest.mark.slow)])
def test_a_run_that_is_killed_again_and_again_gives_the_same_numbers(tmp_path: Path, save_every: int) -> None:
    """SIGKILL leaves no time for anything; wherever it falls, in a step, in a save or in a row of the log."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    options = {"steps": 60, "save_every": save_every, "samples": pictures(size=16), "batch_size": 2}
    options["learning_rate"] = 0.001
    run(whole, Denoise(width=64), **options)
    for count in (3, 16, 33, 47):
        process = started(lambda: run(broken, Denoise(width=64), **options) and None)
        wait_for_rows(broken, count, process)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert process.exitcode == -signal.SIGKILL
    (broken / ".state.safetensors.0123456789ab.part").touch()  # what a kill within a save leaves
    trainer = run(broken, Denoise(width=64), **options)
    assert trainer.step == 60
    assert [row["step"] for row in rows(broken)] == list(range(1, 61))
    assert rows(broken) == rows(whole)
    assert same_state(broken, whole)
    assert {path.name for path in broken.iterdir()} == {"state.safetensors", "metrics.csv", "tensorboard"}


@pytest.mark.slow  # several processes
def test_a_latent_diffusion_that_is_killed_gives_the_same_numbers(tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    options = {"steps": 8, "save_every": 3, "batch_size": 2, "samples": pictures(size=16), "ema_decay": None}
    run(whole, diffusion(), **options)
    process = started(lambda: run(broken, diffusion(), **options) and None)
    wait_for_rows(broken, 5, process)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert read(broken / "state.safetensors").metadata["ldm_core.training"].startswith('{"step": 3')
    run(broken, diffusion(), **options)
    assert rows(broken) == rows(whole)
    assert same_state(broken, whole)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 1), (signal.SIGTERM, 128 + 15)])
def test_a_signal_saves_and_leaves(whole: Path, tmp_path: Path, number: int, code: int) -> None:
    def send(step: int) -> float:
        if step == 4:
            os.kill(os.getpid(), number)
        return 0.0

    process = started(lambda: run(tmp_path, Denoise(fails=send), save_every=100) and None)
    process.join(60)
    assert process.exitcode == code
    assert len(rows(tmp_path)) == 5, "the step at hand is finished"
    run(tmp_path, save_every=100)
    assert losses(tmp_path) == losses(whole)
    assert same_state(tmp_path, whole)


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_signal_to_all_processes_saves_and_leaves(whole: Path, tmp_path: Path, number: int) -> None:
    """As a terminal's Ctrl-C and a cluster's end of time are: those that read data get it, too."""

    def slow(step: int) -> float:
        time.sleep(0.2)
        return 0.0

    def body() -> None:
        os.setpgrp()
        run(tmp_path, Denoise(fails=slow), save_every=100, workers=2)

    process = started(body)
    wait_for_rows(tmp_path, 2, process)
    os.killpg(process.pid, number)
    process.join(60)
    assert process.exitcode == (1 if number == signal.SIGINT else 128 + number)
    assert read(tmp_path / "state.safetensors").metadata["ldm_core.training"][:10] != '{"step": 0'
    run(tmp_path, save_every=100)
    assert losses(tmp_path) == losses(whole)


@pytest.mark.parametrize("when", ["picture", "save"])
def test_a_signal_after_the_last_step_leaves_too(tmp_path: Path, when: str) -> None:
    """Else a script would go on to what it does next."""
    objective = Denoise()
    trainer = Trainer(
        objective, pictures(), tmp_path, settings(steps=4, save_every=100, picture_every=4), quiet=True
    )

    def interrupted(whole: Any) -> Any:
        def call(*arguments: Any) -> Any:
            if trainer.step == 4:
                os.kill(os.getpid(), signal.SIGINT)
            return whole(*arguments)

        return call

    if when == "save":
        trainer.save = interrupted(trainer.save)  # type: ignore[method-assign]
    else:
        trainer.picture = interrupted(lambda: Image.new("RGB", (4, 4)))
    with pytest.raises(KeyboardInterrupt):
        trainer.run()
    assert trainer._saved == 4


def test_signals_act_as_before_once_a_run_is_over(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    run(tmp_path)
    assert signal.getsignal(signal.SIGTERM) is before
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_full_disk_leaves_the_old_state_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = run(tmp_path, steps=3)
    before = digest(trainer.state_path)
    opened = Path.open

    class Full:
        """A file on a disk with room for 2,000 bytes."""

        def __init__(self, file: Any) -> None:
            self.file, self.room = file, 2000

        def write(self, data: Any) -> int:
            self.room -= len(data)
            if self.room < 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return self.file.write(data)

        def __enter__(self) -> Full:
            return self

        def __exit__(self, *error: object) -> None:
            self.file.close()

    def full(path: Path, mode: str = "r", **options: Any) -> Any:
        file = opened(path, mode, **options)
        return Full(file) if path.name.endswith(".part") and mode == "wb" else file

    monkeypatch.setattr(Path, "open", full)
    with (
        pytest.warns(UserWarning, match="with steps=5 instead of 3"),
        pytest.raises(CheckpointError, match="No space left on device"),
    ):
        run(tmp_path, steps=5)
    monkeypatch.undo()
    assert digest(trainer.state_path) == before
    assert not list(tmp_path.glob(".*.part")), "nothing half-written is left"
    with pytest.warns(UserWarning, match="with steps=5 instead of 3") as warned:
        assert run(tmp_path, steps=5).step == 5
    assert Path(warned[0].filename).name == "training_runs.py", "which calls Trainer.run"


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_no_number_stops_the_run(tmp_path: Path, value: float) -> None:
    objective = Denoise()
    weights: dict[str, torch.Tensor] = {}

    def remember(step: int) -> float:
        if step == 7:
            weights.update({n: p.detach().clone() for n, p in objective.named_parameters()})
            return value
        return 0.0

    objective.fails = remember
    with pytest.raises(TrainingError, match=rf"step 8 \(samples 42..47 .* loss is {value}.* of step 6"):
        run(tmp_path, objective)
    assert read(tmp_path / "state.safetensors").metadata["ldm_core.training"].startswith('{"step": 6')
    for name, parameter in objective.named_parameters():
        assert torch.equal(parameter, weights[name]), "the step was not taken"
    assert len(rows(tmp_path)) == 7


def test_a_gradient_that_is_no_number_stops_the_run(tmp_path: Path) -> None:
    class Root(Denoise):
        def loss(self, batch: Any, generators: Any, step: int) -> Any:
            loss, metrics = super().loss(batch, generators, step)
            return loss + (self.layers[0].weight * 0).abs().sum().sqrt(), metrics

    with pytest.raises(TrainingError, match=r"step 1 .*gradient is nan.*of step 0"):
        run(tmp_path, Root())


def test_another_architecture_is_refused_by_names(tmp_path: Path) -> None:
    run(tmp_path, steps=3)
    before = digest(tmp_path / "state.safetensors")
    other = Denoise(width=16)
    weights = {name: p.detach().clone() for name, p in other.named_parameters()}
    with pytest.raises(CheckpointError) as error:
        run(tmp_path, other, steps=3)
    assert "weight.layers.0.weight has shape (8, 3, 3, 3), expected (16, 3, 3, 3)" in str(error.value)
    assert digest(tmp_path / "state.safetensors") == before
    assert all(torch.equal(p, weights[name]) for name, p in other.named_parameters())

    more = Denoise()
    more.layers.append(nn.Conv2d(3, 3, 1))
    with pytest.raises(CheckpointError, match=r"weight.layers.3.weight is missing; weight.layers.3.bias is"):
        run(tmp_path, more, steps=3)
    with pytest.raises(CheckpointError, match=r"average.layers.0.bias is unexpected"):
        run(tmp_path, steps=3, ema_decay=None)


def test_a_state_that_is_none_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    path = tmp_path / "state.safetensors"
    save_file({"weight.x": torch.zeros(2)}, path)
    with pytest.raises(CheckpointError, match="not a training state"):
        run(tmp_path)
    save_file({"weight.x": torch.zeros(2)}, path, {"ldm_core.training": '{"step": 3}'})
    with pytest.raises(CheckpointError, match=r"not a training state \(it lacks length, position, s"):
        run(tmp_path)
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(CheckpointError):
        run(tmp_path)
    assert path.read_bytes() == b"nothing of the kind"


def test_a_run_may_be_made_longer_and_says_so(tmp_path: Path) -> None:
    run(tmp_path, steps=3)
    with pytest.warns(UserWarning, match="resumed at step 3 with steps=6 instead of 3"):
        run(tmp_path, steps=6)
    assert [row["step"] for row in rows(tmp_path)] == [1, 2, 3, 4, 5, 6]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(tmp_path, steps=6, workers=1, log_every=7)  # nothing to do, and nothing to say


@pytest.mark.parametrize(
    "changes",
    [
        *({"weight_decay": 0.5}, {"warmup": 0}, {"final_rate": 0.1}, {"clip": None}),
        *({"betas": (0.5, 0.9)}, {"precision": "bfloat16"}, {"ema_decay": 0.5}, {"accumulate": 2}),
    ],
)
def test_what_changes_the_numbers_of_a_run_is_said(tmp_path: Path, changes: dict[str, Any]) -> None:
    (name,) = changes
    run(tmp_path, steps=3)
    with pytest.warns(UserWarning, match=f"resumed at step 3 with {name}=.* instead of "):
        run(tmp_path, steps=3, **changes)


def test_other_samples_of_the_same_number_are_said(tmp_path: Path) -> None:
    run(tmp_path, steps=3)
    with pytest.warns(
        UserWarning, match="resumed at step 3 with another dataset, or files that have changed since"
    ):
        run(tmp_path, steps=3, samples=pictures(seed=1))


def test_a_row_that_was_cut_off_goes(whole: Path, tmp_path: Path) -> None:
    def cut(step: int) -> float:
        return math.nan if step == 6 else 0.0

    with pytest.raises(TrainingError):
        run(tmp_path, Denoise(fails=cut))
    with (tmp_path / "metrics.csv").open("a") as file:
        file.write("7,0.12")
    run(tmp_path)
    assert rows(tmp_path) == rows(whole)


def test_channels_last_and_bfloat16_resume_exactly(tmp_path: Path) -> None:
    def make(*failing: int) -> Denoise:
        objective = Denoise(width=64, fails=lambda step: math.nan if step in failing else 0.0)
        return objective.to(memory_format=torch.channels_last)

    run(tmp_path / "whole", make(), precision="bfloat16")
    with pytest.raises(TrainingError):
        run(tmp_path / "cut", make(7), precision="bfloat16")
    objective = make()
    run(tmp_path / "cut", objective, precision="bfloat16")
    assert objective.layers[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    assert same_state(tmp_path / "cut", tmp_path / "whole")


def test_sheets_show_prompts_and_reconstructions() -> None:
    from ldm_core.training import reconstruction_grid, sample_grid

    model = diffusion().model
    sheet = sample_grid(model, ["one", "two", "three"], steps=1, columns=2)
    assert sheet.width > 2 * 128
    assert sheet.height > 2 * 128
    both = reconstruction_grid(model.autoencoder, pictures(3, 16).images)
    assert both.width > 3 * 128
    assert both.height > 2 * 128


def test_a_log_of_another_objective_is_not_mixed_with_this_ones(tmp_path: Path) -> None:
    from ldm_core.training.logs import RunLog

    log = RunLog(tmp_path, step=0, steps=2, quiet=True)
    log.numbers(1, {"loss": 1.0})
    with pytest.raises(ValueError, match=r"every row must have the same columns; these differ: error$"):
        log.numbers(2, {"loss": 1.0, "error": 2.0})
    log.close()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": -1}, "seed must be 0 or more, not -1"),
        ({"steps": 0}, "steps must be 1 or more"),
        ({"precision": "float16"}, "precision must be 'float32' or 'bfloat16'"),
        ({"learning_rate": 0.0}, "learning_rate must be positive"),
        ({"clip": -1.0}, "clip must be positive, not -1.0"),
        ({"final_rate": -0.1}, "final_rate must be 0 or more"),
        ({"weight_decay": float("nan")}, "weight_decay must be 0 or more, not nan"),
        ({"betas": (0.9, 1.0)}, r"betas must be in \[0, 1\), not 1.0"),
        ({"ema_decay": 1.0}, r"ema_decay must be in \[0, 1\), not 1.0"),
    ],
)
def test_settings_are_checked(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        settings(**changes)


def test_what_cannot_be_trained_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="batch_size 6 is not a multiple of 4"):
        run(tmp_path, accumulate=4)
    with pytest.raises(ValueError, match="at least one sample"):
        Trainer(Denoise(), pictures(0), tmp_path, settings())
    frozen = Denoise().requires_grad_(False)
    with pytest.raises(ValueError, match="no parameters to train"):
        Trainer(frozen, pictures(), tmp_path, settings())
    assert list(tmp_path.iterdir()) == []


def test_two_runs_do_not_share_a_folder(tmp_path: Path) -> None:
    with exclusive(tmp_path / LOCK):
        with pytest.raises(TrainingError, match=rf"another run uses this folder: process {os.getpid()} on "):
            run(tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == [LOCK]
    run(tmp_path, steps=1)
    assert not (tmp_path / LOCK).exists()


def test_a_lock_that_cannot_be_made_ends_every_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others would wait for the first one."""
    (tmp_path / LOCK).mkdir()
    with pytest.raises(TrainingError, match="its lock file cannot be opened: Is a directory"):
        run(tmp_path)
    monkeypatch.setattr(World, "mean", lambda self, numbers: dict.fromkeys(numbers, 0.5))
    monkeypatch.setattr(World, "is_first", False)
    with pytest.raises(TrainingError, match="another run uses this folder, or its lock file cannot be"):
        run(tmp_path)
