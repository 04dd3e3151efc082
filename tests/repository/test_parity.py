"""Networks against diffusers and transformers with the same random weights, at small size.

Tolerances are relative: the largest difference over the largest value. float32 differs by the order of
its sums, 1e-5 leaves room for that and for nothing else. In float64 both sides compute in float64
throughout, but for the timestep embedding, which both take in float32 from equal operations: 1e-9.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from support.configs import SMALL
from support.reference import (
    random_model,
    reference_autoencoder,
    reference_text_encoder,
    reference_unet,
    relative_error,
)

from ldm_core.config import AutoencoderConfig, LatentDiffusionConfig

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-9}
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
KINDS = pytest.mark.parametrize("kind", SMALL)
SLOW = pytest.mark.slow


def labels(config: LatentDiffusionConfig, batch: int, dtype: torch.dtype) -> torch.Tensor | None:
    """The condition that diffusers calls class_labels, for the models that have one."""
    if config.unet.num_classes is not None:
        return torch.arange(batch) % config.unet.num_classes
    if config.unet.adm_in_channels is not None:
        return torch.randn(batch, config.unet.adm_in_channels, dtype=dtype)
    return None


@pytest.mark.one_in(4)
@KINDS
@pytest.mark.parametrize(
    ("dtype", "size"),
    [
        (torch.float32, (8, 24)),
        (torch.float64, (16, 16)),
        pytest.param(torch.float32, (16, 16), marks=SLOW),
        pytest.param(torch.float64, (8, 24), marks=SLOW),
    ],
    ids=str,
)
def test_unet_agrees_with_diffusers(kind: str, dtype: torch.dtype, size: tuple[int, int]) -> None:
    config = SMALL[kind]
    model = random_model(config, dtype=dtype)
    reference = reference_unet(model)
    x = torch.randn(2, config.unet.in_channels, *size, dtype=dtype)
    t = torch.tensor([3, 977])
    context = torch.randn(2, 77, config.unet.context_dim, dtype=dtype)
    y = labels(config, 2, dtype)
    with torch.no_grad():
        ours = model.unet(x, t, context) if y is None else model.unet(x, t, context, y)
        theirs = reference(x, t, context, class_labels=y).sample
    assert ours.dtype == dtype
    assert relative_error(ours, theirs) < TOLERANCE[dtype]


AUTOENCODERS = {
    "f=4": AutoencoderConfig(ch=32, ch_mult=(1, 2, 4), embed_dim=4),
    "f=8": AutoencoderConfig(ch=32),
    "f=16": AutoencoderConfig(ch=32, ch_mult=(1, 1, 2, 2, 4), attn_resolutions=(16,)),
    "f=32": AutoencoderConfig(ch=32, ch_mult=(1, 1, 2, 2, 4, 4), attn_resolutions=(16, 8)),
}


@pytest.mark.one_in(2)
@pytest.mark.parametrize(
    ("form", "dtype"),
    [
        ("f=4", torch.float64),
        ("f=8", torch.float32),
        ("f=16", torch.float32),
        ("f=32", torch.float64),
        pytest.param("f=4", torch.float32, marks=SLOW),
        pytest.param("f=8", torch.float64, marks=SLOW),
        pytest.param("f=16", torch.float64, marks=SLOW),
        pytest.param("f=32", torch.float32, marks=SLOW),
    ],
    ids=str,
)
def test_autoencoder_agrees_with_diffusers(form: str, dtype: torch.dtype) -> None:
    """f=16 and f=32 have attention in their coarse levels, as the paper's."""
    config = replace(SMALL["sd1"], autoencoder=AUTOENCODERS[form])
    model = random_model(config, dtype=dtype)
    reference = reference_autoencoder(model)
    f = config.autoencoder.downsampling
    # The deep decoders: in float32 each side is 1e-5 from the float64 result, and so 2e-5 from the other.
    bound = 2e-5 if form != "f=8" and dtype == torch.float32 else TOLERANCE[dtype]
    images = torch.rand(2, 3, 2 * f, 3 * f, dtype=dtype) * 2 - 1
    z = torch.randn(2, 4, 2, 3, dtype=dtype)
    with torch.no_grad():
        ours, theirs = model.autoencoder.encode(images), reference.encode(images).latent_dist
        assert relative_error(ours.mean, theirs.mean) < TOLERANCE[dtype]
        assert relative_error(ours.std, theirs.std) < TOLERANCE[dtype]
        assert relative_error(ours.kl(), theirs.kl()) < TOLERANCE[dtype]
        decoded = reference.decode(z).sample
        assert relative_error(model.autoencoder.decode(z), decoded) < bound


@pytest.mark.one_in(2)
@DTYPES
@pytest.mark.parametrize("kind", ["sd1", "sd2"])
def test_text_encoder_agrees_with_transformers(kind: str, dtype: torch.dtype) -> None:
    config = SMALL[kind]
    model = random_model(config, dtype=dtype)
    reference = reference_text_encoder(model)
    tokens = model.tokenizer(["a cat", "a photograph of an astronaut riding a horse", ""])
    with torch.no_grad():
        ours = model.text_encoder(tokens)
        theirs = reference(tokens).last_hidden_state
    assert relative_error(ours, theirs) < TOLERANCE[dtype]


def test_a_unet_of_eight_channels_agrees_with_diffusers() -> None:
    """Latents and the latents of a picture, as models that edit by instruction take them."""
    config = replace(SMALL["sd1"], unet=replace(SMALL["sd1"].unet, in_channels=8))
    model = random_model(config, dtype=torch.float64)
    reference = reference_unet(model)
    x, context = torch.randn(1, 8, 8, 8, dtype=torch.float64), torch.randn(1, 77, 64, dtype=torch.float64)
    with torch.no_grad():
        assert relative_error(model.unet(x, 5, context), reference(x, 5, context).sample) < 1e-9


def test_a_unet_that_begins_narrow_agrees_with_diffusers() -> None:
    """CompVis's U-Net may have fewer channels before its first level than in it: channel_mult from 2 on."""
    narrow = replace(SMALL["sd1"].unet, model_channels=32, channel_mult=(2, 3, 3))
    model = random_model(replace(SMALL["sd1"], unet=narrow), dtype=torch.float64)
    reference = reference_unet(model).double()
    x, context = torch.randn(1, 4, 8, 8, dtype=torch.float64), torch.randn(1, 77, 64, dtype=torch.float64)
    with torch.no_grad():
        assert relative_error(model.unet(x, 5, context), reference(x, 5, context).sample) < 1e-9


def test_clip_skip_agrees_with_transformers() -> None:
    """clip_skip=n is the output of n blocks before the last, after the final norm, as in diffusers."""
    model = random_model(SMALL["sd1"], dtype=torch.float64)
    reference = reference_text_encoder(model)
    tokens = model.tokenizer(["a cat"])
    with torch.no_grad():
        hidden = reference(tokens, output_hidden_states=True).hidden_states
        for skip in (0, 1, 2):
            theirs = reference.final_layer_norm(hidden[-1 - skip])
            assert relative_error(model.text_encoder(tokens, clip_skip=skip), theirs) < 1e-9
