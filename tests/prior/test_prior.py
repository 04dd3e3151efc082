"""The prior's network and its sampling against diffusers, and what must hold without a reference."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import UnCLIPPipeline, UnCLIPScheduler
from support.priors import (
    TOKENS,
    WIDTH,
    diffusers_arguments,
    diffusers_prior,
    random_prior,
    small_clip,
    small_prior,
    transformers_text,
)
from torch import Tensor

from ldm_core.attention import set_attention
from ldm_core.checkpoint.key_map import to_file
from ldm_core.clip import CLIPTextEncoder
from ldm_core.errors import ConfigError
from ldm_core.nn.placement import blank
from ldm_core.noise import generators
from ldm_core.noise_schedule import Denoiser, NoiseSchedule
from ldm_core.prior import KARLO, Prior, PriorConfig, PriorTransformer
from ldm_core.prior.names import diffusers_map
from ldm_core.prior.sampling import SCHEDULE
from ldm_core.schedulers import DDIM, DDPM

CLOSE = 1e-5
PROMPTS = ["a red apple", "cat", ""]
MASK = torch.arange(TOKENS) < torch.tensor([[5], [TOKENS], [1]])


def far(ours: Tensor, theirs: Tensor) -> float:
    """The largest error over the largest value."""
    return float((ours - theirs).abs().max() / theirs.abs().max())


def drawn(rows: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = (rows, WIDTH), (rows, WIDTH), (rows, TOKENS, WIDTH)
    x, text, hidden = (torch.randn(shape, generator=generator) for shape in shapes)
    return x, text, hidden


@pytest.mark.parametrize("mask", [MASK, MASK.flip(1), torch.ones_like(MASK)])
def test_diffusers_gives_the_same(mask: Tensor) -> None:
    network, (x, text, hidden) = random_prior(), drawn()
    t = torch.tensor([0, 500, 999])
    theirs = diffusers_prior(network)(x, t, text, hidden, mask).predicted_image_embedding
    assert far(network(x, t, text, hidden, mask), theirs) < CLOSE
    z = network.normalised(x)
    assert far(network.embeddings(z), x) < CLOSE
    assert far(network.embeddings(x), diffusers_prior(network).post_process_latents(x)) < CLOSE


def test_padding_has_no_effect_and_all_else_has() -> None:
    network, (x, text, hidden) = random_prior(), drawn()
    whole = network(x, 7, text, hidden, MASK)
    other = torch.where(MASK[:, :, None], hidden, 100.0)
    assert torch.equal(network(x, 7, text, other, MASK), whole)
    assert far(network(x[:1], 7, text[:1], hidden[:1], MASK[:1])[0], whole[0]) < CLOSE  # a batch of its own
    for changed in (
        (x + 1, 7, text, hidden, MASK),
        (x, 8, text, hidden, MASK),
        (x, 7, text + 1, hidden, MASK),
        (x, 7, text, hidden + 1, MASK),
        (x, 7, text, hidden, None),
    ):
        assert far(network(*changed), whole) > 1e-3
    for backend in ("math", "chunked", "sdpa"):
        set_attention(network, backend)
        assert far(network(x, 7, text, hidden, MASK), whole) < CLOSE


def exact_scheduler() -> UnCLIPScheduler:
    """diffusers' scheduler with tables in float64.

    In float32, 1 - alphas_cumprod[0] is wrong by a thousandth, and so is the length of its embeddings.
    """
    schedule = NoiseSchedule(SCHEDULE)
    scheduler = UnCLIPScheduler(clip_sample_range=5.0, prediction_type="sample")
    assert far(scheduler.betas, schedule.betas) < CLOSE
    scheduler.alphas_cumprod, scheduler.betas = schedule.alphas_cumprod, schedule.betas
    scheduler.alphas = 1 - schedule.betas
    return scheduler


@pytest.mark.parametrize("steps", [2, 10, 25])
def test_a_step_is_that_of_the_unclip_scheduler(steps: int) -> None:
    schedule = NoiseSchedule(SCHEDULE)
    theirs = exact_scheduler()
    theirs.set_timesteps(steps)
    ours = DDPM(spacing="linspace")
    x, z0, _ = drawn()
    predict = Denoiser(lambda x, t: (4 * z0).clamp(-5, 5), schedule, "x0")
    assert [t for t, _ in ours.timesteps(schedule, steps)] == theirs.timesteps.tolist()
    for t, t_prev in ours.timesteps(schedule, steps):
        noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(int(t)))
        step = theirs.step(
            4 * z0, int(t), x, None if t_prev == -1 else int(t_prev), torch.Generator().manual_seed(int(t))
        )
        found = ours.step(predict, x, t, t_prev, None, None if t_prev == -1 else noise)
        assert far(found.x, step.prev_sample) < CLOSE
        x = found.x


class Found(Exception):
    """Ends diffusers' pipeline after the prior."""


