"""Writes docs/models.md: every published model with its sizes and the call that draws with it.

    python docs/models.py

The sizes are those of the networks that a preset builds, without weights.
"""

# ruff: noqa: E501
from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

import ldm_core
from ldm_core.autoencoder import AutoencoderConfig, AutoencoderKL, AutoencoderVQ, AutoencoderVQConfig
from ldm_core.config import PRESETS

PAGE = Path(__file__).with_suffix(".md")
PLAIN = "plain reference"
PIPELINE = "plain reference, diffusers' pipeline"


@dataclass(frozen=True)
class Row:
    """What a preset does not say: the task, the call, the command, and what the tests compare it with."""

    names: str
    task: str
    call: str
    command: str
    compared: str


ROWS = (
    Row("sd1", "text → image", 'txt2img("a cat")', 'txt2img "a cat" --model FILE', "diffusers, transformers"),
    Row("sd1-inpaint", "inpainting", 'inpaint("a cat", image, mask)',
        'inpaint "a cat" --model FILE --image A --mask B', "diffusers"),
    Row("instruct-pix2pix", "instruction, picture → picture", 'edit(picture, "make it winter")',
        "sample FILE --image A --prompt TEXT", "diffusers' pipeline"),
    Row("gligen", "text, boxes with words → image", 'sample({"prompt": "a cat", "boxes": boxes})',
        "sample FILE --prompt TEXT --layout boxes.json", "diffusers' pipeline"),
    Row("sd2-base", "text → image", 'txt2img("a cat")', 'txt2img "a cat" --model FILE', "diffusers, open_clip"),
    Row("sd2-v", "text → image", 'txt2img("a cat")', 'txt2img "a cat" --model FILE', "diffusers, open_clip"),
    Row("sd2-inpaint", "inpainting", 'inpaint("a cat", image, mask)',
        'inpaint "a cat" --model FILE --image A --mask B', "diffusers"),
    Row("sd2-depth", "depth map, text → image", 'sample({"prompt": "a cat", "depth": map})',
        "sample FILE --depth A --prompt TEXT", PIPELINE),
    Row("sd2-unclip-h, sd2-unclip-l", "variations of a picture", 'sample({"image": picture})',
        "sample FILE --image A", PIPELINE),
    Row("x4-upscaler", "super-resolution with text", 'upscale(picture, "a cat")',
        "upscale FILE --image A --prompt TEXT", PIPELINE),
    Row("celeba256, ffhq256, lsun-beds256", "unconditional", "sample(num_images=4)", "sample FILE --number 4",
        PIPELINE),
    Row("lsun-churches256", "unconditional", "sample(num_images=4)", "sample FILE --number 4",
        f"{PLAIN}, diffusers' `UNet2DModel`"),
    Row("cin256", "class → image", "sample(207)", "sample FILE --class 207", PLAIN),
    Row("cin256-v2", "class → image, guidance", "sample(207, guidance_scale=3)", "sample FILE --class 207", PLAIN),
    Row("text2img256", "text → image", 'txt2img("a cat")', 'txt2img "a cat" --model FILE',
        f"{PLAIN}, diffusers' `LDMBertModel`, tokenizers"),
    Row("text2img-large", "text → image", 'txt2img("a cat")', 'txt2img "a cat" --model FILE', PIPELINE),
    Row("layout2img256", "boxes → image", "sample([[(3, 0.1, 0.2, 0.5, 0.6)]])", "sample FILE --layout boxes.json",
        PLAIN),
    Row("semantic-synthesis256, semantic-synthesis512", "semantic map → image", "sample(classes)",
        "sample FILE --map map.png", PLAIN),
    Row("bsr-sr", "super-resolution", "upscale(picture)", "upscale FILE --image A", PIPELINE),
    Row("inpainting-big", "inpainting without text", "inpaint(None, image, mask)",
        "inpaint --model FILE --image A --mask B", PLAIN),
    Row("rdm768", "CLIP embeddings → image", "sample(embeddings)", "sample FILE --embeddings E.safetensors", PLAIN),
)  # fmt: skip

