"""The seams between the parts: what each must do so that another one can take its place.

Anything that fits is accepted: a module, a function, a wrapper around somebody else's network.
The scheduler's seam is `ldm_core.schedulers.Scheduler`, the guidance's `ldm_core.guidance.Guidance`, and
attention's `ldm_core.attention.AttentionFunction`. `ldm_core.testing` checks a part against its seam.
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
    """Token ids (B, N) to vectors (B, N, width). A module gets the ids on its device, others on the CPU."""

    def __call__(self, tokens: Tensor, /) -> Tensor: ...


class ImageEncoder(Protocol):
    """Normalised pixels (B, 3, S, S) to embeddings (B, D). `ldm_core.clip.CLIPImageEncoder` is one."""

    def __call__(self, pixels: Tensor, /) -> Tensor: ...


class Conditioner(Protocol):
    """What a user gives (prompts, labels, images …) to a Condition. `ldm_core.conditioners` has several."""

    @property
    def unconditional(self) -> Any:
        """The inputs of which guidance moves away, such as the empty prompt; None: there are none."""

    @property
    def modules(self) -> dict[str, nn.Module]:
        """The networks in it, by name: they move and are saved with the model."""

    def count(self, inputs: Any, name: str = "inputs", /) -> int:
        """How many images the inputs describe. Raises ValueError, naming `name`, for any other value."""

    def __call__(self, inputs: Any, /) -> Condition:
        """One row per image."""


class NoisePredictor(Protocol):
    """Noisy latents (B, C_in, h, w), timesteps (a number or a tensor (B,)) and context (B, N, width) to
    a prediction of eps, v or x_0, (B, C, h, w). The U-Net is one. Whole timesteps come as ints; floats come
    from schedulers whose spacing chooses noise levels, such as "karras". A Condition's vector is given as a
    fourth argument, where there is one; without a context, None is given."""

    def __call__(self, x: Tensor, t: Tensor | float, context: Any, /) -> Tensor: ...


class Posterior(Protocol):
    """A distribution over latents (B, C, h, w). `DiagonalGaussian` is one."""

    def sample(self, generator: Generators = None, /) -> Tensor: ...

    def mode(self) -> Tensor: ...


class Autoencoder(Protocol):
    """Images (B, 3, H, W) in [-1, 1] to a distribution over latents, and latents to images."""

    def encode(self, images: Tensor, /) -> Posterior: ...

    def decode(self, z: Tensor, /) -> Tensor: ...
