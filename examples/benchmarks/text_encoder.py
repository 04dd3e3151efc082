"""SD1's text encoder on a prompt and an empty one: this package and transformers.

    python examples/benchmarks/text_encoder.py [--batch 2]

Errors are from transformers' output in float32.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from networks import MODELS, PARTS, candidates, operations, reference
from side_by_side import Case, options, run

from ldm_core.tokenizer import CLIPTokenizer

TEXT = PARTS["text"]
PROMPTS = ["a photograph of an astronaut riding a horse", ""]


def cases(args: argparse.Namespace) -> Iterator[Case]:
    config = MODELS[args.model]
    tokens = CLIPTokenizer()([PROMPTS[i % 2] for i in range(args.batch)])
    for dtype in args.dtype:
        yield Case(
            name=f"{args.model} text encoder, {args.batch}×77 tokens",
            candidates=candidates(TEXT, config, dtype, (tokens,), peer="transformers"),
            peer="transformers",
            dtype=dtype,
            operations=operations(TEXT, config, (tokens,)),
            exact=lambda: reference(TEXT, config, "float32")(tokens),
        )


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--model", choices=MODELS, default="sd1")
    parser.add_argument("--batch", type=int, default=2)
    args = parser.parse_args()
    run("text_encoder", cases(args), args)


if __name__ == "__main__":
    main()
