"""Controls in the sampler: which rows and steps they act in, and what they cost elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from PIL import Image
from support.controls import controlnet, draw, hint, shaken
from support.reference import relative_error
from torch import Tensor, nn

import ldm_core
from ldm_core.control.coadapter import StyleAdapter, StyleAdapterConfig
from ldm_core.control.control import Control
from ldm_core.control.controlnet import ControlNet
from ldm_core.control.t2i_adapter import T2IAdapter, T2IAdapterConfig
from ldm_core.model import LatentDiffusion

SIZE = 64  # pixels: h and w are 8
GUIDED = 1e-4  # float32: guidance adds 7.5 times the difference of two predictions, each within 1e-5
OPTIONS: dict[str, Any] = {"steps": 4, "seed": 3, "output": "latent"}


@pytest.fixture(scope="module")
def net(model: LatentDiffusion) -> ControlNet:
    return controlnet(model)


@pytest.fixture(scope="module")
def adapter() -> T2IAdapter:
    return shaken(T2IAdapter(T2IAdapterConfig(channels=(32, 64, 128, 128))))


@pytest.fixture
def sampler(model: LatentDiffusion) -> ldm_core.Sampler:
    return ldm_core.Sampler(model)


PICTURE = hint(1, 3, SIZE, SIZE)


@contextmanager
def counted(*modules: nn.Module) -> Iterator[list[int]]:
    """The number of rows of each call of a module."""
    rows: list[int] = []
    hooks = [m.register_forward_hook(lambda m, args, out: rows.append(len(args[0]))) for m in modules]
    yield rows
    for hook in hooks:
        hook.remove()


class Keep(ldm_core.ClassifierFreeGuidance):
    """Guidance that keeps its results."""

    def __init__(self) -> None:
        super().__init__()
        object.__setattr__(self, "seen", [])

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        result = super().__call__(*args, **kwargs)
        self.seen.append(result)  # type: ignore[attr-defined]
        return result


def first_prediction(model: LatentDiffusion, controls: list[Control], **options: Any) -> Tensor:
    guidance = Keep()
    one = {"steps": 1, "noise": draw(1, 4, 8, 8), "timesteps": [(999, -1)], "output": "latent"}
    ldm_core.Sampler(model, guidance=guidance).txt2img("a cat", controls=controls, **one, **options)
    return guidance.seen[0]  # type: ignore[attr-defined]


@pytest.mark.one_in(5)
@pytest.mark.parametrize("guess", [False, True, "diffusers"])
@pytest.mark.parametrize("pool", [False, True])
def test_the_halves_of_guidance(guess: Any, pool: bool, net: ControlNet, model: LatentDiffusion) -> None:
    """Both have the control; in guess mode and with pooling, the conditional one alone."""
    own = ControlNet(replace(net.config, global_pool=pool)).eval().requires_grad_(False)
    own.load_state_dict(net.state_dict())
    control = Control(own, PICTURE, strength=0.8, guess=guess)
    x, t = draw(1, 4, 8, 8), 999
    cond, uncond = (model.condition(text).context for text in ("a cat", ""))
    e_c = model.unet(x, t, cond, residuals=control(x, t, cond))
    e_u = model.unet(x, t, uncond, residuals=None if guess or pool else control(x, t, uncond))
    found = first_prediction(model, [control])
    assert relative_error(found, e_u + 7.5 * (e_c - e_u)) < GUIDED
    alone = first_prediction(model, [control], guidance_scale=1.0)
    assert relative_error(alone, e_c) < 1e-5


def test_guidance_may_make_conditions_of_its_own(net: ControlNet, model: LatentDiffusion) -> None:
    """Without what a row is, all rows are conditional, and images follow one another."""

    def own(
        network: Any, x: Tensor, t: float, cond: Any, uncond: Any, scale: float, progress: float
    ) -> Tensor:
        joined = ldm_core.Condition(context=torch.cat([uncond.context, cond.context]))
        e_u, e_c = network(torch.cat([x, x]), t, joined).chunk(2)
        return e_u + scale * (e_c - e_u)

    controls = [Control(net, torch.cat([PICTURE, 1 - PICTURE]))]
    found, expected = (
        ldm_core.Sampler(model, guidance=guidance).txt2img(["a", "b"], controls=controls, **OPTIONS)
        for guidance in (own, None)
    )
    assert relative_error(found, expected) < GUIDED


def test_several_act_together(net: ControlNet, adapter: T2IAdapter, model: LatentDiffusion) -> None:
    controls = [Control(net, PICTURE, 0.5), Control(net, 1 - PICTURE, 0.7), Control(adapter, PICTURE, 0.9)]
    x, t = draw(1, 4, 8, 8), 999
    halves = []
    for text in ("", "a cat"):
        context = model.condition(text).context
        a, b, c = (control(x, t, context) for control in controls)
        halves.append(model.unet(x, t, context, residuals=a + b + c))
    found = first_prediction(model, controls)
    assert relative_error(found, halves[0] + 7.5 * (halves[1] - halves[0])) < GUIDED


def test_strength_0_and_new_networks_change_nothing(net: ControlNet, sampler: ldm_core.Sampler) -> None:
    plain = sampler.txt2img("a cat", **OPTIONS)
    with counted(net, net.hint) as rows:
        assert torch.equal(sampler.txt2img("a cat", controls=[Control(net, PICTURE, 0)], **OPTIONS), plain)
    assert rows == []
    new = [Control(ControlNet.of(sampler.model.unet).requires_grad_(False), PICTURE)]
    assert torch.equal(sampler.txt2img("a cat", controls=new, **OPTIONS), plain)
    assert not torch.equal(sampler.txt2img("a cat", controls=[Control(net, PICTURE)], **OPTIONS), plain)


def test_steps_without_control_cost_nothing(
    net: ControlNet, adapter: T2IAdapter, sampler: ldm_core.Sampler
) -> None:
    """Hints are read once a run; a ControlNet is evaluated in its steps, and in its half of guidance."""
    with counted(net.hint, adapter) as read, counted(net.mid) as rows:
        controls = [Control(net, PICTURE, start=0.25, end=0.75), Control(adapter, PICTURE)]
        sampler.txt2img("a cat", controls=controls, **OPTIONS)
        assert (read, rows) == ([1, 1], [2, 2])
        sampler.txt2img("a cat", controls=[Control(net, PICTURE, guess=True, end=0.5)], **OPTIONS)
        assert rows[2:] == [1, 1]


def test_windows_of_steps(net: ControlNet, adapter: T2IAdapter) -> None:
    def steps(network: Any, n: int, start: float, end: float) -> list[int]:
        control = Control(network, PICTURE, start=start, end=end)
        return [i for i in range(n) if control.acts(i, n)]

    assert steps(net, 10, 0.0, 1.0) == list(range(10))
    assert steps(net, 10, 0.3, 0.7) == [3, 4, 5, 6]
    assert steps(net, 5, 0.0, 0.5) == [0, 1]  # as in diffusers: the step must end within
    assert steps(net, 1, 0.0, 0.5) == []
    assert steps(adapter, 5, 0.0, 0.5) == [0, 1, 2]  # as the authors' cond_tau
    assert steps(adapter, 50, 0.0, 0.4) == list(range(20))
    assert steps(adapter, 7, 0.0, 0.0) == []


@pytest.mark.one_in(5)
@pytest.mark.parametrize("task", ["img2img", "inpaint", "sample"])
def test_every_task_takes_controls(task: str, net: ControlNet, sampler: ldm_core.Sampler) -> None:
    controls = [Control(net, Image.new("RGB", (SIZE, SIZE), "red"))]
    arguments: dict[str, Any] = {}
    if task != "sample":
        arguments = {"image": hint(1, 3, SIZE, SIZE, seed=1), "strength": 0.5}
    if task == "inpaint":
        arguments["mask"] = (hint(1, 1, SIZE, SIZE) > 0.5).float()
    method = getattr(sampler, task)
    plain = method("a cat", **arguments, **OPTIONS)
    with counted(net.mid) as rows:
        drawn = method("a cat", controls=controls, **arguments, **OPTIONS)
    assert not torch.equal(drawn, plain)
    assert len(rows) == (4 if task == "sample" else 2)
    step = next(iter(sampler.steps("a cat", controls=controls, steps=2, seed=1)))
    assert step.latent.shape == (1, 4, 8, 8)


@pytest.mark.slow  # ten runs
def test_each_image_has_its_own_hint(net: ControlNet, model: LatentDiffusion) -> None:
    """Two prompts of two images each, in batches of three; each as when it is drawn alone."""
    hints = torch.cat([PICTURE, 1 - PICTURE])
    for guess in (False, True):
        sampler = ldm_core.Sampler(model, batch_size=3)
        together = sampler.txt2img(
            ["a", "b"], num_images=2, controls=[Control(net, hints, guess=guess)], **OPTIONS
        )
        for k, (text, own) in enumerate(zip("aabb", hints[[0, 0, 1, 1]])):
            alone = sampler.txt2img(
                text, controls=[Control(net, own, guess=guess)], **{**OPTIONS, "seed": 3 + k}
            )
            assert relative_error(together[k], alone[0]) < 1e-4


def test_accelerations(net: ControlNet, adapter: T2IAdapter, model: LatentDiffusion) -> None:
    """DeepCache and merged tokens take controls; a U-Net that works in windows is refused in words."""
    controls = [Control(net, PICTURE), Control(adapter, PICTURE)]
    exact = ldm_core.Sampler(model).txt2img("a cat", controls=controls, **OPTIONS)
    for blocks in range(3):
        cached = replace(model, unet=ldm_core.DeepCache(model.unet, interval=2, blocks=blocks))
        drawn = ldm_core.Sampler(cached).txt2img("a cat", controls=controls, **OPTIONS)
        assert 0 < relative_error(drawn, exact) < 0.5
    cache = ldm_core.DeepCache(model.unet, interval=2, blocks=2)
    x, context = draw(1, 4, 8, 8), model.condition("a cat").context
    residuals = controls[0](x, 9, context) + controls[1](x, 9, context)
    whole, features = cache.whole(x, 9, context, None, residuals)
    assert relative_error(cache.shallow(x, 9, context, features, None, residuals), whole) < 1e-6
    with ldm_core.merge_tokens(model, 0.25):
        merged = ldm_core.Sampler(model).txt2img("a cat", controls=controls, **OPTIONS)
    assert relative_error(merged, exact) > 0
    windows = ldm_core.Sampler(ldm_core.windowed(model, size=8))
    with pytest.raises(ValueError, match="which WindowedUNet does not take"):
        windows.txt2img("a cat", controls=controls, **OPTIONS)


def test_styles_are_tokens_of_the_context(model: LatentDiffusion) -> None:
    """Appended to the prompt's; the unconditional half repeats its own last ones."""
    style = shaken(StyleAdapter(StyleAdapterConfig(64, 64)))
    patches = draw(1, 5, 64)
    cond, uncond = (model.condition(text).context for text in ("a cat", ""))
    x = draw(1, 4, 8, 8)
    e_c = model.unet(x, 999, torch.cat([cond, 0.6 * style(patches)], dim=1))
    e_u = model.unet(x, 999, torch.cat([uncond, uncond[:, -8:]], dim=1))
    found = first_prediction(model, [Control(style, patches, 0.6)])
    assert relative_error(found, e_u + 7.5 * (e_c - e_u)) < GUIDED
    with pytest.raises(ValueError, match="a style adds tokens to the context and no residuals"):
        Control(style, patches)(x, 9, cond)


