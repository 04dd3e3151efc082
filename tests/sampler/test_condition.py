"""Condition: one value for every way to condition, through guidance, U-Net and sampler."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from support.configs import TINY
from support.reference import random_model
from support.small_models import small_model
from torch import Tensor

import ldm_core
from ldm_core import Sampler
from ldm_core.condition import Condition
from ldm_core.conditioners import ClassLabels, Unconditional
from ldm_core.guidance import ClassifierFreeGuidance
from ldm_core.model import LatentDiffusion
from ldm_core.unet import UNet
from ldm_core.watch import Recorder

DRAWN = torch.Generator().manual_seed(0)


def randn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=DRAWN)


def whole(rows: int = 3) -> Condition:
    return Condition(context=randn(rows, 5, 8), vector=torch.arange(rows), concat=randn(rows, 2, 4, 4))


def equal(a: Condition, b: Condition) -> bool:
    names = ("context", "vector", "concat")
    pairs = [(getattr(a, name), getattr(b, name)) for name in names]
    return all((x is None) == (y is None) and (x is None or torch.equal(x, y)) for x, y in pairs)


def test_rows_are_chosen_and_joined_alike_in_every_field() -> None:
    condition = whole()
    assert condition.rows == 3
    assert equal(condition[1:], condition[[1, 2]])
    assert equal(Condition.cat([condition[:1], condition[1:]]), condition)
    assert torch.equal(condition[[2, 2]].vector, torch.tensor([2, 2]))
    assert Condition().rows is None
    assert Condition.cat([Condition(), Condition()]).rows is None


def test_to_casts_what_is_real_and_keeps_labels() -> None:
    half = whole().to(dtype=torch.float16)
    assert half.context.dtype == half.concat.dtype == torch.float16
    assert half.vector.dtype == torch.int64


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"context": torch.zeros(2, 3)}, "expected context as a tensor of 3 dimensions"),
        ({"context": [1.0]}, "got list"),
        ({"vector": torch.zeros(2, 3, 4)}, "expected vector as a tensor of 1 or 2 dimensions"),
        (
            {"context": torch.zeros(2, 3, 4), "vector": torch.zeros(3, 8)},
            "one row per image, got 2 of context, 3 of vector",
        ),
    ],
)
def test_fields_that_do_not_fit(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Condition(**fields)


def test_conditions_of_other_fields_cannot_be_joined() -> None:
    with pytest.raises(ValueError, match="got context and context, vector"):
        Condition.cat([Condition(randn(1, 2, 3)), Condition(randn(1, 2, 3), vector=torch.zeros(1))])


@pytest.fixture(scope="module")
def sd1() -> LatentDiffusion:
    return random_model(TINY["sd1"])


def latents(sampler: Sampler, *inputs: Any, **options: Any) -> Tensor:
    options = {"steps": 2, "seed": 3, "output": "latent"} | options
    drawn: Tensor = sampler.sample(*inputs, **options)
    return drawn


def test_prompts_conditions_and_contexts_draw_the_same(sd1: LatentDiffusion) -> None:
    sampler = Sampler(sd1)
    expected = sampler.txt2img(["a", "b"], "c", steps=2, seed=3, output="latent")
    cond, uncond = sd1.condition(["a", "b"]), sd1.condition("c")
    assert torch.equal(latents(sampler, ["a", "b"], unconditional="c"), expected)
    assert torch.equal(latents(sampler, condition=cond, unconditional="c"), expected)
    assert torch.equal(latents(sampler, ["a", "b"], unconditional_condition=uncond), expected)
    drawn = sampler.txt2img(
        context=cond.context, negative_context=uncond.context, steps=2, seed=3, output="latent"
    )
    assert torch.equal(drawn, expected)
    last = list(sampler.steps(context=cond.context, negative_prompt="c", steps=2, seed=3))[-1]
    assert torch.equal(last.latent, expected)


def test_inputs_and_conditions_exclude_one_another(sd1: LatentDiffusion) -> None:
    sampler, condition = Sampler(sd1), sd1.condition("a")
    with pytest.raises(ValueError, match="pass inputs or a condition, not both"):
        sampler.sample("a", condition=condition)
    with pytest.raises(ValueError, match="not both"):
        sampler.sample("a", unconditional="b", unconditional_condition=condition)


def other_parts(kind: str, rows: int) -> dict[str, Tensor]:
    """What a small model of this kind needs besides its prompt."""
    unet, (h, w) = TINY[kind].unet, (8, 16)
    parts: dict[str, Tensor] = {}
    if unet.in_channels > unet.out_channels:
        parts["concat"] = randn(rows, unet.in_channels - unet.out_channels, h, w)
    if unet.num_classes is not None:
        parts["vector"] = torch.arange(rows) % unet.num_classes
    if unet.adm_in_channels is not None:
        parts["vector"] = randn(rows, unet.adm_in_channels)
    return parts


@pytest.mark.parametrize("kind", ["sd2-depth", "sd2-unclip", "x4-upscaler"])
def test_models_of_concat_and_vector_sample(kind: str) -> None:
    """A step by hand agrees, and a picture does not depend on its batch."""
    model = random_model(TINY[kind])
    parts = other_parts(kind, 2)
    cond = replace(model.condition(["a", "b"]), **parts)
    f = model.config.autoencoder.downsampling
    size = {"height": 8 * f, "width": 16 * f} if "concat" not in parts else {}
    start = randn(2, model.config.unet.out_channels, 8, 16)
    steps = list(Sampler(model).steps(condition=cond, steps=1, guidance_scale=3, noise=start, **size))

    x = start if cond.concat is None else torch.cat([start, cond.concat], dim=1)
    t = ldm_core.DDIM().timesteps(model.noise_schedule, 1)[0][0]
    empty = model.condition(["", ""]).context
    vector = () if cond.vector is None else (cond.vector,)
    with torch.no_grad():
        uncond_out, cond_out = (model.unet(x, t, c, *vector) for c in (empty, cond.context))
    guided = uncond_out + 3 * (cond_out - uncond_out)
    x0 = model.noise_schedule.interpret(start, guided, t, model.config.prediction).x0
    torch.testing.assert_close(steps[0].x0, x0, rtol=1e-4, atol=1e-4 * float(x0.abs().max()))

    alone = Sampler(model).sample(
        condition=cond[1:], steps=1, guidance_scale=3, noise=start[1:], output="latent", **size
    )
    torch.testing.assert_close(alone, steps[0].latent[1:], rtol=1e-4, atol=1e-3)


def test_a_missing_part_is_named() -> None:
    depth, unclip = random_model(TINY["sd2-depth"]), random_model(TINY["sd2-unclip"])
    with pytest.raises(ValueError, match=r"takes 5 channels: 4 of latents and 1 from condition\.concat"):
        Sampler(depth).sample("a")
    with pytest.raises(ValueError, match=r"class labels or vectors: pass them as condition\.vector"):
        Sampler(unclip).sample("a")
    wrong = replace(depth.condition("a"), concat=torch.zeros(1, 2, 8, 8))
    with pytest.raises(ValueError, match=r"expected condition\.concat of \(B, 1, 8, 8\), got \(1, 2, 8, 8\)"):
        Sampler(depth).sample(condition=wrong)


def without_text(**unet: Any) -> LatentDiffusion:
    """A small model without a text encoder or cross-attention."""
    base = random_model(TINY["sd1"])
    config = replace(base.config.unet, context_dim=None, **unet)
    torch.manual_seed(0)
    return LatentDiffusion(
        unet=UNet(config).eval().requires_grad_(False),
        autoencoder=base.autoencoder,
        noise_schedule=base.noise_schedule,
        config=replace(base.config, text_encoder=None, unet=config),
    )


def test_an_unconditional_model_samples() -> None:
    model = without_text()
    assert model.conditioner == Unconditional()
    together = latents(Sampler(model), num_images=2, seed=3)
    assert together.shape == (2, 4, 16, 16)
    torch.testing.assert_close(latents(Sampler(model), seed=4), together[1:], rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="this model is unconditional"):
        Sampler(model).sample("a cat")
    with pytest.raises(ValueError, match=r"guidance_scale 3 needs an unconditional condition"):
        Sampler(model).sample(guidance_scale=3)
    with pytest.raises(AttributeError, match="takes no text"):
        _ = model.text_encoder


def test_class_labels_are_guided_away_from_their_null_class() -> None:
    plain = without_text(num_classes=5)
    model = replace(plain, conditioner=ClassLabels(5, unconditional=4))
    drawn = latents(Sampler(model), [0, 2], guidance_scale=2)
    assert not torch.equal(drawn, latents(Sampler(model), [0, 1], guidance_scale=2))
    seen: list[Tensor] = []

    def watched(x: Tensor, t: float, context: None, y: Tensor) -> Tensor:
        seen.append(y)
        return plain.unet(x, t, context, y)

    again = latents(Sampler(replace(model, unet=watched)), [0, 2], guidance_scale=2)
    assert torch.equal(again, drawn)
    assert [y.tolist() for y in seen] == [[4, 4, 0, 2]] * 2
    for bad in (5, -1, "a", [], [0.5]):
        with pytest.raises(ValueError, match=r"class labels in 0\.\.4"):
            Sampler(model).sample(bad)


def test_a_unet_without_cross_attention_refuses_a_context() -> None:
    unet = without_text().unet
    with pytest.raises(ValueError, match="no cross-attention, got context of"):
        unet(randn(1, 4, 8, 8), 3, randn(1, 5, 64))


def kept(model: LatentDiffusion, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one for every time that a layer makes keys and values of a context."""
    made: list[int] = []
    layer = next(m for name, m in model.unet.named_modules() if name.endswith("attn2"))
    original = layer.keys_and_values
    monkeypatch.setattr(layer, "keys_and_values", lambda context: made.append(1) or original(context))
    return made


