"""Protocols: the interfaces of the parts of a model, which any replacement must implement.

A part may be a module, a function, or a wrapper around another library's network. Other protocols are
`ldm_core.schedulers.Scheduler`, `ldm_core.guidance.Guidance` and `ldm_core.attention.AttentionFunction`.
`ldm_core.testing` checks a part against its protocol.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from torch import Tensor, nn

from ldm_core.condition import Condition
from ldm_core.noise import Generators


class Tokenizer(Protocol):
    """Prompts to token ids, LongTensor (B, N) with one N for all prompts."""

    def __call__(self, text: str | Sequence[str], /) -> Tensor: ...


class TextEncoder(Protocol):
    """Token ids (B, N) to vectors (B, N, width). A module receives ids on its device, others on the CPU."""

    def __call__(self, tokens: Tensor, /) -> Tensor: ...


class ImageEncoder(Protocol):
    """Normalised pixels (B, 3, S, S) to embeddings (B, D). `ldm_core.clip.CLIPImageEncoder` is one."""

    def __call__(self, pixels: Tensor, /) -> Tensor: ...


class Conditioner(Protocol):
    """Inputs (prompts, labels, images …) to a Condition. `ldm_core.conditioners` has several."""

    @property
    def unconditional(self) -> Any:
        """The default unconditional inputs of guidance, such as the empty prompt; None: no guidance."""

    @property
    def modules(self) -> dict[str, nn.Module]:
        """The networks of the conditioner, by name. They move and are saved with the model."""

    def count(self, inputs: Any, name: str = "inputs", /) -> int:
        """The number of images of the inputs. Raises ValueError, naming `name`, for invalid inputs."""

    def __call__(self, inputs: Any, /) -> Condition:
        """One row per image."""


class NoisePredictor(Protocol):
    """Noisy latents, timesteps and context to a prediction of eps, v or x0 (B, C, h, w). The U-Net is one.

    x: (B, C_in, h, w). t: a number or a tensor (B,); an int, or a float from schedulers whose spacing selects
    noise levels, such as "karras". context: (B, N, width), or None. A Condition with a vector passes it as a
    fourth argument.
    """

    def __call__(self, x: Tensor, t: Tensor | float, context: Any, /) -> Tensor: ...


class Posterior(Protocol):
    """A distribution over latents (B, C, h, w). `DiagonalGaussian` is one."""

    def sample(self, generator: Generators = None, /) -> Tensor:
        """A sample (B, C, h, w). generator: one for all images, or one per image."""

    def mode(self) -> Tensor:
        """The most likely latents (B, C, h, w)."""


class Autoencoder(Protocol):
    """Images (B, 3, H, W) in [-1, 1] to a distribution over latents, and latents to images."""

    def encode(self, images: Tensor, /) -> Posterior:
        """images (B, 3, H, W) in [-1, 1] -> a distribution over unscaled latents (B, C, h, w)."""

    def decode(self, z: Tensor, /) -> Tensor:
        """z (B, C, h, w), unscaled -> images (B, 3, H, W) in about [-1, 1]."""
