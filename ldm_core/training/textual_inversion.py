"""Textual inversion: trains the embedding of a new word (Gal et al. 2022, arXiv:2208.01618).

    v* = argmin_v E_{z, y, eps, t} [ || eps - unet(z_t, t, tau_v(y)) ||^2 ]

Equation 2 of the paper: the latent diffusion loss over a few images, whose captions y are neutral sentences
with the new word; the text encoder tau_v looks the word up as v. The vectors are initialised with those of a
word that describes the images coarsely (section 4). The authors' counterpart is `EmbeddingManager` of
`ldm/modules/embedding_manager.py`; `ldm_core.adapters.textual_inversion` applies the saved files.

    word = TrainableEmbedding(model, "<my-dog>", "dog", vectors=2)
    dataset = CaptionedDataset(ImageFolder("dog", 512, captions=False), fill_templates(PHOTOS, "<my-dog>"))
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
from ldm_core.adapters.textual_inversion import add_word, clip_tokenizer, embedding_layer
from ldm_core.checkpoint.writer import Pending, require_whole, write_safetensors, write_then_move
from ldm_core.model import LatentDiffusion

# Neutral captions from the paper, which takes them from CLIP.
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
    """Insert the word at "{}" in each template. Raises ValueError for a template without "{}"."""
    bare = [template for template in templates if "{}" not in template]
    if bare:
        raise ValueError(f"expected {{}} in each template, got {bare[0]!r}")
    return tuple(template.replace("{}", word) for template in templates)


class TrainableEmbedding(nn.Module):
    """A new word of a model; its embedding vectors (n, width), in float32, are this module's only parameter.

    name: the word in prompts, as in `apply_textual_inversion`.
    initial: text whose k tokens initialise the vectors: vector i with token i mod k.
    vectors: n, the number of vectors; 1 in the paper.

    Adds the word to the model's tokenizer, and hooks to its token embedding; the embedding's weight does not
    change. Raises ValueError if the name is empty or in use, if `initial` has no tokens or more tokens than
    `vectors`, and if the model's tokenizer or text encoder does not support new words.
    """

    def __init__(self, model: LatentDiffusion, name: str, initial: str, vectors: int = 1) -> None:
        super().__init__()
        if isinstance(vectors, bool) or not isinstance(vectors, int) or vectors < 1:
            raise ValueError(f"vectors must be an integer of 1 or more, not {vectors!r}")
        table = embedding_layer(model)
        known = _vectors_of(model, table, initial)  # (k, width)
        if len(known) > vectors:
            raise ValueError(
                f"the initial word {initial!r} has {len(known)} tokens: use vectors={len(known)} or more, or "
                "another word"
            )
        start = known[torch.arange(vectors, device=known.device) % len(known)]
        self.vectors = nn.Parameter(start)  # (n, width)
        self._word = add_word(model, name, self)

    @property
    def name(self) -> str:
        """The word, as it stands in prompts."""
        return self._word.name

    def save(
        self, path: str | os.PathLike[str], *, names: Literal["diffusers", "kohya"] = "diffusers"
    ) -> None:
        """Save the vectors (n, width) in a .safetensors file, in the format of diffusers or kohya-ss.

        names: the tensor's key is the word ("diffusers") or `emb_params` ("kohya"). Raises ValueError for
        other names or another file extension, and CheckpointError if the file cannot be written.
        """
        path = Path(path)
        if names not in ("diffusers", "kohya"):
            raise ValueError(f"names must be 'diffusers' or 'kohya', not {names!r}")
        if path.suffix != ".safetensors":
            raise ValueError(f"{path}: expected a file name that ends in .safetensors")
        key = KOHYA if names == "kohya" else self.name
        make = partial(Tensor.contiguous, require_whole(self.vectors, "the word").detach())
        pending = {key: Pending(torch.float32, tuple(self.vectors.shape), make)}
        write_then_move(path, lambda target: write_safetensors(pending, {"format": "pt"}, target))

    def remove(self) -> None:
        """Remove the word from the model. Can be called more than once."""
        self._word.remove()


@torch.no_grad()
def _vectors_of(model: LatentDiffusion, table: nn.Embedding, word: str) -> Tensor:
    """The embeddings (k, width) of a word's tokens, in float32."""
    tokens = clip_tokenizer(model).encode(word)
    if not tokens:
        raise ValueError(f"the initial word {word!r} has no tokens")
    return table(torch.tensor(tokens, device=table.weight.device)).float().clone()
