"""Two processes that talk over gloo train as one does, and end when one of them dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from support.training_runs import Denoise, diffusion, in_processes, losses, pictures, run

from ldm_core.checkpoint import CheckpointError, read
from ldm_core.training import (
    AutoencoderLossWeights,
    AutoencoderObjective,
    PatchDiscriminator,
    init_distributed,
    load_weights,
    shutdown_distributed,
)

# The mean of a batch is a mean of two means, and gradients are summed in another order; measured: 3e-7.
TOLERANCE = 1e-5


def autoencoder(adversarial_start: int) -> AutoencoderObjective:
    from support.configs import TINY

    from ldm_core.autoencoder import AutoencoderKL

    torch.manual_seed(0)
    weights = AutoencoderLossWeights(adversarial_start=adversarial_start)
    discriminator = PatchDiscriminator(channels=8, layers=1)
    for i, layer in enumerate(discriminator):
        if isinstance(layer, torch.nn.BatchNorm2d):
            discriminator[i] = torch.nn.Identity()  # its statistics are each process's own on a CPU
    return AutoencoderObjective(
        AutoencoderKL(TINY["sd1"].autoencoder), discriminator=discriminator, weights=weights
    )


OBJECTIVES: dict[str, Any] = {
    "small": Denoise,
    "diffusion": diffusion,
    "jointly": lambda: diffusion(train_text_encoder=True),
    "autoencoder": lambda: autoencoder(adversarial_start=1),
    "projecting": lambda: projecting(),
    "lora": lambda: adapter("lora"),
    "word": lambda: adapter("word"),
    "clip": lambda: small_clip(),
}


def projecting() -> Any:
    """SD2's kind of text encoder has parameters that do not learn, and one of them is a single number."""
    from support.configs import TINY

    from ldm_core import build
    from ldm_core.training import DiffusionObjective

    torch.manual_seed(0)
    return DiffusionObjective(build(TINY["sd2"]).to("cpu"), train_text_encoder=True)


def adapter(kind: str) -> Any:
    from ldm_core.training import DiffusionObjective, TrainableEmbedding, TrainableLora

    model = diffusion().model
    if kind == "lora":
        return DiffusionObjective(model, adapter=TrainableLora(model, 2, parts=("unet", "text_encoder")))
    # A word that the captions of `pictures` have.
    return DiffusionObjective(model, adapter=TrainableEmbedding(model, "picture", "dog"), condition_dropout=0)


def small_clip() -> Any:
    from support.tiny_clip import tiny_clip

    from ldm_core.training import ContrastiveObjective

    return ContrastiveObjective(tiny_clip())


OPTIONS: dict[str, Any] = {
    "steps": 6,
    "batch_size": 4,
    "learning_rate": 1e-4,
    "save_every": 3,
    "ema_decay": 0.5,
}


def train(name: str, folder: Path, **options: Any) -> None:
    """In one of several processes, or alone."""
    world = init_distributed()
    size = 8 if name == "small" else 16
    options["steps"] = OPTIONS["steps"] if name == "small" else 3
    run(folder, OBJECTIVES[name](), world=world, samples=pictures(size=size), **OPTIONS | options)
    shutdown_distributed()


@pytest.mark.one_in(5)
@pytest.mark.parametrize(
    ("name", "parallel"),
    [
        ("small", "fsdp"),
        ("diffusion", "ddp"),
        ("autoencoder", "ddp"),
        pytest.param("small", "ddp", marks=pytest.mark.slow),
        pytest.param("autoencoder", "fsdp", marks=pytest.mark.slow),
        pytest.param("clip", "ddp", marks=pytest.mark.slow),
        pytest.param("word", "fsdp", marks=pytest.mark.slow),
        pytest.param("word", "ddp", marks=pytest.mark.slow),
        pytest.param("lora", "ddp", marks=pytest.mark.slow),
        pytest.param("lora", "fsdp", marks=pytest.mark.slow),
        pytest.param("projecting", "fsdp", marks=pytest.mark.slow),
        pytest.param("diffusion", "fsdp", marks=pytest.mark.slow),
        pytest.param("jointly", "ddp", marks=pytest.mark.slow),
        pytest.param("jointly", "fsdp", marks=pytest.mark.slow),
    ],
)
def test_two_processes_give_the_losses_of_one(tmp_path: Path, name: str, parallel: str) -> None:
    alone, both = tmp_path / "alone", tmp_path / "both"
    train(name, alone)
    codes = in_processes(
        2, lambda: train(name, both, parallel=parallel, accumulate=2 if name == "small" else 1)
    )
    assert codes == [0, 0]
    assert losses(both) == pytest.approx(losses(alone), rel=TOLERANCE)
    one, two = (read(folder / "state.safetensors").tensors for folder in (alone, both))
    assert {n: t.shape for n, t in one.items()} == {n: t.shape for n, t in two.items()}
    for key, tensor in one.items():
        if key.startswith(("weight.", "average.")):
            # Adam moves a weight by the learning rate even where its gradient is all rounding.
            torch.testing.assert_close(two[key], tensor, rtol=0, atol=6 * 2 * OPTIONS["learning_rate"])


def test_what_fsdp_cannot_do_is_said(tmp_path: Path) -> None:
    """Saving an adapter, of which each process has slices, and training CLIP's temperature."""

    def sliced() -> None:
        world, word = init_distributed(), adapter("word")
        run(tmp_path / "word", word, world=world, parallel="fsdp", samples=pictures(size=16), steps=1)
        with pytest.raises(
            CheckpointError, match=r"the word is sharded over several processes .*load_weights"
        ):
            word.adapter.save(tmp_path / f"{world.rank}.safetensors")
        with pytest.raises(ValueError, match=r"cannot train clip\..*logit_scale, a scalar"):
            run(tmp_path / "clip", small_clip(), world=world, parallel="fsdp", samples=pictures(size=16))
        shutdown_distributed()

    assert in_processes(2, sliced) == [0, 0]
    assert not list(tmp_path.glob("*.safetensors"))


