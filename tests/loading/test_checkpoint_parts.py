"""Parts of a model alone, as they are handed on, and what is said where one is missing or wrong."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.reference import random_model
from support.weights import same_weights
from support.wild_files import (
    OPEN_CLIP,
    TEXT,
    UNET,
    VAE,
    only,
    trained,
)
from support.wild_models import original, write
from torch import Tensor

import ldm_core
from ldm_core.checkpoint import CheckpointError, inspect
from ldm_core.loading.load import load_part
from ldm_core.model import LatentDiffusion

IDS = torch.arange(77)


# Parts alone, as they are handed on: the part, its prefix in the original file, and its own.
ALONE: dict[str, tuple[str, Any, str, str, dict[str, Tensor]]] = {
    "vae": ("autoencoder", "sd1", VAE, "", {"loss.logvar": torch.ones(1), "loss.d.x": torch.ones(3)}),
    "vae, prefixed": ("autoencoder", "sd1", VAE, VAE, {}),
    "vae.": ("autoencoder", "sd1", VAE, "vae.", {}),
    "unet": ("unet", "sd1", UNET, "", {}),
    "unet of ComfyUI": ("unet", "sd1", UNET, UNET, {}),
    "unet of sd2": ("unet", "sd2", UNET, "diffusion_model.", {}),
    "text": ("text_encoder", "sd1", TEXT, "text_model.", {"text_model.embeddings.position_ids": IDS}),
    "text without text_model": ("text_encoder", "sd1", TEXT, "", {}),
    "openai/clip": (
        "text_encoder",
        "sd1",
        TEXT,
        "text_model.",
        {name: torch.ones(2, 2) for name in ("logit_scale", "vision_model.x", "text_projection.weight")},
    ),
    "open_clip": ("text_encoder", "sd2", OPEN_CLIP, "", {"visual.proj": torch.ones(2)}),
}  # fmt: skip


@pytest.mark.one_in(5)
@pytest.mark.parametrize("kind", ALONE)
def test_a_part_alone_takes_the_place_of_a_models(
    kind: str, sd1: LatentDiffusion, sd2: LatentDiffusion, tmp_path: Path
) -> None:
    part, base, prefix, new, extra = ALONE[kind]
    model = {"sd1": sd1, "sd2": sd2}[base]
    other = random_model(model.config, seed=1)
    whole = write(original(model), tmp_path / "whole.safetensors")
    alone = write({**only(original(other), prefix, new), **extra}, tmp_path / "alone.safetensors")
    loaded = ldm_core.load(whole, config=model.config, **{part: alone})  # type: ignore[arg-type]
    assert same_weights(loaded, replace(model, **{part: getattr(other, part)}))
    assert not inspect(alone).unknown
    network = load_part(alone, part, config=model.config)  # type: ignore[arg-type]
    assert all(
        torch.equal(a, b)
        for a, b in zip(network.state_dict().values(), other.modules[part].state_dict().values(), strict=True)
    )


def test_an_autoencoder_of_another_structure_may_come_in(sd1: LatentDiffusion, tmp_path: Path) -> None:
    other = random_model(replace(sd1.config, autoencoder=replace(sd1.config.autoencoder, ch=64)))
    whole = write(original(sd1), tmp_path / "whole.safetensors")
    vae = write(only(original(other), VAE), tmp_path / "vae.pt")
    loaded = ldm_core.load(whole, config=sd1.config, autoencoder=vae)
    assert loaded.config.autoencoder.ch == 64
    assert torch.equal(loaded.autoencoder.quant_conv.weight, other.autoencoder.quant_conv.weight)
    assert load_part(vae, "autoencoder").config.ch == 64  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("left", "missing"),
    [
        ((UNET, VAE), "no text encoder; it contains a U-Net .* and an autoencoder .*text_encoder=FILE"),
        ((UNET, TEXT), "no autoencoder; it contains .*autoencoder=FILE"),
        ((UNET,), "no text encoder and no autoencoder; .*text_encoder=FILE, autoencoder=FILE"),
        ((VAE,), "no text encoder and no U-Net; .*text_encoder=FILE, unet=FILE"),
    ],
)
def test_missing_parts_are_named_with_what_to_give(
    left: tuple[str, ...], missing: str, sd1: LatentDiffusion, tmp_path: Path
) -> None:
    tensors = {k: v for k, v in original(sd1).items() if k.startswith(left)}
    path = write(tensors, tmp_path / "some.safetensors")
    with pytest.raises(CheckpointError, match=missing):
        ldm_core.load(path)


def test_the_wrong_part_is_named(sd1: LatentDiffusion, tmp_path: Path) -> None:
    whole = write(original(sd1), tmp_path / "whole.safetensors")
    vae = write(only(original(sd1), VAE), tmp_path / "vae.safetensors")
    with pytest.raises(CheckpointError, match=r"vae.safetensors was given as the U-Net, but contains none"):
        ldm_core.load(whole, config=sd1.config, unet=vae)
    with pytest.raises(CheckpointError, match="the part must be one of"):
        load_part(vae, "vae")  # type: ignore[arg-type]


def test_a_part_of_another_size_is_refused(
    sd1: LatentDiffusion, sd2: LatentDiffusion, tmp_path: Path
) -> None:
    whole = write(original(sd1), tmp_path / "whole.safetensors")
    wide = random_model(replace(sd1.config, text_encoder=replace(sd1.config.text_encoder, layers=5)))
    text = write(only(original(wide), TEXT), tmp_path / "text.safetensors")
    with pytest.raises(
        CheckpointError,
        match=r"text_encoder.layers is 3 according to the given configuration, and 5 according to the ten",
    ):
        ldm_core.load(whole, config=sd1.config, text_encoder=text)


def test_a_u_net_that_does_not_say_what_it_predicts_is_asked(
    sd2: LatentDiffusion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the main file says is said of its own U-Net."""
    whole, unet = tmp_path / "whole.safetensors", tmp_path / "unet.safetensors"
    ldm_core.checkpoint.save(sd2, whole)
    write(only(original(sd2), UNET), unet)
    assert ldm_core.load(whole, unet=unet, prediction="eps").config.prediction == "eps"
    assert ldm_core.load(whole, unet=unet, config=sd2.config).config.prediction == "v"
    for similarity, answer in ((0.99, "eps"), (0.01, "v")):
        monkeypatch.setattr("ldm_core.loading.prediction.noise_similarity", lambda model, s=similarity: s)
        with pytest.warns(
            UserWarning, match=r"unet.safetensors does not state the prediction type of its U-Net"
        ):
            assert ldm_core.load(whole, unet=unet).config.prediction == answer


def test_what_other_programs_leave_in_sd2_files(sd2: LatentDiffusion, tmp_path: Path) -> None:
    left = {
        f"{OPEN_CLIP}transformer.text_model.embeddings.position_ids": torch.arange(77)[None],  # a converter
        "denoiser.sigmas": torch.ones(1000),  # Stability AI's later trainer
    }
    path = write(original(sd2) | left, tmp_path / "m.safetensors")
    assert same_weights(ldm_core.load(path, config=sd2.config), sd2)
    assert left.keys() <= inspect(path).ignored.keys()


def test_an_error_under_ema_names_the_average(sd1: LatentDiffusion, tmp_path: Path) -> None:
    tensors = trained(original(sd1))
    key = "model_ema.diffusion_modelinput_blocks00weight"
    tensors[key] = tensors[key] * float("nan")
    path = write(tensors, tmp_path / "x.ckpt")
    with pytest.raises(CheckpointError, match=key):
        ldm_core.load(path, config=sd1.config, ema=True)