def diffusers_embeddings(
    prior: Prior, tokenizer: Any, scheduler: UnCLIPScheduler, seeds: list[int]
) -> tuple[Tensor, Tensor]:
    """What diffusers' pipeline hands from its prior to its decoder, and its embeddings of the texts."""
    clip = small_clip()
    tokenizer.model_max_length = TOKENS

    def text_proj(**found: Tensor) -> None:
        raise Found(found["image_embeddings"], found["prompt_embeds"])

    pipeline: Any = SimpleNamespace(
        prior=diffusers_prior(prior.network),
        prior_scheduler=scheduler,
        text_encoder=transformers_text(clip),
        tokenizer=tokenizer,
        text_proj=text_proj,
        progress_bar=lambda steps: steps,
        _execution_device=torch.device("cpu"),
    )
    for name in ("_encode_prompt", "prepare_latents"):
        setattr(pipeline, name, partial(getattr(UnCLIPPipeline, name), pipeline))
    with pytest.raises(Found) as found:
        UnCLIPPipeline.__call__(
            pipeline,
            PROMPTS,
            prior_num_inference_steps=prior.steps,
            generator=generators(seeds),
            prior_guidance_scale=prior.guidance_scale,
        )
    embeddings, texts = found.value.args
    return embeddings, texts[len(PROMPTS) :]


@pytest.mark.parametrize(("steps", "scale"), [(12, 4.0), (25, 1.5)])
def test_the_pipeline_gives_the_same_embeddings(
    steps: int, scale: float, transformers_tokenizer: Any
) -> None:
    prior = small_prior(steps=steps, guidance_scale=scale)
    theirs, texts = diffusers_embeddings(prior, transformers_tokenizer, exact_scheduler(), [5, 6, 7])
    assert far(prior(PROMPTS, seed=5), theirs) < CLOSE
    assert far(prior.embed_text(PROMPTS), texts) < CLOSE


def test_seeds_noise_and_settings() -> None:
    prior = small_prior(steps=4)
    rows = prior(PROMPTS, seed=5)
    assert rows.shape == (3, WIDTH)
    assert far(prior("cat", seed=6), rows[1:2]) < CLOSE
    assert torch.equal(prior(PROMPTS, generator=generators([5, 6, 7])), rows)
    noise = torch.randn(1, WIDTH, generator=torch.Generator().manual_seed(6))
    deterministic = replace(prior, scheduler=DDIM(spacing="trailing"))
    assert torch.equal(deterministic("cat", noise=noise), deterministic("cat", noise=noise))
    assert torch.equal(deterministic("cat", noise=noise), deterministic("cat", seed=6))
    assert far(prior("cat", seed=6, negative_prompt="dog"), rows[1:2]) > 1e-4
    assert far(replace(prior, guidance_scale=1.0)("cat", seed=6), rows[1:2]) > 1e-4
    assert set(dict(prior.module.named_parameters())) == {
        *(f"network.{name}" for name in prior.network.state_dict()),
        *(f"text_encoder.{name}" for name in prior.text_encoder.state_dict()),
    }


