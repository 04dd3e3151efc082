"""Measure the savings and the errors of the accelerations: the table and the figure of accelerations.md.

    python docs/accelerations.py

The error compares the final latents with those of the plain run: the bundled model, 25 steps of DDIM,
guidance 4. The arithmetic is PyTorch's operation count of the U-Net's calls in such a run, for the bundled
model and, without weights, for SD1. The times are processor times of one thread, alternating with the plain
run: runs of the bundled model, and one block with attention of SD1's finest level, because token merging has
a gain only at that size. Only the times depend on the machine. The script takes some minutes.
"""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import ldm_core
from ldm_core import (
    DDIM,
    ClassifierFreeGuidance,
    Condition,
    DeepCache,
    LatentDiffusion,
    Sampler,
    build,
    merge_tokens,
)
from ldm_core.config import SD1, LatentDiffusionConfig
from ldm_core.images import tensor_to_pil
from ldm_core.noise_schedule import NoiseSchedule
from ldm_core.unet import UNet
from ldm_core.watch import make_grid

HERE = Path(__file__).parent
PROMPTS = ["panda", "fire", "red apple", "grinning cat", "soccer ball", "tiger face", "pizza", "sunflower"]
SEEDS = [1, 2]
STEPS, SCALE = 25, 4.0


@dataclass(frozen=True)
class Acceleration:
    name: str
    guidance: ClassifierFreeGuidance = field(default_factory=ClassifierFreeGuidance)
    ratio: float = 0.0
    interval: int = 1
    seed: int | None = None  # of the destinations of token merging

    def __call__(self, model: LatentDiffusion, stack: ExitStack) -> LatentDiffusion:
        """The model with it; the stack takes what is to be undone."""
        stack.enter_context(merge_tokens(model, self.ratio, generator=self.generator()))
        return (
            replace(model, unet=DeepCache(cast(UNet, model.unet), self.interval))
            if self.interval > 1
            else model
        )

    def generator(self) -> torch.Generator | None:
        return None if self.seed is None else torch.Generator().manual_seed(self.seed)


PLAIN = Acceleration("plain")
ACCELERATIONS = [
    *(
        Acceleration(f"guidance in {i}", guidance=ClassifierFreeGuidance(interval=i))
        for i in ((0.0, 0.8), (0.0, 0.6), (0.1, 1.0))
    ),
    *(Acceleration(f"token merging {ratio:g}", ratio=ratio) for ratio in (0.25, 0.5, 0.75)),
    Acceleration("token merging 0.5, random", ratio=0.5, seed=0),
    *(Acceleration(f"DeepCache {interval}", interval=interval) for interval in (2, 3, 5)),
]


@dataclass(frozen=True)
class Price:
    """Shares of the plain run's; the error is the mean over the pictures of |z - z_plain| / |z_plain|."""

    error: float
    arithmetic: float
    time: float
    sd1_arithmetic: float
    sd1_block_time: float | None  # where it can differ


def draw(model: LatentDiffusion, kind: Acceleration, prompts: Sequence[str], seeds: Sequence[int]) -> Tensor:
    """The final latents, of every prompt with every seed."""
    pairs = [(prompt, seed) for seed in seeds for prompt in prompts]
    with ExitStack() as stack:
        sampler = Sampler(kind(model, stack), DDIM(), kind.guidance)
        names, numbers = [prompt for prompt, _ in pairs], [seed for _, seed in pairs]
        final: Tensor = sampler.txt2img(
            names, steps=STEPS, guidance_scale=SCALE, seed=numbers, output="latent"
        )
        return final


def relative_error(latent: Tensor, plain: Tensor) -> float:
    distance, size = (latent - plain).flatten(1).norm(dim=1), plain.flatten(1).norm(dim=1)
    return float((distance / size).mean())


def rows_of(kind: Acceleration, schedule: NoiseSchedule) -> list[int]:
    """How many rows the U-Net gets at each step of a run for one picture."""
    rows: list[int] = []

    def network(x: Tensor, t: float, condition: Condition) -> Tensor:
        rows.append(len(x))
        return x

    for t, _ in DDIM().timesteps(schedule, STEPS):
        x, progress = torch.zeros(1, 1, 1, 1), 1 - (t + 1) / len(schedule)
        kind.guidance(network, x, t, Condition(), Condition(), SCALE, progress)
    return rows


@torch.no_grad()
def arithmetic(config: LatentDiffusionConfig, kind: Acceleration) -> int:
    """Floating-point operations of a run's U-Net calls; a row costs the same in every call of its sort."""
    model = build(config, "meta")
    ldm_core.set_attention(model, "math")  # whose products the counter sees on any device
    unet = DeepCache(cast(UNet, model.unet), kind.interval)
    side = config.image_size // config.autoencoder.downsampling
    x = torch.empty(1, config.unet.in_channels, side, side, device="meta")
    context = torch.empty(1, 77, config.unet.context_dim, device="meta")
    with merge_tokens(model, kind.ratio, generator=kind.generator()):
        with FlopCounterMode(display=False) as whole:
            _, features = unet.whole(x, 500, context)
        with FlopCounterMode(display=False) as shallow:
            unet.shallow(x, 500, context, features)
    costs = [shallow.get_total_flops(), whole.get_total_flops()]
    rows = rows_of(kind, model.noise_schedule)
    return sum(count * costs[step % kind.interval == 0] for step, count in enumerate(rows))


