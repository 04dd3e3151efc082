"""DeepCache in networks and samplers, and what each acceleration costs in error."""

from __future__ import annotations

import re
import runpy
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.accelerated_networks import CONTEXT, X, draw, small_unet
from support.configs import TINY
from support.contracts import UNET, told
from torch import Tensor, nn

from ldm_core import (
    DDIM,
    ClassifierFreeGuidance,
    DeepCache,
    Heun,
    LatentDiffusion,
    Sampler,
    build,
    merge_tokens,
)
from ldm_core.testing import check_unet
from ldm_core.unet import UNet

DOCS = Path(__file__).parents[2] / "docs"
pytestmark = pytest.mark.usefixtures("no_gradients")


# --- DeepCache ------------------------------------------------------------------------------------------


class Counted:
    """Counts the whole evaluations of a U-Net, by its middle."""

    def __init__(self, unet: UNet) -> None:
        self.rows: list[int] = []
        self.handle = unet.mid.register_forward_hook(lambda m, args, out: self.rows.append(len(out)))

    def take(self) -> list[int]:
        rows, self.rows = self.rows, []
        return rows


@pytest.fixture
def counted(unet: UNet) -> Iterator[Counted]:
    counter = Counted(unet)
    yield counter
    counter.handle.remove()


@pytest.mark.parametrize("blocks", [0, 1, 2])
def test_exact_where_the_deep_part_is_constant(blocks: int) -> None:
    net = small_unet(channel_mult=(1, 2, 2))
    cached = DeepCache(net, 4, blocks=blocks)
    *_, constant = (net.up[-2], *net.up[-1].blocks[: 2 - blocks])
    constant.register_forward_hook(lambda module, args, out: torch.ones_like(out))
    for t in (900, 700, 500, 300):
        x = X + 0.1 * draw(2, 4, 16, 16, seed=t)
        torch.testing.assert_close(cached(x, t, CONTEXT), net(x, t, CONTEXT), rtol=0, atol=1e-6)


@pytest.mark.parametrize("blocks", [0, 1, 2])
def test_one_step_later_it_is_the_kept_features_around_new_ends(unet: UNet, blocks: int) -> None:
    """Against the whole U-Net, in which the kept features are put by hand."""
    cached, source = DeepCache(unet, 2, blocks=blocks), [unet.up[-2], *unet.up[-1].blocks][2 - blocks]
    kept: list[Tensor] = []
    hook = source.register_forward_hook(lambda module, args, out: kept.append(out))
    first = cached(X, 900, CONTEXT)
    hook.remove()
    assert torch.equal(first, unet(X, 900, CONTEXT))
    hook = source.register_forward_hook(lambda module, args, out: kept[0])
    later = X + 0.3 * draw(2, 4, 16, 16, seed=5)
    expected = unet(later, 850, CONTEXT)
    hook.remove()
    assert torch.equal(cached(later, 850, CONTEXT), expected)
    assert torch.equal(cached(later, 800, CONTEXT), unet(later, 800, CONTEXT))


def test_interval_1_is_the_plain_unet(bundled: LatentDiffusion) -> None:
    options: dict[str, Any] = {"steps": 3, "seed": 1, "guidance_scale": 4.0, "output": "latent"}
    cached = replace(bundled, unet=DeepCache(bundled.unet, 1))
    assert torch.equal(
        Sampler(cached).txt2img("fire", **options), Sampler(bundled).txt2img("fire", **options)
    )
    assert cached.dtype == bundled.dtype


def test_which_steps_are_whole(unet: UNet, counted: Counted) -> None:
    cached = DeepCache(unet, 3)
    for walk in ([900, 800, 700, 600, 500, 400, 300], [950.5, 949.5, 10, 9], [500] * 2):
        pattern = []
        for t in walk:
            cached(X, t, CONTEXT)
            pattern.append(bool(counted.take()))
        assert pattern == ([i % 3 == 0 for i in range(len(walk))] if walk[0] != walk[1] else [True, True])


REQUEST: dict[str, Any] = {"steps": 7, "seed": 3, "guidance_scale": 5.0, "output": "latent"}


PROMPTS = ["a cat", "a cat", "", "a dog"]  # alike in context, alike in the unconditional half, neither


@pytest.mark.slow  # several runs
@pytest.mark.parametrize(
    "scheduler", [pytest.param(DDIM(), id="DDIM"), pytest.param(Heun(), id="Heun", marks=pytest.mark.slow)]
)
def test_replays_chunks_and_guidance_in_two_calls_agree(small: LatentDiffusion, scheduler: Any) -> None:
    cached = replace(small, unet=DeepCache(small.unet, 3))
    request = {**REQUEST, "steps": 4}
    first = Sampler(cached, scheduler).txt2img(PROMPTS, **request)
    assert torch.equal(Sampler(cached, scheduler).txt2img(PROMPTS, **request), first)
    assert not torch.equal(Sampler(small, scheduler).txt2img(PROMPTS, **request), first)
    for guidance, chunk in ((ClassifierFreeGuidance(batched=False), 1), (ClassifierFreeGuidance(), 3)):
        other = Sampler(cached, scheduler, guidance=guidance, batch_size=chunk)
        again = other.txt2img(PROMPTS, **request)
        torch.testing.assert_close(again, first, rtol=0, atol=3e-4)  # 7.6e-5: guidance amplifies rounding


