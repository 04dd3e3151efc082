"""Every published system against plain steps in float64: its networks, its conditions and five steps of DDIM.

Small models of the same structure, with random weights in float64: in float32 a step's error, amplified by
guidance and by the division by sqrt(alphas_cumprod), comes near to the bound. The bound is the largest
difference over the largest value; pictures and conditions are kept in float32, which gives up to 1e-7.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from support.reference import random_model, relative_error
from support.zoo import PUBLISHED, SCALE, WIDTH, small, small_yaml
from torch import Tensor
from zoo import systems
from zoo.reference import Tensors, nearest_codes
from zoo.systems import Given, System, draws

from ldm_core import DDIM, Sampler
from ldm_core.config import LatentDiffusionConfig
from ldm_core.loading.save import file_tensors
from ldm_core.model import LatentDiffusion

BOUND = 1e-5
STEPS, SEED = 5, 7
NAMES = {preset: name for name, preset in PUBLISHED.items()}
PROMPT = "a photograph of a cat , sitting"
# OpenCLIP's text encoder has these, and the hidden states of the last block but one need none of them.
TEXT_UNUSED = ("transformer.resblocks.2.", "text_projection", "logit_scale", "attn_mask")

Pair = tuple[LatentDiffusion, System]


def pair(preset: str, published: dict[str, Any], blocks: int = 1, **changes: Any) -> Pair:
    config: LatentDiffusionConfig = replace(small(preset, blocks), **changes)
    model = random_model(config, dtype=torch.float64)
    params = small_yaml(published[NAMES[preset]], preset, blocks)["params"]
    return model, System(Tensors(file_tensors(model)), params, config.latent_scale)


def noise_for(model: LatentDiffusion, rows: int = 1) -> Tensor:
    """Latents (B, C, h, w) of the smallest height and twice the width."""
    unit = model.config.unet.downsampling
    return torch.randn(rows, model.config.unet.out_channels, unit, 2 * unit, generator=generator())


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def picture(noise: Tensor, f: int) -> Tensor:
    return torch.rand(len(noise), 3, noise.shape[2] * f, noise.shape[3] * f, generator=generator(1))


def sample(model: LatentDiffusion, inputs: Any, noise: Tensor, eta: float = 0.0, **options: Any) -> Tensor:
    f = model.config.autoencoder.downsampling
    sizes = {"height": f * noise.shape[2], "width": f * noise.shape[3]}
    sampler = Sampler(model, DDIM(eta=eta))
    return sampler.sample(inputs, noise=noise, steps=STEPS, seed=SEED, output="latent", **sizes, **options)  # type: ignore[call-overload, no-any-return]


def agree(ours: Tensor, theirs: Tensor) -> None:
    assert ours.shape == theirs.shape
    assert bool(theirs.isfinite().all())
    assert relative_error(ours.double(), theirs) < BOUND


def check_first_stage(model: LatentDiffusion, system: System, latent: Tensor) -> None:
    """Both directions of the first stage; with it, every tensor of the file has been read."""
    part = latent[:1, :, :2, :4]
    image = picture(part, model.config.autoencoder.downsampling) * 2 - 1
    with torch.no_grad():
        agree(model.encode_image(image), system.encode(image))
        agree(model.decode_latent(part), system.decode(part))
    left = {name for name in system.w.unused() if not any(part in name for part in TEXT_UNUSED)}
    assert left == set()


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_unconditional_with_vq_f4(eta: float, published: dict[str, Any]) -> None:
    model, system = pair("celeba256", published, blocks=2)
    noise = noise_for(model)
    ours = sample(model, None, noise, eta)
    agree(ours, system.ddim(noise, Given(), eta=eta, noises=list(draws(SEED, *[noise.shape] * STEPS))))
    check_first_stage(model, system, ours)


def test_unconditional_with_kl_f8_and_a_measured_scale(published: dict[str, Any]) -> None:
    model, system = pair("lsun-churches256", published, latent_scale=SCALE)
    noise = noise_for(model)
    ours = sample(model, None, noise)
    agree(ours, system.ddim(noise, Given()))
    check_first_stage(model, system, ours)


def test_classes_with_guidance_and_the_null_class(published: dict[str, Any]) -> None:
    model, system = pair("cin256-v2", published, blocks=2)
    noise, labels = noise_for(model, 2), [3, 999]
    cond, uncond = systems.of_classes(system, labels), systems.of_classes(system, [1000, 1000])
    ours = sample(model, labels, noise)  # the scale is the model's, 3
    agree(ours, system.ddim(noise, cond, uncond, 3.0))
    check_first_stage(model, system, ours)


def test_classes_without_a_null_class(published: dict[str, Any]) -> None:
    model, system = pair("cin256", published)
    noise = noise_for(model)
    ours = sample(model, 999, noise)
    agree(ours, system.ddim(noise, systems.of_classes(system, [999])))
    check_first_stage(model, system, ours)


@pytest.mark.parametrize(
    "preset",
    ["text2img256", pytest.param("text2img-large", marks=pytest.mark.slow)],  # differ in sizes alone
)
def test_text_with_guidance(preset: str, published: dict[str, Any]) -> None:
    model, system = pair(preset, published)
    noise = noise_for(model)
    cond, uncond = (systems.of_bert(system, systems.word_pieces([text])) for text in (PROMPT, ""))
    with torch.no_grad():
        assert torch.equal(model.tokenizer([PROMPT, ""]), systems.word_pieces([PROMPT, ""]))
        ours = sample(model, PROMPT, noise, guidance_scale=5.0)
    agree(ours, system.ddim(noise, cond, uncond, 5.0))
    check_first_stage(model, system, ours)


def test_layouts(published: dict[str, Any]) -> None:
    model, system = pair("layout2img256", published)
    noise = noise_for(model)
    layout = [(17, 0.1, 0.2, 0.5, 0.55), (353, 0.0, 0.625, 0.25, 0.375)]
    tokens = systems.layout_tokens(layout)
    assert torch.equal(model.conditioner.tokens([layout]), tokens)  # type: ignore[attr-defined]
    ours = sample(model, [layout], noise)
    agree(ours, system.ddim(noise, systems.of_bert(system, tokens)))
    check_first_stage(model, system, ours)


def test_semantic_maps(published: dict[str, Any]) -> None:
    model, system = pair("semantic-synthesis256", published)
    noise = noise_for(model)
    size = (1, 4 * noise.shape[2], 4 * noise.shape[3])
    classes = torch.randint(182, size, generator=generator(2))
    ours = sample(model, classes, noise)
    agree(ours, system.ddim(noise, systems.of_map(system, classes)))
    check_first_stage(model, system, ours)


def test_super_resolution(published: dict[str, Any]) -> None:
    model, system = pair("bsr-sr", published)
    noise = noise_for(model)
    small_picture = picture(noise, 1)
    ours = sample(model, small_picture, noise, eta=1.0)
    noises = list(draws(SEED, *[noise.shape] * STEPS))
    agree(ours, system.ddim(noise, systems.of_small_picture(small_picture), eta=1.0, noises=noises))
    check_first_stage(model, system, ours)


def masked(noise: Tensor, f: int) -> tuple[Tensor, Tensor]:
    image = picture(noise, f)
    return image, torch.rand(1, 1, *image.shape[2:], generator=generator(3))


def test_inpainting(published: dict[str, Any]) -> None:
    model, system = pair("inpainting-big", published)
    noise = noise_for(model)
    image, mask = masked(noise, 4)
    expected = system.ddim(noise, systems.of_masked_picture(system, image, mask))
    sampler = Sampler(model, DDIM())
    agree(sampler.inpaint(None, image, mask, steps=STEPS, noise=noise, output="latent"), expected)
    result = sampler.inpaint(None, image, mask, steps=STEPS, noise=noise, output="tensor")
    hard = (mask >= 0.5).double()
    drawn = ((system.decode(expected) + 1) / 2).clamp(0, 1)
    agree(result, (1 - hard) * image.double() + hard * drawn)
    check_first_stage(model, system, expected)


def test_retrieval_with_zeros_as_the_unconditional_input(published: dict[str, Any]) -> None:
    model, system = pair("rdm768", published)
    noise = noise_for(model)
    vectors = torch.randn(1, 3, WIDTH, generator=generator(4))
    cond, uncond = systems.of_vectors(vectors)
    ours = sample(model, vectors, noise, guidance_scale=5.0)
    agree(ours, system.ddim(noise, cond, uncond, 5.0))
    check_first_stage(model, system, ours)


def texts(model: Any, system: System) -> tuple[Given, Given]:
    """The prompt and the empty prompt. Stability's models and their tokenizer are tested elsewhere."""
    text = getattr(model.conditioner, "text", model.conditioner)
    cond, uncond = (systems.of_text(system, text.tokenizer([one]), 3) for one in (PROMPT, ""))
    return cond, uncond


