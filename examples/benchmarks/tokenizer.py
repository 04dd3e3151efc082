"""How fast the tokenizer is beside the Rust `tokenizers` package on one thread, on 10,000 prompts.

    python examples/benchmarks/tokenizer.py [--prompts 10000]

The Rust tokenizer has the same vocabulary and the pipeline of transformers' CLIPTokenizer: NFC, whitespace,
lower case, CLIP's pattern, byte-level BPE. Repairing Unicode and resolving HTML entities is our work only.
Both turn the same prompts into lists of ids. "cold" starts each call with an empty cache of words, on both
sides, and "warm" with the last call's.
"""

from __future__ import annotations

import argparse
import os
import random
from collections.abc import Iterator
from functools import cache, partial
from typing import Any

os.environ["RAYON_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

from side_by_side import Case, options, run
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

from ldm_core.clip import bpe
from ldm_core.tokenizer import CLIPTokenizer

SUBJECTS = (
    "cat|astronaut|lighthouse|old fisherman|clockwork owl|knight's armour|tabby kitten|city street|bonsai"
)
SCENES = (
    "on mars|in the rain|under neon lights|at dawn|by the sea|in a teacup|beside a waterfall|on a rooftop"
)
STYLES = (
    "oil painting|35mm photograph|watercolour|concept art, trending on artstation|isometric render|ukiyo-e"
    "|in the style of {name}|highly detailed, sharp focus, 8k|f/1.8, ISO 100|art nouveau|don't blur!!!"
    "|(masterpiece:1.2)"
)
FOREIGN = (
    "café au lait|“curly quotes”|カフェの猫|一只在月球上的猫|🐱🚀|👩🏽\u200d🎨"
    "|кот в космосе|القط|rock &amp; roll|naïve"
)
SYLLABLES = "ka|ro|zel|mi|thun|da|vor|ek|shi|lan|qua|bri|os|tep|yu|fen|grol|ix|ma|nu"


def make_prompts(count: int) -> list[str]:
    """Prompts of 5 to 31 words; many have a made-up name, and one in eight is more than plain ASCII."""
    rng = random.Random(0)
    prompts = []
    for _ in range(count):
        name = "".join(rng.choices(SYLLABLES.split("|"), k=rng.randint(2, 5))).title()
        parts = [f"A {rng.choice(SUBJECTS.split('|'))} {rng.choice(SCENES.split('|'))}"]
        parts += rng.sample(STYLES.split("|"), rng.randint(1, 6))
        if rng.random() < 0.3:
            parts.append(f"{rng.randint(2, 2400)} {name}s")
        if rng.random() < 0.125:
            parts.insert(rng.randint(0, len(parts)), rng.choice(FOREIGN.split("|")))
        prompts.append(", ".join(parts).format(name=name))
    return prompts


@cache
def vocabulary() -> dict[str, Any]:
    return {
        "vocab": {token: index for index, token in enumerate(bpe.vocabulary())},
        "merges": bpe.read_merges(),
    }


def rust_tokenizer() -> Tokenizer:
    rust = Tokenizer(models.BPE(**vocabulary(), end_of_word_suffix=bpe.END_OF_WORD))
    rust.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    pattern = Regex(r"'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+")
    rust.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(pattern, behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    return rust


def cases(args: argparse.Namespace) -> Iterator[Case]:
    prompts = make_prompts(args.prompts)
    plain = [prompt for prompt in prompts if prompt.isascii() and "&" not in prompt]
    mine, rust = CLIPTokenizer(), [rust_tokenizer()]
    assert all(mine.encode(prompt) == rust[0].encode(prompt).ids for prompt in plain), "the ids differ"

    def forget() -> None:
        bpe.forget_words()
        rust[0] = rust_tokenizer()

    def encode_here(batch: list[str]) -> list[list[int]]:
        return [mine.encode(prompt) for prompt in batch]

    def encode_in_rust(batch: list[str]) -> list[list[int]]:
        return [found.ids for found in rust[0].encode_batch_fast(batch)]

    for label, batch in (("prompts", prompts), ("prompts of plain ASCII", plain)):
        for words in ("cold", "warm"):
            candidates = {
                "ldm_core": partial(encode_here, batch),
                "tokenizers (Rust)": partial(encode_in_rust, batch),
            }
            yield Case(
                name=f"{len(batch):,} {label}, {words}",
                candidates={name: partial(lambda call: call, call) for name, call in candidates.items()},
                peer="tokenizers (Rust)",
                dtype="ids",
                before=forget if words == "cold" else None,
            )


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--prompts", type=int, default=10_000)
    args = parser.parse_args()
    run("tokenizer", cases(args), args)


if __name__ == "__main__":
    main()
