"""unCLIP's image encoder and statistics in files: read, left out, written back, as in transformers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.configs import TINY
from support.reference import random_model
from support.weights import same_weights
from torch import Tensor

import ldm_core
from ldm_core.checkpoint import CheckpointError
from ldm_core.clip.config import ImageEncoderConfig
from ldm_core.conditioners import UnclipConfig
from ldm_core.config import PRESETS

ENCODER = ImageEncoderConfig(
    image_size=28, patch_size=14, width=32, layers=2, heads=4, projection_dim=24, activation="gelu"
)
CONFIG = replace(TINY["sd2-unclip"], conditioner=UnclipConfig(24, image_encoder=ENCODER))
BOTH = replace(CONFIG, conditioner=replace(CONFIG.conditioner, statistics=True))
ALONE = replace(CONFIG, conditioner=UnclipConfig(24))


def written(config: Any, path: Path, without: str = "", **extra: Tensor) -> dict[str, Tensor]:
    """A file without metadata, as the originals are."""
    model = random_model(config)
    ldm_core.save(model, path)
    tensors = {key: value for key, value in load_file(path).items() if not without or without not in key}
    save_file({**tensors, **extra}, path)
    return tensors


@pytest.mark.one_in(5)
@pytest.mark.parametrize("config", [CONFIG, BOTH, ALONE], ids=["encoder", "both", "neither"])
def test_saved_and_loaded(config: Any, tmp_path: Path) -> None:
    model = random_model(config)
    ldm_core.save(model, tmp_path / "a.safetensors")
    loaded = ldm_core.load(tmp_path / "a.safetensors")
    assert loaded.config == config == model.config
    assert loaded.conditioner.config == config.conditioner
    assert same_weights(loaded, model)
    ldm_core.convert(tmp_path / "a.safetensors", tmp_path / "b.ckpt")
    assert same_weights(ldm_core.load(tmp_path / "b.ckpt"), model)


def test_the_originals_names_with_what_else_they_hold(tmp_path: Path) -> None:
    """The text half of CLIP beside the image half, and the tables of the noise."""
    path = tmp_path / "a.safetensors"
    text = {
        "embedder.model.token_embedding.weight": torch.ones(9, 24),
        "embedder.model.transformer.resblocks.0.ln_1.weight": torch.ones(24),
        "embedder.model.logit_scale": torch.ones(()),
        "noise_augmentor.betas": torch.ones(1000),
    }
    tensors = written(CONFIG, path, **text)
    names = {key for key in tensors if key.startswith(("embedder.", "noise_augmentor."))}
    assert "embedder.model.visual.transformer.resblocks.1.attn.in_proj_weight" in names
    assert len(names) == 7 + 1 + 12 * 2 - 1 + 1
    loaded = ldm_core.load(path, config=CONFIG)
    assert same_weights(loaded, random_model(CONFIG))
    report = ldm_core.inspect(path)
    assert report.unknown == ()
    assert not any("visual" in key for key in report.ignored)
    assert set(text) <= set(report.ignored)


def test_a_file_without_the_encoder_takes_vectors(tmp_path: Path) -> None:
    written(CONFIG, tmp_path / "a.safetensors", without="embedder.")
    loaded = ldm_core.load(tmp_path / "a.safetensors", config=CONFIG)
    assert loaded.config == ALONE
    assert loaded.conditioner.image_encoder is None
    with pytest.raises(ValueError, match="there is no image encoder; expected embeddings"):
        loaded.condition({"image": torch.rand(3, 8, 8)})


def test_a_file_with_statistics(tmp_path: Path) -> None:
    """In rows, as the original buffers are."""
    mean, std = torch.randn(1, 24), torch.rand(1, 24) + 0.5
    extra = {"noise_augmentor.data_mean": mean, "noise_augmentor.data_std": std}
    written(CONFIG, tmp_path / "a.safetensors", **extra)
    loaded = ldm_core.load(tmp_path / "a.safetensors", config=CONFIG)
    assert loaded.config == BOTH
    assert torch.equal(loaded.conditioner.mean, mean[0])
    assert torch.equal(loaded.conditioner.std, std[0])


def test_a_configuration_without_an_encoder_ignores_the_files(tmp_path: Path) -> None:
    written(CONFIG, tmp_path / "a.safetensors")
    loaded = ldm_core.load(tmp_path / "a.safetensors", config=ALONE)
    assert loaded.config == ALONE


def test_an_encoder_with_other_sizes_or_a_missing_tensor_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    written(CONFIG, path)
    deeper = replace(CONFIG, conditioner=UnclipConfig(24, image_encoder=replace(ENCODER, layers=3)))
    with pytest.raises(CheckpointError, match="contradicts the given configuration"):
        ldm_core.load(path, config=deeper)
    written(CONFIG, path, without="visual.ln_post.bias")
    with pytest.raises(CheckpointError, match=r"embedder.model.visual.ln_post.bias"):
        ldm_core.load(path, config=CONFIG)


def test_statistics_that_were_given_later_are_saved(tmp_path: Path) -> None:
    """Those of unCLIP-l are published beside its checkpoint."""
    model = random_model(CONFIG)
    mean, std = torch.randn(24), torch.rand(24) + 0.5
    conditioner = replace(model.conditioner, mean=mean, std=std)
    ldm_core.save(replace(model, conditioner=conditioner), tmp_path / "a.safetensors")
    loaded = ldm_core.load(tmp_path / "a.safetensors")
    assert loaded.config == BOTH
    inputs = {"embedding": torch.randn(24), "noise_level": 7}
    draws = [torch.Generator().manual_seed(1) for _ in range(2)]
    assert torch.equal(loaded.conditioner(inputs, draws[:1]).vector, conditioner(inputs, draws[1:]).vector)


def test_a_picture_as_transformers_encodes_it() -> None:
    """With this preprocessing: stretched to a square, bicubic with aligned corners, then normalised."""
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    from ldm_core.loading.unclip_part import UNCLIP

    model = random_model(CONFIG)
    config = CLIPVisionConfig(
        hidden_size=32, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, image_size=28,
        patch_size=14, projection_dim=24, hidden_act="gelu",
    )  # fmt: skip
    theirs = CLIPVisionModelWithProjection(config).eval()
    parameters = model.conditioner.network.state_dict()
    key_map = UNCLIP.layout("diffusers").key_map(CONFIG.conditioner)
    theirs.load_state_dict(
        {
            key.removeprefix("image_encoder."): entry.transform.save(
                tuple(parameters[n] for n in entry.parameters)
            )
            for key, entry in key_map.items()
        }
    )
    picture = torch.rand(1, 3, 20, 25, generator=torch.Generator().manual_seed(1))
    pixels = torch.nn.functional.interpolate(picture, (28, 28), mode="bicubic", align_corners=True)
    mean, std = (torch.tensor(values)[:, None, None] for values in (ENCODER.mean, ENCODER.std))
    with torch.no_grad():
        vector = theirs((pixels - mean) / std).image_embeds[0]
        expected = model.conditioner({"embedding": vector}, [torch.Generator().manual_seed(2)]).vector
        found = model.conditioner({"image": picture}, [torch.Generator().manual_seed(2)]).vector
    assert (found - expected).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("name", "width", "layers"), [("sd2-unclip-h", 1280, 32), ("sd2-unclip-l", 1024, 24)]
)
def test_the_published_models_encoders(name: str, width: int, layers: int) -> None:
    encoder = PRESETS[name].conditioner.image_encoder
    assert (encoder.width, encoder.layers, encoder.patch_size) == (width, layers, 14)
    assert (encoder.activation == "gelu") == (name == "sd2-unclip-h")
