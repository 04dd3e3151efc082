"""The workbench: a grid of pictures from a prompt with flags, and the ways to go on from one of them.

    bench = Workbench(ldm_core.Sampler(ldm_core.load()), steps=25, guidance_scale=4)
    grid = bench.imagine("a cat --ar 3:2 --no dog --seed 7")
    grid.sheet()                                  # four pictures with their numbers
    more = bench.vary(grid.pick(2), "weak")
    bench.upscale(more.pick(1)).save("cat.png")   # with all that is needed to go on from it

Midjourney's way of working, on the public API of this package alone.
"""

from __future__ import annotations

import copy
import secrets
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, is_dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import torch

import ldm_core
from ldm_core import Sampler, Windows
from ldm_core.conditioners import TextConditioner, Unclip
from ldm_core.recipe import Recipe, SourceFile
from ldm_core.support.printable import shown
from ldm_core.workbench.blending import draw_between, mixed_contexts, mixed_latents, shares
from ldm_core.workbench.chaos import Chaos
from ldm_core.workbench.description import describe
from ldm_core.workbench.flags import Flags, parse_flags
from ldm_core.workbench.noise import mixed_noise
from ldm_core.workbench.outpainting import Direction, panned, zoomed_out
from ldm_core.workbench.pictures import Grid, Picture
from ldm_core.workbench.plan import Plan, enlarged, fitted, plan_of, size_for

if TYPE_CHECKING:
    from PIL.Image import Image

How = Literal["weak", "strong"]
# The amount of other noise in variations of a picture from noise, and img2img's strength in those of others.
AMOUNTS: Mapping[How, float] = {"weak": 0.1, "strong": 0.5}
STRENGTHS: Mapping[How, float] = {"weak": 0.4, "strong": 0.7}
UPSCALE_STRENGTH, BLEND_STRENGTH = 0.3, 0.7


