"""The page: a form for an order, the picture emerging step by step, its steps, its words and its recipe.

Gradio draws the form; nothing here computes. The browser names a model by its name and a picture by its own
upload; both are looked up, never opened as they come.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr
from PIL.Image import Image

from ldm_core.images import open_picture
from ldm_core.recipe import to_parameters_text
from ldm_core.schedulers.named import SCHEDULERS
from ldm_core.serve import fragments
from ldm_core.serve.engine import UNEXPECTED, Engine, as_bad_order
from ldm_core.serve.job import Job
from ldm_core.serve.order import STRENGTHS, BadOrder, ModelInfo, Order, Task, Upload, open_upload, record
from ldm_core.support.printable import shown
from ldm_core.support.regular_file import open_regular

LARGEST_SIDE = 2048  # that the sliders offer; the engine has its own limit
KEPT_SECONDS = 3600  # of uploads
PAINT = "#e11d8f"
HALF = 128  # the opacity from which a painted pixel belongs to the mask


class Page:
    """The page of an engine. uploads: the folder in which Gradio keeps pictures that users give."""

    def __init__(self, engine: Engine, uploads: Path) -> None:
        self.engine, self.uploads = engine, uploads
        self._jobs: dict[str, Job] = {}  # by session: one at a time

    def build(self) -> gr.Blocks:
        """The page as Gradio's blocks."""
        # Analytics are off here; the guard and the theme keep browsers from asking other hosts.
        with gr.Blocks(
            title="ldm_core", analytics_enabled=False, delete_cache=(KEPT_SECONDS, KEPT_SECONDS)
        ) as blocks:
            gr.HTML(fragments.HEADER)
            with gr.Row(equal_height=False):
                with gr.Column(scale=5, min_width=320):
                    self._add_inputs()
                    self._add_settings()
                with gr.Column(scale=6, min_width=320):
                    self._add_outputs()
            self._connect()
            blocks.unload(self._leave)
        blocks.queue(default_concurrency_limit=None, max_size=None)
        return blocks

    def _add_inputs(self) -> None:
        strength = {"minimum": 0.05, "maximum": 1, "step": 0.05, "label": "How much to change"}
        self.task = gr.State("txt2img")
        with gr.Tabs() as self.tabs:
            with gr.Tab("Draw", id="txt2img") as draw_tab:
                pass
            with gr.Tab("Redraw", id="img2img") as redraw_tab:
                self.image = gr.Image(label="Picture to redraw", format="png", height=260, **_UPLOAD)
                self.strength = gr.Slider(value=STRENGTHS["img2img"], **strength)
            with gr.Tab("Inpaint", id="inpaint") as inpaint_tab:
                gr.HTML(fragments.hint("Give a picture, and paint over what is to change."))
                self.editor = gr.ImageEditor(
                    show_label=False,
                    elem_id="editor",
                    format="png",
                    height=380,
                    transforms=(),
                    brush=gr.Brush(colors=[PAINT], color_mode="fixed"),
                    layers=gr.LayerOptions(disabled=True),
                    **_UPLOAD,
                )
                self.mask_strength = gr.Slider(value=STRENGTHS["inpaint"], **strength)
        for tab, task in ((draw_tab, "txt2img"), (redraw_tab, "img2img"), (inpaint_tab, "inpaint")):
            tab.select(_constant(task), outputs=self.task, **_QUIET)
        for block in (self.image, self.editor):
            setattr(block, "preprocess", lambda payload: payload)  # noqa: B010  (Gradio would decode anything)
        letters = self.engine.limits.letters
        self.prompt = gr.Textbox(
            label="Prompt", placeholder="grinning cat", lines=2, max_length=letters, autofocus=True
        )
        self.negative = gr.Textbox(
            label="Negative prompt", placeholder="what to avoid", lines=1, max_length=letters
        )
        with gr.Row():
            self.draw = gr.Button("Draw", variant="primary", elem_id="draw", min_width=120)
            self.cancel = gr.Button("Cancel", visible=False, elem_id="cancel", min_width=120)

    def _add_settings(self) -> None:
        names = list(self.engine.models)
        info = self.engine.models[names[0]]
        with gr.Accordion("Settings", open=False):
            with gr.Row():
                self.model = gr.Dropdown(names, value=names[0], label="Model", min_width=140)
                self.scheduler = gr.Dropdown(
                    list(SCHEDULERS), value=self.engine.scheduler, label="Scheduler", min_width=140
                )
            steps, scale, side = self._ranges(info)
            with gr.Row():
                self.steps = gr.Slider(label="Steps", min_width=140, **steps)
                self.scale = gr.Slider(label="Guidance", min_width=140, **scale)
            with gr.Row():
                self.width = gr.Slider(label="Width", min_width=140, **side)
                self.height = gr.Slider(label="Height", min_width=140, **side)
            self.seed = gr.Textbox(label="Seed", placeholder="random", max_length=20)

    def _add_outputs(self) -> None:
        self.stage = gr.HTML(fragments.EMPTY, elem_id="stage")
        self.picture = gr.State(None, time_to_live=KEPT_SECONDS)
        with gr.Column(visible=False) as self.details:
            with gr.Row():
                self.redraw = gr.Button("Redraw this", size="sm", min_width=120)
                self.inpaint = gr.Button("Inpaint this", size="sm", min_width=120)
            with gr.Tabs():
                with gr.Tab("Steps"):
                    self.strip = gr.HTML()
                with gr.Tab("Words"):
                    self.words = gr.HTML()
                with gr.Tab("Recipe"):
                    self.recipe = gr.Textbox(
                        label="Recipe", lines=4, buttons=["copy"], interactive=False, elem_id="recipe"
                    )
                    self.again = gr.HTML()

    def _connect(self) -> None:
        given = [self.image, self.strength, self.editor, self.mask_strength]
        settings = [self.model, self.scheduler, self.steps, self.scale, self.width, self.height, self.seed]
        outputs = [
            *(self.stage, self.strip, self.words, self.recipe, self.again),
            *(self.picture, self.details, self.draw, self.cancel),
        ]
        inputs = [self.task, self.prompt, self.negative, *settings, *given]
        for trigger in (self.draw.click, self.prompt.submit):
            trigger(self._run, inputs=inputs, outputs=outputs, **_QUIET)
        self.cancel.click(self._cancel, outputs=self.cancel, **_QUIET)
        changed = [self.steps, self.scale, self.width, self.height]
        self.model.change(self._choose_model, inputs=self.model, outputs=changed, **_QUIET)
        for button, task in ((self.redraw, "img2img"), (self.inpaint, "inpaint")):
            show = button.click(partial(_show, task), outputs=[self.tabs, self.task], **_QUIET)
            target, value = (self.image, _itself) if task == "img2img" else (self.editor, _as_background)
            # Gradio's editor takes a picture only while it is shown.
            show.then(value, inputs=self.picture, outputs=target, **_QUIET)

    def _run(self, request: gr.Request, task: Task, prompt: str, negative: str, *form: Any) -> Iterator[Any]:
        """Draw what the form says, and yield the page's changes at every report."""
        ready = {self.draw: gr.update(interactive=True), self.cancel: gr.update(visible=False)}
        try:
            job = self.engine.submit(self._order(task, prompt, negative, form))
        except Exception as error:
            bad = as_bad_order(error)
            yield {self.stage: fragments.error(str(bad or UNEXPECTED)), **ready}
            return
        session = str(request.session_hash)
        earlier = self._jobs.get(session)
        if earlier is not None:
            earlier.cancel()
        self._jobs[session] = job
        try:
            for report in job.reports():
                if not report.final:
                    # All of it each time: a busy page may skip to the latest change.
                    yield {self.stage: fragments.stage(report), **self._busy(job)}
            yield {self.stage: fragments.stage(job.report), **ready, **self._results(job)}
        finally:  # also if the browser has gone
            job.cancel()
            if self._jobs.get(session) is job:
                del self._jobs[session]

    def _busy(self, job: Job) -> dict[Any, Any]:
        words = {"interactive": not job.cancelled, "value": "Cancelling" if job.cancelled else "Cancel"}
        return {
            self.draw: gr.update(interactive=False),
            self.cancel: gr.update(visible=True, **words),
            self.details: gr.update(visible=False),
        }

    def _results(self, job: Job) -> dict[Any, Any]:
        result = job.report.result
        if result is None:
            return {}
        return {
            self.strip: fragments.strip(result),
            self.words: fragments.words(result),
            self.recipe: to_parameters_text(result.recipes[-1]),
            self.again: fragments.again(result.recipes[-1]),
            self.picture: result.pictures[-1],
            self.details: gr.update(visible=True),
        }

    def _order(self, task: Task, prompt: str, negative: str, form: tuple[Any, ...]) -> Order:
        model, scheduler, steps, scale, width, height, seed, image, strength, editor, mask_strength = form
        picture, mask = None, None
        if task == "img2img" and image is not None:
            picture = self._open(image)
        elif task == "inpaint" and editor is not None and editor.background is not None:
            picture = self._open(editor.background)
            mask = self._painted(editor.layers or [], picture.image.size)
        return Order(
            prompt=prompt or "",  # Gradio's name of an empty field is None
            negative_prompt=negative or "",
            model=model,
            task=task,
            image=picture,
            mask=mask,
            strength={"img2img": strength, "inpaint": mask_strength}.get(task),
            seed=_seed(seed or ""),
            steps=_whole(steps),
            guidance_scale=scale,
            scheduler=scheduler,
            width=_whole(width),
            height=_whole(height),
        )

    def _read(self, file: Any) -> bytes:
        """The bytes of an upload. Raises BadOrder for a path outside the folder of uploads."""
        path = Path(str(file.path)).resolve()
        if not path.is_relative_to(self.uploads.resolve()):
            raise BadOrder("A picture must be an upload; no other file is read.", "image")
        limit = self.engine.limits.upload_bytes
        try:
            with open_regular(path, limit) as data:
                return data.read(limit)
        except OSError:
            raise BadOrder("The upload is no longer there; give the picture again.", "image") from None

    def _open(self, file: Any) -> Upload:
        return open_upload(self._read(file), file.orig_name or "picture", self.engine.limits)

    def _painted(self, layers: list[Any], size: tuple[int, int]) -> Upload:
        """The mask of what is painted in the layers: white where they are opaque."""
        from PIL import Image as PIL
        from PIL import ImageChops

        mask = PIL.new("L", size)
        for layer in layers:
            if layer is not None:
                try:
                    painted = open_picture(self._read(layer), max_pixels=self.engine.limits.upload_pixels)
                except ValueError as error:
                    raise BadOrder(f"The mask cannot be read: {error}.", "mask") from None
                alpha = painted.convert("RGBA").getchannel("A").resize(size, PIL.Resampling.BOX)
                mask = ImageChops.lighter(mask, alpha.point(lambda a: 255 if a >= HALF else 0))
        file = io.BytesIO()
        mask.save(file, "PNG")
        return Upload(mask, record(file.getvalue(), "mask.png"))

    def _cancel(self, request: gr.Request) -> Any:
        self._leave(request)
        return gr.update(interactive=False, value="Cancelling")

    def _leave(self, request: gr.Request) -> None:
        job = self._jobs.get(str(request.session_hash))
        if job is not None:
            job.cancel()

    def _choose_model(self, name: str) -> list[Any]:
        info = self.engine.models.get(name)
        if info is None:
            raise gr.Error(f"There is no model {name!r:.80}.")
        steps, scale, side = self._ranges(info)
        return [gr.update(**one) for one in (steps, scale, side, side)]

    def _ranges(self, info: ModelInfo) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        """The ranges and defaults of the sliders for steps, guidance and both sides."""
        limits, unit = self.engine.limits, info.multiple
        largest = max(info.size, min(LARGEST_SIDE, 4 * info.size)) // unit * unit
        return (
            {"minimum": 1, "maximum": min(limits.steps, info.most_steps), "step": 1, "value": info.steps},
            {"minimum": 0, "maximum": 20, "step": 0.5, "value": info.guidance_scale},
            {"minimum": unit, "maximum": largest, "step": unit, "value": info.size},
        )


_UPLOAD: dict[str, Any] = {"sources": ["upload", "clipboard"], "type": "filepath", "buttons": []}
# Events of the page alone, which wait for nothing but the engine, and without Gradio's own progress bars.
_QUIET: dict[str, Any] = {
    "show_progress": "hidden",
    "api_visibility": "private",
    "concurrency_limit": None,
}


def _constant(value: str) -> Any:
    return lambda: value


def _show(task: str) -> list[Any]:
    return [gr.update(selected=task), task]


def _itself(picture: Image | None) -> Any:
    return picture


def _as_background(picture: Image | None) -> Any:
    return {"background": picture, "layers": [], "composite": None}


def _seed(text: str) -> int | None:
    """The number in the seed's field; None if it is empty."""
    if not text.strip():
        return None
    if re.fullmatch(r"\d{1,20}", text.strip()) is None:
        raise BadOrder(
            f"The seed must be a whole number, or empty for a random one, not {shown(text)}.", "seed"
        )
    return int(text)


def _whole(value: Any) -> Any:
    """A slider's number as an int if it is whole; the engine refuses others."""
    return int(value) if isinstance(value, float) and value.is_integer() else value