@pytest.mark.parametrize("parallel", ["ddp", pytest.param("fsdp", marks=pytest.mark.slow)])
def test_a_state_is_taken_up_by_any_number_of_processes(tmp_path: Path, parallel: str) -> None:
    alone, mixed = tmp_path / "alone", tmp_path / "mixed"
    train("small", alone)
    rest = {"parallel": parallel}

    def half() -> None:
        from support import training_runs

        cut = training_runs.Denoise(fails=lambda step: float("nan") if step == 4 else 0.0)
        world = init_distributed()
        try:
            run(mixed, cut, world=world, **OPTIONS | rest)
        finally:
            shutdown_distributed()

    assert in_processes(2, half) == [1, 1], "both stop at the loss that is no number"
    assert len(losses(mixed)) == 4
    train("small", mixed)
    assert losses(mixed) == pytest.approx(losses(alone), rel=TOLERANCE)


@pytest.mark.parametrize("parallel", ["ddp", pytest.param("fsdp", marks=pytest.mark.slow)])
def test_pictures_are_drawn_by_all_and_kept_by_the_first(tmp_path: Path, parallel: str) -> None:
    def draw() -> None:
        world, objective = init_distributed(), Denoise()

        def picture() -> Image.Image:
            made = objective.layers(torch.ones(1, 3, 4, 4))  # not by the objective's forward
            (tmp_path / f"{world.rank}.txt").write_text(f"{float(made.mean()):.5f}")
            return Image.new("RGB", (4, 4), "red")

        run(tmp_path / "run", objective, world=world, picture=picture, picture_every=4, parallel=parallel)
        shutdown_distributed()

    assert in_processes(2, draw) == [0, 0]
    assert (tmp_path / "0.txt").read_text() == (tmp_path / "1.txt").read_text()
    assert len(list((tmp_path / "run" / "samples").iterdir())) == 3
    objective = Denoise()
    load_weights(objective, tmp_path / "run" / "state.safetensors")
    made = objective.layers(torch.ones(1, 3, 4, 4)).mean()
    assert (tmp_path / "0.txt").read_text() == f"{float(made.detach()):.5f}"


def test_processes_without_a_common_folder_are_told(tmp_path: Path) -> None:
    train("small", tmp_path / "0", steps=3)

    def apart() -> None:
        rank = os.environ["RANK"]
        world = init_distributed()
        try:
            run(tmp_path / rank, world=world, **OPTIONS)
        except RuntimeError as error:
            (tmp_path / f"{rank}.txt").write_text(str(error))
            os._exit(3)

    assert in_processes(2, apart) == [3, 3]
    assert "all processes must share the folder" in (tmp_path / "0.txt").read_text()
    assert "all processes must share the folder" in (tmp_path / "1.txt").read_text()


SCRIPT = """
import os, signal, sys
sys.path.insert(0, {tests!r})
from support.training_runs import Denoise, run
from ldm_core.training import init_distributed

world = init_distributed()

def die(step):
    if world.rank == 1 and step == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    return 0.0

run({folder!r}, Denoise(fails=die), world=world)
"""


def test_a_signal_to_one_stops_all_at_the_same_step(tmp_path: Path) -> None:
    alone, both = tmp_path / "alone", tmp_path / "both"
    run(alone)

    def train_until_told() -> None:
        world = init_distributed()

        def tell(step: int) -> float:
            if world.rank == 1 and step == 4:
                os.kill(os.getpid(), signal.SIGTERM)
            return 0.0

        run(both, Denoise(fails=tell), world=world, save_every=100)

    assert in_processes(2, train_until_told) == [128 + signal.SIGTERM] * 2
    assert len(losses(both)) == 5
    run(both)
    assert losses(both) == pytest.approx(losses(alone), rel=TOLERANCE)


def test_the_others_end_when_one_dies(tmp_path: Path) -> None:
    def train_until_death() -> None:
        world = init_distributed()

        def die(step: int) -> float:
            if world.rank == 1 and step == 4:
                os.kill(os.getpid(), signal.SIGKILL)
            return 0.0

        try:
            run(tmp_path, Denoise(fails=die), world=world)
        except RuntimeError as error:
            (tmp_path / "error.txt").write_text(str(error))
            os._exit(3)

    assert in_processes(2, train_until_death) == [3, -signal.SIGKILL]
    assert "peer" in (tmp_path / "error.txt").read_text()
    assert read(tmp_path / "state.safetensors").metadata["ldm_core.training"].startswith('{"step": 3')


@pytest.mark.slow  # three Python processes that import torch
def test_torchrun_ends_all_when_one_dies(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(SCRIPT.format(tests=str(Path(__file__).parents[1]), folder=str(tmp_path / "run")))
    start = time.monotonic()
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        str(script),
    ]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode != 0
    assert time.monotonic() - start < 100
    assert "ChildFailedError" in result.stderr
    assert f"Signal {signal.SIGKILL.value} (SIGKILL)" in result.stderr
    assert read(tmp_path / "run" / "state.safetensors").metadata["ldm_core.training"].startswith('{"step": 3')


def test_another_way_to_share_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="parallel must be 'ddp' or 'fsdp', not 'zero'"):
        run(tmp_path, parallel="zero")
