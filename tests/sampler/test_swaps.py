"""What a user's part is called with, and that the picture is made of what it returns.

A part of each kind, with the check of its contract, is in docs/extending.md, whose code is run by
tests/repository/test_docs.py; here is what that page does not show.
Pictures are small (64 x 64 pixels, 4 x 4 latents) and steps are few; what is proved is that a part is called
as its protocol says and that its answer is what the picture is made of, so most comparisons are exact.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import ldm_core
from ldm_core.attention import attention_layers
from ldm_core.autoencoder import DiagonalGaussian
from ldm_core.model import LatentDiffusion
from ldm_core.noise_schedule import NoiseSchedule, Predict
from ldm_core.schedulers import Step, spaced_pairs
from ldm_core.testing import check_autoencoder, check_unet

SIZE = 64
ROUNDING = 1e-4  # of pictures in [0, 1]: another order of sums, through a few steps


def draw(
    model: LatentDiffusion, prompt: Any = "panda", scheduler: Any = None, guidance: Any = None, **options: Any
) -> Tensor:
    """Four pictures' worth of nothing special: (B, 3, 64, 64) in [0, 1]."""
    defaults = {"steps": 4, "height": SIZE, "width": SIZE, "guidance_scale": 4.0, "seed": 1}
    sampler = ldm_core.Sampler(model, scheduler, guidance)
    return sampler.txt2img(prompt, **{**defaults, "output": "tensor", **options})


@pytest.fixture(scope="module")
def picture(bundled: LatentDiffusion) -> Tensor:
    return draw(bundled)


@pytest.fixture
def own_model(bundled: LatentDiffusion) -> LatentDiffusion:
    """The bundled model with a U-Net that a test may change in place."""
    return replace(bundled, unet=copy.deepcopy(bundled.unet))


def close(a: Tensor, b: Tensor) -> bool:
    return float((a - b).abs().max()) < ROUNDING


# --- scheduler -----------------------------------------------------------------------------------------


class Euler:
    """Euler's method in sigma = s_t / a_t."""

    def timesteps(self, schedule: NoiseSchedule, n: int) -> list[tuple[int, int]]:
        return spaced_pairs(len(schedule), n, "trailing")

    def step(
        self, predict: Predict, x: Tensor, t: int, t_prev: int, history: Any, noise: Tensor | None
    ) -> Step:
        (a, s), (a_prev, s_prev) = (predict.schedule.signal_and_noise(u) for u in (t, t_prev))
        prediction = predict(x, t)
        x_prev = a_prev * (x / a + (s_prev / a_prev - s / a) * prediction.eps)
        return Step(x_prev, prediction.x0)


@pytest.mark.slow  # pictures of the bundled model
def test_a_scheduler_converges_with_ddim_to_the_same_picture(bundled: LatentDiffusion) -> None:
    # Euler here starts at T - 1 and ends at the clean image, DDIM at neither: they differ with few steps.
    def difference(n: int) -> float:
        options = {"steps": n, "guidance_scale": 1.0, "output": "latent"}
        ours, theirs = (draw(bundled, scheduler=s, **options) for s in (Euler(), ldm_core.DDIM()))
        return float((ours - theirs).square().mean().sqrt() / theirs.std())

    few, many = difference(5), difference(40)
    assert few > 0.05
    assert many < few / 4


