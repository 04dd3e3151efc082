"""A run: what a step does, and that nothing that befalls it changes the numbers or loses what it had."""

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
from torch import nn
from training_runs import Denoise, diffusion, losses, pictures, rows, run, settings, started, wait_for_rows

from ldm_core.checkpoint import CheckpointError, read
from ldm_core.training import Trainer, TrainingError, WeightAverage, load_weights
from ldm_core.training.learning_rate import warmup_cosine
from ldm_core.training.order import Order, noise_streams


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def same_state(one: Path, other: Path) -> bool:
    a, b = read(one / "state.safetensors").tensors, read(other / "state.safetensors").tensors
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 12 steps that nothing happened to."""
    folder = tmp_path_factory.mktemp("whole")
    run(folder)
    return folder


# --- what a step is ---


def test_the_numbers_are_those_of_a_loop_written_out_by_hand(whole: Path) -> None:
    objective, data = Denoise(), pictures()
    optimizer = torch.optim.AdamW(objective.parameters(), lr=0.01, weight_decay=0.01)
    order = Order(len(data), seed=5, batch_size=6)
    average = torch.optim.swa_utils.AveragedModel(
        objective, avg_fn=lambda kept, new, n: kept + (1 - min(0.9, (1 + n) / (10 + n))) * (new - kept)
    )
    average.n_averaged += 1  # else the first update is a copy
    expected = []
    for step in range(12):
        images = torch.stack([data.images[order.index(6 * step + k)] for k in range(6)])
        factor = (step + 1) / 3 if step < 3 else (1 + math.cos(math.pi * (step - 3) / 9)) / 2
        optimizer.param_groups[0]["lr"] = 0.01 * factor
        loss, _ = objective({"image": images}, noise_streams(5, range(6 * step, 6 * step + 6)), step)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(objective.parameters(), 1.0)
        optimizer.step()
        average.update_parameters(objective)
        expected.append(loss.item())
    assert losses(whole) == pytest.approx(expected, rel=1e-6)
    tensors = read(whole / "state.safetensors").tensors
    for name, parameter in objective.named_parameters():
        torch.testing.assert_close(tensors[f"weight.{name}"], parameter.detach())
        kept = average.module.get_parameter(name).detach()
        torch.testing.assert_close(tensors[f"average.{name}"], kept)


def test_accumulated_passes_are_one_larger_batch(whole: Path, tmp_path: Path) -> None:
    run(tmp_path, accumulate=3)
    assert losses(tmp_path) == pytest.approx(losses(whole), rel=1e-5)


def test_processes_that_read_ahead_change_nothing(whole: Path, tmp_path: Path) -> None:
    objective, state = Denoise(), torch.get_rng_state()
    run(tmp_path, objective, workers=2)
    assert torch.equal(torch.get_rng_state(), state), "the global random stream is left alone"
    assert losses(tmp_path) == losses(whole)
    assert same_state(tmp_path, whole)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_gradient_checkpointing_changes_no_bit(tmp_path: Path, precision: Any) -> None:
    folders = [tmp_path / "kept", tmp_path / "again"]
    for folder, again in zip(folders, (False, True)):
        objective = diffusion(train_text_encoder=True)
        run(
            folder, objective, gradient_checkpointing=again, precision=precision, steps=2, batch_size=2,
            ema_decay=None, samples=pictures(size=16),
        )  # fmt: skip
    assert losses(folders[0]) == losses(folders[1])
    assert same_state(*folders)


def test_gradient_checkpointing_holds_less_and_comes_off() -> None:
    from ldm_core.training.gradient_checkpointing import checkpoint_gradients, remove_checkpoints

    objective = diffusion()

    def kept() -> int:
        """Bytes that the backward pass of a loss holds on to."""
        total = 0

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal total
            total += tensor.nbytes
            return tensor

        batch = {"image": pictures(2, 16).images, "text": [("a",), ("b",)]}
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            objective(batch, noise_streams(0, range(2)), 0)
        return total

    before = kept()
    assert checkpoint_gradients(objective) > 8
    assert kept() < before / 2
    remove_checkpoints(objective)
    assert kept() == before


def test_bfloat16_is_close_and_keeps_weights_in_float32(whole: Path, tmp_path: Path) -> None:
    run(tmp_path, precision="bfloat16")
    assert losses(tmp_path) == pytest.approx(losses(whole), rel=0.02)
    assert {t.dtype for t in read(tmp_path / "state.safetensors").tensors.values()} == {torch.float32}


def test_learning_rate_rises_and_falls() -> None:
    rates = [warmup_cosine(step, steps=100, warmup=10, final=0.1) for step in range(100)]
    assert rates[:10] == pytest.approx([0.1 * k for k in range(1, 11)])
    assert rates[10] == 1.0
    assert rates[55] == pytest.approx(0.55)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert warmup_cosine(100, steps=100, warmup=10, final=0.1) == pytest.approx(0.1)


def test_the_average_is_put_on_and_taken_off() -> None:
    layer = nn.Linear(3, 3)
    average = WeightAverage(layer, 0.5)
    first = layer.weight.detach().clone()
    with torch.no_grad():
        layer.weight += 1
    average.update(1)  # decay min(0.5, 2 / 11)
    own = layer.weight.detach().clone()
    with average.applied():
        torch.testing.assert_close(layer.weight.detach(), first * (2 / 11) + own * (9 / 11))
    assert torch.equal(layer.weight, own)
    with pytest.raises(ValueError, match="decay must be in"):
        WeightAverage(layer, 1.0)


def test_pictures_are_drawn_with_the_average_and_kept(tmp_path: Path) -> None:
    from PIL import Image

    objective, seen = Denoise(), []

    def draw() -> Image.Image:
        seen.append(objective.layers[0].weight.detach().clone())
        return Image.new("RGB", (4, 4), "red")

    trainer = run(tmp_path, objective, picture=draw, picture_every=6)
    assert [path.name for path in sorted((tmp_path / "samples").iterdir())] == [
        "00000006.png",
        "00000012.png",
    ]
    with trainer.averaged():
        assert torch.equal(objective.layers[0].weight, seen[1])
    assert not torch.equal(objective.layers[0].weight, seen[1])


def test_tensorboard_has_the_same_numbers(whole: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(whole / "tensorboard")).Reload()
    assert [event.value for event in events.Scalars("loss")] == pytest.approx(losses(whole), rel=1e-6)


def test_weights_are_taken_from_a_saved_state(whole: Path) -> None:
    tensors = read(whole / "state.safetensors").tensors
    for averaged, kind in ((True, "average"), (False, "weight")):
        objective = Denoise()
        load_weights(whole / "state.safetensors", objective, averaged=averaged)
        assert all(torch.equal(p, tensors[f"{kind}.{name}"]) for name, p in objective.named_parameters())
    for other in (Denoise(width=16), nn.Linear(2, 2)):
        before = [p.detach().clone() for p in other.parameters()]
        with pytest.raises(CheckpointError, match=r"not the weights of this module; such as average\."):
            load_weights(whole / "state.safetensors", other)
        assert all(torch.equal(p, kept) for p, kept in zip(other.parameters(), before))


# --- what may befall a run ---


@pytest.mark.parametrize("save_every", [1, 7])
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
    (broken / ".state.safetensors.x.part").touch()  # what a kill within a save leaves
    trainer = run(broken, Denoise(width=64), **options)
    assert trainer.step == 60
    assert [row["step"] for row in rows(broken)] == list(range(1, 61))
    assert rows(broken) == rows(whole)
    assert same_state(broken, whole)
    assert {path.name for path in broken.iterdir()} == {"state.safetensors", "metrics.csv", "tensorboard"}


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


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
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
        pytest.warns(UserWarning, match="with steps 5, where it was 3"),
        pytest.raises(CheckpointError, match="No space left on device"),
    ):
        run(tmp_path, steps=5)
    monkeypatch.undo()
    assert digest(trainer.state_path) == before
    assert not list(tmp_path.glob(".*.part")), "nothing half-written is left"
    with pytest.warns(UserWarning, match="with steps 5, where it was 3"):
        assert run(tmp_path, steps=5).step == 5


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
        def loss(self, batch: Any, streams: Any, step: int) -> Any:
            loss, metrics = super().loss(batch, streams, step)
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
    with pytest.raises(CheckpointError, match=r"average.layers.0.bias has no place"):
        run(tmp_path, steps=3, ema_decay=None)


def test_a_state_that_is_none_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    path = tmp_path / "state.safetensors"
    save_file({"weight.x": torch.zeros(2)}, path)
    with pytest.raises(CheckpointError, match="not the state of a training run"):
        run(tmp_path)
    save_file({"weight.x": torch.zeros(2)}, path, {"ldm_core.training": '{"step": 3}'})
    with pytest.raises(
        CheckpointError, match=r"not the state of a training run \(it lacks length, position, s"
    ):
        run(tmp_path)
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(CheckpointError):
        run(tmp_path)
    assert path.read_bytes() == b"nothing of the kind"


def test_a_run_may_be_made_longer_and_says_so(tmp_path: Path) -> None:
    run(tmp_path, steps=3)
    with pytest.warns(UserWarning, match="resumed at step 3 with steps 6, where it was 3"):
        run(tmp_path, steps=6)
    assert [row["step"] for row in rows(tmp_path)] == [1, 2, 3, 4, 5, 6]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(tmp_path, steps=6, workers=1, accumulate=2, log_every=7)  # nothing to do, and nothing to say


@pytest.mark.parametrize(
    "changes",
    [
        *({"weight_decay": 0.5}, {"warmup": 0}, {"final_rate": 0.1}, {"clip": None}),
        *({"betas": (0.5, 0.9)}, {"precision": "bfloat16"}, {"ema_decay": 0.5}),
    ],
)
def test_what_changes_the_numbers_of_a_run_is_said(tmp_path: Path, changes: dict[str, Any]) -> None:
    (name,) = changes
    run(tmp_path, steps=3)
    with pytest.warns(UserWarning, match=f"resumed at step 3 with {name} .*, where it was "):
        run(tmp_path, steps=3, **changes)


def test_other_samples_of_the_same_number_are_said(tmp_path: Path) -> None:
    run(tmp_path, steps=3)
    with pytest.warns(
        UserWarning, match="resumed at step 3 with other samples, or files that were written since"
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
    from ldm_core.training import reconstruction_sheet, sample_sheet

    model = diffusion().model
    sheet = sample_sheet(model, ["one", "two", "three"], steps=1, columns=2)
    assert sheet.width > 2 * 128
    assert sheet.height > 2 * 128
    both = reconstruction_sheet(model.autoencoder, pictures(3, 16).images)
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