def test_depth(published: dict[str, Any]) -> None:
    model, system = pair("sd2-depth", published)
    noise = noise_for(model)
    depth = torch.rand(8 * noise.shape[2], 8 * noise.shape[3], generator=generator(5)) * 30
    cond, uncond = (systems.of_depth(one, depth, *noise.shape[2:]) for one in texts(model, system))
    ours = sample(model, {"prompt": PROMPT, "depth": depth}, noise, guidance_scale=7.5)
    agree(ours, system.ddim(noise, cond, uncond, 7.5))
    check_first_stage(model, system, ours)


@pytest.mark.parametrize("level", [pytest.param(0, marks=pytest.mark.slow), 300])
def test_unclip(level: int, published: dict[str, Any]) -> None:
    model, system = pair("sd2-unclip-h", published)
    noise, width = noise_for(model), WIDTH // 4
    vector = torch.randn(width, generator=generator(6))
    cond, uncond = texts(model, system)
    (drawn,) = draws(SEED, (1, width))
    cond = systems.of_image_vector(cond, vector, level, drawn)
    uncond = Given(uncond.context, y=torch.zeros(1, 2 * width))
    inputs = {"prompt": PROMPT, "embedding": vector, "noise_level": level}
    ours = sample(model, inputs, noise)  # the scale is the model's, 10
    agree(ours, system.ddim(noise, cond, uncond, 10.0))
    check_first_stage(model, system, ours)


