"""Pictures of a text and of similar pictures in a folder, by a retrieval-augmented model (rdm768).

python examples/tasks/retrieval.py rdm768.ckpt ViT-L-14.pt pictures/ "a painting of a ship"
"""

from __future__ import annotations

import argparse
from dataclasses import replace

import ldm_core
from ldm_core.conditioners import Retrieval, Retriever
from ldm_core.watch import make_grid


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("clip", help="OpenAI's ViT-L/14, which made the vectors of the training")
    parser.add_argument("folder", help="of the pictures to search")
    parser.add_argument("text")
    parser.add_argument("--neighbours", type=int, default=4)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", default="retrieval.png")
    args = parser.parse_args()

    clip = ldm_core.CLIP.load(args.clip)
    retriever = Retriever.of_folder(args.folder, clip)
    model = ldm_core.load(args.model)
    conditioner = Retrieval(clip, retriever, args.neighbours, config=model.conditioner.config)
    sampler = ldm_core.Sampler(replace(model, conditioner=conditioner))
    pictures = sampler.sample(args.text, num_images=3, steps=args.steps, seed=args.seed)
    make_grid([pictures]).save(args.output)
    print(f"saved {args.output}")


if __name__ == "__main__":
    main()
