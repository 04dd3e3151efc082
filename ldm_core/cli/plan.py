"""From the parsed command line to a job: everything is checked and opened before the drawing starts.

Options that the command line lacks come from the recipe of `--from`, or else from the defaults.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

import ldm_core
from ldm_core import schedulers
from ldm_core.cli import defaults
from ldm_core.cli.controls import open_controls
from ldm_core.cli.inputs import Inputs, Subject, open_inputs
from ldm_core.cli.kinds import default_guidance, is_guided, joined, usage
from ldm_core.cli.model import chosen, load_model, usable_device
from ldm_core.cli.output import Output, find_output
from ldm_core.cli.printing import PROG
from ldm_core.cli.prompts import open_prompts
from ldm_core.cli.recipe_files import (
    CONTROL_FILES,
    control_files,
    option_of,
    recorded_path,
    require_trust,
)
from ldm_core.cli.sample_inputs import open_sample_inputs
from ldm_core.guidance import ClassifierFreeGuidance, Guidance, ImageAndTextGuidance
from ldm_core.model import LatentDiffusion
from ldm_core.noise import image_seeds
from ldm_core.recipe import Recipe, read_recipe, without_paths
from ldm_core.recipe.fields import SOURCES
from ldm_core.sampler import Sampler
from ldm_core.schedulers.named import SCHEDULERS
from ldm_core.start import require_size
from ldm_core.support.printable import printable, shown
from ldm_core.support.warn import warn

CLASSES: dict[str, Any] = {type(scheduler).__name__: type(scheduler) for scheduler in SCHEDULERS.values()}
NEEDED: dict[str, tuple[str, ...]] = {"txt2img": (), "img2img": ("image",), "inpaint": ("image", "mask")}
OPTIONAL = tuple(name for name in SOURCES if name != "mask")  # files that the other commands read


@dataclass(frozen=True)
class Job:
    """A drawing command: its sampler, a recipe and the inputs of each picture, and its output.

    pictures: the image and mask of img2img and inpaint. controls: arguments of `Sampler.sample` for controls
    and an image prompt.
    """

    sampler: Sampler
    recipes: Sequence[Recipe]
    inputs: Sequence[Any]
    pictures: Inputs
    controls: Mapping[str, Any]
    output: Output


def prepare(args: Namespace) -> Job:
    """Check and open everything that a drawing needs. Cheap checks come first, to fail early."""
    again = _recipe_to_follow(args)
    what = open_prompts(args, again) if args.command in NEEDED else open_sample_inputs(args, again)
    num = _pictures_per_input(args, what.count)
    seeds = image_seeds(chosen(args, again, "seed"), what.count * num)
    scheduler = chosen_scheduler(args, again)
    rescale = chosen(args, again, "guidance_rescale", 0.0)
    ClassifierFreeGuidance(rescale=rescale)  # raises for others
    output = find_output(args.output, args.command, count=len(seeds), steps=args.show_steps, force=args.force)
    size = args.size or ((again.width, again.height) if again else None)
    pictures = _inputs(args, again, size) if args.command in NEEDED else Inputs()
    steering = open_controls(args, again)
    device = usable_device(args.device)

    model, model_fields = load_model(args, again, device)
    bundled = model_fields["model"].path is None
    subjects = what.subjects(model)
    guidance, image_scale = _guidance(args, again, model, rescale)
    inputs = [subject.inputs for subject in subjects]
    width, height = _size(args, model, inputs, pictures) or size or (model.config.image_size,) * 2
    if args.command != "upscale":  # which pads the picture and crops the result
        require_size(model.config, height, width)
    controls, control_fields = steering.apply(model, (width, height))
    template = Recipe(
        task=args.command,
        prompt="",
        seed=0,
        steps=chosen(args, again, "steps", defaults.BUNDLED_STEPS if bundled else defaults.STEPS),
        width=width,
        height=height,
        guidance_scale=_guidance_scale(args, again, model, bundled),
        guidance_rescale=rescale,
        image_guidance_scale=image_scale,
        strength=_strength(args, again),
        scheduler=type(scheduler).__name__,
        scheduler_settings=asdict(scheduler),
        clip_skip=chosen(args, again, "clip_skip"),
        prompt_syntax=chosen(args, again, "prompt_syntax"),
        image=pictures.image_file,
        mask=pictures.mask_file,
        device=str(device),
        versions={"ldm_core": ldm_core.__version__, "torch": str(torch.__version__)},
        **model_fields,
        **control_fields,
    )
    recipes = _recipes(args, template, subjects, seeds)
    if again is not None:
        _warn_of_differences(args.recipe, again, recipes[0])
    syntax = template.prompt_syntax
    sampler = Sampler(model, scheduler, guidance, clip_skip=template.clip_skip, prompts=syntax)
    return Job(sampler, recipes, [one for one in inputs for _ in range(num)], pictures, controls, output)


def _recipes(
    args: Namespace, template: Recipe, subjects: Sequence[Subject], seeds: Sequence[int]
) -> list[Recipe]:
    """The recipe of each picture; those of one subject follow one another."""
    num = len(seeds) // len(subjects)
    each = (one for one in subjects for _ in range(num))
    recipes = [replace(template, seed=seed, **one.fields) for one, seed in zip(each, seeds)]
    return [without_paths(recipe) for recipe in recipes] if args.no_paths else recipes


def _size(
    args: Namespace, model: LatentDiffusion, inputs: Sequence[Any], pictures: Inputs
) -> tuple[int, int] | None:
    """The (width, height) in pixels that the inputs determine, if they do."""
    if pictures.image is not None:
        return pictures.image.size
    sized = getattr(model.conditioner, "latent_size", None)
    latent = None if sized is None else sized(joined(inputs[:1])[0])
    if latent is None:
        return None
    if args.size is not None:
        raise ValueError(f"--size: the inputs determine the size here; {usage(model.conditioner)}")
    f = model.config.autoencoder.downsampling
    return latent[1] * f, latent[0] * f


def _guidance_scale(args: Namespace, again: Recipe | None, model: LatentDiffusion, bundled: bool) -> float:
    default = defaults.BUNDLED_GUIDANCE if bundled else default_guidance(model.conditioner)
    scale: float = chosen(args, again, "guidance_scale", default)
    if scale != 1 and not is_guided(model.conditioner):
        raise ValueError(f"--guidance {scale:g}: this model has no guidance; expected 1, or none given")
    return scale


def _guidance(
    args: Namespace, again: Recipe | None, model: LatentDiffusion, rescale: float
) -> tuple[Guidance, float | None]:
    """The guidance, and its scale of the picture for a model that edits pictures."""
    default = getattr(model.conditioner, "image_guidance_scale", None)
    if default is None:
        if args.image_guidance_scale is not None:
            raise ValueError(f"--image-guidance: this model edits no pictures; {usage(model.conditioner)}")
        return ClassifierFreeGuidance(rescale=rescale), None
    if rescale:
        raise ValueError("--guidance-rescale: not taken by a model that edits pictures")
    scale: float = chosen(args, again, "image_guidance_scale", default)
    return ImageAndTextGuidance(scale), scale


def _strength(args: Namespace, again: Recipe | None) -> float | None:
    if args.command not in defaults.STRENGTH:
        return None
    return chosen(args, again, "strength", defaults.STRENGTH[args.command])


def _recipe_to_follow(args: Namespace) -> Recipe | None:
    if args.recipe is None:
        if args.command not in NEEDED and args.model is None:
            raise ValueError(f"{args.command} needs the FILE of a model, or --from FILE.png")
        return None
    again = read_recipe(args.recipe)
    if _is_ours(again) and again.task != args.command:
        raise ValueError(f"{args.recipe} was drawn with {again.task}; use {PROG} {again.task} --from")
    require_trust(args, again, NEEDED.get(args.command, OPTIONAL))
    return again


def _is_ours(recipe: Recipe) -> bool:
    return "ldm_core" in recipe.versions


def _pictures_per_input(args: Namespace, count: int) -> int:
    """The value of --num; by default, as many pictures as a list of seeds has."""
    if args.num is None and isinstance(args.seed, list):
        return max(1, len(args.seed) // count)
    return args.num or 1


def chosen_scheduler(args: Namespace, again: Recipe | None) -> Any:
    """The scheduler of the options, else the recipe's, else the default."""
    if args.scheduler is not None or again is None:
        scheduler = SCHEDULERS[args.scheduler or defaults.SCHEDULER]
    elif again.scheduler not in CLASSES:
        raise ValueError(
            f"{args.recipe} was drawn with the unknown sampler {shown(again.scheduler)}; "
            "choose one with --scheduler"
        )
    else:
        try:
            scheduler = CLASSES[again.scheduler](**again.scheduler_settings)
        except (TypeError, ValueError) as error:
            reason = printable(str(error))
            raise ValueError(f"{args.recipe}: invalid scheduler in the recipe: {reason}") from None
    if args.eta is not None:
        if not isinstance(scheduler, (schedulers.DDIM, schedulers.EulerAncestral)):
            raise ValueError("--eta is an option of the ddim and euler-a schedulers only")
        scheduler = replace(scheduler, eta=args.eta)
    return scheduler if args.spacing is None else replace(scheduler, spacing=args.spacing)


