"""Muon: that its matrices are orthogonal ones, its numbers PyTorch's, and its runs as safe as AdamW's."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from support.training_runs import Denoise, losses, run, settings
from torch import Tensor, nn

from ldm_core.checkpoint import read
from ldm_core.training import Trainer, TrainingError
from ldm_core.training.distributed import World
from ldm_core.training.muon import Muon, matrix_weights, orthogonalize

SIZES = st.integers(1, 24)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@hypothesis_settings(deadline=None)
@given(rows=SIZES, columns=SIZES, seed=st.integers(0, 999))
def test_directions_are_kept_and_their_lengths_made_alike(rows: int, columns: int, seed: int) -> None:
    n = min(rows, columns)
    u, v = (torch.linalg.qr(normal(side, n, seed=seed))[0] for side in (rows, columns))
    strengths = torch.linspace(1.0, 0.05, n, dtype=torch.float64)
    x = orthogonalize(u @ strengths.diag() @ v.T)
    inside = u.T @ x @ v  # diagonal where the singular vectors are those of what came in
    torch.testing.assert_close(inside, inside.diag().diag(), rtol=0, atol=1e-9)
    assert inside.diag().min() > 0.6
    assert inside.diag().max() < 1.25
    torch.testing.assert_close(u @ inside @ v.T, x, rtol=0, atol=1e-9)  # and nothing besides


def test_a_gradient_of_zeros_moves_nothing() -> None:
    assert orthogonalize(torch.zeros(3, 5)).equal(torch.zeros(3, 5))


def test_kernels_are_those_of_linear_layers_and_convolutions() -> None:
    module = nn.Sequential(nn.Embedding(4, 3), nn.Linear(3, 2), nn.LayerNorm(2), nn.Conv2d(2, 2, 3))
    assert [tuple(weight.shape) for weight in matrix_weights(module)] == [(2, 3), (2, 2, 3, 3)]


def train(layer: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 5) -> None:
    for step in range(steps):
        optimizer.zero_grad()
        layer(normal(7, 12, seed=step).float()).square().mean().backward()
        optimizer.step()


def test_a_kernel_moves_as_pytorchs_muon_moves_it() -> None:
    """PyTorch's takes matrices only, and orthogonalizes them in bfloat16, of 8 bits: hence the tolerance."""
    torch.manual_seed(0)
    ours = nn.Linear(12, 5, bias=False)
    start, theirs = ours.weight.detach().clone(), nn.Linear(12, 5, bias=False)
    theirs.load_state_dict(ours.state_dict())
    shared = {"lr": 0.01, "weight_decay": 0.1, "momentum": 0.9}
    train(ours, Muon([{"params": [ours.weight]}], matrix_weights(ours), **shared))
    train(theirs, torch.optim.Muon(theirs.parameters(), adjust_lr_fn="match_rms_adamw", **shared))
    moved = (theirs.weight - start).abs().max()
    torch.testing.assert_close(ours.weight, theirs.weight, rtol=0, atol=0.03 * moved.item())


def test_what_is_no_kernel_moves_as_adamw_moves_it() -> None:
    torch.manual_seed(0)
    ours, theirs = nn.Linear(12, 5), nn.Linear(12, 5)
    theirs.load_state_dict(ours.state_dict())
    train(ours, Muon([{"params": list(ours.parameters())}], [], lr=0.01, weight_decay=0.1))
    train(theirs, torch.optim.AdamW(theirs.parameters(), lr=0.01, weight_decay=0.1))
    for a, b in zip(ours.parameters(), theirs.parameters()):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_a_run_that_was_cut_off_gives_the_same_numbers(tmp_path: Path) -> None:
    run(tmp_path / "whole", optimizer="muon")
    with pytest.raises(TrainingError):
        run(tmp_path / "cut", Denoise(fails=lambda step: math.nan if step == 7 else 0.0), optimizer="muon")
    run(tmp_path / "cut", optimizer="muon")
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    one, other = (read(tmp_path / name / "state.safetensors").tensors for name in ("whole", "cut"))
    assert {"optimizer.momentum.layers.0.weight", "optimizer.exp_avg.layers.0.bias"} <= one.keys()
    assert one.keys() == other.keys()
    assert all(one[name].equal(other[name]) for name in one)


def test_what_it_cannot_do_is_refused() -> None:
    with pytest.raises(ValueError, match="optimizer must be 'adamw' or 'muon', not 'sgd'"):
        settings(optimizer="sgd")
    layer = nn.Linear(2, 2)
    with pytest.raises(ValueError, match="does not support a closure"):
        Muon([{"params": [layer.weight]}], [], lr=0.1).step(lambda: 0.0)


def test_a_run_goes_on_with_its_own_optimizer_alone(tmp_path: Path) -> None:
    run(tmp_path, steps=3)
    before = (tmp_path / "state.safetensors").read_bytes()
    objective = Denoise()
    first = objective.layers[0].weight.detach().clone()
    with pytest.raises(
        TrainingError, match="started with optimizer 'adamw' and cannot be resumed with 'muon'"
    ):
        run(tmp_path, objective, steps=6, optimizer="muon")
    assert torch.equal(objective.layers[0].weight, first), "nothing was taken from it"
    assert (tmp_path / "state.safetensors").read_bytes() == before


def test_slices_of_kernels_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ldm_core.training.loop.parallelize", lambda objective, world, parallel: objective)
    with pytest.raises(ValueError, match="needs unsharded weights"):
        Trainer(
            Denoise(),
            dataset=[0],  # type: ignore[arg-type]
            folder=tmp_path,
            settings=settings(optimizer="muon"),
            world=World(size=2),
            parallel="fsdp",
        )