@pytest.mark.slow
def test_other_requests_leave_no_trace(small: LatentDiffusion) -> None:
    """Each as if it came first: another size, prompt and number, an image, walks broken off."""
    image = draw(1, 3, 64, 64, seed=4).clamp(0, 1)

    def results(forget: bool) -> Iterator[Tensor]:
        cached = DeepCache(small.unet, 3)
        sampler = Sampler(replace(small, unet=cached))
        for number in range(7):
            if forget:
                cached.reset()
            if number == 0:
                yield sampler.txt2img("a cat", **REQUEST)
            elif number == 1:
                yield sampler.txt2img(["a cat", "a dog"], **REQUEST)
            elif number == 2:
                yield sampler.txt2img("a cat", **{**REQUEST, "height": 128})
            elif number == 3:
                if not forget:
                    next(sampler.steps("a cat", steps=7, seed=1))
                yield sampler.txt2img("a cat", **REQUEST)
            elif number == 4:
                if not forget:
                    next(sampler.steps("a dog", steps=7, seed=1))
                yield sampler.img2img("a cat", image, strength=0.6, **REQUEST)
            else:  # one step each, at one and the same t
                yield sampler.img2img("a cat", image, strength=0.15, **{**REQUEST, "seed": number})

    for number, (result, expected) in enumerate(zip(results(False), results(True))):
        assert torch.equal(result, expected), number


def test_a_walk_broken_off_is_forgotten_on_request(small: LatentDiffusion, counted: Counted) -> None:
    cached = DeepCache(small.unet, 3)
    cached(X, 900, CONTEXT)
    assert counted.take() == [2]
    cached.reset()
    cached(X, 500, CONTEXT)
    assert counted.take() == [2]


def test_guidance_that_ends_midway(unet: UNet, small: LatentDiffusion, counted: Counted) -> None:
    """Where guidance ends, the conditional half comes alone, and nothing that is kept is of its shape."""
    cached = replace(small, unet=DeepCache(unet, 10))
    guidance = ClassifierFreeGuidance(interval=(0.0, 0.5))
    Sampler(cached, guidance=guidance).txt2img("a cat", **REQUEST)
    assert counted.take() == [2, 1]


@pytest.mark.parametrize("prompts", [("a cat", "a dog"), ("a cat", "a cat")])
def test_two_walks_in_turns(small: LatentDiffusion, prompts: tuple[str, str]) -> None:
    cached = replace(small, unet=DeepCache(small.unet, 3))
    requests = [{**REQUEST, "prompt": prompt, "seed": seed} for seed, prompt in enumerate(prompts)]
    alone = [Sampler(cached).txt2img(**request) for request in requests]
    for request in requests:
        del request["output"]
    walks = [Sampler(cached).steps(**request) for request in requests]
    for left, right in zip(*walks):
        ends = left.latent, right.latent
    for end, expected in zip(ends, alone):
        assert torch.equal(end, expected)


def test_what_is_kept_does_not_pile_up(small: LatentDiffusion) -> None:
    cached = DeepCache(small.unet, 3)
    for seed in range(3):
        Sampler(replace(small, unet=cached), batch_size=2).txt2img(PROMPTS, **{**REQUEST, "seed": seed})
        assert len(cached._walks) == 4
    cached.reset()
    assert cached._walks == []


@pytest.mark.parametrize("other", ["context", "size", "noise", "rows of t", "y"])
def test_what_does_not_fit_is_computed_whole(unet: UNet, counted: Counted, other: str) -> None:
    cached = DeepCache(unet, 3)
    cached(X, 900, CONTEXT)
    counted.take()
    x, t, context = X, torch.tensor([800, 800]), CONTEXT
    if other == "context":
        context = CONTEXT + 1e-6
    elif other == "size":
        x = draw(2, 4, 16, 8)
    elif other == "noise":  # in one row of the two
        x = torch.cat([X[:1], draw(1, 4, 16, 16, seed=6)])
    elif other == "rows of t":
        t = torch.tensor([800, 799])
    else:
        net = small_unet("x4-upscaler")
        cached, labels = DeepCache(net, 3), torch.tensor([1, 2])
        x, counter = draw(2, 7, 16, 16), Counted(net)
        for t_, y in ((900, labels), (800, labels.clone()), (700, labels + 1)):
            assert cached(x, t_, CONTEXT, y).shape == (2, 4, 16, 16)
        assert counter.take() == [2, 2]
        return
    assert torch.equal(cached(x, t, context), unet(x, t, context))
    assert counted.take() == [2, 2]
    cached(X, torch.tensor([700, 700]), CONTEXT.clone())  # the walk that was there goes on
    assert counted.take() == []


