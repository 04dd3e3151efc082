"""Textual inversion: adds a learned word to a model (Gal et al. 2022, arXiv:2208.01618).

Section 4 of the paper: a new word S* has a token embedding v*, which is trained with the model's loss on a
few images (equation 2); nothing else in the model changes. A file contains a name and one or more vectors.

    embedding = apply_textual_inversion(model, "cat-toy.pt")
    Sampler(model).txt2img("a photo of <cat-toy>")
    embedding.remove()          # restores the model

The authors' counterpart is `EmbeddingManager` of `ldm/modules/embedding_manager.py`, diffusers' is
`load_textual_inversion`. `ldm_core.adapters.embedding_file` reads the files.
"""

from __future__ import annotations

import os
from dataclasses import replace
from threading import get_ident
from types import SimpleNamespace
from typing import Protocol

import torch
from torch import Tensor, nn

from ldm_core.adapters.embedding_file import read_embedding
from ldm_core.clip.tokenizer import CLIPTokenizer
from ldm_core.errors import CheckpointError
from ldm_core.model import LatentDiffusion

MADE_FOR = {768: " (SD1)", 1024: " (SD2)", 1280: " (SDXL)"}


class HasVectors(Protocol):
    """An object with a word's vectors. They are read at each use, since training replaces the tensor."""

    @property
    def vectors(self) -> Tensor:
        """The vectors of the word: (n, width)."""


def apply_textual_inversion(
    model: LatentDiffusion, path: str | os.PathLike[str], name: str | None = None
) -> TextualInversion:
    """Add a learned word to a model, in place, and return a handle to it.

    path: the embedding's file.
    name: the word in prompts, by default the name in the file. It is matched as a whole word, ignoring case,
        and becomes one token per vector.
    Raises CheckpointError if the file cannot be read or its vectors (n, width) do not fit the text encoder.
    Raises ValueError if the name is empty or in use, or if the model's tokenizer or text encoder does not
    support new words. The model is then unchanged.

    The embedding weight gets no new rows, and a saved model does not contain the word. A model made from this
    one by `dataclasses.replace` has the word, too, until it is removed from this one.
    """
    if name is not None and not isinstance(name, str):
        raise ValueError(f"the name must be a str or None, not {type(name).__name__}")
    clip_tokenizer(model)
    ours = embedding_layer(model).embedding_dim
    with torch.inference_mode(False), torch.no_grad():
        stored_name, vectors = read_embedding(path)
    theirs = vectors.shape[1]
    if theirs != ours:
        raise CheckpointError(
            f"{os.fspath(path)} holds vectors of width {theirs}{MADE_FOR.get(theirs, '')}, but this model's "
            f"text encoder has width {ours}{MADE_FOR.get(ours, '')}"
        )
    return add_word(model, stored_name if name is None else name, SimpleNamespace(vectors=vectors))


def add_word(model: LatentDiffusion, name: str, source: HasVectors) -> TextualInversion:
    """Add a word to a model, in place, with the vectors (n, width) of `source`.

    Raises ValueError as `apply_textual_inversion` does.
    """
    tokenizer, layer = clip_tokenizer(model), embedding_layer(model)
    first = _first_free_id(tokenizer, layer)
    word = (" ".join(name.split()), tuple(range(first, first + len(source.vectors))))
    model.tokenizer = replace(tokenizer, added_words=(*tokenizer.added_words, word))
    return TextualInversion(model, layer, word, source)


