"""`describe`: which of a list of words CLIP finds nearest to a picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ldm_core import CLIP

TEMPLATES = ("a picture of {}.", "{}")
WORDS = (
    *("a cat", "a dog", "a horse", "a bird", "a fish", "an insect", "a bear", "a panda", "a fox", "a rabbit"),
    *(
        "a person",
        "a man",
        "a woman",
        "a child",
        "a face",
        "a crowd",
        "a hand",
        "an eye",
        "a robot",
        "a ghost",
    ),
    *("a house", "a city", "a street", "a castle", "a room", "a bridge", "a tower", "a garden", "a kitchen"),
    *(
        "a car",
        "a train",
        "an aeroplane",
        "a ship",
        "a bicycle",
        "a rocket",
        "a tool",
        "a machine",
        "a clock",
    ),
    *("a flower", "a tree", "a forest", "a mountain", "a desert", "the sea", "a river", "the sky", "a cloud"),
    *("fire", "snow", "rain", "the sun", "the moon", "stars", "a rainbow", "an apple", "bread", "a cake"),
    *("a book", "a chair", "a lamp", "a hat", "a dress", "a ball", "a heart", "a sign", "a flag", "letters"),
    *("a photograph", "an oil painting", "a watercolour", "a pencil drawing", "an icon", "a cartoon"),
    *("an emoji", "a map", "a poster", "a sculpture", "a pattern", "a black and white picture"),
)


def describe(clip: Any, image: Any, words: Sequence[str] | None, top: int) -> list[tuple[str, float]]:
    """The `top` words with their probabilities, the nearest first."""
    if not isinstance(clip, CLIP):
        found = "none" if clip is None else type(clip).__name__
        raise ValueError(
            "describe needs a CLIP, with the image encoder that models of Stable Diffusion do not contain: "
            f"give it as clip=ldm_core.CLIP.load(FILE), on the command line as --clip FILE; got {found}"
        )
    chosen = list(WORDS if words is None else dict.fromkeys(words))
    if not chosen:
        raise ValueError("describe needs at least one word to choose from")
    if not isinstance(top, int) or top < 1:
        raise ValueError(f"describe: top must be a positive int, not {top!r:.40}")
    [probabilities] = clip.zero_shot(image, chosen, TEMPLATES)
    ranked = sorted(zip(chosen, probabilities.tolist()), key=lambda pair: -pair[1])
    return ranked[:top]
