"""From the parsed command line to a job: everything is checked and opened before the drawing starts.

Options that the command line lacks come from the recipe of `--from`, or else from the defaults.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

import ldm_core
from ldm_core import schedulers
from ldm_core.cli import defaults
from ldm_core.cli.inputs import Inputs, open_inputs, read_prompts, uninterpreted
from ldm_core.cli.model import chosen, load_model, usable_device
from ldm_core.cli.output import Output, find_output
from ldm_core.cli.printing import PROG
from ldm_core.cli.recipe_files import recorded_path, require_trust
from ldm_core.guidance import ClassifierFreeGuidance
from ldm_core.noise import image_seeds
from ldm_core.recipe import Recipe, read_recipe, without_paths
from ldm_core.sampler import Sampler
from ldm_core.support.printable import printable, shown
from ldm_core.support.warn import warn

SCHEDULERS: dict[str, Any] = {
    "ddim": schedulers.DDIM(),
    "ddpm": schedulers.DDPM(),
    "plms": schedulers.PNDM(),
    "pndm": schedulers.PNDM(),
    "pndm-rk": schedulers.PNDM(warmup="runge_kutta"),
    "dpm++2m": schedulers.DPMSolverMultistep(),
    "dpm++2m-karras": schedulers.DPMSolverMultistep(spacing="karras"),
    "unipc": schedulers.UniPC(),
    "euler": schedulers.Euler(),
    "euler-a": schedulers.EulerAncestral(),
    "heun": schedulers.Heun(),
    "lms": schedulers.LMS(),
}
CLASSES: dict[str, Any] = {type(scheduler).__name__: type(scheduler) for scheduler in SCHEDULERS.values()}
NEEDED: dict[str, tuple[str, ...]] = {"txt2img": (), "img2img": ("image",), "inpaint": ("image", "mask")}


@dataclass(frozen=True)
class Job:
    """A drawing command: its sampler, one recipe per picture, its input pictures and its output."""

    sampler: Sampler
    recipes: Sequence[Recipe]
    inputs: Inputs
    output: Output


def prepare(args: Namespace) -> Job:
    """Check and open everything that a drawing needs. Cheap checks come first, to fail early."""
    again = _recipe_to_follow(args)
    prompts, negatives = _texts(args, again)
    _warn_of_uninterpreted([*prompts, *negatives])
    num = _pictures_per_prompt(args, len(prompts))
    seeds = image_seeds(chosen(args, again, "seed"), len(prompts) * num)
    scheduler = _scheduler(args, again)
    guidance = ClassifierFreeGuidance(rescale=chosen(args, again, "guidance_rescale", 0.0))
    output = find_output(args.output, args.command, count=len(seeds), steps=args.show_steps, force=args.force)
    size = args.size or ((again.width, again.height) if again else None)
    inputs = _inputs(args, again, size)
    device = usable_device(args.device)

    model, model_fields = load_model(args, again, device)
    bundled = model_fields["model"].path is None
    default_steps = defaults.BUNDLED_STEPS if bundled else defaults.STEPS
    default_guidance = defaults.BUNDLED_GUIDANCE if bundled else defaults.GUIDANCE
    if inputs.image is not None:
        size = inputs.image.size
    width, height = size or (model.config.image_size, model.config.image_size)
    template = Recipe(
        task=args.command,
        prompt="",
        seed=0,
        steps=chosen(args, again, "steps", default_steps),
        width=width,
        height=height,
        guidance_scale=chosen(args, again, "guidance_scale", default_guidance),
        guidance_rescale=guidance.rescale,
        strength=_strength(args, again),
        scheduler=type(scheduler).__name__,
        scheduler_settings=asdict(scheduler),
        clip_skip=chosen(args, again, "clip_skip"),
        image=inputs.image_file,
        mask=inputs.mask_file,
        device=str(device),
        versions={"ldm_core": ldm_core.__version__, "torch": str(torch.__version__)},
        **model_fields,
    )
    if args.no_paths:
        template = without_paths(template)
    if again is not None:
        _warn_of_differences(args.recipe, again, template)
    sampler = Sampler(model, scheduler, guidance, clip_skip=template.clip_skip)
    texts = [texts for texts in zip(prompts, negatives) for _ in range(num)]
    recipes = [
        replace(template, prompt=prompt, negative_prompt=negative, seed=seed)
        for (prompt, negative), seed in zip(texts, seeds)
    ]
    return Job(sampler, recipes, inputs, output)


def _strength(args: Namespace, again: Recipe | None) -> float | None:
    if args.command == "txt2img":
        return None
    return chosen(args, again, "strength", defaults.STRENGTH[args.command])


def _recipe_to_follow(args: Namespace) -> Recipe | None:
    if args.recipe is None:
        return None
    again = read_recipe(args.recipe)
    if _is_ours(again) and again.task != args.command:
        raise ValueError(f"{args.recipe} was drawn with {again.task}; use {PROG} {again.task} --from")
    require_trust(args, again, NEEDED[args.command])
    return again


def _is_ours(recipe: Recipe) -> bool:
    return "ldm_core" in recipe.versions


def _texts(args: Namespace, again: Recipe | None) -> tuple[list[str], list[str]]:
    """The prompts, and a negative prompt for each."""
    if args.prompt and args.prompts is not None:
        raise ValueError("expected prompts or --prompts FILE, not both")
    if args.prompts is not None:
        prompts = read_prompts(args.prompts)
    elif args.prompt or again is None:
        prompts = args.prompt
    else:
        prompts = [again.prompt]
    if not prompts:
        raise ValueError("there is nothing to draw; give a prompt, --prompts FILE or --from FILE.png")
    negatives = args.negative_prompt or [again.negative_prompt if again else ""]
    if len(negatives) not in (1, len(prompts)):
        raise ValueError(
            f"expected one --negative-prompt, or {len(prompts)}, one for each prompt, got {len(negatives)}"
        )
    return prompts, negatives * (len(prompts) // len(negatives))


def _warn_of_uninterpreted(prompts: list[str]) -> None:
    found = uninterpreted(prompts)
    if found:
        quoted = ", ".join(f"{text!r:.100}" for text in found)
        hint = "; apply a LoRA with --lora FILE" if found[0].startswith("<") else ""
        warn(f"this syntax in prompts is not interpreted, but read as ordinary text: {quoted}{hint}")


def _pictures_per_prompt(args: Namespace, prompts: int) -> int:
    """The value of --num; by default, as many pictures as a list of seeds has."""
    if args.num is None and isinstance(args.seed, list):
        return max(1, len(args.seed) // prompts)
    return args.num or 1


def _scheduler(args: Namespace, again: Recipe | None) -> Any:
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
    for name in ("model", "image", "mask"):
        then, new = getattr(again, name), getattr(now, name)
        if then is not None and new is not None and not new.same_as(then):
            warn(
                f"{path} was drawn with the {name} {then.name!r:.300} (sha256 {then.short_hash}…), not with "
                f"{new.name!r} ({new.short_hash}…); the new picture will differ"
            )
    if again.device is not None and again.device.split(":")[0] != str(now.device).split(":")[0]:
        warn(f"{path} was drawn on {again.device!r:.80}, not on {now.device}; expect small differences")
