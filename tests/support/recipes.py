"""A recipe with a value in every field, and a picture to write it into."""

from __future__ import annotations

from PIL import Image

from ldm_core.recipe import Recipe, SourceFile

RECIPE = Recipe(
    task="txt2img",
    prompt="grinning cat",
    seed=1,
    steps=25,
    width=64,
    height=48,
    guidance_scale=4.0,
    scheduler="DDIM",
    scheduler_settings={"eta": 0.0, "spacing": "leading", "steps_offset": 1, "set_alpha_to_one": False},
    model=SourceFile("emoji.safetensors", "5e1f750e46" + "0" * 54),
    versions={"ldm_core": "0.1.0", "torch": "2.13.0"},
)
PICTURE = Image.new("RGB", (8, 8), "orange")
