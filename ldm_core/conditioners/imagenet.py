"""The names of ImageNet's 1000 classes, WordNet's words for each, in the order of the labels.

The class-conditional models of the latent diffusion paper have these classes. `data/imagenet_classes.json` is
read on first use.
"""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path


@lru_cache(maxsize=1)
def imagenet_classes() -> tuple[str, ...]:
    """The 1000 names, such as "tench, Tinca tinca" for label 0."""
    text = (Path(__file__).parent / "data" / "imagenet_classes.json").read_text(encoding="utf-8")
    return tuple(json.loads(text))
