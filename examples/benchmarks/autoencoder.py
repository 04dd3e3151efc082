"""From latents to a picture and back with SD1's autoencoder: this package, diffusers and OpenVINO.

    python examples/benchmarks/autoencoder.py [--pixels 512 1024] [--memory] [--compile] [--openvino]

Errors are from diffusers' output in float32.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from functools import partial

from networks import MODELS, PARTS, Part, candidates, noise, operations, reference
from side_by_side import Case, options, run
from torch import Tensor

from ldm_core.config import LatentDiffusionConfig


def exact(part: Part, config: LatentDiffusionConfig, shape: tuple[int, ...]) -> Tensor:
    return reference(part, config, "float32")(noise(*shape))


def cases(args: argparse.Namespace) -> Iterator[Case]:
    config = MODELS[args.model]
    f = config.autoencoder.downsampling
    for name, pixels in ((name, pixels) for name in ("decoder", "encoder") for pixels in args.pixels):
        shape = (1, 4, pixels // f, pixels // f) if name == "decoder" else (1, 3, pixels, pixels)
        part = PARTS[name]
        for dtype in args.dtype:
            inputs = (noise(*shape, dtype=dtype),)
            yield Case(
                name=f"{args.model} {name}, {pixels}×{pixels}",
                candidates=candidates(
                    part, config, dtype, inputs, compiled=args.compile, with_openvino=args.openvino
                ),
                peer="diffusers",
                dtype=dtype,
                operations=operations(part, config, inputs),
                exact=partial(exact, part, config, shape),
            )


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--model", choices=MODELS, default="sd1")
    parser.add_argument("--pixels", type=int, nargs="+", default=[512, 1024])
    parser.add_argument("--compile", action="store_true", help="also diffusers under torch.compile")
    parser.add_argument("--openvino", action="store_true", help="also diffusers' network in OpenVINO")
    args = parser.parse_args()
    run("autoencoder", cases(args), args)


if __name__ == "__main__":
    main()
