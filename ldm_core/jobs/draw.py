"""The core of a job: from rows to pictures and recipes, without files, processes or state.

A picture depends on its row, the model and the options alone. Rows of one size, number of steps and guidance
are drawn in batches; every picture has its own generator, so batches change a picture only by rounding.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, is_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldm_core.guidance import Guidance
from ldm_core.jobs.inputs import inputs_of, kind_of, require_inputs
from ldm_core.jobs.rows import Row, id_of, parse_row, row_seed
from ldm_core.model import LatentDiffusion
from ldm_core.recipe.fields import Recipe, without_paths
from ldm_core.recipe.files import SourceFile
from ldm_core.sampler import Sampler
from ldm_core.schedulers import Scheduler
from ldm_core.start import require_size
from ldm_core.support.printable import printable

if TYPE_CHECKING:
    from PIL.Image import Image

    from ldm_core.conditioners.prompt_syntax import PromptSyntax

GUIDANCE, STEPS, STRENGTH = 7.5, 50, 0.75  # as in the original scripts
MAX_PIXELS = 16  # times the pixels of the model's training resolution
MAX_ERROR = 500  # letters

UNNAMED = SourceFile("", "")

Given = Row | Mapping[str, Any]


@dataclass(frozen=True)
class Options:
    """What rows do not say themselves.

    seed: of the job, from which rows without a seed get theirs.
    steps, guidance_scale, width, height, strength: of rows without them, as in `Sampler.sample`.
    batch_size: the largest number of pictures drawn at a time.
    scheduler, guidance, clip_skip, prompts: as in `Sampler`.
    max_pixels: of a picture; larger rows fail. None: 16 times those of the model's training resolution.
    images: the folder that paths in the column "image" are relative to; None: such rows fail.
    model, recorded: the model's file and further fields of the recipes, which have no paths.
    """

    seed: int = 0
    steps: int = STEPS
    guidance_scale: float | None = None
    width: int | None = None
    height: int | None = None
    strength: float = STRENGTH
    batch_size: int = 1
    scheduler: Scheduler | None = None
    guidance: Guidance | None = None
    clip_skip: int | None = None
    prompts: str | PromptSyntax | None = None
    max_pixels: int | None = None
    images: Path | None = None
    model: SourceFile = UNNAMED
    recorded: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Drawn:
    """The picture of a row and its recipe, or the reason why there is none.

    index: the row's position among those given.
    """

    index: int
    id: str
    image: Image | None = None
    recipe: Recipe | None = None
    error: str | None = None


class Draw:
    """Maps rows to pictures: `Draw(model, options)(rows)`.

    rows: `Row`s, or mappings with an "id" and the columns of `parse_row`.

    A row with invalid values, of a size that the model cannot draw, or whose latents become NaN or infinite,
    gives a `Drawn` with an error; the others are drawn. Errors that are not the row's own are raised:
    too little memory, OSError, and errors of the device.
    """

    def __init__(self, model: LatentDiffusion, options: Options | None = None) -> None:
        options = Options() if options is None else options
        if not 0 <= options.seed < 2**63:
            raise ValueError(f"the seed of a job must be in 0..2**63-1, not {options.seed}")
        if options.batch_size < 1:
            raise ValueError(f"batch_size must be positive, not {options.batch_size}")
        self.model, self.options, self.kind = model, options, kind_of(model.conditioner)
        self.sampler = Sampler(
            model,
            options.scheduler,
            options.guidance,
            clip_skip=options.clip_skip,
            prompts=options.prompts,
        )
        size = model.config.image_size
        width, height = options.width or size, options.height or size
        self.max_pixels = options.max_pixels or max(MAX_PIXELS * size**2, width * height)
        self.template = without_paths(self._template(width, height))
        if self.kind.task != "upscale":
            require_size(model.config, height, width)
        self._require_guidance(self.template.guidance_scale)

    def _template(self, width: int, height: int) -> Recipe:
        """What the recipes have in common."""
        model, options = self.model, self.options
        return Recipe(
            task=self.kind.task,
            prompt="",
            seed=0,
            steps=options.steps,
            width=width,
            height=height,
            guidance_scale=self._default_guidance(),
            guidance_rescale=getattr(self.sampler.guidance, "rescale", 0.0),
            scheduler=type(self.sampler.scheduler).__name__,
            scheduler_settings=_settings(self.sampler.scheduler),
            clip_skip=options.clip_skip,
            prompt_syntax=options.prompts if isinstance(options.prompts, str) else None,
            model=options.model,
            device=model.device.type,  # without its number, so that recipes do not depend on it
            dtype=str(model.dtype).removeprefix("torch."),
            **options.recorded,
        )

    def __call__(self, rows: Iterable[Given]) -> list[Drawn]:
        """The pictures of the rows, in their order."""
        return sorted(self.stream(rows), key=lambda drawn: drawn.index)

    def stream(self, rows: Iterable[Given]) -> Iterator[Drawn]:
        """The pictures as they are drawn: failed rows first, then one group of equal settings after another.

        This order does not depend on the size of the batches.
        """
        groups: dict[tuple[Any, ...], list[_Task]] = {}
        for index, given in enumerate(rows):
            row_id = ""
            try:
                row_id = given.id if isinstance(given, Row) else id_of(given.get("id"))
                row = given if isinstance(given, Row) else parse_row(row_id, given, self.options.images)
                task = _Task(index, row, self.recipe(row))
            except (ValueError, OSError) as error:  # an OSError of the row's picture
                yield Drawn(index, row_id, error=_reason(error))
            else:
                groups.setdefault(task.group, []).append(task)
        size = self.options.batch_size
        for tasks in groups.values():
            for start in range(0, len(tasks), size):
                yield from self._draw(tasks[start : start + size])

    def recipe(self, row: Row) -> Recipe:
        """How the row is drawn. Raises ValueError for a row that this model cannot draw."""
        require_inputs(self.kind, row)
        template, options = self.template, self.options
        fields: dict[str, Any] = {
            name: value
            for name in ("steps", "guidance_scale", "prompt", "negative_prompt", "class_label", "layout")
            if (value := getattr(row, name)) is not None
        }
        fields["seed"] = row_seed(options.seed, row.id) if row.seed is None else row.seed
        width, height = row.width or template.width, row.height or template.height
        if row.image is not None:
            f = self.model.config.autoencoder.downsampling if self.kind.task == "upscale" else 1
            width, height = (f * side for side in row.image.size)
            if (row.width or width, row.height or height) != (width, height):
                raise ValueError(f"the image gives {width}x{height} pixels, not {row.width}x{row.height}")
            fields["image"] = row.image_file
            if self.kind.task == "txt2img":
                strength = options.strength if row.strength is None else row.strength
                fields |= {"task": "img2img", "strength": strength}
        if self.kind.noise_level is not None:
            fields["noise_level"] = self.kind.noise_level if row.noise_level is None else row.noise_level
        if self.kind.task != "upscale":  # which pads its pictures
            require_size(self.model.config, height, width)
        if width * height > self.max_pixels:
            raise ValueError(f"{width}x{height} are more than {self.max_pixels:,} pixels")
        self._require_guidance(fields.get("guidance_scale", 1))
        return replace(template, width=width, height=height, **fields)

    def _draw(self, tasks: Sequence[_Task]) -> Iterator[Drawn]:
        """The pictures of one batch. If it fails, each row is drawn alone."""
        try:
            images = self._sample(tasks)
        except Exception as error:
            if not _is_the_rows_own(error):
                raise
            if len(tasks) == 1:
                yield Drawn(tasks[0].index, tasks[0].row.id, error=_reason(error))
                return
        else:
            for task, image in zip(tasks, images):
                bad = image.info.get("not_finite")
                if bad is None:
                    yield Drawn(task.index, task.row.id, image, task.recipe)
                else:
                    yield Drawn(task.index, task.row.id, error=bad)
            return
        for task in tasks:
            yield from self._draw([task])

    def _sample(self, tasks: Sequence[_Task]) -> list[Image]:
        rows, recipe = [task.row for task in tasks], tasks[0].recipe
        options: dict[str, Any] = {
            "steps": recipe.steps,
            "guidance_scale": recipe.guidance_scale,
            "seed": [task.recipe.seed for task in tasks],
        }
        images: Any = None if rows[0].image is None else [row.image for row in rows]
        if recipe.task == "upscale":
            if self.kind.noise_level is None:
                return self.sampler.upscale(images, **options)
            return self.sampler.upscale(
                images,
                [row.prompt or "" for row in rows],
                negative_prompt=[row.negative_prompt or "" for row in rows],
                noise_level=recipe.noise_level,
                **options,
            )
        if images is not None:
            options |= {"image": images, "strength": recipe.strength}
        options |= {"width": recipe.width, "height": recipe.height, **inputs_of(self.kind, rows)}
        return self.sampler.sample(**options)

    def _is_guided(self) -> bool:
        conditioner: Any = self.model.conditioner
        return getattr(conditioner, "unconditional", None) is not None or hasattr(
            conditioner, "unconditional_for"
        )

    def _default_guidance(self) -> float:
        if self.options.guidance_scale is not None:
            return self.options.guidance_scale
        own = getattr(self.model.conditioner, "guidance_scale", GUIDANCE)
        return float(own) if self._is_guided() else 1.0

    def _require_guidance(self, scale: float) -> None:
        if scale != 1 and not self._is_guided():
            raise ValueError(f"this model has no guidance; expected a guidance_scale of 1, not {scale:g}")


@dataclass(frozen=True)
class _Task:
    """A row that can be drawn."""

    index: int
    row: Row
    recipe: Recipe

    @property
    def group(self) -> tuple[Any, ...]:
        """What the rows of one batch have in common."""
        recipe = self.recipe
        settings = recipe.task, recipe.width, recipe.height, recipe.steps, recipe.guidance_scale
        return (*settings, recipe.strength, recipe.noise_level)


def _settings(scheduler: Any) -> dict[str, Any]:
    return asdict(scheduler) if is_dataclass(scheduler) else {}  # type: ignore[arg-type]


def _reason(error: BaseException) -> str:
    text = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) and error.strerror else ""
    return printable(" ".join((text or str(error) or type(error).__name__).split()))[:MAX_ERROR]


def _is_the_rows_own(error: Exception) -> bool:
    """Whether an error is likely to return with the same row, and only with it."""
    of_machine = ("out of memory", "can't allocate", "CUDA error", "device-side assert")
    return not (
        isinstance(error, (MemoryError, OSError))  # PyTorch's are RuntimeErrors
        or any(words in str(error) for words in of_machine)
    )
