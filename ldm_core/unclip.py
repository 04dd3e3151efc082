"""unCLIP: pictures from texts, variations, mixtures and changes, all through CLIP's space of pictures.

    text -> prior -> embedding -> decoder -> picture            (Ramesh et al. 2022, arXiv:2204.06125)

The decoder is a latent diffusion model with the conditioner `Unclip`, such as stable unCLIP. These are
shortcuts to `Sampler.sample` with its inputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import replace
from typing import Any

from ldm_core.conditioners.unclip import Unclip
from ldm_core.conditioners.unclip_inputs import AMOUNT
from ldm_core.images import ImageInput
from ldm_core.prior.sampling import Prior
from ldm_core.sampler import Sampler
from ldm_core.task_types import Prompt


class UnCLIP:
    """A decoder with a prior.

    sampler: of a model whose conditioner is `Unclip`; it is not changed.
    prior: from `load_prior`, needed for texts; None: that of the conditioner, if it has one.
    Raises ValueError for another model, and for a prior of another CLIP.

    All methods take the options of `Sampler.sample`, such as steps, num_images, seed, guidance_scale and
    output, and:

    prompt: what the decoder reads in addition.
    noise_level: of the embedding, in 0..999; more noise gives freer pictures.
    """

    def __init__(self, sampler: Sampler, prior: Prior | None = None) -> None:
        conditioner = getattr(getattr(sampler, "model", None), "conditioner", None)
        if not isinstance(conditioner, Unclip):
            raise ValueError(
                "expected a Sampler of an unCLIP model, whose conditioner is Unclip, got the conditioner "
                f"{type(conditioner).__name__}"
            )
        self.sampler = copy(sampler)
        if prior is not None:
            conditioner = replace(conditioner, prior=prior)
            self.sampler.model = replace(sampler.model, conditioner=conditioner)

    @property
    def prior(self) -> Prior | None:
        """The prior that draws embeddings of texts; None without one."""
        conditioner: Any = self.sampler.model.conditioner
        return conditioner.prior

    def txt2img(self, prompt: Prompt, *, noise_level: int = 0, read: bool = True, **options: Any) -> Any:
        """Pictures of one or several texts, through embeddings that the prior draws.

        read: whether the decoder reads the text, too, as in stable unCLIP.
        """
        texts = [prompt] if isinstance(prompt, str) else list(prompt)
        rows = [{"text": text, "prompt": text if read else "", "noise_level": noise_level} for text in texts]
        return self._sample(rows, options)

    def variations(self, image: ImageInput, *, prompt: str = "", noise_level: int = 0, **options: Any) -> Any:
        """Other pictures with what CLIP sees in one or several pictures."""
        images = list(image) if _several(image) else [image]
        return self._sample(
            [{"image": one, "prompt": prompt, "noise_level": noise_level} for one in images], options
        )

    def mix(
        self, members: Sequence[tuple[Any, float]], *, prompt: str = "", noise_level: int = 0, **options: Any
    ) -> Any:
        """Pictures between several, on CLIP's sphere: [(picture, 0.5), ("a text", 0.5)].

        members: pairs of a picture, an embedding (D,) or a text, and a weight of 0 or more.
        """
        return self._sample([{"mix": members, "prompt": prompt, "noise_level": noise_level}], options)

    def change(
        self,
        image: Any,
        towards: str,
        away: str = "",
        amount: float = AMOUNT,
        *,
        prompt: str = "",
        noise_level: int = 0,
        **options: Any,
    ) -> Any:
        """A picture changed by the difference of two texts: `change(image, "winter", "summer")`.

        image: a picture, or a text through the prior.
        amount: share of the angle towards the difference, in [0, 1]; 0.25 to 0.5 in the paper, and 0 gives
            variations.
        """
        source = {"text" if isinstance(image, str) else "image": image}
        difference = {"towards": towards, "away": away, "amount": amount}
        return self._sample([{**source, **difference, "prompt": prompt, "noise_level": noise_level}], options)

    def _sample(self, rows: list[dict[str, Any]], options: dict[str, Any]) -> Any:
        sample: Any = self.sampler.sample
        return sample(rows, **options)


def _several(image: Any) -> bool:
    return isinstance(image, list | tuple) or getattr(image, "ndim", 0) == 4
