"""The parts of the page that are plain HTML: the picture with its progress, the strip, the words' maps.

Pictures are part of the text, as data URLs, so that the server keeps no file of what it has drawn, and the
saved PNG is byte for byte the one with the recipe. Every text from outside is escaped.
"""

from __future__ import annotations

import base64
import io
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from ldm_core.recipe import Recipe
from ldm_core.serve.job import Report, Result

if TYPE_CHECKING:
    from PIL.Image import Image

PREVIEW_QUALITY = 80
HEADER = """<header class="ldm-header"><h1>ldm_core</h1>
<p>Latent diffusion, step by step, on this machine.</p></header>"""
EMPTY = """<figure class="ldm-stage"><div class="ldm-frame ldm-empty">Your picture appears here.</div>
<figcaption></figcaption></figure>"""
CSS = Path(__file__).with_name("page.css").read_text(encoding="utf-8")


def stage(report: Report) -> str:
    """The picture of a report, or what there is instead, with its progress."""
    if report.state == "failed":
        return error(report.message)
    if report.result is not None:
        return _finished(report.result, report.notes)
    if report.preview is None:
        return _figure('<div class="ldm-frame ldm-empty">…</div>', _progress(report))
    picture = f'<div class="ldm-frame"><img src="{_preview(report.preview)}" alt="The picture so far"></div>'
    return _figure(picture, _progress(report))


def error(message: str) -> str:
    """An error in the place of the picture."""
    return _figure(f'<div class="ldm-frame ldm-empty ldm-error" role="alert">{escape(message)}</div>', "")


def strip(result: Result) -> str:
    if result.strip is None:
        return ""
    text = "Above, the noisy latent after the step; below, what the model expects the picture to become."
    return (
        f'<div class="ldm-strip" tabindex="0"><img src="{_png(result.strip)}" alt="The steps"></div>'
        + hint(text)
    )


def words(result: Result) -> str:
    if not result.words:
        return hint("The maps compare the words of a prompt: they need two words or more.")
    figures = "".join(
        f'<figure><img src="{_png(heat)}" alt="Where {escape(word, quote=True)} acts">'
        f"<figcaption>{escape(word)}</figcaption></figure>"
        for word, heat in result.words
    )
    text = "Red: places that attend to the word more than to the rest of the prompt. Blue: less."
    return f'<div class="ldm-words">{figures}</div>{hint(text)}'


def again(recipe: Recipe) -> str:
    """How to draw the picture again."""
    files = {"txt2img": "", "img2img": " --image FILE", "inpaint": " --image FILE --mask FILE"}[recipe.task]
    command = f"<code>python -m ldm_core {recipe.task} --from FILE.png{files}</code>"
    return hint("The saved PNG carries the recipe. To draw the picture again:") + hint_html(command)


def hint(text: str) -> str:
    """A line of small text."""
    return hint_html(escape(text))


def hint_html(html: str) -> str:
    return f'<p class="ldm-hint">{html}</p>'


def _finished(result: Result, notes: tuple[str, ...]) -> str:
    recipe, data = result.recipes[-1], base64.b64encode(result.png(-1)).decode()
    url = f"data:image/png;base64,{data}"
    alt = escape(recipe.prompt, quote=True)
    caption = (
        f"<span>Seed {recipe.seed} · {recipe.width}×{recipe.height}</span>"
        f'<a href="{url}" download="{recipe.task}-{recipe.seed}.png">Save PNG</a>'
    )
    warnings = "".join(f'<p class="ldm-note">{escape(note)}</p>' for note in notes)
    return _figure(f'<div class="ldm-frame"><img src="{url}" alt="{alt}"></div>', caption) + warnings


def _progress(report: Report) -> str:
    text = {
        "waiting": f"Waiting: {report.position} before you" if report.position else "Waiting",
        "loading": "Loading the model",
        "cancelled": "Cancelled",
    }.get(report.state)
    if text is None:
        text = f"Step {report.step} of {report.total}" if report.step else "Starting"
    bar = ""
    if not report.final:
        value = f' value="{report.step}" max="{report.total}"' if report.step else ""
        bar = f'<progress{value} aria-label="Progress"></progress>'
    return f"<span>{text}</span>{bar}"


def _figure(picture: str, caption: str) -> str:
    return (
        f'<figure class="ldm-stage">{picture}<figcaption aria-live="polite">{caption}</figcaption></figure>'
    )


def _preview(image: Image) -> str:
    file = io.BytesIO()
    image.save(file, "WEBP", quality=PREVIEW_QUALITY)
    return f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}"


def _png(image: Image) -> str:
    file = io.BytesIO()
    image.save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
