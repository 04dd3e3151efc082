"""Which word of the prompt acts where in the picture.

The cross-attention layers of the U-Net ("attn2") weigh, for every place of the latent, the tokens of the
prompt. A weight alone says little, as some places heed the whole prompt more than others; so each token
is compared with the average token of the prompt: red where it weighs more, blue where it weighs less.
The layers at half the latent's resolution are the telling ones. CLIP reads from left to right, so that a
token also stands for what came before it, and the one that acts need not be the one that names the thing.
"""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F
from torch import Tensor

import ldm_core
from ldm_core.images import tensor_to_pil
from ldm_core.tokenizer import CLIPTokenizer
from ldm_core.watch import make_grid
from ldm_core.watch.attention_maps import AttentionMaps


def relative_weights(maps: AttentionMaps, tokens: int, side: int) -> Tensor:
    """log(weight / geometric mean over the prompt's tokens), (tokens, side, side), in natural units.

    The mean over heads, steps and those layers whose maps are side x side.
    """
    collected = []
    for weights in (call for calls in maps.values() for call in calls):  # (B, heads, N, M)
        if weights.shape[2] == side * side:
            words = weights[-1, :, :, 1 : 1 + tokens]  # the guided half is last; token 0 starts the text
            logs = words.float().clamp(min=1e-9).log()
            collected.append((logs - logs.mean(dim=-1, keepdim=True)).mean(dim=0))
    return torch.stack(collected).mean(dim=0).T.reshape(tokens, side, side)


def overlay(image: Tensor, heat: Tensor) -> Tensor:
    """A pale grey picture (3, H, W) under a map (h, w) in -1 (blue) to 1 (red)."""
    grey = image.mean(dim=0, keepdim=True).expand(3, -1, -1) * 0.7 + 0.3
    heat = F.interpolate(heat[None, None], size=image.shape[1:], mode="bicubic")[0, 0].clamp(-1, 1)
    red, blue = torch.tensor([0.9, 0.1, 0.1]), torch.tensor([0.1, 0.3, 0.9])
    colour = torch.where(heat > 0, red[:, None, None], blue[:, None, None])
    return torch.lerp(grey, colour, 0.75 * heat.abs())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("prompt", nargs="?", default="red apple")
    parser.add_argument("--output", default="attention.png")
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--guidance", type=float, default=4.0)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    model = ldm_core.load()
    with ldm_core.record_attention(model, where="attn2") as maps:
        images = ldm_core.Sampler(model).txt2img(
            args.prompt, steps=args.steps, guidance_scale=args.guidance, seed=args.seed, output="tensor"
        )
    words = [token.removesuffix("</w>") for token in CLIPTokenizer().tokens(args.prompt)][:75]
    side = model.config.image_size // model.config.autoencoder.downsampling // 2
    weights = relative_weights(maps, len(words), side)
    heat = weights / weights.abs().max().clamp(min=1e-9)
    pictures = torch.stack([images[0], *(overlay(images[0], one) for one in heat)])
    labels = [["the picture", *words]]
    make_grid([tensor_to_pil(pictures)], title=args.prompt, labels=labels).save(args.output)
    print(f"saved {args.output}; the strongest preference is by a factor of {weights.max().exp():.1f}")


if __name__ == "__main__":
    main()
