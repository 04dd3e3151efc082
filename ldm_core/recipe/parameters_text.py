"""A recipe in the text format of AUTOMATIC1111's web UI, which picture browsers and model sites show.

The text consists of the prompt, "Negative prompt: …", and one line of "Name: value" pairs. It omits some
fields of a recipe, such as a scheduler's settings and the checksums of input pictures. A prompt that imitates
one of these lines makes it ambiguous.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ldm_core.recipe.fields import Recipe
from ldm_core.recipe.files import SourceFile, is_checksum

NEGATIVE = "Negative prompt:"
SEPARATOR, QUOTED = re.compile('[",]'), re.compile(r'"(?:\\.|[^"\\])*"')

# The class and settings of each sampler name in the text; unknown names are kept. If several names match a
# scheduler, the first one is written, so specific names come before general ones.
SAMPLERS: dict[str, tuple[str, dict[str, Any]]] = {
    "DDIM": ("DDIM", {}),
    "PLMS": ("PNDM", {"warmup": "plms"}),
    "PNDM": ("PNDM", {"warmup": "runge_kutta"}),
    "DDPM": ("DDPM", {}),
    "DPM++ 2M Karras": ("DPMSolverMultistep", {"spacing": "karras"}),
    "DPM++ 2M": ("DPMSolverMultistep", {}),
    "UniPC": ("UniPC", {}),
    "Euler": ("Euler", {}),
    "Euler a": ("EulerAncestral", {}),
    "Heun": ("Heun", {}),
    "LMS Karras": ("LMS", {"spacing": "karras"}),
    "LMS": ("LMS", {}),
}
# Newer versions of the web UI write the spacing as a separate setting.
SCHEDULE_TYPES = {"Karras": "karras", "Exponential": "exponential"}
BY_SIGMA = {scheduler for scheduler, _ in SAMPLERS.values()} - {"DDIM", "PNDM", "DDPM"}


def to_parameters_text(recipe: Recipe) -> str:
    """The recipe as the text of prompt, negative prompt and settings that other tools show."""
    settings = {
        "Steps": recipe.steps,
        "Sampler": _sampler_name(recipe),
        "CFG scale": _shortest(recipe.guidance_scale),
        "Seed": recipe.seed,
        "Size": f"{recipe.width}x{recipe.height}",
        "Model hash": recipe.model.short_hash,
        "Model": Path(recipe.model.name).stem,
    }
    settings |= _inputs(recipe) | _controls(recipe)
    if recipe.autoencoder is not None:
        settings["VAE"] = recipe.autoencoder.name
    for title, adapters in (("Lora hashes", recipe.loras), ("TI hashes", recipe.embeddings)):
        if adapters:
            hashes = (f"{a.name or Path(a.file.name).stem}: {a.file.short_hash}" for a in adapters)
            settings[title] = ", ".join(hashes)
    if recipe.strength is not None:
        settings["Denoising strength"] = _shortest(recipe.strength)
    if recipe.clip_skip is not None:
        settings["Clip skip"] = recipe.clip_skip + 1  # the web UIs count from 1
    eta = recipe.scheduler_settings.get("eta")
    if isinstance(eta, float | int) and eta:
        settings["Eta"] = _shortest(eta)
    if "ldm_core" in recipe.versions:
        settings["Version"] = f"ldm_core {recipe.versions['ldm_core']}"
    lines = [recipe.prompt]
    if recipe.negative_prompt:
        lines.append(f"{NEGATIVE} {recipe.negative_prompt}")
    lines.append(
        ", ".join(f"{name}: {_quoted(str(value))}" for name, value in settings.items() if value != "")
    )
    return "\n".join(lines)


def _inputs(recipe: Recipe) -> dict[str, Any]:
    """What a picture of the tasks "sample" and "upscale" was drawn from, besides its prompt."""
    if recipe.task not in ("sample", "upscale"):
        return {}
    files = {"Image": recipe.image, "Class map": recipe.map, "Depth map": recipe.depth}
    settings: dict[str, Any] = {name: file.name for name, file in files.items() if file is not None}
    if recipe.class_label is not None:
        settings["Class"] = recipe.class_label
    if recipe.layout is not None:
        settings["Layout"] = "; ".join(
            f"{one['label']} ({', '.join(f'{one[side]:g}' for side in ('x', 'y', 'width', 'height'))})"
            for one in recipe.layout
        )
    if recipe.clip_embeddings is not None:
        settings["Embeddings"] = f"{recipe.clip_embeddings.name} ({recipe.embedding_row or 0})"
    if recipe.noise_level is not None:
        settings["Noise level"] = recipe.noise_level
    return settings


def _controls(recipe: Recipe) -> dict[str, str]:
    """Controls in the form of the web UI's ControlNet extension, their hints, and the image prompt."""
    settings = {}
    for k, control in enumerate(recipe.controls):
        mode = "ControlNet is more important" if control.guess else "Balanced"
        settings[f"ControlNet {k}"] = (
            f"Module: none, Model: {Path(control.network.name).stem}, Weight: {_shortest(control.strength)}, "
            f"Resize Mode: Crop and Resize, Guidance Start: {_shortest(control.start)}, "
            f"Guidance End: {_shortest(control.end)}, Control Mode: {mode}"
        )
        settings[f"Hint {k}"] = control.hint.name
    if recipe.ip_adapter is not None:
        settings["IP-Adapter"] = recipe.ip_adapter.name
    if recipe.image_prompts:
        settings["Image prompts"] = "; ".join(file.name for file in recipe.image_prompts)
    if recipe.image_scale is not None:
        settings["Image scale"] = _shortest(recipe.image_scale)
    return settings


