"""Which text fits which picture: CLIP's cosines, and the same as probabilities over the texts.

The pictures are drawn by the bundled model, one for each text. No trained CLIP comes with the package:
--clip FILE shows what yours says (OpenAI's, open_clip's and transformers' files load). Without it, a small
CLIP with random weights stands in, which has learned nothing and whose numbers mean nothing.
"""

from __future__ import annotations

import argparse

import torch

import ldm_core
from ldm_core.clip import CLIPConfig
from ldm_core.config import ImageEncoderConfig, TextEncoderConfig
from ldm_core.watch import make_grid

UNTRAINED = CLIPConfig(
    ImageEncoderConfig(image_size=64, patch_size=8, width=128, layers=4, heads=4, projection_dim=64),
    TextEncoderConfig(width=128, layers=4, heads=4, projection_dim=64),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("texts", nargs="*", default=["grinning cat", "panda", "fire", "pizza"])
    parser.add_argument("--clip", help="a CLIP's file or folder")
    parser.add_argument("--config", help='of a file that does not say what it is: "ViT-B/32", …')
    parser.add_argument("--template", default="{}", help='such as "a photo of a {}."')
    parser.add_argument("--output", default="similarity.png")
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    if args.clip:
        clip, title = ldm_core.CLIP.load(args.clip, config=args.config), "What CLIP sees"
    else:
        clip = ldm_core.CLIP(UNTRAINED, torch.Generator().manual_seed(0))
        title = "What an untrained CLIP says (nothing)"

    sampler = ldm_core.Sampler(ldm_core.load())
    pictures = sampler.txt2img(args.texts, steps=args.steps, guidance_scale=4, seed=args.seed)

    with torch.no_grad():
        cosines = (
            clip.encode_image(pictures, normalize=True) @ clip.class_vectors(args.texts, [args.template]).T
        )
    probabilities = clip.zero_shot(pictures, args.texts, [args.template])
    print("cosine".rjust(16), *(text[:12].rjust(12) for text in args.texts))
    for text, row in zip(args.texts, cosines.tolist(), strict=True):
        print(text[:16].rjust(16), *(f"{value:12.3f}" for value in row))

    labels = []
    for row in probabilities:
        best = row.topk(min(2, len(args.texts)))
        words = [f"{args.texts[i]} {p:.0%}" for i, p in zip(best.indices.tolist(), best.values.tolist())]
        labels.append("\n".join(words))
    make_grid([pictures], title=title, labels=[labels]).save(args.output)
    print(f"saved {args.output}")


if __name__ == "__main__":
    main()
