"""Which word of the prompt acts where in the picture.

The cross-attention layers of the U-Net ("attn2") weigh, for every place of the latent, the tokens of the
prompt. A weight alone says little, as some places heed the whole prompt more than others; so each word
is compared with the average token of the prompt: red where it weighs more, blue where it weighs less.
The layers at half the latent's resolution are the telling ones. CLIP reads from left to right, so that a
token also stands for what came before it, and the one that acts need not be the one that names the thing.
"""

from __future__ import annotations

import argparse

import torch

import ldm_core
from ldm_core.images import tensor_to_pil
from ldm_core.watch import WordMaps, make_grid, overlay


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("prompt", nargs="?", default="red apple")
    parser.add_argument("--output", default="attention.png")
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--guidance", type=float, default=4.0)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    model = ldm_core.load()
    words = WordMaps(model.tokenizer, args.prompt)
    with ldm_core.record_attention(model, where="attn2") as maps:
        images = ldm_core.Sampler(model).txt2img(
            args.prompt, steps=args.steps, guidance_scale=args.guidance, seed=args.seed, output="tensor"
        )
    words.collect(maps)
    side = model.config.image_size // model.config.autoencoder.downsampling
    weights, heat = words.relative((side, side)), words.heat((side, side))
    pictures = torch.stack([images[0], *(overlay(images[0], one) for one in heat)])
    labels = [["the picture", *words.names]]
    make_grid([tensor_to_pil(pictures)], title=args.prompt, labels=labels).save(args.output)
    print(f"saved {args.output}; the strongest preference is by a factor of {weights.max().exp():.1f}")


if __name__ == "__main__":
    main()
