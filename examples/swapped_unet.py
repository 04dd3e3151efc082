"""A U-Net of one's own: does precision matter where there is much noise, or where there is little?

Anything that is called as `unet(x, t, context)` can take the U-Net's place. Here it is a pair of experts
(eDiff-I, Balaji et al. 2022, arXiv:2211.01324, section 4), one above a timestep and one below it: the trained
U-Net, and a copy whose weights are rounded to a few bits. The picture that each pairing draws from the same
noise is compared with the trained U-Net's own. (With the bundled model it is the noisy half that matters.)
"""

from __future__ import annotations

import argparse
import copy
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

import ldm_core
from ldm_core.images import tensor_to_pil
from ldm_core.protocols import NoisePredictor
from ldm_core.testing import check_unet
from ldm_core.watch import make_grid


@dataclass(frozen=True)
class Experts:
    """One network for t >= boundary, another below."""

    noisy: NoisePredictor
    clean: NoisePredictor
    boundary: int = 500

    def __call__(self, x: Tensor, t: Tensor | int, context: Tensor) -> Tensor:
        if isinstance(t, int):
            return (self.noisy if t >= self.boundary else self.clean)(x, t, context)
        chosen = (t >= self.boundary)[:, None, None, None]
        return torch.where(chosen, self.noisy(x, t, context), self.clean(x, t, context))


@torch.no_grad()
def rounded(module: nn.Module, bits: int) -> nn.Module:
    """A copy with every matrix rounded to 2^bits - 1 values, evenly spaced for each output channel."""
    module = copy.deepcopy(module)
    for weight in module.parameters():
        if weight.ndim > 1:
            step = weight.abs().amax(dim=tuple(range(1, weight.ndim)), keepdim=True) / (2 ** (bits - 1) - 1)
            weight.copy_((weight / step).round() * step)
    return module


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", nargs="?", default="swapped_unet.png")
    parser.add_argument("--prompt", default="grinning cat")
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--guidance", type=float, default=4.0)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()

    model = ldm_core.load()
    full, coarse = model.unet, rounded(model.modules["unet"], args.bits)
    names = ["as trained", f"{args.bits} bits early", f"{args.bits} bits late", f"{args.bits} bits always"]
    pairs = [Experts(full, full), Experts(coarse, full), Experts(full, coarse), Experts(coarse, coarse)]
    check_unet(pairs[1], model.config.unet)
    options = {"steps": args.steps, "guidance_scale": args.guidance, "seed": args.seed, "output": "tensor"}
    images = [ldm_core.Sampler(replace(model, unet=unet)).txt2img(args.prompt, **options) for unet in pairs]
    errors = [float((image - images[0]).square().mean().sqrt()) for image in images]
    labels = [f"{name}\nrms difference {error:.3f}" for name, error in zip(names, errors)]
    make_grid([tensor_to_pil(torch.cat(images))], title=args.prompt, labels=[labels]).save(args.output)
    print(f"saved {args.output}")


if __name__ == "__main__":
    main()
