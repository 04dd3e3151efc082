"""Textual inversion: words that were learned from pictures (Gal et al. 2022, arXiv:2208.01618).

Section 4 of the paper: a new word S* gets a vector v* of its own in the text encoder's table of token
embeddings, found by minimising the model's training loss over a few pictures (equation 2), and nothing else
of the model changes. So what a file holds is a name and one vector, or several that stand one after another.

    embedding = apply_textual_inversion(model, "cat-toy.pt")
    Sampler(model).txt2img("a photo of <cat-toy>")
    embedding.remove()          # the model is what it was

The authors' counterpart is `EmbeddingManager` of `ldm/modules/embedding_manager.py`, diffusers' is
`load_textual_inversion`. `ldm_core.adapters.embedding_file` knows the kinds of files.
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
    """Where a word's vectors are: asked at each use, since training may put another tensor there."""

    @property
    def vectors(self) -> Tensor: ...


def apply_textual_inversion(
    model: LatentDiffusion, path: str | os.PathLike[str], name: str | None = None
) -> TextualInversion:
    """Teach a model, which changes in place, a learned word, and return a handle to it.

    path: the embedding's file. name: the word for prompts; None is what the file calls it. It is found in
    prompts whatever its case and as a whole word, and becomes as many tokens as the file has vectors.
    Raises CheckpointError where the file cannot be read or its vectors (n, width) do not fit the text
    encoder, and ValueError where the name is empty or in use, or where the model's tokenizer or text encoder
    is of a kind that words cannot be added to. The model is then left alone.

    The text encoder's table gets no new rows, and a saved model none of the words. What `dataclasses.replace`
    makes of the model has its words too, but only for as long as they are not removed from this one.
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
    """Give a model, which changes in place, a word with the vectors (n, width) that `source` has at each use.

    Raises ValueError as `apply_textual_inversion` does.
    """
    tokenizer, layer = clip_tokenizer(model), embedding_layer(model)
    first = _first_free_id(tokenizer, layer)
    word = (" ".join(name.split()), tuple(range(first, first + len(source.vectors))))
    model.tokenizer = replace(tokenizer, added_words=(*tokenizer.added_words, word))
    return TextualInversion(model, layer, word, source)


class TextualInversion:
    """A learned word of a model: see `apply_textual_inversion`.

    name      what prompts call it
    tokens    its ids, one for each vector
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
        return self._source.vectors

    def remove(self) -> None:
        """Take the word out of the model, for good. Doing so twice is harmless."""
        for hook in self._hooks:
            hook.remove()
        tokenizer = None if self._model is None else self._model.tokenizer
        word = (self.name, self.tokens)
        if self._model is not None and isinstance(tokenizer, CLIPTokenizer) and word in tokenizer.added_words:
            others = tuple(other for other in tokenizer.added_words if other != word)
            self._model.tokenizer = replace(tokenizer, added_words=others)
        self._model = None  # name and ids may become another embedding's

    def __repr__(self) -> str:
        state = "removed" if self._model is None else f"ids {self.tokens[0]}..{self.tokens[-1]}"
        count, width = self.vectors.shape
        return f"<{self.name!r}: {count} vector{'s' * (count > 1)} of width {width}, {state}>"


class _ExtraRows:
    """Rows beyond the end of an embedding table, as two hooks on it: the table stays as it is.

    A table looks ids up before any hook could answer them, and fails at those that it does not have. So one
    hook shows it id 0 in their place, and the other replaces what it gave there.
    """

    def __init__(self, first: int, source: HasVectors) -> None:
        self.first, self.end, self.source = first, first + len(source.vectors), source
        self._tokens: dict[int, Tensor] = {}  # by thread, for the time of one call

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
    if not isinstance(model.tokenizer, CLIPTokenizer):
        raise ValueError(
            "words can be added to an ldm_core.tokenizer.CLIPTokenizer, but the model's tokenizer is a "
            f"{type(model.tokenizer).__name__}"
        )
    return model.tokenizer


def embedding_layer(model: LatentDiffusion) -> nn.Embedding:
    """The table of token embeddings of a model's text encoder. Raises ValueError where it has none."""
    layer = getattr(model.text_encoder, "token_embedding", None)
    if not isinstance(layer, nn.Embedding):
        raise ValueError(
            "words can be added to a text encoder whose token_embedding is a torch.nn.Embedding; that of the "
            f"model, a {type(model.text_encoder).__name__}, is a {type(layer).__name__}"
        )
    return layer


def _first_free_id(tokenizer: CLIPTokenizer, layer: nn.Embedding) -> int:
    """The id after all others, also after those of models that share the text encoder, not the tokenizer."""
    hooks = [getattr(hook, "__self__", None) for hook in layer._forward_pre_hooks.values()]
    ends = [rows.end for rows in hooks if isinstance(rows, _ExtraRows)]
    ends += [max(ids) + 1 for _, ids in tokenizer.added_words]
    return max(tokenizer.vocab_size, layer.num_embeddings, *ends)
