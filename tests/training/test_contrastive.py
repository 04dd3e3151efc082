"""CLIP's loss against open_clip's, against figure 3 written out, and in two processes against one."""

from __future__ import annotations

import math
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from support.clip_reference import open_clip_module
from support.examples import examples
from support.tiny_clip import tiny_clip

from ldm_core.training import ContrastiveObjective, TensorDataset, Trainer, TrainingSettings
from ldm_core.training.contrastive import MAX_LOG_SCALE, clamp_log_scale_, contrastive_loss, gather_rows


def draw(
    batch: int, width: int, seed: int = 0, dtype: torch.dtype = torch.float64
) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(batch, width, generator=generator, dtype=dtype) for _ in range(2))


@pytest.mark.parametrize("batch", [1, 2, 17])
def test_loss_and_gradients_equal_open_clips(batch: int) -> None:
    images, texts = (x.requires_grad_() for x in draw(batch, 8))
    log_scale = torch.tensor(2.3, dtype=torch.float64, requires_grad=True)
    ours = contrastive_loss(images, texts, log_scale)
    gradients = torch.autograd.grad(ours, (images, texts, log_scale))
    reference = open_clip_module("loss").ClipLoss()
    theirs = reference(F.normalize(images, dim=-1), F.normalize(texts, dim=-1), log_scale.exp())
    expected = torch.autograd.grad(theirs, (images, texts, log_scale))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    for a, b in zip(gradients, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@examples(50)
@given(st.integers(1, 9), st.integers(1, 6), st.integers(0, 99), st.floats(-3, 6))
def test_it_is_figure_3(batch: int, width: int, seed: int, t: float) -> None:
    """The paper's NumPy, with the bound on its temperature."""
    images, texts = draw(batch, width, seed)
    image, text = (x.numpy() / np.linalg.norm(x.numpy(), axis=1, keepdims=True) for x in (images, texts))
    logits = image @ text.T * min(np.exp(t), 100)

    def cross_entropy(rows: np.ndarray) -> float:
        shifted = rows - rows.max(axis=1, keepdims=True)
        return float(-np.mean(np.diag(shifted) - np.log(np.exp(shifted).sum(axis=1))))

    loss = contrastive_loss(images, texts, torch.tensor(t, dtype=torch.float64))
    assert float(loss) == pytest.approx((cross_entropy(logits) + cross_entropy(logits.T)) / 2, abs=1e-9)


def test_gradients_equal_finite_differences() -> None:
    images, texts = (x.requires_grad_() for x in draw(4, 5))
    log_scale = torch.tensor(1.5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(contrastive_loss, (images, texts, log_scale), eps=1e-6, atol=1e-7)


def test_what_mathematics_says_of_it() -> None:
    """Equal vectors: log N. Perfect pairs: nearly 0. Lengths and the order of pairs do not count."""
    same = torch.ones(7, 5, dtype=torch.float64)
    log_scale = torch.tensor(3.0, dtype=torch.float64)
    assert float(contrastive_loss(same, same, log_scale)) == pytest.approx(math.log(7))
    corners = torch.eye(7, dtype=torch.float64)
    assert float(contrastive_loss(corners, corners, torch.tensor(9.0, dtype=torch.float64))) < 1e-40
    images, texts = draw(7, 5)
    loss = float(contrastive_loss(images, texts, log_scale))
    order = torch.randperm(7, generator=torch.Generator().manual_seed(0))
    assert float(contrastive_loss(3 * images[order], texts[order] / 9, log_scale)) == pytest.approx(loss)
    assert float(contrastive_loss(texts, images, log_scale)) == pytest.approx(loss)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_scale_is_at_most_100_and_finds_its_way_back(dtype: torch.dtype) -> None:
    images, texts = draw(6, 4, dtype=dtype)
    bound = torch.tensor(MAX_LOG_SCALE, dtype=dtype)
    assert torch.equal(contrastive_loss(images, texts, bound + 3), contrastive_loss(images, texts, bound))
    log_scale = torch.nn.Parameter(bound + 1)
    clamp_log_scale_(log_scale)
    assert float(log_scale) == pytest.approx(MAX_LOG_SCALE)
    assert float(log_scale.detach().exp()) <= 100 * (1 + 1e-6)
    contrastive_loss(images, texts, log_scale).backward()
    assert log_scale.grad is not None
    assert float(log_scale.grad) > 1e-3, "random pairs want a smaller scale, and the bound lets it go there"
    below = torch.nn.Parameter(torch.tensor(1.0, dtype=dtype))
    clamp_log_scale_(below)
    assert float(below) == 1


def test_it_is_computed_in_float32_under_autocast() -> None:
    images, texts = draw(16, 8, dtype=torch.float32)
    log_scale = torch.tensor(4.5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = contrastive_loss(images, texts, log_scale)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, contrastive_loss(images, texts, log_scale))
    assert contrastive_loss(images.bfloat16(), texts.bfloat16(), log_scale).dtype == torch.float32


def test_bad_input() -> None:
    x, t = torch.ones(2, 3), torch.tensor(1.0)
    for images, texts in ((x, torch.ones(3, 3)), (x[0], x[0]), (x[:0], x[:0]), (x, torch.ones(2, 4))):
        with pytest.raises(ValueError, match=r"of the same shape \(B, D\), got"):
            contrastive_loss(images, texts, t)
    with pytest.raises(ValueError, match=r"log_scale to be a scalar, got shape \(2,\)"):
        contrastive_loss(x, x, torch.ones(2))
    for function in (lambda: contrastive_loss(x, x, t, gather=True), lambda: gather_rows(x)):
        with pytest.raises(ValueError, match=r"expected an initialised .* process group"):
            function()


RANK = """
import sys, torch, torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
import ldm_core
from ldm_core.clip.config import CLIPConfig
from ldm_core.config import ImageEncoderConfig, TextEncoderConfig
from ldm_core.training import ContrastiveObjective, TensorDataset, Trainer, TrainingSettings
from ldm_core.training.contrastive import contrastive_loss

rank, port, folder = int(sys.argv[1]), sys.argv[2], sys.argv[3]
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
data = torch.load(f"{folder}/data.pt", weights_only=True)

class Towers(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.image, self.text = torch.nn.Linear(6, 5), torch.nn.Linear(6, 5)
        self.log_scale = torch.nn.Parameter(torch.tensor(2.0))
        self.load_state_dict(data["weights"])
    def forward(self, images, texts):
        return self.image(images), self.text(texts), self.log_scale

towers = DistributedDataParallel(Towers())
optimizer = torch.optim.SGD(towers.parameters(), lr=0.5)
losses = []
for images, texts in zip(data["images"], data["texts"]):
    mine = slice(4 * rank, 4 * rank + 4)
    loss = contrastive_loss(*towers(images[mine], texts[mine]), gather=True)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
torch.save({"losses": losses, "weights": towers.module.state_dict()}, f"{folder}/{rank}.pt")
dist.destroy_process_group()
"""


class Towers(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.image, self.text = torch.nn.Linear(6, 5), torch.nn.Linear(6, 5)
        self.log_scale = torch.nn.Parameter(torch.tensor(2.0))


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


@pytest.mark.slow  # three Python processes that import torch
def test_two_processes_train_as_one_with_the_whole_batch(tmp_path: Path) -> None:
    """Five steps of plain descent: losses and weights within 1e-5 of one process's, and equal on both."""
    towers = Towers()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in towers.parameters():
            if parameter.ndim:
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
    images, texts = (torch.randn(5, 8, 6, generator=generator) for _ in range(2))
    weights = {key: value.clone() for key, value in towers.state_dict().items()}
    torch.save({"weights": weights, "images": images, "texts": texts}, tmp_path / "data.pt")
    script = tmp_path / "rank.py"
    script.write_text(RANK)
    port = free_port()
    ranks = [subprocess.Popen([sys.executable, script, str(r), str(port), str(tmp_path)]) for r in range(2)]

    losses = []
    optimizer = torch.optim.SGD(towers.parameters(), lr=0.5)
    for image, text in zip(images, texts, strict=True):
        loss = contrastive_loss(towers.image(image), towers.text(text), towers.log_scale)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())

    assert [rank.wait(timeout=120) for rank in ranks] == [0, 0]
    for number in range(2):
        result = torch.load(tmp_path / f"{number}.pt", weights_only=True)
        assert result["losses"] == pytest.approx(losses, abs=1e-5)
        for key, value in towers.state_dict().items():
            assert torch.allclose(result["weights"][key], value, atol=1e-5)
    assert losses[-1] != pytest.approx(losses[0], abs=0.1), "weights that did not move would prove nothing"


def generators(count: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(k) for k in range(count)]


@pytest.mark.slow  # a training
def test_a_clip_learns_which_text_goes_with_which_picture(tmp_path: Path) -> None:
    colours = torch.randn(8, 3, 1, 1, generator=torch.Generator().manual_seed(1)).clamp(-1, 1)
    numbers = ("zero", "one", "two", "three", "four", "five", "six", "seven")
    names = [(number, f"a {number}") for number in numbers]
    samples = TensorDataset(colours.expand(8, 3, 16, 16), names)
    clip = tiny_clip()
    chance = clip.zero_shot(samples.images / 2 + 0.5, [name for name, _ in names], ["a {}"])
    settings = TrainingSettings(60, batch_size=8, learning_rate=1e-3, ema_decay=None)
    Trainer(ContrastiveObjective(clip), samples, tmp_path, settings, quiet=True).run()
    learnt = clip.zero_shot(samples.images / 2 + 0.5, [name for name, _ in names], ["a {}"])
    assert chance.diagonal().mean() < 0.3
    assert learnt.diagonal().min() > 0.8


def test_what_the_objective_computes() -> None:
    clip = tiny_clip()
    images = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(2)) * 2 - 1
    batch = {"image": images, "text": [("red",), ("green",), ("blue",)]}
    seen = []

    def halved(pictures: torch.Tensor, drawn_from: object) -> torch.Tensor:
        seen.append(drawn_from)
        return pictures / 2

    random = generators(3)
    loss, metrics = ContrastiveObjective(clip, augment=halved).loss(batch, random, 0)
    expected = contrastive_loss(
        clip.encode_image((images / 2 + 0.5) / 2),
        clip.encode_text(["red", "green", "blue"]),
        clip.logit_scale,
    )
    torch.testing.assert_close(loss, expected)
    assert seen == [random]
    best = clip.similarity((images / 2 + 0.5) / 2, ["red", "green", "blue"]).argmax(dim=1)
    assert metrics["found"] == (best == torch.arange(3)).float().mean()
    with torch.no_grad():
        clip.logit_scale.fill_(9)
    ContrastiveObjective(clip).loss(batch, generators(3), 0)
    assert clip.logit_scale.item() == pytest.approx(MAX_LOG_SCALE)

    with pytest.raises(ValueError, match="a caption for each image, got none for image 1"):
        ContrastiveObjective(clip).loss(batch | {"text": [("red",), (), ("blue",)]}, generators(3), 0)
    with pytest.raises(ValueError, match="float32"):
        ContrastiveObjective(tiny_clip().half())
