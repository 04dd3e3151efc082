"""DreamBooth's loss is equation 2, its class pictures are the model's own; and fine-tuning as a whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from support.configs import TINY
from support.reference import random_model
from support.training_runs import diffusion, losses, pictures, run
from torch import nn

import ldm_core
from ldm_core import checkpoint
from ldm_core.model import LatentDiffusion
from ldm_core.training import (
    CachedLatents,
    CaptionedDataset,
    DiffusionObjective,
    PriorDataset,
    PriorPreservation,
    TensorDataset,
    TrainableLora,
    class_images,
)
from ldm_core.training.data_order import noise_generators
from ldm_core.training.dataset import collate
from ldm_core.training.dreambooth import NOTE

FEW = {"steps": 3, "batch_size": 2, "save_every": 3}


@pytest.fixture(scope="module")
def model() -> LatentDiffusion:
    return random_model(TINY["sd1"])


def samples(subjects: int = 3, prior: int = 5) -> PriorDataset:
    return PriorDataset(
        CaptionedDataset(pictures(subjects, 16, seed=1), "a sks dog"),
        CaptionedDataset(pictures(prior, 16, seed=2), "a dog"),
    )


def draw(
    folder: Path, model: LatentDiffusion, count: int, prompt: str = "a dog", **options: Any
) -> CaptionedDataset:
    return class_images(model, prompt, folder, count, steps=1, batch_size=2, **options)


# --- the loss ---


@pytest.mark.parametrize("weight", [0.0, 0.5, 1.0])
def test_the_loss_is_the_subjects_and_the_weighted_priors(weight: float) -> None:
    """Both terms by the objective itself, the second with what is left of the same generators."""
    inner = diffusion()
    objective = PriorPreservation(inner, weight)
    data = samples(4, 4)
    batch = collate([data[i] for i in range(4)])
    loss, metrics = objective(batch, noise_generators(0, range(4)), 0)

    generators = noise_generators(0, range(4))
    subject, _ = inner(collate([data.subject[i] for i in range(4)]), generators, 0)
    prior, _ = inner(collate([data.prior[i] for i in range(4)]), generators, 0)
    torch.testing.assert_close(loss, subject + weight * prior, rtol=1e-6, atol=0)
    torch.testing.assert_close(metrics["subject"], subject.detach(), rtol=0, atol=0)
    torch.testing.assert_close(metrics["prior"], prior.detach(), rtol=0, atol=0)
    assert float(prior.detach()) != float(subject.detach())


def test_the_gradient_is_diffusers() -> None:
    """`train_dreambooth.py` chunks one batch of both into halves: mse(first) + weight * mse(second)."""
    objective = PriorPreservation(diffusion(condition_dropout=0.0), 0.7)
    model = objective.objective.model  # type: ignore[attr-defined]
    calls: list[Any] = []
    handle = model.unet.register_forward_pre_hook(lambda module, args: calls.append(args))
    data = samples(2, 2)
    generators = noise_generators(3, range(2))
    loss, _ = objective(collate([data[i] for i in range(2)]), generators, 0)
    loss.backward()
    ours = [p.grad.clone() for p in model.unet.parameters()]
    handle.remove()

    # The noise of both calls again, from the same generators, in the order of the objective.
    generators = noise_generators(3, range(2))
    noise = []
    for _ in range(2):
        for stream in generators:
            torch.rand(3, generator=stream)
        latents = [torch.randn(1, 4, 8, 8, generator=stream) for stream in generators]  # of the posterior
        assert len(latents) == 2
        noise += [torch.randn(1, 4, 8, 8, generator=stream) for stream in generators]
    model.unet.zero_grad()
    x, t, context = (torch.cat(parts) for parts in zip(*calls))
    predicted = model.unet(x, t, context.detach())
    halves = zip(predicted.chunk(2), torch.cat(noise).chunk(2))
    subject, prior = (nn.functional.mse_loss(mine, wanted) for mine, wanted in halves)
    (subject + 0.7 * prior).backward()
    for mine, p in zip(ours, model.unet.parameters()):
        torch.testing.assert_close(mine, p.grad, rtol=1e-3, atol=1e-5)


def test_without_weight_the_prior_teaches_nothing() -> None:
    data = samples(4, 4)
    gradients = []
    for kind in (lambda d: PriorPreservation(d, 0.0), lambda d: d):
        inner = diffusion()
        batch = collate([data[i] for i in range(4)])
        kind(inner)(batch, noise_generators(0, range(4)), 0)[0].backward()
        gradients.append([p.grad for p in inner.parameters()])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


@pytest.mark.parametrize("adapter", [False, True])
def test_it_trains_weights_or_an_adapter(tmp_path: Path, adapter: bool) -> None:
    model = random_model(TINY["sd1"])
    lora = TrainableLora(model, rank=2) if adapter else None
    inner = DiffusionObjective(model, condition_dropout=0.0, adapter=lora)
    objective = PriorPreservation(inner)
    assert objective.networks() == inner.networks()
    run(tmp_path / "run", objective, samples=samples(), **FEW)
    assert len(losses(tmp_path / "run")) == 3
    if lora is not None:
        assert all(bool(up.any()) for _, up in lora.factors.values())


def test_latents_of_both_can_be_computed_before(tmp_path: Path, model: LatentDiffusion) -> None:
    both = samples(2, 3)
    data = PriorDataset(
        CachedLatents(both.subject, model.autoencoder, tmp_path / "a.npy"),  # type: ignore[arg-type]
        CachedLatents(both.prior, model.autoencoder, tmp_path / "b.npy"),  # type: ignore[arg-type]
    )
    loss, _ = PriorPreservation(diffusion())(collate([data[0], data[2]]), noise_generators(0, range(2)), 0)
    assert bool(loss.isfinite())


# --- the data ---


def test_each_picture_stands_beside_one_of_its_class() -> None:
    data = samples(2, 5)
    assert len(data) == len(samples(5, 2)) == 5
    assert all(data[i]["text"] == ("a sks dog",) and data[i]["prior"]["text"] == ("a dog",) for i in range(5))
    assert torch.equal(data[4]["image"], data.subject[0]["image"])
    assert torch.equal(data[4]["prior"]["image"], data.prior[4]["image"])
    assert data.text(3) == ("a sks dog",)
    assert data.fingerprint == samples(2, 5).fingerprint != samples(2, 4).fingerprint


def test_no_pictures_are_refused() -> None:
    none, some = TensorDataset(torch.zeros(0, 3, 16, 16)), pictures(2, 16)
    with pytest.raises(ValueError, match="at least one image in the subject dataset"):
        PriorDataset(none, some)
    with pytest.raises(ValueError, match="at least one image in the prior dataset"):
        PriorDataset(some, none)


@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf")])
def test_a_weight_that_is_none_is_refused(weight: float) -> None:
    with pytest.raises(ValueError, match="weight must be a finite number of 0 or more"):
        PriorPreservation(diffusion(), weight)


# --- class pictures ---


def test_class_pictures_are_the_models_own_and_stay_on_disk(tmp_path: Path, model: LatentDiffusion) -> None:
    prior = draw(tmp_path, model, 3, seed=5)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["class-00000.png", "class-00001.png", "class-00002.png", NOTE]
    size = model.config.image_size
    alone = ldm_core.Sampler(model).txt2img("a dog", steps=1, guidance_scale=4.0, seed=7, output="tensor")
    # On disk it has 8 bits, which are wrong by half a level at most.
    assert torch.allclose((prior[2]["image"] + 1) / 2, alone[0], atol=1 / 255)
    assert prior[2]["image"].shape == (3, size, size)
    assert prior[0]["text"] == prior.text(1) == ("a dog",)


def test_missing_class_pictures_are_drawn_and_the_others_kept(tmp_path: Path, model: LatentDiffusion) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    draw(whole, model, 3)
    draw(cut, model, 1)
    first = (cut / "class-00000.png").stat().st_mtime_ns
    assert len(draw(cut, model, 3)) == 3
    assert (cut / "class-00000.png").stat().st_mtime_ns == first
    for path in whole.glob("*.png"):
        ours, theirs = (Image.open(folder / path.name) for folder in (whole, cut))
        difference = abs(
            torch.tensor(list(ours.tobytes()), dtype=torch.int32) - torch.tensor(list(theirs.tobytes()))
        )
        assert int(difference.max()) <= 1, "alone or in a batch"


def test_ones_own_class_pictures_count(tmp_path: Path, model: LatentDiffusion) -> None:
    for k in range(3):
        Image.new("RGB", (20, 30), (80 * k, 0, 0)).save(tmp_path / f"mine{k}.jpg")
    (tmp_path / "class-00000.png").write_bytes((tmp_path / "mine0.jpg").read_bytes())
    assert len(draw(tmp_path, model, 2)) == 4
    assert len(draw(tmp_path, model, 5)) == 5
    assert sorted(path.name for path in tmp_path.glob("*.png")) == ["class-00000.png", "class-00001.png"]


def test_pictures_of_another_prompt_are_not_taken(tmp_path: Path, model: LatentDiffusion) -> None:
    draw(tmp_path, model, 1)
    with pytest.raises(ValueError, match="its images have the prompt 'a dog', not 'a cat'"):
        draw(tmp_path, model, 1, prompt="a cat")
    (tmp_path / NOTE).write_text("{}")
    with pytest.raises(ValueError, match="expected the prompt of the folder's images"):
        draw(tmp_path, model, 1)
    with pytest.raises(ValueError, match="count must be 1 or more"):
        draw(tmp_path / "other", model, 0)


# --- fine-tuning every weight ---


@pytest.mark.slow  # two runs of training
def test_full_fine_tuning_trains_both_networks_and_what_is_saved_draws_the_same(tmp_path: Path) -> None:
    model = random_model(TINY["sd1"])
    before = {part: [p.detach().clone() for p in m.parameters()] for part, m in model.modules.items()}
    objective = DiffusionObjective(model, condition_dropout=0.0, train_text_encoder=True)
    run(tmp_path / "run", objective, samples=CaptionedDataset(pictures(4, 16), "a sks dog"), **FEW)
    changed = {
        part: [not torch.equal(p, old) for p, old in zip(m.parameters(), before[part])]
        for part, m in model.modules.items()
    }
    assert all(changed["unet"])
    assert all(changed["text_encoder"])
    assert not any(changed["autoencoder"])

    checkpoint.save(model, tmp_path / "tuned.safetensors")
    options: dict[str, Any] = {"steps": 2, "seed": 0, "output": "tensor", "height": 16, "width": 16}
    ours, theirs = (
        ldm_core.Sampler(m).txt2img("a sks dog", **options)
        for m in (model, ldm_core.load(tmp_path / "tuned.safetensors"))
    )
    assert torch.equal(ours, theirs)