class Workbench:
    """Draws grids with a sampler whose model takes prompts.

    sampler: of a text model or an unCLIP model. steps, guidance_scale: as in `Sampler.txt2img`.
    count: pictures of a grid.
    adapter: whether the model has an IP-Adapter (`apply_ip_adapter`), which then takes pictures in prompts.
    upscaler: a sampler of a model for super-resolution, for `upscale`.
    clip: a `CLIP` for `describe`.
    fields: of the recipes of all pictures, such as model=source_file(path); they name what drew them.
    on_step: called after each step, as in `Sampler.sample`.

    Raises ValueError for a model of other inputs. The methods raise ValueError for bad arguments.
    """

    def __init__(
        self,
        sampler: Sampler,
        *,
        steps: int = 50,
        guidance_scale: float | None = None,
        count: int = 4,
        adapter: bool = False,
        upscaler: Sampler | None = None,
        clip: Any = None,
        fields: Mapping[str, Any] | None = None,
        on_step: Any = None,
    ) -> None:
        conditioner = sampler.model.conditioner
        if not isinstance(conditioner, TextConditioner | Unclip):
            raise ValueError(
                f"the workbench needs a model of prompts, not one with {type(conditioner).__name__}"
            )
        if not isinstance(count, int) or not 1 <= count <= 64:
            raise ValueError(f"a grid has 1 to 64 pictures, not {shown(count)}")
        self.sampler, self.steps, self.guidance_scale, self.count = sampler, steps, guidance_scale, count
        self.adapter, self.upscaler, self.clip, self.on_step = adapter, upscaler, clip, on_step
        self.fields = {"model": SourceFile("", ""), **(fields or {})}

    def imagine(self, prompt: str, image: Any = None) -> Grid:
        """A grid of pictures for a prompt with flags (`parse_flags`).

        image: a PIL image as a part of the prompt, with the weight `--iw` (1). An IP-Adapter takes it at that
            scale, and an unCLIP model without a weight; any other model starts from it, with img2img's
            strength 1 / (1 + iw), so that 0 ignores it.
        """
        flags = parse_flags(prompt)
        if not flags.text and image is None:
            raise ValueError("expected words before the flags, such as imagine 'a cat --ar 3:2'")
        if flags.iw is not None and image is None:
            raise ValueError("--iw is the weight of a picture in the prompt, and there is none")
        plan = self._plan(flags, alone=image is None)
        options, weight = self._options(plan), 1.0 if flags.iw is None else flags.iw
        if isinstance(self.sampler.model.conditioner, Unclip):
            if image is None:
                raise ValueError("an unCLIP model draws from a picture: give an image beside the prompt")
            if flags.iw is not None:
                raise ValueError("--iw: an unCLIP model takes pictures without a weight")
            inputs = {"image": image, "prompt": plan.text}
            options |= {"unconditional": plan.no, **plan.sides}
            return self._grid(plan, lambda sampler: sampler.sample(inputs, **options))
        options |= {"prompt": plan.text, "negative_prompt": plan.no}
        if image is None or self.adapter:
            options |= plan.sides
            if image is not None:
                options |= {"image_prompt": image, "image_scale": weight}
            return self._grid(plan, lambda sampler: sampler.txt2img(**options))
        options |= {"image": fitted(image, plan.size), "strength": 1 / (1 + weight)}
        return self._grid(plan, lambda sampler: sampler.img2img(**options))

    def vary(self, picture: Picture, how: How = "strong", seed: int | None = None) -> Grid:
        """Variations of a picture with its prompt and flags.

        A picture that was drawn from noise alone: from its noise mixed with other noise (`mixed_noise`), with
            little ("weak") or more ("strong"). Any other: by img2img from its own pixels.
        seed: of the first variation; by default a random one.
        """
        if how not in AMOUNTS:
            raise ValueError(f"vary takes 'weak' or 'strong', not {shown(how)}")
        before, recipe = picture.noises, picture.recipe
        seeds = self._seeds(seed)
        if before.alone:
            mixtures = tuple((*before.mixtures[0], (one, AMOUNTS[how])) for one in seeds)
        else:
            mixtures = tuple(((one, 1.0),) for one in seeds)
        plan = replace(
            plan_of(picture), mixtures=mixtures, alone=before.alone, chaos=before.chaos, tile=before.tile
        )
        options = self._options(plan, recipe) | {"prompt": plan.text, "negative_prompt": plan.no}
        if not before.alone:
            options |= {"image": picture.image, "strength": STRENGTHS[how]}
            return self._grid(plan, lambda sampler: sampler.img2img(**options), recipe)
        # The noise that a scheduler may add is that of the first seed, as in the original.
        options |= {"latent": self._noise(plan), **plan.sides}
        return self._grid(plan, lambda sampler: sampler.txt2img(**options), recipe)

    def upscale(
        self,
        picture: Picture,
        scale: float = 2,
        strength: float = UPSCALE_STRENGTH,
        windows: Windows | None = None,
    ) -> Picture:
        """The picture enlarged: by the upscaler, which determines the scale, or by a second pass.

        strength: of the second pass, as in `img2img`; more invents more. windows: in which the networks work,
            for pictures that need more memory than there is.
        """
        plan = replace(plan_of(picture), tile=picture.noises.tile)
        if self.upscaler is not None:
            takes_text = self.upscaler.model.conditioner.unconditional is not None
            prompt = plan.text if takes_text else None
            options = {"steps": self.steps, "seed": plan.seeds, "windows": windows, "on_step": self.on_step}
            [image] = self.upscaler.upscale(picture.image, prompt, **options)
            return Picture(image, self._recipe(replace(plan, size=image.size), 0, image, picture.recipe))
        if windows is not None and plan.tile:
            raise ValueError("upscale: windows would show in a picture that repeats; leave them out")
        if not isinstance(scale, int | float) or not 1 <= scale <= 16:
            raise ValueError(f"upscale takes a scale in 1..16, not {shown(scale)}")
        size = (round(picture.image.width * scale), round(picture.image.height * scale))
        plan = replace(plan, size=size)
        options = self._options(plan, picture.recipe) | {
            "prompt": plan.text,
            "negative_prompt": plan.no,
            "image": enlarged(picture.image, size, wraps=plan.tile),
            "strength": strength,
        }

        def draw(sampler: Sampler) -> Any:
            if windows is not None:
                chosen: Any = {"size": windows.size, "stride": windows.stride, "weights": windows.weights}
                sampler.model = ldm_core.windowed(sampler.model, **chosen)
            return sampler.img2img(**options)

        return self._grid(plan, draw, picture.recipe).pick(1)

    def zoom_out(self, picture: Picture, factor: float = 2, prompt: str | None = None) -> Grid:
        """The picture, `factor` times smaller, in the middle of new surroundings.

        prompt: of the surroundings, with flags; by default the picture's. Sides are rounded to whole latents.
        """
        unit = self.sampler.model.config.autoencoder.downsampling
        return self._outpainted(picture, zoomed_out(picture.image, factor, unit), prompt)

    def pan(
        self, picture: Picture, direction: Direction, amount: float = 0.5, prompt: str | None = None
    ) -> Grid:
        """The picture with new surroundings on one side: it grows by `amount` of its side there.

        direction: "left", "right", "up" or "down". prompt: as in `zoom_out`. The size is rounded to one that
            the networks take.
        """
        unit = self.sampler.model.config.size_multiple
        return self._outpainted(picture, panned(picture.image, direction, amount, unit), prompt)

    def blend(
        self,
        pictures: Sequence[Picture | Image],
        prompt: str = "",
        weights: Sequence[float] | None = None,
        strength: float = BLEND_STRENGTH,
    ) -> Grid:
        """New pictures from two or more, whose meaning depends on the model (`ldm_core.workbench.blending`).

        prompt: with flags. Without one, and without an unCLIP model or IP-Adapter, the prompts that the
            pictures carry are mixed like them. weights: of the pictures, by default equal. strength: of the
            noise on the mixed latents, in (0, 1].
        """
        flags, parts = parse_flags(prompt), shares(weights, len(pictures))
        if flags.iw is not None and not self.adapter:
            raise ValueError("--iw: a blend has the weights of its pictures")
        plan = self._plan(flags, alone=False)
        images = [fitted(getattr(one, "image", one), plan.size) for one in pictures]
        options = self._options(plan)
        if isinstance(self.sampler.model.conditioner, Unclip):
            inputs = {"images": images, "weights": parts, "prompt": plan.text}
            options |= {"unconditional": plan.no, **plan.sides}
            return self._grid(plan, lambda sampler: sampler.sample(inputs, **options))
        options |= {"negative_prompt": plan.no}
        if self.adapter:
            if len(set(parts)) > 1:
                raise ValueError("blend: an IP-Adapter takes pictures without weights")
            weight = 1.0 if flags.iw is None else flags.iw
            options |= {"image_prompt": images, "image_scale": weight, **plan.sides}
            return self._grid(plan, lambda sampler: sampler.txt2img(plan.text, **options))
        prompts = [flags.text or (one.recipe.prompt if isinstance(one, Picture) else "") for one in pictures]
        plan = replace(plan, text=flags.text or " + ".join(dict.fromkeys(filter(None, prompts))))
        options |= {"context": mixed_contexts(self.sampler.model, prompts, parts)}
        latent = mixed_latents(self.sampler.model, images, parts)
        for name in ("num_images", "seed"):
            options.pop(name)
        return self._grid(
            plan, lambda sampler: draw_between(sampler, latent, strength, plan.seeds, **options)
        )

    def describe(
        self, picture: Picture | Image, words: Sequence[str] | None = None, top: int = 5
    ) -> list[tuple[str, float]]:
        """The words that CLIP finds nearest to a picture, with probabilities among all words, nearest first.

        words: to choose from; by default about ninety. Raises ValueError without a `CLIP`.
        """
        return describe(self.clip, getattr(picture, "image", picture), words, top)

    def _outpainted(self, picture: Picture, canvas: tuple[Image, Image], prompt: str | None) -> Grid:
        image, mask = canvas
        plan = replace(plan_of(picture), size=image.size)
        flags = Flags() if prompt is None else parse_flags(prompt)
        if flags.ar is not None or flags.tile or flags.chaos or flags.iw is not None:
            raise ValueError("a prompt for outpainting takes the flags --no and --seed only")
        plan = replace(plan, mixtures=tuple(((seed, 1.0),) for seed in self._seeds(flags.seed)))
        if prompt is not None:
            plan = replace(plan, text=flags.text, no=flags.no)
        options = self._options(plan, picture.recipe)
        return self._grid(
            plan,
            lambda sampler: sampler.inpaint(plan.text, image, mask, negative_prompt=plan.no, **options),
            picture.recipe,
        )

    def _plan(self, flags: Flags, *, alone: bool) -> Plan:
        mixtures = tuple(((seed, 1.0),) for seed in self._seeds(flags.seed))
        return Plan(
            flags.text,
            flags.no,
            size_for(self.sampler.model.config, flags.ar),
            mixtures,
            alone,
            flags.chaos,
            flags.tile,
        )

    def _seeds(self, seed: int | None) -> list[int]:
        first = secrets.randbits(32) if seed is None else seed
        return [first + k for k in range(self.count)]

    def _noise(self, plan: Plan) -> torch.Tensor:
        config, (width, height) = self.sampler.model.config, plan.size
        f = config.autoencoder.downsampling
        shape = (1, config.unet.out_channels, height // f, width // f)
        return torch.cat([mixed_noise(mixture, shape) for mixture in plan.mixtures])

    def _options(self, plan: Plan, recipe: Recipe | None = None) -> Any:
        """The arguments that all tasks share; those of a picture to go on from are its own."""
        return {
            "steps": self.steps if recipe is None else recipe.steps,
            "guidance_scale": self.guidance_scale if recipe is None else recipe.guidance_scale,
            "num_images": len(plan.mixtures),
            "seed": plan.seeds,
            "on_step": self.on_step,
        }

    def _grid(self, plan: Plan, draw: Callable[[Sampler], Any], before: Recipe | None = None) -> Grid:
        """Draw with a sampler as the flags want it."""
        sampler = copy.copy(self.sampler)
        if plan.chaos:
            sampler.guidance = Chaos(sampler.guidance, plan.chaos / 100, plan.seeds)
        with ldm_core.seamless(sampler.model) if plan.tile else nullcontext():
            images = draw(sampler)
        return Grid(
            tuple(Picture(image, self._recipe(plan, k, image, before)) for k, image in enumerate(images))
        )

    def _recipe(self, plan: Plan, number: int, image: Image, before: Recipe | None) -> Recipe:
        scheduler, drawn = self.sampler.scheduler, image.info["recipe"]
        own: dict[str, Any] = {
            "task": "imagine",
            "prompt": plan.text,
            "negative_prompt": plan.no,
            "seed": plan.seeds[number],
            "steps": self.steps if before is None else before.steps,
            "width": image.width,
            "height": image.height,
            "guidance_scale": drawn["guidance_scale"] if before is None else before.guidance_scale,
            "scheduler": type(scheduler).__name__,
            "scheduler_settings": asdict(scheduler) if is_dataclass(scheduler) else {},
            "not_finite": image.info.get("not_finite"),
            "versions": {"ldm_core": ldm_core.__version__, "torch": str(torch.__version__)},
            "noises": plan.noises(number),
        }
        return Recipe(**own, **self.fields)
