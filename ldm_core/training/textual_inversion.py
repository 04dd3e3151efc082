"""Textual inversion: a new word's vectors are learned, and nothing else (Gal et al. 2022, arXiv:2208.01618).

    v* = argmin_v E_{z, y, eps, t} [ || eps - unet(z_t, t, tau_v(y)) ||^2 ]

Equation 2 of the paper: latent diffusion's own loss over a few pictures, whose captions y are neutral
sentences with the new word in them, and whose text encoder tau_v looks that word up as v. The vectors start
as those of a word that says coarsely what is in the pictures (section 4). The authors' counterpart is
`EmbeddingManager` of `ldm/modules/embedding_manager.py`; `ldm_core.adapters.textual_inversion` applies what
is saved.

    word = TrainableEmbedding(model, "<my-dog>", "dog", vectors=2)
    pictures = CaptionedDataset(ImageFolder("dog", 512, captions=False), fill_templates(PHOTOS, "<my-dog>"))
    objective = DiffusionObjective(model, adapter=word, condition_dropout=0)
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from ldm_core.adapters.embedding_file import KOHYA
from ldm_core.adapters.textual_inversion import add_word, embedding_layer
from ldm_core.checkpoint.writer import Pending, require_whole, write_safetensors, write_then_move
from ldm_core.clip.tokenizer import CLIPTokenizer
from ldm_core.model import LatentDiffusion

# Of the sentences that the paper takes from CLIP's: neutral ones, so that the word must say the rest.
PHOTOS = (
    "a photo of a {}",
    "a photo of the {}",
    "a close-up photo of a {}",
    "a cropped photo of the {}",
    "a bright photo of the {}",
    "a photo of one {}",
    "a rendering of a {}",
    "a depiction of a {}",
)
STYLES = ("a painting in the style of {}", "a rendering in the style of {}", "a picture in the style of {}")


def fill_templates(templates: Sequence[str], word: str) -> tuple[str, ...]:
    """The sentences with the word in the place of "{}". Raises ValueError for one that has no such place."""
    bare = [template for template in templates if "{}" not in template]
    if bare:
        raise ValueError(f"expected {{}} in each template where the word is to stand, got {bare[0]!r}")
    return tuple(template.replace("{}", word) for template in templates)


class TrainableEmbedding(nn.Module):
    """A word of a model whose vectors (n, width) are this module's one parameter, in float32.

    name: what prompts call it, as in `apply_textual_inversion`. initial: a word that the model knows, or
        several: vector i starts as that of token i mod k, where it has k tokens.
    vectors: how many; 1 in the paper.

    The model changes in place: its tokenizer knows the word, and a hook on its table of embeddings answers
    for it; the table itself stays as it is. Raises ValueError where the name is empty or in use, where
    `initial` has no token or more tokens than there are vectors, and where the model is of a kind that words
    cannot be added to.
    """

    def __init__(self, model: LatentDiffusion, name: str, initial: str, vectors: int = 1) -> None:
        super().__init__()
        if isinstance(vectors, bool) or not isinstance(vectors, int) or vectors < 1:
            raise ValueError(f"vectors must be a whole number from 1 on, not {vectors!r}")
        table = embedding_layer(model)
        known = _vectors_of(model, table, initial)  # (k, width)
        if len(known) > vectors:
            raise ValueError(
                f"the initial word {initial!r} has {len(known)} tokens: give vectors={len(known)} or more, "
                "or another word"
            )
        start = known[torch.arange(vectors, device=known.device) % len(known)]
        self.vectors = nn.Parameter(start)  # (n, width)
        self._word = add_word(model, name, self)

    @property
    def name(self) -> str:
        return self._word.name

    def save(
        self, path: str | os.PathLike[str], *, names: Literal["diffusers", "kohya"] = "diffusers"
    ) -> None:
        """Write a .safetensors file with one tensor (n, width), which has the word's name or `emb_params`.

        Raises ValueError for another ending or other names, and CheckpointError where it cannot be written.
        """
        path = Path(path)
        if names not in ("diffusers", "kohya"):
            raise ValueError(f"names must be 'diffusers' or 'kohya', not {names!r}")
        if path.suffix != ".safetensors":
            raise ValueError(f"{path}: expected a name that ends in .safetensors")
        key = KOHYA if names == "kohya" else self.name
        make = partial(Tensor.contiguous, require_whole(self.vectors, "the word").detach())
        pending = {key: Pending(torch.float32, tuple(self.vectors.shape), make)}
        write_then_move(path, lambda target: write_safetensors(pending, {"format": "pt"}, target))

    def remove(self) -> None:
        """Take the word out of the model, which is then what it was. Doing so twice is harmless."""
        self._word.remove()


@torch.no_grad()
def _vectors_of(model: LatentDiffusion, table: nn.Embedding, word: str) -> Tensor:
    """The embeddings (k, width) of a word's tokens, in float32; also of one that was learned."""
    if not isinstance(model.tokenizer, CLIPTokenizer):
        raise ValueError(
            f"words can be added to a CLIPTokenizer, but the model's is a {type(model.tokenizer).__name__}"
        )
    tokens = model.tokenizer.encode(word)
    if not tokens:
        raise ValueError(f"the initial word {word!r} has no token")
    return table(torch.tensor(tokens, device=table.weight.device)).float().clone()