class TextualInversion:
    """A handle to a learned word of a model, returned by `apply_textual_inversion`.

    name      the word in prompts
    tokens    its token ids, one per vector
    vectors   (n, width), float32 on the CPU
    """

    def __init__(
        self,
        model: LatentDiffusion,
        layer: nn.Embedding,
        word: tuple[str, tuple[int, ...]],
        source: HasVectors,
    ) -> None:
        self.name, self.tokens = word
        self._source = source
        self._model: LatentDiffusion | None = model
        rows = _ExtraRows(self.tokens[0], source)
        self._hooks = [
            layer.register_forward_pre_hook(rows.hide_ids),
            layer.register_forward_hook(rows.fill_in),
        ]

    @property
    def vectors(self) -> Tensor:
        """The vectors of the word: (n, width)."""
        return self._source.vectors

    def remove(self) -> None:
        """Remove the word from the model. Can be called more than once."""
        for hook in self._hooks:
            hook.remove()
        tokenizer = None if self._model is None else self._model.tokenizer
        word = (self.name, self.tokens)
        if self._model is not None and isinstance(tokenizer, CLIPTokenizer) and word in tokenizer.added_words:
            others = tuple(other for other in tokenizer.added_words if other != word)
            self._model.tokenizer = replace(tokenizer, added_words=others)
        self._model = None  # the name and ids may be reused

    def __repr__(self) -> str:
        state = "removed" if self._model is None else f"ids {self.tokens[0]}..{self.tokens[-1]}"
        count, width = self.vectors.shape
        return f"<{self.name!r}: {count} vector{'s' * (count > 1)} of width {width}, {state}>"


class _ExtraRows:
    """Extra rows of an embedding layer, implemented by two hooks; its weight does not change.

    The layer fails for ids beyond its weight. A pre-hook therefore replaces them by 0, and a hook replaces
    the outputs at their positions.
    """

    def __init__(self, first: int, source: HasVectors) -> None:
        self.first, self.end, self.source = first, first + len(source.vectors), source
        self._tokens: dict[int, Tensor] = {}  # by thread, during a call

    def hide_ids(self, layer: nn.Module, args: tuple[Tensor, ...]) -> Tensor:
        (tokens,) = args
        self._tokens[get_ident()] = tokens
        return tokens.masked_fill(self._are_mine(tokens), 0)

    def fill_in(self, layer: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        tokens = self._tokens.pop(get_ident())
        rows = (tokens - self.first).clamp(0, self.end - self.first - 1)
        extra = self.source.vectors.to(output)[rows]  # (B, N, width)
        return torch.where(self._are_mine(tokens)[..., None], extra, output)

    def _are_mine(self, tokens: Tensor) -> Tensor:
        return (tokens >= self.first) & (tokens < self.end)


def clip_tokenizer(model: LatentDiffusion) -> CLIPTokenizer:
    """The model's tokenizer. Raises ValueError if it is not a CLIPTokenizer."""
    tokenizer = getattr(model, "tokenizer", None)  # a model may take no text
    if not isinstance(tokenizer, CLIPTokenizer):
        raise ValueError(
            "expected a model with an ldm_core.tokenizer.CLIPTokenizer, to add words to; its tokenizer is a "
            f"{type(tokenizer).__name__}"
        )
    return tokenizer


def embedding_layer(model: LatentDiffusion) -> nn.Embedding:
    """The token embedding layer of a model's text encoder. Raises ValueError if it has none."""
    layer = getattr(model.text_encoder, "token_embedding", None)
    if not isinstance(layer, nn.Embedding):
        raise ValueError(
            "expected a text encoder whose token_embedding is a torch.nn.Embedding, got a "
            f"{type(model.text_encoder).__name__} whose token_embedding is a {type(layer).__name__}"
        )
    return layer


def _first_free_id(tokenizer: CLIPTokenizer, layer: nn.Embedding) -> int:
    """The first unused id, also in models that share the text encoder but not the tokenizer."""
    hooks = [getattr(hook, "__self__", None) for hook in layer._forward_pre_hooks.values()]
    ends = [rows.end for rows in hooks if isinstance(rows, _ExtraRows)]
    ends += [max(ids) + 1 for _, ids in tokenizer.added_words]
    return max(tokenizer.vocab_size, layer.num_embeddings, *ends)