# The first stages that were published alone, as (name, channels per latent, multipliers, attention, codes).
FIRST_STAGES = (
    ("vq-f4", 3, (1, 2, 4), (), 8192),
    ("vq-f4-noattn", 3, (1, 2, 4), (), 8192),
    ("vq-f8", 4, (1, 2, 2, 4), (32,), 16384),
    ("vq-f8-n256", 4, (1, 2, 2, 4), (32,), 256),
    ("vq-f16", 8, (1, 1, 2, 2, 4), (16,), 16384),
    ("kl-f4 (autoencoder_kl_64x64x3)", 3, (1, 2, 4), (), None),
    ("kl-f8 (autoencoder_kl_32x32x4)", 4, (1, 2, 4, 4), (), None),
    ("kl-f16 (autoencoder_kl_16x16x16)", 16, (1, 1, 2, 2, 4), (16,), None),
    ("kl-f32 (autoencoder_kl_8x8x64)", 64, (1, 1, 2, 2, 4, 4), (16, 8), None),
)

FIGURES = (
    ("1", "reconstructions of the first stage", "`model.autoencoder.decode(model.autoencoder.encode(x).mode())`"),
    ("2", "compression before the diffusion", "[architecture](architecture.md)"),
    ("3", "conditioning by context and by input channels", "[conditioners](conditioners.md)"),
    ("4", "samples without a condition, and of classes",
     "`sample celeba256.ckpt --number 16 --scheduler ddim --eta 1 --steps 200`; `sample cin256-v2.ckpt --class 207`"),
    ("5", "text → image", '`txt2img "a painting of a squirrel" --model text2img-large.ckpt --steps 200 --guidance 5`'),
    ("6, 7", "compression factors against quality and time",
     "another `ch_mult` of the first stage, trained as in [training](training.md)"),
    ("8", "layouts → images", "`sample layout2img256.ckpt --layout boxes.json`"),
    ("9", "landscapes larger than in training", "`Sampler(ldm_core.windowed(model, size=64, stride=32)).sample(classes)`, "
     "[larger pictures](large-pictures.md)"),
    ("10", "super-resolution", "`upscale bsr_sr.ckpt --image small.png --scheduler ddim --eta 1 --steps 100`; pictures over "
     "128 pixels in [windows](large-pictures.md#super-resolution)"),
    ("11", "inpainting", "`inpaint --model inpainting_big.ckpt --image A --mask B`"),
)  # fmt: skip


def parameters(name: str) -> dict[str, int]:
    """The number of parameters of each network of a preset."""
    model = ldm_core.build(PRESETS[name], device="meta")
    return {part: sum(p.numel() for p in network.parameters()) for part, network in model.modules.items()}


def first_stage(config: AutoencoderConfig) -> str:
    kind = "VQ" if isinstance(config, AutoencoderVQConfig) else "KL"
    return f"{kind}-f{config.downsampling}, {config.embed_dim} channels"


def first_stages() -> list[str]:
    """The table of the first stages that were published alone."""
    rows = []
    for name, channels, mult, attention, codes in FIRST_STAGES:
        sizes = {
            "embed_dim": channels,
            "z_channels": channels,
            "ch_mult": mult,
            "attn_resolutions": attention,
        }
        part = "autoencoder" if codes is None else "autoencoder_vq"
        with torch.device("meta"):
            network: torch.nn.Module
            if codes is None:
                network = AutoencoderKL(AutoencoderConfig(**sizes))
            else:
                own = AutoencoderVQConfig(
                    **sizes, n_embed=codes, middle_attention=not name.endswith("noattn")
                )
                network = AutoencoderVQ(own)
        count = sum(p.numel() for p in network.parameters())
        rows.append(
            f"| {name} | {2 ** (len(mult) - 1)} | {channels} | {codes or 'none'} | {count / 1e6:.1f} | "
            f'`ldm_core.load_part(FILE, "{part}")` |'
        )
    return rows


def conditioning(name: str) -> str:
    """The fields of the Condition."""
    config = PRESETS[name]
    unet = config.unet
    found = [] if unet.context_dim is None else [f"context {unet.context_dim}"]
    if unet.in_channels > unet.out_channels:
        found.append(f"concat {unet.in_channels - unet.out_channels}")
    if unet.gated_self_attention:
        found.append("objects")
    if unet.num_classes or unet.adm_in_channels:
        found.append("vector")
    return ", ".join(found) or "none"