def test_gradients_are_those_of_the_plain_unet(unet: UNet) -> None:
    cached = DeepCache(unet, 3)
    cached(X, 900, CONTEXT)
    grads = []
    for net in (cached, unet):
        x = X.clone().requires_grad_()
        with torch.enable_grad():
            net(x, 800, CONTEXT).square().sum().backward()
        grads.append(x.grad)
    unet.zero_grad()
    assert torch.equal(*grads)


def test_bad_input_is_told_as_the_unet_does(unet: UNet) -> None:
    cached = DeepCache(unet, 3)
    cached(X, 900, CONTEXT)
    cached(X, 900, CONTEXT)
    for t in (float("nan"), "800", None, torch.tensor([800.0]), torch.tensor([float("nan")] * 3)):
        with pytest.raises(ValueError, match="expected t as"):
            cached(X, t, CONTEXT)
    for x in (X[0], X[:, :3], X[:, :, :7], torch.zeros(())):
        with pytest.raises(ValueError, match="unet: "):
            cached(x, 800, CONTEXT)


@pytest.mark.parametrize("thing", [None, "unet", nn.Linear(2, 2), lambda x, t, c: x])
def test_unets_of_others(thing: Any) -> None:
    with pytest.raises(ValueError, match=f"needs a U-Net of this package, not {type(thing).__name__}"):
        DeepCache(thing)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"interval": 0}, "interval must be a whole number of steps, 1 or more, not 0"),
        ({"interval": 2.5}, "not 2.5"),
        ({"blocks": 3}, r"blocks must be in 0\.\.2, this U-Net's on a level, not 3"),
        ({"blocks": -1}, "not -1"),
    ],
)
def test_numbers_outside(unet: UNet, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DeepCache(unet, **options)


def test_the_unets_contract() -> None:
    """All of it with interval 1. With another, calls depend on those before; that is all it breaks."""
    torch.manual_seed(0)
    net = UNet(UNET).eval()
    check_unet(DeepCache(net, 1), UNET, dtypes=[torch.float32])
    message = told(check_unet, DeepCache(net, 3), UNET, dtypes=[torch.float32])
    assert [line.strip() for line in message.splitlines() if re.match("  [a-z]", line)] == ["timesteps"]


def test_tokens_merge_within_the_cache() -> None:
    cached = DeepCache(small_unet(channel_mult=(1, 2), num_res_blocks=1), 2)
    plain = cached(X, 900, CONTEXT)
    with merge_tokens(cached, 0.5):
        assert not torch.equal(cached(X, 900.5, CONTEXT), cached.unet(X, 900, CONTEXT))
        assert not torch.equal(cached.unet(X, 900, CONTEXT), plain)


# --- the price ------------------------------------------------------------------------------------------


@pytest.mark.slow  # runs a script that draws
def test_the_docs_script_measures_what_the_table_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = runpy.run_path(str(DOCS / "accelerations.py"))
    monkeypatch.setitem(script["measure"].__globals__, "STEPS", 3)
    kinds = [kind for kind in script["ACCELERATIONS"] if kind.name in ("token merging 0.5", "DeepCache 2")]
    torch.manual_seed(0)
    model = build(TINY["sd1"])
    prices, latents = script["measure"](model, kinds, ["panda"], [1], TINY["sd1"], rounds=1)
    assert list(latents) == ["plain", "token merging 0.5", "DeepCache 2"]
    for price in prices.values():
        assert 0 < price.error < 1
        assert 0 < price.arithmetic < 1
        assert price.sd1_arithmetic < 1
    assert script["sheet"](model, latents, ["panda"]).width > 96
    rows = script["table"](prices)
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- accelerations -->\nold\n<!-- end -->\nafter\n")
    script["write_table"](page, rows)
    assert page.read_text() == f"before\n<!-- accelerations -->\n{rows}\n<!-- end -->\nafter\n"
    page.write_text("no marks")
    with pytest.raises(ValueError, match="has no lines <!-- accelerations -->"):
        script["write_table"](page, rows)
    text = (DOCS / "accelerations.md").read_text(encoding="utf-8")
    for kind in script["ACCELERATIONS"]:
        assert f"| {kind.name} | 0." in text


@pytest.mark.slow  # several runs
def test_arithmetic_is_counted_as_steps_and_rows_are(monkeypatch: pytest.MonkeyPatch) -> None:
    script = runpy.run_path(str(DOCS / "accelerations.py"))
    kinds = {kind.name: kind for kind in script["ACCELERATIONS"]}
    monkeypatch.setitem(script["rows_of"].__globals__, "STEPS", 10)
    plain, half, two, five = (
        script["arithmetic"](TINY["sd1"], kind)
        for kind in (
            script["PLAIN"],
            *(kinds[n] for n in ("guidance in (0.0, 0.6)", "DeepCache 2", "DeepCache 5")),
        )
    )
    assert half / plain == pytest.approx(0.8, abs=0.001)
    # (1 + shallow) / 2 and (1 + 4 * shallow) / 5 for one and the same share
    assert 2 * two / plain - 1 == pytest.approx((5 * five / plain - 1) / 4, abs=0.001)