def test_x4_upscaling(published: dict[str, Any]) -> None:
    model, system = pair("x4-upscaler", published)
    noise = noise_for(model)
    small_picture = picture(noise, 1)
    (drawn,) = draws(SEED, small_picture.shape)
    cond, uncond = (systems.of_noised_picture(t, small_picture, 20, drawn) for t in texts(model, system))
    ours = sample(model, {"prompt": PROMPT, "image": small_picture[0]}, noise)
    agree(ours, system.ddim(noise, cond, uncond, 9.0))
    check_first_stage(model, system, ours)


def test_inpainting_of_stable_diffusion(published: dict[str, Any]) -> None:
    model, system = pair("sd2-inpaint", published)
    noise = noise_for(model)
    image, mask = masked(noise, 8)
    (drawn,) = draws(SEED, noise.shape)
    cond, uncond = (systems.of_gray_picture(system, one, image, mask, drawn) for one in texts(model, system))
    options: Any = {"steps": STEPS, "noise": noise, "seed": SEED, "output": "latent"}
    ours = Sampler(model, DDIM()).inpaint(PROMPT, image, mask, **options)
    agree(ours, system.ddim(noise, cond, uncond, 7.5))
    check_first_stage(model, system, ours)


def test_the_unconditional_half_comes_first(published: dict[str, Any]) -> None:
    model, system = pair("cin256-v2", published)
    seen: list[Tensor] = []

    def unet(x: Tensor, t: Any, context: Tensor) -> Tensor:
        seen.append(context)
        return torch.zeros_like(x)

    sample(replace(model, unet=unet), 5, noise_for(model))  # type: ignore[arg-type]
    expected = torch.cat([systems.of_classes(system, [label]).context for label in (1000, 5)])  # type: ignore[misc]
    assert all(torch.equal(context, expected) for context in seen)


def test_codes(published: dict[str, Any]) -> None:
    """The nearest code of every position."""
    model, system = pair("celeba256", published)
    autoencoder: Any = model.autoencoder
    z = torch.randn(2, 3, 5, 7, generator=generator(8), dtype=torch.float64) / 64
    with torch.no_grad():
        codes, numbers = autoencoder.quantize(z)
    expected, grid = nearest_codes(system.stage, z)
    assert torch.equal(numbers, grid)
    agree(codes, expected)
