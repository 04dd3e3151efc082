"""Where in an image each word of its prompt acts, from the cross-attention of the steps.

A cross-attention layer weighs, for every place of the latent, the tokens of the prompt (Hertz et al. 2022,
"Prompt-to-Prompt", arXiv:2208.01626, section 3). Some places attend to the whole prompt more than others, so
each token is compared with the mean token of the prompt at the same place.

    words = WordMaps(model.tokenizer, "red apple")
    with record_attention(model, where="attn2") as maps:
        for step in sampler.steps("red apple"):
            words.collect(maps)
    heat = words.heat((8, 8))      # (2, h, w) in [-1, 1], for words.names == ["red", "apple"]
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ldm_core.watch.attention_maps import AttentionMaps

MORE, LESS = (0.9, 0.1, 0.1), (0.1, 0.3, 0.9)  # colours of a word that acts more, and less
SMALLEST = 1e-9  # weight
END, CONTINUES = "</w>", "##"  # of a word in CLIP's tokens, a word in BERT's


class WordMaps:
    """The mean attention to each word of one prompt, collected step by step for one image.

    tokenizer: with `tokens(text)` and `context_length`, as CLIP's and BERT's. Words that the tokenizer cuts
    off have no map.
    """

    def __init__(self, tokenizer: Any, prompt: str) -> None:
        self.names, self._token_words = _words(tokenizer.tokens(prompt)[: tokenizer.context_length - 2])
        self._sums: dict[int, Tensor] = {}  # by the number N of places: (N, tokens)
        self._counts: dict[int, int] = {}

    def collect(self, maps: AttentionMaps) -> None:
        """Add the recorded weights, and remove them from `maps`, which would otherwise grow at every step.

        maps: of `record_attention`, with weights (B, heads, N, M). The last row is the conditional one, and
        position 0 is the token that starts the text.
        """
        tokens = len(self._token_words)
        for calls in maps.values():
            for weights in calls:
                logs = weights[-1, :, :, 1 : 1 + tokens].float().clamp(min=SMALLEST).log()
                relative = (logs - logs.mean(dim=-1, keepdim=True)).mean(dim=0)  # (N, tokens)
                places = len(relative)
                self._sums[places] = self._sums.get(places, torch.zeros(())) + relative
                self._counts[places] = self._counts.get(places, 0) + 1
            calls.clear()

    def heat(self, latent_size: tuple[int, int]) -> Tensor:
        """`relative`, divided by its largest absolute value: (words, h, w) in [-1, 1]."""
        words = self.relative(latent_size)
        return words / words.abs().max().clamp(min=SMALLEST)

    def relative(self, latent_size: tuple[int, int]) -> Tensor:
        """log(weight / geometric mean over the prompt's tokens) of each word: (words, h, w), natural units.

        latent_size: height and width of the latent. The layers at half its resolution, which show objects
        best, count if there are any, else those at the nearest resolution.
        Raises ValueError if no layer with a whole downsampling factor was recorded.
        """
        height, width = latent_size
        factors = [f for f in (1, 2, 4, 8, 16, 32, 64) if height % f == width % f == 0]
        sizes = {height * width // f**2: (height // f, width // f) for f in factors}
        found = [places for places in self._sums if places in sizes]
        if not found or not self.names:
            raise ValueError(f"no attention to words was recorded for latents of {latent_size}")
        half = height * width / 4
        places = min(found, key=lambda n: (abs(n - half), n))
        relative = (self._sums[places] / self._counts[places]).T  # (tokens, N)
        rows = torch.tensor(self._token_words)
        words = torch.stack([relative[rows == k].mean(dim=0) for k in range(len(self.names))])
        return words.reshape(-1, *sizes[places])


def overlay(image: Tensor, heat: Tensor) -> Tensor:
    """A pale grey image (3, H, W) in [0, 1] under a map (h, w) in [-1, 1]: red where positive, else blue."""
    grey = image.mean(dim=0, keepdim=True).expand(3, -1, -1) * 0.7 + 0.3
    heat = F.interpolate(heat[None, None], size=image.shape[1:], mode="bicubic")[0, 0].clamp(-1, 1)
    more, less = (torch.tensor(colour)[:, None, None] for colour in (MORE, LESS))
    return torch.lerp(grey, torch.where(heat > 0, more, less), 0.75 * heat.abs())


def _words(tokens: Sequence[str]) -> tuple[list[str], list[int]]:
    """The words of CLIP's or BERT's readable tokens, and the number of each token's word."""
    names: list[str] = []
    token_words: list[int] = []
    clip = any(token.endswith(END) for token in tokens)
    for before, token in zip(["", *tokens], tokens):
        ended = not clip or before.endswith(END) or before.startswith("<")  # "<" begins an added word
        if names and (token.startswith(CONTINUES) or not ended):
            names[-1] += token.removesuffix(END).removeprefix(CONTINUES)
        else:
            names.append(token.removesuffix(END))
        token_words.append(len(names) - 1)
    return names, token_words
