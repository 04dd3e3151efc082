"""How good, and how cheap, is a linear preview of a latent?

Fits the preview without data, samples prompts that it has not seen, and sets the decoder's pictures above
the previews. Prints how much of the decoded pictures (at the latent's resolution) the preview explains;
beside it, a preview fitted on samples of other prompts, and the best that a linear map could do on these
very pictures. Then the same for noised latents (t = 500), and the times of decoder and preview.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

import ldm_core
from ldm_core.images import tensor_to_pil
from ldm_core.noise import randn
from ldm_core.watch import LatentPreview, fit_linear, fit_preview, make_grid, model_decode

OTHERS = ["grinning cat", "fire", "angry face", "panda", "dog face", "pizza", "hamburger", "tiger face"]
PROMPTS = ["red apple", "frog", "lion", "hot dog", "cookie", "lemon", "owl", "rocket"]


def quality(preview: LatentPreview, latents: Tensor, decoded: Tensor) -> str:
    """R² over all channels and places, and PSNR in dB, against pictures (B, 3, H, W) in [0, 1]."""
    target = F.avg_pool2d(decoded, preview.factor)
    error = (preview(latents) - target).square().mean()
    spread = (target - target.mean(dim=(0, 2, 3), keepdim=True)).square().mean()
    return f"R² {1 - error / spread:.2f}, PSNR {-10 * error.log10():.1f} dB"


def seconds(function: Callable[[], object], repeats: int) -> float:
    """The shortest of several runs: what the work costs when nothing else disturbs it."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", default="preview.png")
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    model = ldm_core.load()
    decode, preview = model_decode(model), fit_preview(model)
    sampler = ldm_core.Sampler(model)
    options = {"steps": args.steps, "guidance_scale": 4.0, "num_images": 2, "output": "latent"}
    latents = sampler.txt2img(PROMPTS, seed=args.seed, **options)
    others = sampler.txt2img(OTHERS, seed=args.seed, **options)
    decoded = decode(latents)
    previews = {"drawings": preview, "other samples": fit_linear(others, decode(others))}
    previews["these pictures"] = fit_linear(latents, decoded)
    noise = randn(latents.shape, torch.Generator().manual_seed(0))
    noisy = model.noise_schedule.add_noise(latents, noise, t=500)
    decoded_noisy = decode(noisy)
    for name, fitted in previews.items():
        figures = quality(fitted, latents, decoded), quality(fitted, noisy, decoded_noisy)
        print(f"fitted on {name}: {figures[0]}; noised: {figures[1]}")
    slow, fast = seconds(lambda: decode(latents[:1]), 5), seconds(lambda: preview(latents[:1]), 50)
    print(f"decode {slow * 1e3:.1f} ms, preview {fast * 1e3:.3f} ms: {slow / fast:.0f} times cheaper")
    pictures = [tensor_to_pil(decoded[::2]), preview.to_pil(latents[::2])]
    make_grid(pictures, rows=("decoder", "preview"), labels=[PROMPTS]).save(args.output)
    print(f"saved {args.output}")


if __name__ == "__main__":
    main()