def _inputs(args: Namespace, again: Recipe | None, size: tuple[int, int] | None) -> Inputs:
    """The input pictures of a command: the given ones, or else those at the recipe's paths."""
    paths: dict[str, str | None] = {"image": None, "mask": None}
    for name in NEEDED[args.command]:
        recorded = getattr(again, name, None)
        paths[name] = getattr(args, name)
        if paths[name] is None and recorded is not None:
            paths[name] = recorded_path(args.recipe, recorded, f"--{name}")
        if paths[name] is None:
            raise ValueError(f"{args.command} needs --{name} FILE")
    return open_inputs(paths["image"], paths["mask"], size)


def _warn_of_differences(path: str, again: Recipe, now: Recipe) -> None:
    """Warn if the new picture will differ from the recipe's, with the reason."""
    if not _is_ours(again):
        warn(f"{path} was drawn by another program; the new picture will only be similar")
        return
    pairs = [(option_of(name), getattr(again, name), getattr(now, name)) for name in ("model", *SOURCES)]
    files = (control_files(again), control_files(now))
    pairs += [
        (CONTROL_FILES[name], *both) for name in CONTROL_FILES for both in zip(files[0][name], files[1][name])
    ]
    for option, then, new in pairs:
        if then is not None and new is not None and not new.same_as(then):
            what = option.removeprefix("--")
            warn(
                f"{path} was drawn with the {what} {then.name!r:.300} (sha256 {then.short_hash}…), not with "
                f"{new.name!r} ({new.short_hash}…); the new picture will differ"
            )
    if again.device is not None and again.device.split(":")[0] != str(now.device).split(":")[0]:
        warn(f"{path} was drawn on {again.device!r:.80}, not on {now.device}; expect small differences")