def test_keys_and_values_are_made_once_a_run(sd1: LatentDiffusion, monkeypatch: pytest.MonkeyPatch) -> None:
    made = kept(sd1, monkeypatch)
    fast = Sampler(sd1).txt2img(["a", "b"], steps=3, seed=1, output="latent")
    assert len(made) == 1
    plain = list(Sampler(sd1).steps(["a", "b"], steps=3, seed=1))[-1].latent
    assert len(made) == 4, "a run that other code can look into keeps nothing"
    Sampler(sd1).txt2img(["a", "b"], steps=3, seed=1, output="latent", on_step=Recorder(sd1))
    assert len(made) == 5, "the package's own observers change nothing"
    torch.testing.assert_close(fast, plain, rtol=1e-5, atol=1e-5)
    chunked = Sampler(sd1, batch_size=1).txt2img(["a", "b"], steps=3, seed=1, output="latent")
    torch.testing.assert_close(chunked, plain, rtol=1e-4, atol=1e-4)


Change = Callable[[LatentDiffusion, pytest.MonkeyPatch], Any]


def changed_weights(model: LatentDiffusion, patch: pytest.MonkeyPatch) -> None:
    layer = model.unet.mid.attention.blocks[0].attn2.to_v
    patch.setattr(layer.weight, "data", layer.weight.data * 2)