def test_a_scheduler_serves_img2img_and_inpainting_too(bundled: LatentDiffusion) -> None:
    sampler = ldm_core.Sampler(bundled, Euler())
    image = Image.new("RGB", (SIZE, SIZE), "orange")
    mask = Image.new("L", (SIZE, SIZE), 0)
    mask.paste(255, (0, 0, SIZE // 2, SIZE))
    options: dict[str, Any] = {"steps": 4, "seed": 0, "output": "tensor"}
    redrawn = sampler.img2img("panda", image, 0.5, **options)
    repainted = sampler.inpaint("panda", image, mask, **options)
    assert redrawn.shape == repainted.shape == (1, 3, SIZE, SIZE)
    right = repainted[0, :, :, SIZE // 2 :]
    assert torch.equal(right, torch.tensor([255, 165, 0]).div(255)[:, None, None].expand_as(right))


def test_a_schedulers_history_and_noise_come_through_the_sampler(bundled: LatentDiffusion) -> None:
    seen: list[tuple[Any, Tensor]] = []

    class Remembering(Euler):
        def step(self, predict: Any, x: Tensor, t: int, t_prev: int, history: Any, noise: Any) -> Step:
            seen.append((history, noise))
            return replace(super().step(predict, x, t, t_prev, None, noise), history=[*(history or []), t])

    draw(bundled, scheduler=Remembering(), num_images=2)
    assert [history for history, _ in seen] == [None, [999], [999, 749], [999, 749, 499]]
    assert all(noise.shape == (2, 16, 4, 4) for _, noise in seen)
    alone = seen[0][1]
    seen.clear()
    draw(bundled, scheduler=Remembering(), seed=2)
    assert torch.equal(seen[0][1][0], alone[1])


# --- U-Net ---------------------------------------------------------------------------------------------


class Counting(nn.Module):
    def __init__(self, unet: Any) -> None:
        super().__init__()
        self.unet = unet
        self.rows: list[int] = []

    def forward(self, x: Tensor, t: Tensor | int, context: Tensor) -> Tensor:
        self.rows.append(len(x))
        return self.unet(x, t, context)


@pytest.mark.one_in(3)
@pytest.mark.parametrize(
    ("scheduler", "options", "rows"),
    [
        (ldm_core.DDIM(), {}, [2, 2, 2, 2]),
        (ldm_core.DDIM(), {"guidance_scale": 1.0}, [1, 1, 1, 1]),
        (ldm_core.DDPM(), {"num_images": 3}, [6, 6, 6, 6]),
        (ldm_core.PNDM(), {"guidance_scale": 1.0}, [1, 1, 1, 1, 1]),
    ],
)
def test_a_wrapped_unet_sees_every_call(
    bundled: LatentDiffusion, scheduler: Any, options: dict[str, Any], rows: list[int]
) -> None:
    counting = Counting(bundled.unet)
    images = draw(replace(bundled, unet=counting), scheduler=scheduler, **options)
    assert counting.rows == rows
    assert torch.equal(images, draw(bundled, scheduler=scheduler, **options))


def test_a_wrapped_unet_moves_with_the_model(bundled: LatentDiffusion) -> None:
    model = replace(bundled, unet=Counting(copy.deepcopy(bundled.unet)))
    assert len(list(attention_layers(model))) == len(list(attention_layers(bundled)))
    assert model.dtype == torch.float32
    model.modules["unet"].to(torch.float64)
    assert model.dtype == torch.float64


def test_a_plain_function_is_a_unet(bundled: LatentDiffusion, picture: Tensor) -> None:
    def unet(x: Tensor, t: Tensor | int, context: Tensor) -> Tensor:
        return bundled.unet(x, t, context)

    check_unet(unet, bundled.config.unet)
    assert torch.equal(draw(replace(bundled, unet=unet)), picture)


@pytest.mark.parametrize("prediction", ["eps", "v", "x0"])
@pytest.mark.parametrize(
    "scheduler",
    [ldm_core.DDIM(set_alpha_to_one=True), ldm_core.DDPM(), Euler()],
    ids=["DDIM", "DDPM", "Euler"],
)
def test_a_network_that_knows_the_picture_draws_it(
    bundled: LatentDiffusion, scheduler: Any, prediction: Any
) -> None:
    goal = torch.randn(1, 16, 4, 4, generator=torch.Generator().manual_seed(9))
    schedule = bundled.noise_schedule

    def unet(x: Tensor, t: Tensor | int, context: Tensor) -> Tensor:
        assert isinstance(t, int)
        a, s = schedule.signal_and_noise(t)
        eps = (x - a * goal) / s
        return {"eps": eps, "v": a * eps - s * goal, "x0": goal.expand_as(x)}[prediction]

    model = replace(bundled, unet=unet, config=replace(bundled.config, prediction=prediction))
    found = draw(model, scheduler=scheduler, guidance_scale=1.0, output="latent")
    assert close(found, goal)


def test_a_unet_of_the_wrong_shape_is_named(bundled: LatentDiffusion) -> None:
    model = replace(bundled, unet=lambda x, t, context: x[:, :3])
    with pytest.raises(ValueError, match=r"output must have x's shape \(1, 16, 4, 4\), got \(1, 3, 4, 4\)"):
        draw(model, guidance_scale=1.0)


# --- guidance ------------------------------------------------------------------------------------------


def test_a_guidance_is_told_scale_and_progress(bundled: LatentDiffusion) -> None:
    seen: list[tuple[int, float, float]] = []

    def guidance(
        network: Any, x: Tensor, t: int, cond: Tensor, uncond: Tensor, scale: float, progress: float
    ) -> Tensor:
        seen.append((t, scale, progress))
        return network(x, t, cond)

    images = draw(bundled, guidance=guidance)
    assert seen == [(t, 4.0, pytest.approx(1 - (t + 1) / 1000)) for t in (751, 501, 251, 1)]
    assert torch.equal(images, draw(bundled, guidance_scale=1.0))


# --- attention -----------------------------------------------------------------------------------------


def test_an_attention_is_called_once_a_layer(own_model: LatentDiffusion, picture: Tensor) -> None:
    calls: list[bool] = []

    def mine(q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False) -> Tensor:
        calls.append(causal)
        return nn.functional.scaled_dot_product_attention(q, k, v, is_causal=causal)

    ldm_core.set_attention(own_model.unet, mine)
    assert close(draw(own_model), picture)
    layers = len(list(attention_layers(own_model.unet)))
    assert calls == [False] * (4 * layers)


def test_an_attention_that_differs_makes_another_picture(own_model: LatentDiffusion, picture: Tensor) -> None:
    def deaf(q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False) -> Tensor:
        return v.mean(dim=-2, keepdim=True).expand_as(q)

    for name, layer in attention_layers(own_model.unet):
        if name.endswith("attn2"):
            layer.attention = deaf
    assert not close(draw(own_model), picture)


# --- text encoder --------------------------------------------------------------------------------------


def test_a_text_encoder_of_ones_own(bundled: LatentDiffusion, picture: Tensor) -> None:
    encoder, tokenizer = bundled.text_encoder, bundled.tokenizer

    class Blend(nn.Module):
        """Prompts are moved towards another one; with amount 1 they all are it."""

        towards: Tensor

        def __init__(self, amount: float) -> None:
            super().__init__()
            self.amount = amount
            self.register_buffer("towards", encoder(tokenizer("panda")).detach())

        def forward(self, tokens: Tensor) -> Tensor:
            return torch.lerp(encoder(tokens), self.towards.expand(len(tokens), -1, -1), self.amount)

    whole = draw(replace(bundled, text_encoder=Blend(1.0)), "fire", guidance_scale=1.0)
    assert torch.equal(whole, draw(bundled, "panda", guidance_scale=1.0))
    assert not close(draw(replace(bundled, text_encoder=Blend(0.5)), "fire"), picture)


def test_a_longer_context_goes_through(bundled: LatentDiffusion) -> None:
    """Two prompts' vectors side by side: the U-Net attends to as many tokens as there are."""
    widths: list[int] = []

    def encoder(tokens: Tensor) -> Tensor:
        return torch.cat([bundled.text_encoder(tokens), bundled.text_encoder(tokens.flip(1))], dim=1)

    def unet(x: Tensor, t: Tensor | int, context: Tensor) -> Tensor:
        widths.append(context.shape[1])
        return bundled.unet(x, t, context)

    draw(replace(bundled, text_encoder=encoder, unet=unet))
    assert widths == [154] * 4


# --- autoencoder ---------------------------------------------------------------------------------------


class Mirrored(nn.Module):
    """Sees and shows everything the other way round."""

    def __init__(self, autoencoder: Any) -> None:
        super().__init__()
        self.autoencoder = autoencoder

    def encode(self, images: Tensor) -> DiagonalGaussian:
        return self.autoencoder.encode(images.flip(3))

    def decode(self, z: Tensor) -> Tensor:
        return self.autoencoder.decode(z).flip(3)


def test_an_autoencoder_of_ones_own(bundled: LatentDiffusion, picture: Tensor) -> None:
    mirrored = Mirrored(bundled.autoencoder)
    check_autoencoder(mirrored, bundled.config.autoencoder, dtypes=[torch.float32])
    model = replace(bundled, autoencoder=mirrored)
    assert torch.equal(draw(model), picture.flip(3))
    images = 2 * picture - 1
    assert torch.equal(model.encode_image(images), bundled.encode_image(images.flip(3)))


def test_an_autoencoder_without_weights(bundled: LatentDiffusion) -> None:
    """A latent repeats the colour of its patch: exact both ways."""

    class Patches:
        def encode(self, images: Tensor) -> DiagonalGaussian:
            small = nn.functional.avg_pool2d(images, 16)
            mean = small.repeat(1, 6, 1, 1)[:, :16]
            return DiagonalGaussian(mean, torch.full_like(mean, -30.0))

        def decode(self, z: Tensor) -> Tensor:
            return nn.functional.interpolate(z[:, :3], scale_factor=16)

    check_autoencoder(Patches(), bundled.config.autoencoder)
    model = replace(bundled, autoencoder=Patches())
    colours = torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1
    latent = colours.repeat(1, 6, 1, 1)[:, :16]
    z = latent * model.config.latent_scale
    assert close(model.encode_image(model.decode_latent(z)), z)
    assert draw(model).shape == (1, 3, SIZE, SIZE)


# --- parts of different types ----------------------------------------------------------------------------


def test_parts_may_have_different_types(bundled: LatentDiffusion, picture: Tensor) -> None:
    """A U-Net in bfloat16 between a text encoder in float64 and an autoencoder in float32."""
    model = replace(
        bundled,
        text_encoder=copy.deepcopy(bundled.modules["text_encoder"]).double(),
        unet=copy.deepcopy(bundled.modules["unet"]).bfloat16(),
    )
    images = draw(model)
    assert images.dtype == torch.float32
    # 8 bits of a network's output, four steps: a few percent, and far from another picture (0.3).
    assert float((images - picture).square().mean().sqrt()) < 0.06