def cpu_time(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def time_ratio(run: Callable[[Acceleration], object], kind: Acceleration, rounds: int) -> float:
    """Processor time, as a share of the plain run's beside it."""
    pairs = [(cpu_time(lambda: run(kind)), cpu_time(lambda: run(PLAIN))) for _ in range(rounds)]
    return median(fast / plain for fast, plain in pairs)


def finest_block(config: LatentDiffusionConfig) -> Callable[[Acceleration], None]:
    """A call of the U-Net's first block, at the size that guidance gives it: two rows."""
    unet = build(config, "meta").unet
    assert isinstance(unet, UNet)
    block = unet.down[0].blocks[0].to_empty(device="cpu")
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.02, generator=torch.Generator().manual_seed(0))
    side = config.image_size // config.autoencoder.downsampling
    x = torch.randn(2, config.unet.model_channels, side, side, generator=torch.Generator().manual_seed(1))
    emb = torch.zeros(2, 4 * config.unet.model_channels)
    context = torch.zeros(2, 77, config.unet.context_dim)

    @torch.no_grad()
    def call(kind: Acceleration) -> None:
        with merge_tokens(unet, kind.ratio, generator=kind.generator()):
            block(x, emb, context)

    return call


def measure(
    model: LatentDiffusion,
    kinds: Sequence[Acceleration] = ACCELERATIONS,
    prompts: Sequence[str] = PROMPTS,
    seeds: Sequence[int] = SEEDS,
    full_size: LatentDiffusionConfig = SD1,
    rounds: int = 3,
) -> tuple[dict[str, Price], dict[str, Tensor]]:
    """By name the prices, and the latents of the first seed, with "plain" among them."""
    reference = draw(model, PLAIN, prompts, seeds)
    plain, plain_sd1 = arithmetic(model.config, PLAIN), arithmetic(full_size, PLAIN)
    block = finest_block(full_size)
    prices, latents = {}, {PLAIN.name: reference[: len(prompts)]}
    for kind in kinds:
        drawn = draw(model, kind, prompts, seeds)
        latents[kind.name] = drawn[: len(prompts)]
        prices[kind.name] = Price(
            relative_error(drawn, reference),
            arithmetic(model.config, kind) / plain,
            time_ratio(lambda kind: draw(model, kind, prompts[:2], seeds[:1]), kind, rounds),
            arithmetic(full_size, kind) / plain_sd1,
            time_ratio(block, kind, rounds) if kind.ratio else None,
        )
        print(kind.name, prices[kind.name], flush=True)
    return prices, latents


def table(prices: dict[str, Price]) -> str:
    rows = [
        "| | error | arithmetic saved | time | SD1: arithmetic saved | SD1: time of the first block |",
        "|---|---|---|---|---|---|",
    ]
    for name, price in prices.items():
        block = "" if price.sd1_block_time is None else f"{price.sd1_block_time:.2f}"
        rows.append(
            f"| {name} | {price.error:.3f} | {1 - price.arithmetic:.0%} | {price.time:.2f} "
            f"| {1 - price.sd1_arithmetic:.0%} | {block} |"
        )
    return "\n".join(rows)


def write_table(page: Path, rows: str) -> None:
    """Put the rows between the page's two marks."""
    text = page.read_text(encoding="utf-8")
    marked = re.compile(r"(<!-- accelerations -->\n).*?(\n<!-- end -->)", re.DOTALL)
    if not marked.search(text):
        raise ValueError(f"{page} has no lines <!-- accelerations --> and <!-- end -->")
    page.write_text(marked.sub(lambda match: match[1] + rows + match[2], text), encoding="utf-8")


@torch.no_grad()
def sheet(model: LatentDiffusion, latents: dict[str, Tensor], prompts: Sequence[str] = PROMPTS) -> Any:
    rows = [tensor_to_pil((model.decode_latent(z) / 2 + 0.5).clamp(0, 1)) for z in latents.values()]
    title = f"The same noise, with and without (bundled model, {STEPS} steps, guidance {SCALE:g})"
    return make_grid(rows, title=title, rows=list(latents), labels=[prompts], tile=96)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--figure", type=Path, default=HERE / "figures" / "accelerations.png")
    parser.add_argument("--page", type=Path, default=HERE / "accelerations.md")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model = ldm_core.load(device="cpu")
    prices, latents = measure(model)
    sheet(model, latents).quantize(256).save(arguments.figure, optimize=True)
    write_table(arguments.page, table(prices))


if __name__ == "__main__":
    main()
