"""What an evaluation asks for, and what it compares with: rows of a prepared data set, and prompts drawn from
them by a seed."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from ldm_core.images import image_to_tensor, open_picture

Row = dict[str, Any]


class Evaluator(Protocol):
    """What looks at pictures: (B, 3, H, W) in [0, 1], of any size, to features (B, D)."""

    def encode_image(self, images: Tensor, /) -> Tensor: ...


@dataclass(frozen=True)
class Question:
    """One picture to draw. style: None where the prompt names none."""

    prompt: str
    concept: str
    style: str | None
    common: bool
    seed: int

    @property
    def file_name(self) -> str:
        return f"{self.seed:06}-{self.prompt.replace(', ', '--').replace(' ', '-')}.png"


@dataclass(frozen=True)
class EmojiData:
    """A folder that `prepare.py` made.

    train, held_out   its rows by split
    concepts          what the training pictures show, sorted; a label is a place in it
    """

    folder: Path
    train: list[Row]
    held_out: list[Row]
    concepts: list[str] = field(default_factory=list)

    @classmethod
    def read(cls, folder: Path) -> EmojiData:
        """Raises ValueError where there is no such data set, or one of its splits is empty."""
        path = folder / "metadata.jsonl"
        if not path.is_file():
            raise ValueError(f"{path} is not there: make the data with prepare.py first")
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        train, held_out = ([row for row in rows if row["split"] == split] for split in ("train", "held-out"))
        if not train or not held_out:
            raise ValueError(f"{path}: {len(train)} pictures to train on and {len(held_out)} held out")
        return cls(folder, train, held_out, sorted({row["concept"] for row in train}))

    def labels(self, concepts: Sequence[str]) -> Tensor:
        """(N,) int64."""
        places = {concept: place for place, concept in enumerate(self.concepts)}
        return torch.tensor([places[concept] for concept in concepts], dtype=torch.int64)

    def path(self, row: Row) -> Path:
        return self.folder / row["file_name"]

    def fingerprint(self) -> str:
        return sha256_of(self.folder / "metadata.jsonl")


def choose_concepts(data: EmojiData, count: int, seed: int, among: str = "all") -> list[Question]:
    """Prompts for `count` concepts, or for all there are: among "all", or the "common" ones only."""
    rows = {row["concept"]: row for row in data.train if among == "all" or row["common"]}
    chosen = random.Random(seed).sample(sorted(rows), min(count, len(rows)))
    return [
        Question(rows[concept]["text"], concept, None, rows[concept]["common"], seed + k)
        for k, concept in enumerate(chosen)
    ]


def choose_pairs(data: EmojiData, count: int, seed: int) -> dict[str, list[Question]]:
    """Prompts for (concept, style) pairs: held out, and as many seen ones with the same styles.

    The seen ones are of concepts that have several styles in training, as the held-out ones' have with
    their own: so that both are as well known, but for the one picture.
    """
    draw = random.Random(seed + 1)
    held_out = draw.sample(data.held_out, min(count, len(data.held_out)))
    styles: dict[str, set[str]] = {}
    for row in data.train:
        styles.setdefault(row["concept"], set()).add(row["style"])
    candidates = [row for row in data.train if len(styles[row["concept"]]) > 1]
    draw.shuffle(candidates)
    seen = []
    for row in held_out:
        match = next((c for c in candidates if c["style"] == row["style"]), None)
        if match is not None:
            candidates.remove(match)
            seen.append(match)
    return {name: _pairs(rows, seed) for name, rows in (("held-out", held_out), ("seen", seen))}


def _pairs(rows: Sequence[Row], seed: int) -> list[Question]:
    return [
        Question(f"{row['text']}, {row['style']}", row["concept"], row["style"], row["common"], seed + k)
        for k, row in enumerate(rows)
    ]


def load_pictures(paths: Sequence[Path], size: int | None = None) -> Tensor:
    """Pictures as (B, 3, H, W) in [0, 1], scaled to size × size unless they are that already."""
    pictures = []
    for path in paths:
        rgb = open_picture(path).convert("RGB")
        if size is not None and rgb.size != (size, size):
            rgb = rgb.resize((size, size), Image.Resampling.LANCZOS)
        pictures.append(rgb)
    return image_to_tensor(pictures)


@torch.no_grad()
def features_of(evaluator: Evaluator, paths: Sequence[Path], batch_size: int = 64) -> Tensor:
    """The evaluator's features of pictures in files: (N, D) float32 on the CPU."""
    features = []
    for batch in tqdm(list(batches(paths, batch_size)), desc="features", mininterval=1, leave=False):
        features.append(evaluator.encode_image(load_pictures(batch)).float().cpu())
    return torch.cat(features)


def batches(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    """The items in order, `size` at a time."""
    for first in range(0, len(items), size):
        yield items[first : first + size]


def sha256_of(path: Path) -> str:
    """Of a file's contents."""
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()