def test_bad_hints_are_refused(net: ControlNet, adapter: T2IAdapter, sampler: ldm_core.Sampler) -> None:
    def refused(words: str, *controls: Any, prompt: Any = "a cat") -> None:
        with pytest.raises(ValueError, match=words) as error:
            sampler.txt2img(prompt, controls=list(controls), **OPTIONS)
        assert "\n" not in str(error.value)

    refused("hint of the image's size, 64×64 pixels, got 64×56", Control(net, PICTURE[:, :, :56]))
    refused("image's size, 64×64 pixels, got 32×32", Control(adapter, Image.new("RGB", (32, 32))))
    refused(r"values in \[0, 1\] .* got -\S+ to \S+", Control(net, 2 * PICTURE - 1))
    refused(r"a hint of \(B, 3, H, W\), got \(1, 1, 64, 64\)", Control(net, PICTURE[:, :1]))
    refused(r"a hint of \(B, 3, H, W\), got .* of torch.uint8", Control(net, (PICTURE * 255).byte()))
    refused("expected the image as a PIL image or a tensor, not str", Control(net, "canny.png"))
    refused(r"one hint or one per prompt \(1\), got 2", Control(net, PICTURE.repeat(2, 1, 1, 1)))
    refused("expected controls as a list of ldm_core.Control", PICTURE)
    masked = torch.where(PICTURE > 0.5, -1.0, PICTURE)  # an inpainting hint
    assert sampler.txt2img("a cat", controls=[Control(net, masked)], **OPTIONS).isfinite().all()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"strength": float("nan")}, "strength must be a finite number, not nan"),
        ({"start": 0.6, "end": 0.5}, r"start and end must be in \[0, 1\], in this order"),
        ({"end": 1.5}, r"start and end must be in \[0, 1\]"),
        ({"guess": "A1111"}, "guess must be True, False or 'diffusers', not 'A1111'"),
    ],
)
def test_bad_settings_are_refused(options: dict[str, Any], words: str, net: ControlNet) -> None:
    with pytest.raises(ValueError, match=words):
        Control(net, PICTURE, **options)


def test_settings_of_other_kinds_are_refused(adapter: T2IAdapter, model: LatentDiffusion) -> None:
    for options in ({"guess": True}, {"mid_only": True}):
        with pytest.raises(ValueError, match="guess and mid_only apply to a ControlNet, not to a T2IAdapter"):
            Control(adapter, PICTURE, **options)
    style = StyleAdapter(StyleAdapterConfig(64, 64))
    with pytest.raises(ValueError, match="act in all steps"):
        Control(style, PICTURE, end=0.5)
    with pytest.raises(ValueError, match="expected a network of load_control, not UNet"):
        Control(model.unet, PICTURE)