def test_no_embedding_leaves_the_bounds() -> None:
    """The last step is the clamped prediction itself."""
    prior = small_prior(steps=3, clip_range=0.01, guidance_scale=20.0)
    network = prior.network
    assert network.std is not None
    z = network.normalised(prior(PROMPTS, seed=0))
    assert float(z.abs().max()) <= 0.01 * (1 + CLOSE) + 1e-6


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"steps": 1}, r"the prior's steps must be an int in 2\.\.1000, not 1"),
        ({"steps": 2.5}, "must be an int"),
        ({"guidance_scale": -1.0}, "guidance_scale must be a positive number, not -1"),
        ({"clip_range": 0}, "clip_range must be a positive number, not 0"),
        ({"text_encoder": small_clip(24).text_encoder}, r"\(16, 16, 12\), got \(24, 24, 12\)"),
        ({"text_encoder": small_clip(tokens=9).text_encoder}, r"got \(16, 16, 9\)"),
    ],
)
def test_bad_settings(settings: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        replace(small_prior(), **settings)


def test_bad_input() -> None:
    prior, (x, text, hidden) = small_prior(steps=2), drawn()
    bare = CLIPTextEncoder(replace(prior.text_encoder.config, projection_dim=None))
    with pytest.raises(ValueError, match=r"projection_dim, width and context_length .*got \(None, 16, 12\)"):
        replace(prior, text_encoder=bare)
    for prompts in (3, ["a", 3], None):
        with pytest.raises(ValueError, match="prompt"):
            prior(prompts)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"the prior's noise must be of \(1, 16\), got \(2, 16\)"):
        prior("a", noise=x[:2])
    with pytest.raises(ValueError, match=r"prior: expected text of \(3, 16\), got \(2, 16\)"):
        prior.network(x, 3, text[:2], hidden)
    with pytest.raises(ValueError, match=r"prior: expected hidden of \(3, 12, 16\), got \(3, 11, 16\)"):
        prior.network(x, 3, text, hidden[:, 1:])
    with pytest.raises(ValueError, match=r"prior: expected mask of \(3, 12\)"):
        prior.network(x, 3, text, hidden, MASK[:, 1:])
    for bad in ({"width": 31}, {"heads": 5}, {"layers": 0}, {"embedding_dim": "a"}, {"statistics": 1}):
        with pytest.raises(ConfigError, match="prior: "):
            PriorConfig(**{"width": 32, "heads": 4, **bad})
    with pytest.raises(ConfigError, match="width must be even"):
        PriorConfig(width=33, heads=3)


def test_karlo_at_full_size_without_weights() -> None:
    network = blank(PriorTransformer, KARLO)
    own = sum(p.numel() for name, p in network.named_parameters() if name not in ("mean", "std"))
    assert own == 1_022_028_544
    x, text = (torch.empty(2, 768, device="meta") for _ in range(2))
    hidden = torch.empty(2, 77, 768, device="meta")
    assert network(x, 3, text, hidden).shape == (2, 768)


@pytest.mark.slow  # a billion weights
def test_karlo_at_full_size_against_diffusers() -> None:
    from diffusers import PriorTransformer as DiffusersPrior

    network = blank(PriorTransformer, KARLO).to_empty(device="cpu")
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        fan_in = parameter.shape[-1] if parameter.ndim == 2 else 100
        parameter.data.normal_(0, fan_in**-0.5, generator=generator)
    with torch.device("meta"):
        theirs = DiffusersPrior(**diffusers_arguments(KARLO)).eval()
    theirs.load_state_dict(to_file(diffusers_map(KARLO), network.state_dict()), strict=True, assign=True)
    mask = torch.full((1, 81, 81), -10000.0).triu(1)
    theirs.register_buffer("causal_attention_mask", mask, persistent=False)
    x, text = (torch.randn(2, 768, generator=generator) for _ in range(2))
    hidden = torch.randn(2, 77, 768, generator=generator)
    mask = torch.arange(77) < torch.tensor([[9], [40]])
    t = torch.tensor([10, 900])
    with torch.no_grad():
        expected = theirs(x, t, text, hidden, mask).predicted_image_embedding
        assert far(network(x, t, text, hidden, mask), expected) < CLOSE