def hooked(model: LatentDiffusion, patch: pytest.MonkeyPatch) -> None:
    layer = model.unet.mid.attention.blocks[0].attn2.to_k
    layer.register_forward_pre_hook(lambda _, args: (args[0] * 3,))


@pytest.mark.parametrize("change", [changed_weights, hooked])
def test_what_changes_between_steps_is_seen(change: Change, monkeypatch: pytest.MonkeyPatch) -> None:
    """By on_step, and by a guidance of one's own."""

    def draw(model: LatentDiffusion, **options: Any) -> Tensor:
        drawn: Tensor = Sampler(model, **options).txt2img("a", steps=2, seed=1, output="latent")
        return drawn

    model = random_model(TINY["sd1"])
    before = draw(model)
    calls: list[int] = []

    class Changing(ClassifierFreeGuidance):
        def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
            calls.append(1)
            if len(calls) == 2:
                change(model, monkeypatch)
            return super().__call__(*args, **kwargs)

    by_guidance = draw(model, guidance=Changing())
    model = random_model(TINY["sd1"])
    by_step = Sampler(model).txt2img(
        "a",
        steps=2,
        seed=1,
        output="latent",
        on_step=lambda step: change(model, monkeypatch) if step.index == 0 else None,
    )
    assert not torch.equal(by_step, before)
    assert torch.equal(by_step, by_guidance)


@torch.no_grad()
def test_a_depth_models_prompts_are_encoded_with_the_samplers_options() -> None:
    model = small_model("depth")
    encoder = model.modules["text_encoder"]
    calls: list[tuple[int, Any]] = []
    handle = encoder.register_forward_pre_hook(
        lambda _, args, options: calls.append((len(args[0]), options.get("clip_skip"))), with_kwargs=True
    )
    size = model.config.image_size
    inputs = [{"prompt": word, "depth": torch.rand(size, size)} for word in ("a", "b", "c")]
    Sampler(model, batch_size=2, clip_skip=0).sample(inputs, steps=1, guidance_scale=1, output="latent")
    handle.remove()
    assert calls == [(2, 0), (1, 0), (1, 0)], "the last one is the empty prompt"