def from_parameters_text(text: str) -> Recipe:
    """The recipe in another tool's text. Raises ValueError if required settings are missing or invalid.

    The last line contains the settings. The negative prompt begins at the first line that starts with
    "Negative prompt:". An unknown sampler keeps its name.
    """
    *lines, last = text.strip().split("\n")
    settings = dict(_pairs(last))
    starts = [i for i, line in enumerate(lines) if line.startswith(NEGATIVE)]
    cut = starts[0] if starts else len(lines)
    negative = "\n".join(lines[cut:]).removeprefix(NEGATIVE)
    missing = [name for name in ("Steps", "Sampler", "Seed", "Size") if name not in settings]
    if missing:
        raise ValueError(f"the parameters text has no {', '.join(missing)}")
    size = re.fullmatch(r"(\d{1,9})x(\d{1,9})", settings["Size"])
    if size is None:
        raise ValueError(
            f"expected a Size of WIDTHxHEIGHT in the parameters text, not {settings['Size']!r:.30}"
        )
    scheduler, options = SAMPLERS.get(settings["Sampler"], (settings["Sampler"], {}))
    if settings.get("Schedule type") in SCHEDULE_TYPES and scheduler in BY_SIGMA:
        options = {**options, "spacing": SCHEDULE_TYPES[settings["Schedule type"]]}
    if "Eta" in settings and scheduler in ("DDIM", "EulerAncestral"):
        options = {**options, "eta": _number(settings, "Eta")}
    checksum = settings.get("Model hash", "").lower()
    strength = _number(settings, "Denoising strength") if "Denoising strength" in settings else None
    return Recipe(
        task="txt2img" if strength is None else "img2img",
        prompt="\n".join(lines[:cut]).strip(),
        negative_prompt=negative.strip(),
        seed=_whole(settings, "Seed"),
        steps=_whole(settings, "Steps"),
        width=int(size[1]),
        height=int(size[2]),
        guidance_scale=_number(settings, "CFG scale") if "CFG scale" in settings else 7.0,
        scheduler=scheduler,
        scheduler_settings=dict(options),
        strength=strength,
        clip_skip=max(0, _whole(settings, "Clip skip") - 1) if "Clip skip" in settings else None,
        model=SourceFile(settings.get("Model", ""), checksum if is_checksum(checksum) else ""),
    )


def _sampler_name(recipe: Recipe) -> str:
    for name, (scheduler, settings) in SAMPLERS.items():
        if scheduler == recipe.scheduler and settings.items() <= recipe.scheduler_settings.items():
            return name
    return recipe.scheduler


def _shortest(number: float) -> str:
    return str(int(number)) if number == int(number) else repr(number)


def _quoted(value: str) -> str:
    """The value, as a JSON string if it contains a separator."""
    return json.dumps(value, ensure_ascii=False) if set(value) & set(',:"\n') else value


def _pairs(line: str) -> Iterator[tuple[str, str]]:
    """The "Name: value" pairs of a settings line, separated by commas outside of quotes."""
    for pair in filter(None, _between_separators(line)):
        name, _, value = (part.strip() for part in pair.partition(":"))
        if value.startswith('"'):
            try:
                value = str(json.loads(value))
            except ValueError:
                value = value.strip('"')
        yield name, value


def _between_separators(line: str) -> Iterator[str]:
    """The parts of a line between commas outside of quotes. A quote that is not closed counts as a comma.

    If a quote is not closed, all later quotes are escaped or not closed either. Searching for the closing
    quote only once keeps the time linear.
    """
    start = position = 0
    while separator := SEPARATOR.search(line, position):
        if separator[0] == '"':
            quoted = QUOTED.match(line, separator.start())
            if quoted is None:
                yield line[start : separator.start()]
                yield from SEPARATOR.split(line[separator.end() :])
                return
            position = quoted.end()
        else:
            yield line[start : separator.start()]
            start = position = separator.end()
    yield line[start:]


def _number(settings: dict[str, str], name: str) -> float:
    try:
        return float(settings[name])
    except ValueError:
        raise ValueError(
            f"expected a number as {name} in the parameters text, not {settings[name]!r:.30}"
        ) from None


def _whole(settings: dict[str, str], name: str) -> int:
    text = settings[name]
    if re.fullmatch(r"[+-]?\d{1,20}", text) is None:
        raise ValueError(f"expected a whole number as {name} in the parameters text, not {text!r:.30}")
    return int(text)
