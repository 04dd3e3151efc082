"""The `imagine` command, and the workbench and its output that others share which go on from its pictures."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import gcd
from pathlib import Path

from ldm_core.adapters.ip_adapter import apply_ip_adapter
from ldm_core.cli import defaults
from ldm_core.cli.controls import require_clip
from ldm_core.cli.draw import Progress
from ldm_core.cli.inputs import open_rgb
from ldm_core.cli.kinds import default_guidance
from ldm_core.cli.model import chosen, load_model, usable_device
from ldm_core.cli.output import Output, find_output
from ldm_core.cli.plan import chosen_scheduler
from ldm_core.cli.printing import EXIT_FAILED, EXIT_INTERRUPTED, print_path, tell
from ldm_core.cli.recipe_files import require_trust
from ldm_core.guidance import ClassifierFreeGuidance
from ldm_core.recipe import Recipe, read_recipe, without_paths
from ldm_core.sampler import Sampler
from ldm_core.support.warn import warn
from ldm_core.workbench import Flags, Grid, Picture, Workbench, parse_flags


@dataclass(frozen=True)
class Desk:
    """A workbench and where its grids are written."""

    bench: Workbench
    output: Output
    args: Namespace

    def save(self, grid: Grid) -> int:
        """Write a grid, and with `--separate` its pictures; print the paths; return the exit status."""
        path = self._save(grid.sheet() if len(grid) > 1 else grid.images[0], grid.recipe, self.output)
        if self.args.separate and len(grid) > 1:
            for number, picture in enumerate(grid, start=1):
                beside = path.with_name(f"{path.stem}-{number}.png")
                output = Output(path.parent, path.stem, beside, self.args.force)
                self._save(picture.image, picture.recipe, output)
        black = sum(picture.recipe.not_finite is not None for picture in grid)
        if black:
            tell(f"error: {black} of {len(grid)} pictures have NaN or infinity in their latents")
        return EXIT_FAILED if black else 0

    def _save(self, image: object, recipe: Recipe, output: Output) -> Path:
        recipe = without_paths(recipe) if self.args.no_paths else recipe
        path = output.save(image, recipe)  # type: ignore[arg-type]
        print_path(path)
        return path


@contextmanager
def open_desk(args: Namespace, again: Recipe | None, *, grids: int = 1) -> Iterator[Desk]:
    """The workbench of a command: with the model of its options, or of the recipe `again`, or the bundled."""
    if again is not None:
        require_trust(args, again, ())
    adapter = getattr(args, "ip_adapter", None)
    require_clip(adapter, getattr(args, "clip", None))
    scheduler = chosen_scheduler(args, again)
    output = find_output(args.output, args.command, count=grids, steps=False, force=args.force)
    device = usable_device(args.device)
    model, fields = load_model(args, again, device)
    if adapter is not None:
        apply_ip_adapter(model, adapter, clip=args.clip)
    bundled = fields["model"].path is None
    fields |= {"device": str(device)}
    for name in ("clip_skip", "prompt_syntax"):
        fields[name] = chosen(args, again, name)
    fields["guidance_rescale"] = chosen(args, again, "guidance_rescale", 0.0)
    guidance = ClassifierFreeGuidance(rescale=fields["guidance_rescale"])
    sampler = Sampler(
        model,
        scheduler,
        guidance,
        clip_skip=fields["clip_skip"],
        prompts=fields["prompt_syntax"],
        batch_size=1,
    )
    scale = defaults.BUNDLED_GUIDANCE if bundled else default_guidance(model.conditioner)
    with Progress(grids, 1, quiet=args.quiet) as progress:
        bench = Workbench(
            sampler,
            steps=chosen(args, again, "steps", defaults.BUNDLED_STEPS if bundled else defaults.STEPS),
            guidance_scale=chosen(args, again, "guidance_scale", scale),
            count=args.count,
            adapter=adapter is not None,
            fields=fields,
            on_step=progress.update,
        )
        yield Desk(bench, output, args)


def imagine(args: Namespace) -> int:
    """Draw a grid for each prompt and return the exit status."""
    again = None if args.recipe is None else read_recipe(args.recipe)
    prompts = _prompts(args.prompt, again)
    if again is not None and (again.controls or again.image_prompts):
        warn(f"{args.recipe} was drawn with controls or an image prompt, and imagine draws without them")
    image = None if args.image is None else open_rgb(args.image, "--image")
    done, status = 0, 0
    try:
        with open_desk(args, again, grids=len(prompts)) as desk:
            for prompt in prompts:
                status = max(status, desk.save(desk.bench.imagine(prompt, image)))
                done += 1
    except KeyboardInterrupt:
        tell(f"interrupted; {done} of {len(prompts)} grids are complete and kept")
        return EXIT_INTERRUPTED
    return status


def _prompts(given: Sequence[str], again: Recipe | None) -> list[str]:
    """The prompts, checked. Without one: that of the recipe with its flags."""
    if given:
        for prompt in given:
            parse_flags(prompt)
        return list(given)
    if again is None:
        raise ValueError("there is nothing to draw; give a prompt or --from FILE.png")
    divisor = gcd(again.width, again.height)
    flags = Flags(
        text=again.prompt,
        ar=(again.width // divisor, again.height // divisor),
        no=again.negative_prompt,
        seed=again.seed,
    )
    if again.noises is not None:
        flags = replace(flags, chaos=again.noises.chaos, tile=again.noises.tile)
    return [str(flags)]


def picture_of(words: Sequence[str], folder: str) -> tuple[str, Picture]:
    """(path, picture) for a number, a file, or both; without a file, of the newest grid in a folder."""
    words = list(words)
    number = int(words.pop(0)) if words and is_number(words[0]) else None
    if len(words) > 1:
        raise ValueError(f"expected [NUMBER] FILE.png, got {' '.join(words):.80}")
    path = words[0] if words else _newest_grid(folder)
    grid = Grid.open(path)
    if number is None and len(grid) > 1:
        raise ValueError(f"{path} has {len(grid)} pictures: give the number of one of them before the file")
    try:
        return path, grid.pick(1 if number is None else number)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def is_number(word: str) -> bool:
    """Whether a word is the number of a picture, and no file."""
    return word.isascii() and word.isdigit() and len(word) <= 3


def _newest_grid(folder: str) -> str:
    place = Path(folder) if Path(folder).is_dir() else Path(folder).parent
    found = [
        path
        for command in ("imagine", "vary", "zoom-out", "pan", "blend")
        for path in place.glob(f"{command}-[0-9][0-9][0-9][0-9].png")
    ]
    if not found:
        raise ValueError(f"there is no grid in {place.resolve()}; give its file after the number")
    return str(max(found, key=lambda path: path.stat().st_mtime_ns))
