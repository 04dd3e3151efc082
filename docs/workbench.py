"""Draw the pictures of docs/workbench.md with the bundled model.

python docs/workbench.py docs/pictures            (all: about two minutes of one core)
python docs/workbench.py docs/pictures --only vary
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image

import ldm_core
from ldm_core import HighResolution
from ldm_core.watch import make_grid
from ldm_core.workbench import Workbench

STEPS, GUIDANCE = 25, 4.0


def side_by_side(sheets: list[Image.Image], titles: list[str]) -> Image.Image:
    """Sheets in a row, each below its title."""
    return make_grid([sheets], labels=[titles], tile=max(max(sheet.size) for sheet in sheets))


def vary(bench: Workbench) -> Image.Image:
    grid = bench.imagine("grinning cat --seed 7")
    sheets = [grid, bench.vary(grid.pick(2), "weak", 70), bench.vary(grid.pick(2), "strong", 70)]
    return side_by_side([one.sheet() for one in sheets], ["imagine", "vary 2 --weak", "vary 2 --strong"])


def outpainting(bench: Workbench) -> Image.Image:
    bench.count = 1
    picture = bench.imagine("red apple --seed 3").pick(1)
    out = bench.zoom_out(picture, 2, "framed picture --seed 1").pick(1)
    left = bench.pan(picture, "left", 0.5, "green leaf --seed 1").pick(1)
    down = bench.pan(picture, "down", 1.0, "red apple --seed 2").pick(1)
    images = [one.image for one in (picture, out, left, down)]
    return side_by_side(images, ["a picture", "zoom-out", "pan left", "pan down"])


def blend(bench: Workbench) -> Image.Image:
    bench.count = 1
    pair = [bench.imagine(f"{words} --seed 3").pick(1) for words in ("panda", "red apple")]
    shares = (0.7, 0.5, 0.3)
    mixed = [bench.blend(pair, "--seed 3", (one, 1 - one)).pick(1) for one in shares]
    images = [one.image for one in (pair[0], *mixed, pair[1])]
    return side_by_side(images, ["a", *(f"blend {one:g} : {1 - one:g}" for one in shares), "b"])


def chaos(bench: Workbench) -> Image.Image:
    amounts = (0, 50, 100)
    grids = [bench.imagine(f"grinning cat --seed 7 --chaos {amount}") for amount in amounts]
    return side_by_side([one.sheet() for one in grids], [f"--chaos {amount}" for amount in amounts])


def tile(bench: Workbench) -> Image.Image:
    bench.count = 1
    images = []
    for flags in ("", "--tile"):
        image = bench.imagine(f"fire --seed 3 {flags}").pick(1).image
        twice = Image.new("RGB", (2 * image.width, 2 * image.height))
        for place in ((0, 0), (1, 0), (0, 1), (1, 1)):
            twice.paste(image, (place[0] * image.width, place[1] * image.height))
        images.append(twice)
    return side_by_side(images, ["repeated", "repeated, with --tile"])


def high_resolution(bench: Workbench) -> Image.Image:
    options = {"steps": STEPS, "guidance_scale": GUIDANCE, "seed": 0}
    draw = bench.sampler.txt2img
    images = [draw("grinning cat", **options)[0].resize((256, 256), Image.Resampling.BICUBIC)]
    images += draw("grinning cat", height=256, width=256, **options)
    plans = [HighResolution(2, 0.25, "picture"), HighResolution(2, 0.4, "picture"), HighResolution(2, 0.6)]
    images += [draw("grinning cat", high_resolution=plan, **options)[0] for plan in plans]
    titles = [
        "128, enlarged",
        "256 in one pass",
        *(f"strength {plan.strength:g}, {plan.enlarge}" for plan in plans),
    ]
    return side_by_side(images, titles)


PICTURES: dict[str, Callable[[Workbench], Image.Image]] = {
    "vary": vary,
    "outpainting": outpainting,
    "blend": blend,
    "chaos": chaos,
    "tile": tile,
    "high-resolution": high_resolution,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", choices=PICTURES, action="append")
    args = parser.parse_args()
    sampler = ldm_core.Sampler(ldm_core.load())
    for name in args.only or PICTURES:
        bench = Workbench(sampler, steps=STEPS, guidance_scale=GUIDANCE)
        with torch.no_grad():
            PICTURES[name](bench).save(args.folder / f"workbench-{name}.webp", quality=90)
        print(name, flush=True)


if __name__ == "__main__":
    main()
