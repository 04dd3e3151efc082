"""How fast the tokenizer is beside the Rust `tokenizers` package on one thread, on 10,000 prompts.

    python examples/benchmarks/tokenizer.py [--prompts 10000] [--rounds 7]

The Rust tokenizer has the same vocabulary and the pipeline of transformers' CLIPTokenizer: NFC, whitespace,
lower case, CLIP's pattern, byte-level BPE. Repairing Unicode and resolving HTML entities is our work only.
Both turn the same prompts into lists of ids, in turn, one right after the other; medians of all rounds.
"cold" starts each round with an empty cache of words, on both sides, and "warm" with the last round's.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import time

os.environ["RAYON_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

from ldm_core import tokenizer as ours

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


def rust_tokenizer() -> Tokenizer:
    vocab = {token: index for index, token in enumerate(ours.vocabulary())}
    bpe = models.BPE(vocab=vocab, merges=ours.read_merges(), end_of_word_suffix=ours.END_OF_WORD)
    rust = Tokenizer(bpe)
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


def compare(prompts: list[str], rounds: int, cold: bool) -> tuple[float, float]:
    """Median seconds for all prompts: (ours, Rust)."""
    mine, rust = ours.CLIPTokenizer(), rust_tokenizer()
    seconds: tuple[list[float], list[float]] = ([], [])
    for k in range(rounds + 1):
        if cold:
            ours.forget_words()
            rust = rust_tokenizer()
        begin = time.perf_counter()
        _ = [mine.encode(prompt) for prompt in prompts]
        middle = time.perf_counter()
        _ = [encoding.ids for encoding in rust.encode_batch_fast(prompts)]
        end = time.perf_counter()
        if k > 0:  # the first round only warms up
            seconds[0].append(middle - begin)
            seconds[1].append(end - middle)
    return statistics.median(seconds[0]), statistics.median(seconds[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    prompts = make_prompts(args.prompts)
    plain = [prompt for prompt in prompts if prompt.isascii() and "&" not in prompt]
    mine, rust = ours.CLIPTokenizer(), rust_tokenizer()
    assert all(mine.encode(prompt) == rust.encode(prompt).ids for prompt in plain), "the ids differ"
    print(f"{'prompts':32}{'cache':8}{'ours':>12}{'Rust':>12}   ours / Rust")
    for label, batch in (("all", prompts), ("plain ASCII", plain)):
        for cold in (True, False):
            speeds = [len(batch) / seconds for seconds in compare(batch, args.rounds, cold)]
            ratio = speeds[0] / speeds[1]
            shown = "".join(f"{speed:>10,.0f}/s" for speed in speeds)
            print(f"{f'{label} ({len(batch):,})':32}{'cold' if cold else 'warm':8}{shown}   {ratio:.2f}")


if __name__ == "__main__":
    main()
