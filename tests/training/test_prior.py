"""The prior's loss: its formula, what is trained, and that training lowers it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.priors import WIDTH, random_prior, small_prior

from ldm_core.noise import generators, randn
from ldm_core.noise_schedule import NoiseSchedule
from ldm_core.prior import Prior
from ldm_core.training import PriorObjective, Trainer, TrainingSettings

EMBEDDINGS = torch.randn(4, WIDTH, generator=torch.Generator().manual_seed(0))
TEXTS = [("red",), ("green", "lime"), ("blue",), ()]


class Colours:
    """Texts and embeddings."""

    fingerprint = "colours"

    def __len__(self) -> int:
        return len(TEXTS)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"embedding": EMBEDDINGS[index], "text": TEXTS[index]}

    def text(self, index: int) -> tuple[str, ...]:
        return TEXTS[index]


def test_the_loss_is_the_formula() -> None:
    prior = small_prior()
    objective = PriorObjective(prior, condition_dropout=0)
    batch = {"embedding": EMBEDDINGS[:3], "text": TEXTS[:3]}
    loss, metrics = objective.loss(batch, generators([1, 2, 3]), 0)
    schedule, network, total = NoiseSchedule(prior.noise_schedule), prior.network, 0.0
    assert network.mean is not None
    assert network.std is not None
    for k, generator in enumerate(generators([1, 2, 3])):
        t = int(torch.rand(1, generator=generator) * 1000)
        torch.rand(1, generator=generator)
        text = TEXTS[k][int(torch.rand(1, generator=generator) * len(TEXTS[k]))]
        z0 = (EMBEDDINGS[k] - network.mean) / network.std
        a = schedule.alpha_cumprod(t)
        noisy = a**0.5 * z0 + (1 - a) ** 0.5 * randn((1, WIDTH), generator)
        with torch.no_grad():
            found = network(noisy, t, *prior.encode([text]))
        total += float((found - z0).square().mean()) / 3
    assert float(loss.detach()) == pytest.approx(total, rel=1e-5)
    assert -1 <= float(metrics["cosine"]) <= 1


def test_what_is_trained() -> None:
    prior = small_prior()
    objective = PriorObjective(prior)
    (group,) = objective.parameter_groups()
    names = {name for name, p in prior.network.named_parameters() if p.requires_grad}
    assert names == set(prior.network.state_dict()) - {"mean", "std"}
    assert len(group["params"]) == len(names)
    batch = {"embedding": EMBEDDINGS, "text": TEXTS}
    objective.loss(batch, generators([1, 2, 3, 4]), 0)[0].backward()
    assert all(p.grad is not None for p in group["params"])
    assert all(p.grad is None for p in prior.text_encoder.parameters())
    dropped = PriorObjective(prior, condition_dropout=1)
    other = {"embedding": EMBEDDINGS, "text": [("other",)] * 4}
    losses = [dropped.loss(one, generators([1, 2, 3, 4]), 0)[0] for one in (batch, other)]
    assert torch.equal(*losses)


def test_training_lowers_the_loss(tmp_path: Path) -> None:
    settings = TrainingSettings(steps=16, batch_size=4, learning_rate=1e-2, ema_decay=None, log_every=1)
    data: Any = Colours()
    Trainer(PriorObjective(small_prior()), data, tmp_path, settings, quiet=True).run()
    rows = (tmp_path / "metrics.csv").read_text().splitlines()[1:]
    losses = [float(row.split(",")[1]) for row in rows]
    assert sum(losses[-4:]) < 0.7 * sum(losses[:4])


def test_bad_settings() -> None:
    with pytest.raises(ValueError, match=r"condition_dropout must be in \[0, 1\], not 2"):
        PriorObjective(small_prior(), condition_dropout=2)
    prior = small_prior()
    half = Prior(random_prior().half(), prior.text_encoder, prior.tokenizer)
    with pytest.raises(ValueError, match="prior: expected weights in float32"):
        PriorObjective(half)
