"""The figures of an evaluation: what `evaluate.py` measures of an autoencoder and of drawn pictures."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from evaluation_data import EmojiData, Evaluator, Question, batches, features_of, load_pictures
from torch import Tensor

from ldm_core import LatentDiffusion
from ldm_core.training.metrics import (
    frechet_distance,
    nearest_neighbours,
    psnr,
    retrieval_ranks,
    ssim,
    top_k_accuracy,
)

Scores = dict[str, Any]


@torch.no_grad()
def autoencoder_scores(
    model: LatentDiffusion, data: EmojiData, count: int | None = None, batch_size: int = 16
) -> Scores:
    """Means over held-out pictures, at the model's own size, of PSNR in dB and SSIM; and the PSNR of the mean
    squared error of all, which is lower, since a few bad pictures weigh more in it."""
    size = model.config.image_size
    values: dict[str, list[Tensor]] = {"psnr": [], "ssim": []}
    paths = [data.path(row) for row in data.held_out[:count]]
    for batch in batches(paths, batch_size):
        images = load_pictures(batch, size)
        latent = model.autoencoder.encode((images * 2 - 1).to(model.weight_of("autoencoder"))).mode()
        again = (model.autoencoder.decode(latent).float().cpu() / 2 + 0.5).clamp(0, 1)
        values["psnr"].append(psnr(again, images))
        values["ssim"].append(ssim(again, images))
    each = {name: torch.cat(numbers) for name, numbers in values.items()}
    error = (10 ** (-each["psnr"] / 10)).mean()
    return {
        "pictures": len(paths),
        "size": size,
        "psnr": float(each["psnr"].mean()),
        "psnr of mean error": float(-10 * torch.log10(error)),
        "ssim": float(each["ssim"].mean()),
    }


@dataclass(frozen=True)
class References:
    """The training pictures as an evaluator sees them: features (M, D), labels (M,)."""

    data: EmojiData
    features: Tensor
    labels: Tensor

    @classmethod
    def of(cls, data: EmojiData, features: Tensor) -> References:
        return cls(data, features, data.labels([row["concept"] for row in data.train]))

    def ranks(self, features: Tensor, concepts: Sequence[str]) -> Tensor:
        """(N,): 0 where a feature's nearest training picture shows its concept."""
        return retrieval_ranks(features, self.features, self.labels, self.data.labels(concepts))

    def of_concepts(self, concepts: set[str], without: set[int]) -> Tensor:
        """The features of these concepts' pictures, but for those at some places."""
        places = [
            i for i, row in enumerate(self.data.train) if row["concept"] in concepts and i not in without
        ]
        return self.features[places]


def accuracy(ranks: Tensor) -> Scores:
    """How often the right concept is the nearest, and among the five nearest."""
    if len(ranks) == 0:
        return {"pictures": 0, "top-1": None, "top-5": None}
    return {"pictures": len(ranks), "top-1": top_k_accuracy(ranks, 1), "top-5": top_k_accuracy(ranks, 5)}


def concept_scores(
    features: Tensor, questions: Sequence[Question], references: References, seed: int
) -> Scores:
    """Scores of pictures drawn of concepts: accuracy, of the common ones apart, Fréchet distance, copies."""
    ranks = references.ranks(features, [question.concept for question in questions])
    common = torch.tensor([question.common for question in questions])
    _, real = one_of_each(questions, references, seed)
    cosines, _ = nearest_neighbours(features, references.features)
    return accuracy(ranks) | {
        "common": accuracy(ranks[common]),
        "others": accuracy(ranks[~common]),
        "frechet": _distance(features, real),
        "nearest cosine": float(cosines.median()),
    }


def pair_scores(features: Tensor, questions: Sequence[Question], references: References) -> Scores:
    """Scores of pictures drawn of (concept, style) pairs: accuracy, and how often the style is right.

    The style is right where the nearest of all training pictures has it.
    """
    ranks = references.ranks(features, [question.concept for question in questions])
    _, nearest = nearest_neighbours(features, references.features)
    styles = [references.data.train[i]["style"] for i in nearest[:, 0].tolist()]
    right = [style == question.style for style, question in zip(styles, questions)]
    return accuracy(ranks) | {"style": sum(right) / len(right)}


def ceiling(evaluator: Evaluator, questions: Sequence[Question], references: References, seed: int) -> Scores:
    """The same scores of real pictures: held-out ones, and one training picture of each concept.

    No generator can be expected to do better in the eyes of this evaluator.
    """
    data = references.data
    held_out = features_of(evaluator, [data.path(row) for row in data.held_out])
    ranks = references.ranks(held_out, [row["concept"] for row in data.held_out])
    own, others = one_of_each(questions, references, seed)
    return accuracy(ranks) | {"frechet": _distance(own, others)}


def one_of_each(questions: Sequence[Question], references: References, seed: int) -> tuple[Tensor, Tensor]:
    """(features of one training picture of each concept asked for, those of the same concepts' others).

    Fréchet distances are to the others: so that real pictures, of which the first are as many as are drawn,
    have a distance, too.
    """
    places: dict[str, list[int]] = {}
    for i, row in enumerate(references.data.train):
        places.setdefault(row["concept"], []).append(i)
    draw = random.Random(seed + 2)
    own = [draw.choice(places[question.concept]) for question in questions]
    others = references.of_concepts({question.concept for question in questions}, set(own))
    return references.features[own], others


def _distance(features: Tensor, references: Tensor) -> float | None:
    """None where there are too few pictures for a covariance."""
    if min(len(features), len(references)) < 2:
        return None
    return frechet_distance(features, references)


def neighbours(features: Tensor, references: References) -> list[tuple[Path, str, float]]:
    """For each feature its nearest training picture: (file, concept, cosine)."""
    cosines, places = nearest_neighbours(features, references.features)
    rows = [references.data.train[i] for i in places[:, 0].tolist()]
    return [
        (references.data.path(row), row["concept"], cosine)
        for row, cosine in zip(rows, cosines[:, 0].tolist())
    ]
