"""CLIP: images and texts in one space (Radford et al. 2021, "Learning Transferable Visual Models From Natural
Language Supervision", arXiv:2103.00020).

CLIP has two encoders, each followed by a projection. The cosine between the vectors of an image and a text
measures how well they match. `ldm_core.training.contrastive` contains the training loss. Counterparts: `CLIP`
of OpenAI's `clip/model.py` and of open_clip, `CLIPModel` of transformers.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm_core.clip.config import CLIPConfig
from ldm_core.clip.files import find_clip, parameters_of, resolve_config, write_clip
from ldm_core.clip.image_encoder import CLIPImageEncoder
from ldm_core.clip.initialisation import initialise
from ldm_core.clip.preprocessing import preprocess
from ldm_core.clip.text_encoder import CLIPTextEncoder
from ldm_core.clip.tokenizer import CLIPTokenizer
from ldm_core.images import ImageInput
from ldm_core.nn.placement import blank, check_dtype, choose_dtype, fill

TEMPLATES = ("a photo of a {}.",)  # section 3.1.4


class CLIP(nn.Module):
    """An image encoder, a text encoder, a tokenizer, and the learned temperature.

    `CLIP(config, generator)` has random weights, and `CLIP.load(path)` those of a file. The parts are
    `image_encoder`, `text_encoder` and `tokenizer`. An `ldm_core.LatentDiffusion` can use `text_encoder`,
    too.
    """

    def __init__(self, config: CLIPConfig, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.config = config
        text = config.text_encoder
        self.image_encoder = CLIPImageEncoder(config.image_encoder)
        self.text_encoder = CLIPTextEncoder(text)
        self.tokenizer = CLIPTokenizer(text.context_length, text.pad_token_id)
        if generator is not None:
            initialise(self.image_encoder, self.text_encoder, generator)

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | Literal["auto"] | None = None,
        config: str | CLIPConfig | None = None,
        mmap: bool = True,
    ) -> CLIP:
        """Load a file of OpenAI, open_clip or transformers, or a folder of open_clip or transformers.

        path: `.pt` (including OpenAI's TorchScript archives, whose code is not executed), `.bin`, `.ckpt`,
            `.safetensors`; or a folder with `config.json` or `open_clip_config.json`.
        device, dtype, mmap: as in `ldm_core.load`.
        config: a preset's name ("ViT-B/32", "open_clip/ViT-H-14", …: `ldm_core.clip.PRESETS`) or a
            `CLIPConfig`; needed if neither the file nor its folder defines what tensors do not determine.
        Raises CheckpointError for a file that cannot be read, does not match the configuration, or contains
        NaN or infinity.
        """
        check_dtype(dtype)
        source = find_clip(path, mmap)
        resolved = resolve_config(source, config)
        model = blank(cls, resolved)
        shapes = {name: value.shape for name, value in model.state_dict().items()}
        parameters = parameters_of(source, resolved, shapes)
        fill(model, parameters, device, choose_dtype(dtype, device, parameters.values()))
        return model

    def save(self, path: str | Path, *, dtype: torch.dtype | None = None) -> None:
        """Write the model to a `.safetensors`, `.pt` or `.ckpt` file with the names of OpenAI and open_clip.

        The metadata contain the configuration, so `CLIP.load(path)` restores the model bitwise. The file is
        written atomically. Raises CheckpointError if it cannot be written.
        """
        write_clip(self.config, self.state_dict(), path, dtype)

    @property
    def logit_scale(self) -> nn.Parameter:
        """The logarithm of the factor of the cosines; the temperature is exp(-logit_scale)."""
        assert self.text_encoder.logit_scale is not None
        return self.text_encoder.logit_scale

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self.logit_scale.device

    def forward(self, pixels: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The inputs of the contrastive loss: images (B, D), texts (B, D), logit_scale (). Not normalised.

        pixels: (B, 3, S, S), from `preprocess`. tokens: (B, N).
        """
        return self.image_encoder(pixels), self.text_encoder.embed(tokens), self.logit_scale

    def encode_image(self, images: ImageInput, *, normalize: bool = False) -> Tensor:
        """Encode images (PIL, or tensors in [0, 1]; see `ldm_core.clip.preprocess`) as vectors (B, D).

        The result is differentiable with respect to a tensor. With `normalize`, the vectors have length 1.
        """
        pixels = preprocess(images, self.config.image_encoder)
        embeddings = self.image_encoder(pixels.to(self.logit_scale))  # with the model's device and dtype
        return F.normalize(embeddings, dim=-1) if normalize else embeddings

    def encode_text(self, texts: str | Sequence[str] | Tensor, *, normalize: bool = False) -> Tensor:
        """Encode one text, B texts, or token ids (B, N) as vectors (B, D).

        Raises ValueError for other inputs and for ids outside the vocabulary.
        """
        tokens = texts if isinstance(texts, Tensor) else self.tokenizer(texts)
        size = self.config.text_encoder.vocab_size
        if tokens.ndim != 2 or len(tokens) == 0 or tokens.is_floating_point():
            raise ValueError(
                f"expected texts, or their token ids as a LongTensor (B, N), got {tuple(tokens.shape)} of "
                f"{tokens.dtype}"
            )
        if int(tokens.min()) < 0 or int(tokens.max()) >= size:
            raise ValueError(
                f"expected token ids in 0..{size - 1}, the text encoder's vocabulary, got "
                f"{int(tokens.min())} to {int(tokens.max())}"
            )
        embeddings = self.text_encoder.embed(tokens.to(self.device))
        return F.normalize(embeddings, dim=-1) if normalize else embeddings

    def similarity(self, images: ImageInput, texts: str | Sequence[str] | Tensor) -> Tensor:
        """The cosines between images and texts: (images, texts), in [-1, 1]."""
        return self.encode_image(images, normalize=True) @ self.encode_text(texts, normalize=True).T

    def class_vectors(self, classes: Sequence[str], templates: Sequence[str] = TEMPLATES) -> Tensor:
        """One vector of length 1 per class, (K, D): the mean over the class's prompts (section 3.1.4).

        templates: prompts with a `{}` for the name of the class. Averaging vectors instead of probabilities
        makes a classifier with many prompts as cheap as one with a single prompt.
        """
        for what, words in (("classes", classes), ("templates", templates)):
            if isinstance(words, str) or not words or not all(isinstance(word, str) for word in words):
                raise ValueError(f"expected {what} as a non-empty list of strings, got {words!r:.60}")
        for template in templates:
            if "{}" not in template:
                raise ValueError(f"expected a template with {{}} for the class's name, got {template!r}")
        prompts = ([template.replace("{}", name) for name in classes] for template in templates)
        vectors = [self.encode_text(texts, normalize=True) for texts in prompts]
        return F.normalize(torch.stack(vectors).mean(dim=0), dim=-1)

    @torch.no_grad()
    def zero_shot(
        self, images: ImageInput, classes: Sequence[str], templates: Sequence[str] = TEMPLATES
    ) -> Tensor:
        """The probability of each class for each image, without training on the classes: (B, K), float32.

        softmax(exp(logit_scale) cos(image, class)), figure 1 (2) and (3) and section 3.1.2 of the paper.
        """
        cosines = self.encode_image(images, normalize=True) @ self.class_vectors(classes, templates).T
        return (self.logit_scale.float().exp() * cosines.float()).softmax(dim=-1)
