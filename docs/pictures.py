"""Draw the pictures of the docs that show the bundled model, again: all, or some by name.

    python docs/pictures.py                          (about ten minutes of one core)
    python docs/pictures.py samples.png strip.png
    python docs/pictures.py --report REPORT          the model card's sheets, from what evaluate.py left

The pictures of fine-tuning take a quarter of an hour more and are drawn only if named. This script does not
draw what needs the emoji data (controls.md, unclip.md), the screenshot of serve.md, or the pictures of
docs/idea and the notebooks (see docs/site.md).
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

import ldm_core
from ldm_core.watch import make_grid

ROOT = Path(__file__).parents[1]
PICTURES = ROOT / "docs" / "pictures"
SAMPLES = (
    "'grinning cat' panda 'dog face' 'tiger face' bear 'monkey face' fox penguin 'red apple' strawberry "
    "doughnut 'birthday cake' rocket 'blue heart' 'grinning face' 'evergreen tree'"
)
# By a picture's name, the command that draws it, run in its folder with the scripts of the repository.
COMMANDS = {
    "samples.png": f"examples/txt2img.py {SAMPLES} --columns 8 --output samples.png",
    "strip.png": "examples/watch_it_happen.py --output strip.png --animation steps.webp",
    "attention.png": "examples/attention_maps.py",
    "img2img.png": "examples/img2img.py",
    "inpainting.png": "examples/inpainting.py",
    "interpolation.webp": "examples/latent_interpolation.py --output interpolation.webp",
    "preview.webp": "examples/latent_preview.py --output preview.webp",
    "workbench": "docs/workbench.py .",
    "accelerations": "docs/accelerations.py",
    "solvers": "docs/solvers.py",
}
FINE_TUNING = {
    f"fine-tune-{method}.webp": f"examples/fine_tune.py {method} --output fine-tune-{method}.webp"
    for method in ("full", "lora", "textual-inversion", "dreambooth")
}
# The sheets of an evaluation, by the names that they have in the docs.
SHEETS = {
    "prompts.webp": "prompts.png",
    "guidance-steps.webp": "guidance-steps.png",
    "neighbours.webp": "neighbours-concepts-1.png",
}


def panorama(out: Path) -> None:
    """A panorama of 360 degrees, above the same turned by half."""
    around = ldm_core.windowed(ldm_core.load(), size=8, stride=2, weights="equal", wrap=True, batch_size=4)
    image = ldm_core.Sampler(around).txt2img("fire", steps=25, guidance_scale=4, width=512, seed=1)[0]
    half = image.width // 2
    turned = Image.new("RGB", image.size)
    turned.paste(image.crop((half, 0, image.width, image.height)), (0, 0))
    turned.paste(image.crop((0, 0, half, image.height)), (half, 0))
    make_grid([[image], [turned]], tile=image.width).save(out, quality=80)


def plots(out: Path) -> None:
    """Two of the five plots of examples/plots.py."""
    with tempfile.TemporaryDirectory() as folder:
        draw("examples/plots.py .", Path(folder))
        for name in ("statistics.png", "guidance-sheet.png"):
            shutil.copyfile(Path(folder) / name, out.with_name(name))


def draw(command: str, folder: Path) -> None:
    script, *options = shlex.split(command)
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = os.environ | {"PYTHONPATH": paths}
    subprocess.run([sys.executable, str(ROOT / script), *options], cwd=folder, env=environment, check=True)


FUNCTIONS = {"panorama.webp": panorama, "statistics.png": plots}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    named = [*COMMANDS, *FUNCTIONS, *FINE_TUNING]
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(named))
    parser.add_argument("--report", type=Path, help="the folder of an evaluation, whose sheets are copied")
    args = parser.parse_args()
    if unknown := sorted(set(args.names) - set(named)):
        parser.error(f"no picture is called {', '.join(unknown)}; there are {', '.join(named)}")
    if args.report is not None:
        for name, sheet in SHEETS.items():
            with Image.open(args.report / sheet) as image:
                image.save(PICTURES / name, quality=80)
    wanted = args.names or ([] if args.report else [name for name in named if name not in FINE_TUNING])
    for name in wanted:
        print(name)
        if name in FUNCTIONS:
            FUNCTIONS[name](PICTURES / name)
        else:
            draw({**COMMANDS, **FINE_TUNING}[name], PICTURES)


if __name__ == "__main__":
    main()
