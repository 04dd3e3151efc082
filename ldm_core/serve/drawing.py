"""Drawing one order with a loaded model: the pictures, their recipes, the strip and the words' maps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

import ldm_core
from ldm_core.images import image_to_tensor, tensor_to_pil
from ldm_core.model import LatentDiffusion
from ldm_core.recipe import Recipe, SourceFile
from ldm_core.sampler import Sampler
from ldm_core.schedulers.named import SCHEDULERS
from ldm_core.serve.job import Cancelled, Job, Result
from ldm_core.serve.order import Order, Upload
from ldm_core.task_types import SamplerStep
from ldm_core.watch import WordMaps, fit_preview, make_grid, model_decode, overlay, record_attention
from ldm_core.watch.attention_maps import AttentionMaps

if TYPE_CHECKING:
    from PIL.Image import Image

DECODED_PIXELS = 256 * 256  # larger pictures have linear previews: decoding each step takes too long
FITTED_PICTURES = 16  # of the preview, which takes seconds
STRIP_STEPS, STRIP_TILE = 8, 128
MAX_WORDS, WORD_PIXELS = 24, 256  # maps of one prompt, and the longer side of each

Decode = Callable[[Tensor], Tensor]


@dataclass
class LoadedModel:
    """A model in memory, the record of its file in recipes, and its preview once one has been needed."""

    model: LatentDiffusion
    file: SourceFile
    _preview: Decode | None = None

    def decode_for(self, pixels: int) -> Decode:
        """From a latent to the picture that is shown: decoded for small pictures, else a linear preview."""
        if pixels <= DECODED_PIXELS:
            return model_decode(self.model)
        if self._preview is None:
            fitted = fit_preview(self.model, pictures=FITTED_PICTURES)
            self._preview = lambda latent: fitted(latent, upscale="bicubic").cpu()
        return self._preview


def draw(job: Job, loaded: LoadedModel) -> Result:
    """Draw the pictures of a job's complete order, one after another, and report every step to the job.

    Raises Cancelled after the step in which the job is cancelled, and ValueError as `Sampler.sample` does.
    """
    order = job.order
    if job.cancelled:
        raise Cancelled
    drawing = _Drawing(job, loaded)
    pictures, recipes = [], []
    for k in range(order.num_images):
        image = drawing.picture(k)
        pictures.append(image)
        recipes.append(_recipe(order, loaded, k, image.info.get("not_finite")))
        job.update(preview=image)
    strip, words = drawing.strip(), drawing.words(pictures[-1])
    return Result(tuple(pictures), tuple(recipes), strip, words)


class _Drawing:
    """The state of one job's drawing. Only the last picture's steps and words are kept."""

    def __init__(self, job: Job, loaded: LoadedModel) -> None:
        self.job, self.order, self.model = job, job.order, loaded.model
        self.size = (_set(self.order.width), _set(self.order.height))
        self.sampler = Sampler(self.model, SCHEDULERS[self.order.scheduler])
        self.decode = loaded.decode_for(self.size[0] * self.size[1] if self.order.watched else 0)
        self.frames: list[tuple[SamplerStep, Image]] = []  # the last picture's, with the predictions
        self.maps: AttentionMaps = {}
        self.word_maps: WordMaps | None = None

    def picture(self, k: int) -> Image:
        """Draw the k-th picture."""
        order, last = self.order, k == self.order.num_images - 1
        options: dict[str, Any] = {
            "steps": order.steps,
            "guidance_scale": order.guidance_scale,
            "negative_prompt": order.negative_prompt,
            "seed": _set(order.seed) + k,
            "on_step": self._on_step(k),
        }
        with self._recorded_words() if order.watched and last else nullcontext():
            if order.task == "txt2img":
                width, height = self.size
                return self.sampler.txt2img(order.prompt, width=width, height=height, **options)[0]
            image = fitted(_given(order.image), self.size)
            options["strength"] = order.strength
            if order.task == "img2img":
                return self.sampler.img2img(order.prompt, image, **options)[0]
            mask = fitted(_given(order.mask), self.size)
            return self.sampler.inpaint(order.prompt, image, mask, **options)[0]

    def _on_step(self, k: int) -> Callable[[SamplerStep], None]:
        def on_step(step: SamplerStep) -> None:
            if self.job.cancelled:
                raise Cancelled
            done, total = k * step.total + step.index + 1, self.order.num_images * step.total
            if not self.order.watched:
                self.job.update(step=done, total=total)
                return
            if self.word_maps is not None:
                self.word_maps.collect(self.maps)
            preview = self._shown(step.x0)
            self.frames = [*(self.frames if step.index else []), (step, preview)]
            self.job.update(step=done, total=total, preview=preview)

        return on_step

    @contextmanager
    def _recorded_words(self) -> Iterator[None]:
        """Record the attention to words, if the model has layers and a tokenizer that allow it."""
        tokenizer = getattr(self.model.conditioner, "tokenizer", None)
        with ExitStack() as stack:
            try:
                self.word_maps = WordMaps(tokenizer, self.order.prompt)
                self.maps = stack.enter_context(record_attention(self.model.unet, where="attn2"))
            except (ValueError, AttributeError):
                self.word_maps = None
            yield

    @torch.no_grad()
    def _shown(self, latent: Tensor) -> Image:
        return tensor_to_pil(self.decode(latent))[0]

    def strip(self) -> Image | None:
        """The steps of the last picture from left to right, if they were watched."""
        if not self.frames:
            return None
        last = len(self.frames) - 1
        count = min(STRIP_STEPS, last + 1)
        chosen = [self.frames[round(k * last / max(count - 1, 1))] for k in range(count)]
        heads = [f"step {step.index + 1}\nt = {round(step.t, 1)}" for step, _ in chosen]
        latents, predictions = [self._shown(step.latent) for step, _ in chosen], [one for _, one in chosen]
        rows = ("noisy latent\nafter the step", "prediction\nof the result")
        return make_grid([latents, predictions], rows=rows, labels=(heads,), tile=STRIP_TILE)

    def words(self, picture: Image) -> tuple[tuple[str, Image], ...]:
        """The maps of the words over the last picture; none for a single word, which acts everywhere."""
        if self.word_maps is None or len(self.word_maps.names) < 2:
            return ()
        factor = self.model.config.autoencoder.downsampling
        try:
            heat = self.word_maps.heat((self.size[1] // factor, self.size[0] // factor))
        except ValueError:  # the layers attend at no resolution that can be laid over the picture
            return ()
        small = picture.copy()
        small.thumbnail((WORD_PIXELS, WORD_PIXELS))
        base = image_to_tensor(small)[0]
        names = self.word_maps.names[:MAX_WORDS]
        return tuple((name, tensor_to_pil(overlay(base, one)[None])[0]) for name, one in zip(names, heat))


def fitted(image: Image, size: tuple[int, int]) -> Image:
    """The image cropped around its centre to the proportions of size (width, height), and scaled to it."""
    from PIL import Image as PIL
    from PIL import ImageOps

    if image.size == size:
        return image
    return ImageOps.fit(image, size, PIL.Resampling.LANCZOS if image.mode == "RGB" else PIL.Resampling.BOX)


def _recipe(order: Order, loaded: LoadedModel, k: int, not_finite: str | None) -> Recipe:
    scheduler = SCHEDULERS[order.scheduler]
    return Recipe(
        task=order.task,
        prompt=order.prompt,
        negative_prompt=order.negative_prompt,
        seed=_set(order.seed) + k,
        steps=_set(order.steps),
        width=_set(order.width),
        height=_set(order.height),
        guidance_scale=float(_set(order.guidance_scale)),
        strength=None if order.task == "txt2img" else order.strength,
        scheduler=type(scheduler).__name__,
        scheduler_settings=asdict(scheduler),
        model=loaded.file,
        image=None if order.image is None else order.image.file,
        mask=None if order.mask is None else order.mask.file,
        device=str(loaded.model.device),
        dtype=str(loaded.model.dtype).removeprefix("torch."),
        not_finite=not_finite,
        versions={"ldm_core": ldm_core.__version__, "torch": str(torch.__version__)},
    )


def _set(value: Any) -> Any:
    """A field of a complete order."""
    assert value is not None
    return value


def _given(upload: Upload | None) -> Image:
    assert upload is not None
    return upload.image
