"""A picture with the depth of another one, by Stable Diffusion 2's depth model.

    python examples/tasks/depth_to_image.py 512-depth-ema.ckpt photo.png "a marble statue"

The depth comes from `transformers`' DPT (`pip install transformers`), which is what the model was trained
with; --map gives a depth map instead, as a grey picture in which larger values are nearer.
"""

from __future__ import annotations

import argparse

import torch
from PIL import Image
from torch import Tensor

import ldm_core
from ldm_core.watch import make_grid


def estimated(image: Image.Image, name: str) -> Tensor:
    """The inverse depth (H, W) of a picture, by MiDaS's dpt_hybrid."""
    from transformers import DPTForDepthEstimation, DPTImageProcessor

    processor, network = DPTImageProcessor.from_pretrained(name), DPTForDepthEstimation.from_pretrained(name)
    with torch.no_grad():
        depth: Tensor = network(**processor(images=image, return_tensors="pt")).predicted_depth
    size = (image.height, image.width)
    return torch.nn.functional.interpolate(depth[:, None], size, mode="bicubic", align_corners=False)[0, 0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("image")
    parser.add_argument("prompt")
    parser.add_argument("--map", help="a grey picture of the depth")
    parser.add_argument("--estimator", default="Intel/dpt-hybrid-midas")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", default="depth.png")
    args = parser.parse_args()

    with Image.open(args.image, formats=("PNG", "JPEG", "WEBP")) as file:
        image = file.convert("RGB")
    if args.map is None:
        depth = estimated(image, args.estimator)
    else:
        with Image.open(args.map, formats=("PNG",)) as file:
            depth = file.convert("L")
    sampler = ldm_core.Sampler(ldm_core.load(args.model))
    inputs = {"prompt": args.prompt, "depth": depth}
    pictures = sampler.sample(inputs, num_images=2, steps=args.steps, seed=args.seed)
    make_grid([[image, *pictures]]).save(args.output)
    print(f"saved {args.output}")


if __name__ == "__main__":
    main()
