"""Training a ControlNet: where it begins, what it changes, and what it refuses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.configs import TINY
from support.random_models import random_model
from support.training_batches import batch, generators
from support.training_runs import settings
from torch import Tensor

import ldm_core
from ldm_core.control.controlnet import ControlNet
from ldm_core.training import ControlNetObjective, DiffusionObjective, Trainer
from ldm_core.training.dataset import collate
from ldm_core.unet import UNet

SIZE = 16
WIDTHS = (4, 8)  # of the hint's encoder, which halves a picture, as the autoencoder


@pytest.fixture
def model() -> ldm_core.LatentDiffusion:
    return random_model(TINY["sd1"])


def hinted(count: int = 2) -> dict[str, Any]:
    drawn = torch.Generator().manual_seed(5)
    return {**batch(count, SIZE), "hint": torch.rand(count, 3, SIZE, SIZE, generator=drawn)}


def loss(objective: DiffusionObjective, samples: dict[str, Any]) -> Tensor:
    value, _ = objective.loss(samples, generators(len(samples["text"])), 0)
    return value


def test_training_begins_with_the_loss_of_the_unet_to_the_bit(model: ldm_core.LatentDiffusion) -> None:
    alone = loss(DiffusionObjective(model, condition_dropout=0.5), hinted())
    with_control = loss(ControlNetObjective(model, ControlNet.of(model.unet, hint_widths=WIDTHS)), hinted())
    assert torch.equal(alone, with_control)


def test_zero_convolutions_learn_first_and_the_unet_never(model: ldm_core.LatentDiffusion) -> None:
    net = ControlNet.of(model.unet, hint_widths=WIDTHS)
    objective = ControlNetObjective(model, net)
    loss(objective, hinted()).backward()
    moved = {name for name, p in net.named_parameters() if p.grad is not None and p.grad.any()}
    assert moved == {name for name, _ in net.named_parameters() if name.startswith("zero_")}
    assert all(p.grad is None for network in model.modules.values() for p in network.parameters())
    trained = {id(p) for group in objective.parameter_groups() for p in group["params"]}
    assert trained == {id(p) for p in net.parameters()}


class Hinted:
    """Pictures that are white on the left or on the right, as the hint tells and the prompt does not."""

    fingerprint = "hinted"

    def __len__(self) -> int:
        return 8

    def text(self, index: int) -> tuple[str, ...]:
        return ("picture",)

    def __getitem__(self, index: int) -> dict[str, Any]:
        white = torch.zeros(3, SIZE, SIZE)
        white[:, :, (index % 2) * SIZE // 2 :][:, :, : SIZE // 2] = 1
        return {"image": 2 * white - 1, "text": self.text(index), "hint": white}


def test_a_run_trains_it_and_its_file_loads(model: ldm_core.LatentDiffusion, tmp_path: Path) -> None:
    net = ControlNet.of(model.unet, hint_widths=WIDTHS)
    unet, hint = ({name: p.clone() for name, p in n.named_parameters()} for n in (model.unet, net.hint))
    options = settings(steps=12, batch_size=4, warmup=0, ema_decay=None)
    Trainer(ControlNetObjective(model, net), Hinted(), tmp_path / "run", options, quiet=True).run()
    assert all(torch.equal(p, unet[name]) for name, p in model.unet.named_parameters())
    assert not any(torch.equal(p, hint[name]) for name, p in net.hint.named_parameters())

    samples = collate([Hinted()[0], Hinted()[1]])
    trained = ControlNetObjective(model, net, condition_dropout=0)
    right, alone = (
        mean_loss(trained, samples),
        mean_loss(DiffusionObjective(model, condition_dropout=0), samples),
    )
    assert right < 0.9 * alone
    assert right != mean_loss(trained, {**samples, "hint": samples["hint"].flip(0)})

    path = tmp_path / "control.safetensors"
    ldm_core.save(net, path)
    again = ldm_core.load_control(path, model=model)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in net.state_dict().items())


@torch.no_grad()
def mean_loss(objective: DiffusionObjective, samples: dict[str, Any]) -> float:
    values = [objective.loss(samples, generators(2, seed), 0)[0].item() for seed in range(0, 8, 2)]
    return sum(values) / len(values)


def test_what_is_refused(model: ldm_core.LatentDiffusion) -> None:
    net = ControlNet.of(model.unet, hint_widths=WIDTHS)
    with pytest.raises(ValueError, match="expected a batch with 'hint', got image, text"):
        loss(ControlNetObjective(model, net), batch(2, SIZE))
    other = ControlNet.of(UNet(replace(model.config.unet, context_dim=96)), hint_widths=WIDTHS)
    with pytest.raises(ValueError, match="made for a U-Net with context_dim=96, the model's has 64"):
        ControlNetObjective(model, other)
    with pytest.raises(ValueError, match="expected a ControlNet, not UNet"):
        ControlNetObjective(model, model.unet)
    with pytest.raises(ValueError, match="controlnet: expected weights in float32"):
        ControlNetObjective(model, net.half())
