"""How good, and how cheap, is a linear preview of a latent?

Fits the preview without data, samples prompts that it has not seen, and sets the decoder's pictures above
the previews. Prints how much of the decoded pictures (at the latent's resolution) the preview explains,
beside the best that a linear map could do on these very pictures, and the times of both.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

import ldm_core
from ldm_core.grid import grid
from ldm_core.images import tensor_to_pil
from ldm_core.preview import fit_linear, fit_preview
from ldm_core.strip import model_decode

PROMPTS = ["red apple", "frog", "lion", "hot dog", "cookie", "lemon", "owl", "rocket"]


def quality(preview: Tensor, target: Tensor) -> str:
    """R² over all channels and places, and PSNR in dB, of pictures (B, 3, h, w) in [0, 1]."""
    error = (preview - target).square().mean()
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
    parser.add_argument("--seed", type=int, default=100)
    args = parser.parse_args()

    model = ldm_core.load()
    decode, preview = model_decode(model), fit_preview(model)
    latents = ldm_core.Sampler(model).txt2img(
        PROMPTS, steps=args.steps, guidance_scale=4.0, num_images=2, seed=args.seed, output="latent"
    )
    decoded = decode(latents)
    target = F.avg_pool2d(decoded, preview.factor)
    print("fitted on drawings:      ", quality(preview(latents), target))
    print("fitted on these pictures:", quality(fit_linear(latents, decoded)(latents), target))
    slow, fast = seconds(lambda: decode(latents[:1]), 5), seconds(lambda: preview(latents[:1]), 50)
    print(f"decode {slow * 1e3:.1f} ms, preview {fast * 1e3:.3f} ms: {slow / fast:.0f} times cheaper")

    rows = [tensor_to_pil(decoded[::2]), preview.to_pil(latents[::2])]
    grid(rows, rows=("decoder", "preview"), labels=[PROMPTS]).save(args.output)
    print(f"saved {args.output}")


if __name__ == "__main__":
    main()
