"""A run: what a step does."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from support.training_runs import Denoise, diffusion, losses, pictures, run
from support.whole_runs import same_state
from torch import nn

from ldm_core.checkpoint import CheckpointError, read
from ldm_core.training import TensorDataset, WeightAverage, load_weights
from ldm_core.training.data_order import ResumableBatchSampler, noise_generators
from ldm_core.training.dataset import Sample
from ldm_core.training.learning_rate import warmup_cosine

# --- what a step is ---


def test_the_numbers_are_those_of_a_loop_written_out_by_hand(whole: Path) -> None:
    objective, data = Denoise(), pictures()
    optimizer = torch.optim.AdamW(objective.parameters(), lr=0.01, weight_decay=0.01)
    order = ResumableBatchSampler(len(data), seed=5, batch_size=6)
    average = torch.optim.swa_utils.AveragedModel(
        objective, avg_fn=lambda kept, new, n: kept + (1 - min(0.9, (1 + n) / (10 + n))) * (new - kept)
    )
    average.n_averaged += 1  # else the first update is a copy
    expected = []
    for step in range(12):
        images = torch.stack([data.images[order.index(6 * step + k)] for k in range(6)])
        factor = (step + 1) / 3 if step < 3 else (1 + math.cos(math.pi * (step - 3) / 9)) / 2
        optimizer.param_groups[0]["lr"] = 0.01 * factor
        loss, _ = objective({"image": images}, noise_generators(5, range(6 * step, 6 * step + 6)), step)
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


@pytest.mark.timeout(60)
def test_processes_that_read_data_may_be_forked_after_work_in_two_threads(tmp_path: Path) -> None:
    """OpenMP's threads do not survive a fork, and a process that waits for them hangs."""

    class Computed(TensorDataset):
        def __getitem__(self, index: int) -> Sample:
            blurred = torch.nn.functional.avg_pool2d(torch.ones(8, 3, 256, 256), 3).mean()
            return super().__getitem__(index) | {"blurred": float(blurred)}

    plain = pictures()
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        torch.ones(1000, 1000) @ torch.ones(1000, 1000)
        torch.nn.functional.silu(torch.ones(2**22))
        run(tmp_path, workers=2, steps=2, samples=Computed(plain.images, plain.texts))
    finally:
        torch.set_num_threads(threads)
    assert len(losses(tmp_path)) == 2


@pytest.mark.slow  # two runs each
@pytest.mark.parametrize("precision", ["bfloat16", "float32"])
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
    from ldm_core.training.gradient_checkpointing import (
        disable_gradient_checkpointing,
        enable_gradient_checkpointing,
    )

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
            objective(batch, noise_generators(0, range(2)), 0)
        return total

    before = kept()
    assert enable_gradient_checkpointing(objective) > 8
    assert kept() < before / 2
    disable_gradient_checkpointing(objective)
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
        load_weights(objective, whole / "state.safetensors", averaged=averaged)
        assert all(torch.equal(p, tensors[f"{kind}.{name}"]) for name, p in objective.named_parameters())
    for other in (Denoise(width=16), nn.Linear(2, 2)):
        before = [p.detach().clone() for p in other.parameters()]
        with pytest.raises(CheckpointError, match=r"its weights do not match the module: average"):
            load_weights(other, whole / "state.safetensors")
        assert all(torch.equal(p, kept) for p, kept in zip(other.parameters(), before))
