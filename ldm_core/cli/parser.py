"""The command line's parser: its commands and their options."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import cache
from typing import Any, NoReturn

from ldm_core.cli.control_options import add_control_options
from ldm_core.cli.defaults import (
    BUNDLED_GUIDANCE,
    BUNDLED_STEPS,
    DTYPES,
    GUIDANCE,
    MAX_PICTURES,
    PROMPT_SYNTAXES,
    SCHEDULER,
    SCHEDULERS,
    SPACINGS,
    STEPS,
    STRENGTH,
)
from ldm_core.cli.imagine_options import add_imagine_commands, add_second_pass
from ldm_core.cli.job_options import add_draw_options, add_verify_options
from ldm_core.cli.option_types import number, seeds, size, whole
from ldm_core.cli.printing import PROG
from ldm_core.cli.restore_options import add_restore_options
from ldm_core.cli.sample_options import add_sample_inputs, add_upscale_inputs
from ldm_core.cli.serve_options import add_serve_options
from ldm_core.recipe.checks import MAX_CLIP_SKIP, MAX_STEPS

MAX_MESSAGE = 600  # characters of an error, which may quote an argument of any length


class _Parser(argparse.ArgumentParser):
    """Raises ValueError for bad options, so that they end like other bad input, in one line."""

    def error(self, message: str) -> NoReturn:
        if len(message) > MAX_MESSAGE:  # the message quotes an argument
            message = f"{message[: MAX_MESSAGE // 2]}…{message[-MAX_MESSAGE // 2 :]}"
        raise ValueError(f"{message} (see {self.prog} --help)")


@cache
def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands. It raises ValueError for a command line that it cannot parse."""
    from ldm_core import __version__

    parser = _Parser(prog=PROG, description="Draw pictures with latent diffusion models.", allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"ldm_core {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, summary: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=summary, description=summary, allow_abbrev=False)

    txt2img = command("txt2img", "Draw pictures from prompts.")
    _add_what(txt2img)
    img2img = command("img2img", "Redraw a picture according to a prompt.")
    _add_what(img2img)
    img2img.add_argument("--image", metavar="FILE", help="the picture to redraw")
    inpaint = command("inpaint", "Repaint a part of a picture according to a prompt.")
    _add_what(inpaint)
    inpaint.add_argument("--image", metavar="FILE", help="the picture to repaint")
    inpaint.add_argument("--mask", metavar="FILE", help="a picture of the same size; white is repainted")
    for redraw, default in ((img2img, STRENGTH["img2img"]), (inpaint, STRENGTH["inpaint"])):
        redraw.add_argument(
            "--strength", type=number, metavar="X", help=f"how much to change, in (0, 1] (default {default})"
        )
    sample = command("sample", "Draw from classes, layouts, maps, small pictures or nothing.")
    add_sample_inputs(_with_file(sample))
    upscale = command("upscale", "Enlarge a picture with a super-resolution model, or one of a grid.")
    add_upscale_inputs(_with_file(upscale))
    add_second_pass(upscale)
    for drawing in (sample, upscale):
        _add_model(drawing.add_argument_group("model"))
        _add_how(drawing)
        _add_where(drawing)
    for drawing in (txt2img, img2img, inpaint):
        _add_model_path(drawing)
        _add_how(drawing)
        _add_where(drawing)
    for drawing in (txt2img, img2img, inpaint, sample):
        add_control_options(drawing)
    add_imagine_commands(command, _add_model)
    add_restore_options(command("restore", "Restore the faces of a photo, or of all photos in a folder."))
    draw = command("draw", "Draw a picture for each row of a file; run again, it resumes.")
    add_draw_options(draw)
    _add_model_path(draw)
    _add_how(draw)
    verify = command("verify", "Check the output folder of `draw`.")
    add_verify_options(verify)
    _add_model_path(verify)
    add_serve_options(command("serve", "Serve a page and an API that draw with models."))
    _add_file_commands(command)
    return parser


def _add_file_commands(command: Callable[[str, str], argparse.ArgumentParser]) -> None:
    """The commands that read and write files without drawing."""
    inspect = command("inspect", "Describe a checkpoint, an adapter, or a picture's recipe.")
    inspect.add_argument(
        "file",
        metavar="FILE",
        help="a checkpoint, a diffusers folder, an adapter, or a .png file with a recipe",
    )
    inspect.add_argument("--json", action="store_true", help="print JSON")
    inspect.add_argument("--check-values", action="store_true", help="read all values and look for NaN")
    inspect.add_argument("--verify", action="store_true", help="verify the checksums of a zip archive")

    convert = command("convert", "Write a model in another layout, file format or type.")
    convert.add_argument("source", metavar="SOURCE", help="a checkpoint or a diffusers folder")
    _add_target(convert)
    convert.add_argument(
        "--ema", action=argparse.BooleanOptionalAction, help="write the averaged (EMA) U-Net weights"
    )
    convert.add_argument(
        "--variant", metavar="NAME", help="the files of a diffusers folder to read, such as fp16"
    )
    for part in ("text-encoder", "unet", "autoencoder"):
        convert.add_argument(f"--{part}", metavar="FILE", help="take this part from another file")

    merge = command("merge", "Write (1 - alpha) A + alpha B, or A + alpha (B - C).")
    merge.add_argument("models", nargs="+", metavar="MODEL", help="two or three models of one architecture")
    _add_target(merge)
    merge.add_argument("--alpha", type=number, metavar="X", help="default: 0.5 for two models, 1 for three")


def _add_config(group: Any) -> None:
    """Options for what the files of a model do not define."""
    group.add_argument(
        "--config", metavar="NAME|FILE.yaml", help="the model's configuration, if its files do not define it"
    )
    group.add_argument(
        "--prediction",
        choices=("eps", "v", "x0"),
        help="what the U-Net predicts, if its files do not define it",
    )


def _add_target(parser: argparse.ArgumentParser) -> None:
    """Options of commands that write a model."""
    parser.add_argument("target", metavar="TARGET", help=".safetensors, .ckpt, .pt, or a new folder")
    parser.add_argument("--layout", choices=("compvis", "diffusers"), help="default: by TARGET's ending")
    parser.add_argument("--dtype", choices=(*DTYPES, "float8_e4m3fn"), help="default: unchanged")
    _add_config(parser)
    parser.add_argument("--force", action="store_true", help="overwrite TARGET")


def _add_what(parser: argparse.ArgumentParser) -> None:
    """Options for what to draw."""
    group = parser.add_argument_group("what to draw")
    group.add_argument(
        "prompt",
        nargs="*",
        metavar="PROMPT",
        help="a text that describes the picture; each prompt gives a picture",
    )
    group.add_argument(
        "--prompts", metavar="FILE", help="a UTF-8 file of prompts, one per line; - for standard input"
    )
    group.add_argument(
        "--prompt-syntax",
        choices=PROMPT_SYNTAXES,
        help="read weights, changes and more in prompts (default: prompts are plain text)",
    )
    group.add_argument(
        "--negative-prompt",
        action="append",
        metavar="TEXT",
        help="what to avoid; give it once, or once per prompt",
    )
    _add_again(group, "--num")


def _with_file(parser: argparse.ArgumentParser) -> Any:
    """The group of options for what to draw, for a command whose first argument is the model's file."""
    parser.add_argument(
        "model", nargs="?", metavar="FILE", help="the model: a checkpoint or diffusers folder"
    )
    group = parser.add_argument_group("what to draw")
    _add_again(group, "--number", "--num")
    return group


def _add_again(group: Any, *num: str) -> None:
    """Options for drawing a picture again, and for drawing several."""
    group.add_argument(
        "--from",
        dest="recipe",
        metavar="FILE.png",
        help="draw this picture again from its recipe; other options override the recipe",
    )
    group.add_argument(
        "--trust-paths",
        action="store_true",
        help="read the files that the recipe names: pictures, adapters, autoencoder, configuration",
    )
    group.add_argument(
        *num,
        dest="num",
        type=whole(1, MAX_PICTURES),
        metavar="N",
        help="pictures for each prompt or other input (default 1)",
    )
    group.add_argument(
        "--seed",
        type=seeds,
        metavar="N[,N…]",
        help="picture k has seed N + k, or the k-th of a list (default: random; the recipe records it)",
    )


def _add_model_path(parser: argparse.ArgumentParser) -> None:
    """Options for the model of a command whose default is the bundled one."""
    group = parser.add_argument_group("model")
    group.add_argument(
        "--model", metavar="PATH", help="a checkpoint or diffusers folder (default: the bundled model)"
    )
    _add_model(group)


def _add_model(group: Any) -> None:
    """Options for the model, besides its path."""
    _add_config(group)
    group.add_argument("--ema", action=argparse.BooleanOptionalAction, help="use the averaged U-Net weights")
    group.add_argument("--autoencoder", metavar="FILE", help="take the autoencoder (VAE) from this file")
    group.add_argument(
        "--lora",
        dest="loras",
        action="append",
        metavar="FILE[=SCALE]",
        help="apply a LoRA; can be repeated",
    )
    group.add_argument(
        "--embedding",
        dest="embeddings",
        action="append",
        metavar="FILE[=NAME]",
        help="add a textual inversion, which prompts use by its name; can be repeated",
    )
    group.add_argument("--device", metavar="NAME", help="cpu, cuda, cuda:1 … (default: cuda if available)")
    group.add_argument(
        "--dtype",
        choices=("auto", *DTYPES),
        help="default: float32 on a CPU, else the file's type; auto: bfloat16 on CPUs that support it",
    )


def _add_how(parser: argparse.ArgumentParser) -> None:
    """Options for the sampling."""
    group = parser.add_argument_group("how to draw")
    group.add_argument(
        "--steps",
        type=whole(1, MAX_STEPS),
        metavar="N",
        help=f"sampling steps (default {BUNDLED_STEPS} for the bundled model, else {STEPS})",
    )
    group.add_argument(
        "--scheduler", choices=SCHEDULERS, help=f"default: {SCHEDULER}; plms and pndm are the same"
    )
    group.add_argument(
        "--eta", type=number, metavar="X", help="added noise, 0 to 1 (default: 0 for ddim, 1 for euler-a)"
    )
    group.add_argument(
        "--spacing", choices=SPACINGS, help="spacing of the timesteps (default: the scheduler's)"
    )
    group.add_argument(
        "--guidance",
        dest="guidance_scale",
        type=number,
        metavar="X",
        help="scale; 1 means none "
        f"(default {BUNDLED_GUIDANCE:g} for the bundled model, {GUIDANCE} for prompts, else the model's)",
    )
    group.add_argument(
        "--image-guidance",
        dest="image_guidance_scale",
        type=number,
        metavar="X",
        help="scale of the picture, for models that edit pictures (default 1.5)",
    )
    group.add_argument(
        "--guidance-rescale", type=number, metavar="X", help="guidance rescale phi, 0 to 1 (default 0)"
    )
    group.add_argument(
        "--size",
        type=size,
        metavar="WxH",
        help="size in pixels, or one number (default: the model's, or the image's)",
    )
    group.add_argument(
        "--clip-skip",
        type=whole(0, MAX_CLIP_SKIP),
        metavar="N",
        help="final text encoder blocks to skip (default: the model's)",
    )
    group.add_argument(
        "--batch-size",
        type=whole(1, MAX_PICTURES),
        default=1,
        metavar="N",
        help="pictures to draw at a time; each batch is saved when it is done (default 1)",
    )


def _add_where(parser: argparse.ArgumentParser) -> None:
    """Options for the output."""
    group = parser.add_argument_group("output")
    group.add_argument(
        "-o",
        "--output",
        default=".",
        metavar="FILE.png|FOLDER",
        help="a file for one picture, or a folder; NEW/ makes a folder (default: the current folder)",
    )
    group.add_argument("--force", action="store_true", help="overwrite FILE.png")
    group.add_argument("--no-paths", action="store_true", help="omit file paths from the recipe in a picture")
    group.add_argument(
        "--show-steps", action="store_true", help="also save a folder with the picture after every step"
    )
    group.add_argument("-q", "--quiet", action="store_true", help="no progress bar and no warnings")