def lines() -> list[str]:
    rows = []
    for row in ROWS:
        name = row.names.split(", ")[0]
        config, sizes = PRESETS[name], parameters(name)
        own = sum(count for part, count in sizes.items() if part not in ("unet", "autoencoder"))
        counts = [sizes["unet"], own, sizes["autoencoder"]]
        shown = " + ".join(f"{count / 1e6:.1f}" for count in counts)
        pixels = ", ".join(sorted({str(PRESETS[one].image_size) for one in row.names.split(", ")}))
        rows.append(
            f"| `{row.names.replace(', ', '`, `')}` | {row.task} | {pixels} | "
            f"{first_stage(config.autoencoder)} | {conditioning(name)} | {shown} | "
            f"`sampler.{row.call}` | `{row.command}` | {row.compared} |"
        )
    return rows


def page() -> str:
    head = """# Models

<!-- from docs/models.py -->

Every model that CompVis and Stability AI published for the latent diffusion paper (arXiv:2112.10752) and Stable Diffusion, and
[InstructPix2Pix and GLIGEN](editing.md), whose U-Nets differ from Stable Diffusion's. A file
is recognised by its tensors or by a YAML file beside it; `python -m ldm_core inspect FILE` names the model and prints the line that
draws with it. All of them save and load in CompVis's names; those with a pipeline in diffusers also as its
folder, except lsun-churches256, whose heads diffusers' settings cannot express.

Parameters are in millions: U-Net + text encoder or conditioner + autoencoder. Commands begin with `python -m ldm_core`. The last
column is what the tests compare the networks and whole trajectories with; "plain reference" is `tests/zoo/reference.py`, which
computes the same from the original names of the weights with loops and einsum in float64. These comparisons are at small widths, for Stable Diffusion also at full size;
four models also load and draw at full size with random weights (`tests/zoo/test_full_size.py`).

| preset | task | pixels | first stage | conditioning | parameters | Python | command | compared with |
|---|---|---|---|---|---|---|---|---|
"""
    middle = """
`lsun-churches256` has a latent scale that was measured in training and stands in its checkpoint only. Files of the models with
averaged weights are loaded with these by default, as the original scripts do (`ema=False` takes the others).

## First stages alone

Their shapes prove their configuration. The tests compare both kinds with diffusers' `VQModel` and `AutoencoderKL` at small widths,
VQ-f8 and SD1's KL-f8 also at full width.

| name | factor | channels | codes | parameters | Python |
|---|---|---|---|---|---|
STAGES

## The paper's figures

| figure | shows | command, or Python |
|---|---|---|
"""
    figures = [f"| {number} | {what} | {how} |" for number, what, how in FIGURES]
    tail = """
There is an example for each task in `examples/tasks/`.

## Small models

[weights/small](../weights/small/README.md) has four models of 64×64 emoji, below 4 MB each, with one VQ autoencoder (f = 4). They were
trained by `examples/train_zoo.py` on two CPU cores; they show that the tasks work, and no more. `python docs/small_models.py` draws
these pictures, none of which is selected.

Pictures from noise, `sampler.sample(num_images=24, steps=100)` with DDIM, eta 1:

![Pictures from noise](figures/small-unconditional.png)

Classes, `sampler.sample(classes, guidance_scale=3)`, four seeds:

![Eight classes](figures/small-classes.png)

Semantic maps, `sampler.sample(classes)` with DDIM, eta 1: the classes are eleven colours of 4×4 pixels, taken from pictures that are not
in the training set (the training set may have the same concept in another style). The second row is what the small autoencoder keeps
of the originals: its 512 codes lose black and some reds.

![Pictures from maps of colours](figures/small-maps.png)

Super-resolution, `sampler.upscale(small)` with DDIM, eta 1: from 16 to 64 pixels. Bicubic keeps colours, which the autoencoder does not.

![Four times as many pixels](figures/small-upscaler.png)
"""
    middle = middle.replace("STAGES", "\n".join(first_stages()))
    return head + "\n".join(lines()) + "\n" + middle + "\n".join(figures) + "\n" + tail


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
