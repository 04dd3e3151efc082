"""Measures how far this package is from independent code, and writes docs/parity.md.

python docs/parity.py            small sizes and the bundled model, a minute or two
python docs/parity.py --full     also SD1 and SD2 at full size: 16 GB of memory, some minutes
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from support.configs import SMALL  # noqa: E402
from support.reference import (  # noqa: E402
    computed_alike,
    random_model,
    reference_autoencoder,
    reference_text_encoder,
    reference_unet,
    relative_error,
)

from ldm_core.config import SD1, SD1_INPAINT, SD2_V, LatentDiffusionConfig  # noqa: E402

NAMES = {torch.float32: "float32", torch.float64: "float64"}
BOUND = {torch.float32: 1e-5, torch.float64: 1e-9}


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    component: str
    size: str
    reference: str
    dtype: torch.dtype
    error: float

    def __str__(self) -> str:
        verdict = "" if self.error <= BOUND[self.dtype] else " **over**"
        return (
            f"| {self.component} | {self.size} | {self.reference} | {NAMES[self.dtype]} "
            f"| {self.error:.1e}{verdict} | {BOUND[self.dtype]:.0e} |"
        )


@torch.no_grad()
def compare(config: LatentDiffusionConfig, size: str, dtype: torch.dtype, latent: int) -> Iterator[Row]:
    """Each network of one configuration with random weights, against its reference."""
    model: Any = random_model(config, dtype=dtype)
    torch.manual_seed(1)
    with computed_alike(model):
        yield from compare_networks(model, size, dtype, latent)


@torch.no_grad()
def compare_networks(model: Any, size: str, dtype: torch.dtype, latent: int) -> Iterator[Row]:
    config, unet_config = model.config, model.config.unet

    reference: Any = reference_unet(model)
    x = torch.randn(1, unet_config.in_channels, latent, latent, dtype=dtype)
    t, context = torch.tensor([501]), torch.randn(1, 77, unet_config.context_dim, dtype=dtype)
    error = relative_error(model.unet(x, t, context), reference(x, t, context).sample)
    yield Row("U-Net", size, "diffusers `UNet2DConditionModel`", dtype, error)
    del reference

    reference = reference_autoencoder(model)
    f = config.autoencoder.downsampling
    images = torch.rand(1, 3, latent * f, latent * f, dtype=dtype) * 2 - 1
    z = torch.randn(1, config.autoencoder.embed_dim, latent, latent, dtype=dtype)
    ours, theirs = model.autoencoder.encode(images), reference.encode(images).latent_dist
    name = "diffusers `AutoencoderKL`"
    yield Row("encoder, mean", size, name, dtype, relative_error(ours.mean, theirs.mean))
    yield Row("encoder, std", size, name, dtype, relative_error(ours.std, theirs.std))
    error = relative_error(model.autoencoder.decode(z), reference.decode(z).sample)
    yield Row("decoder", size, name, dtype, error)
    del reference

    reference = reference_text_encoder(model)
    tokens = model.tokenizer(["a photograph of an astronaut riding a horse", ""])
    error = relative_error(model.text_encoder(tokens), reference(tokens).last_hidden_state)
    yield Row("text encoder", size, "transformers `CLIPTextModel`", dtype, error)


def rows(full: bool) -> Iterator[Row]:
    for dtype in (torch.float32, torch.float64):
        for kind in ("sd1", "sd1-inpaint", "sd2"):
            yield from compare(SMALL[kind], f"small {kind}", dtype, latent=16)
    if full:
        yield from compare(SD1, "SD1, 512×512", torch.float32, latent=64)
        yield from compare(SD1_INPAINT, "SD1 inpainting, 256×256", torch.float32, latent=32)
        yield from compare(SD2_V, "SD2-v, 256×256", torch.float32, latent=32)


PAGE = """# Agreement with other implementations

The networks agree with diffusers and transformers within 1e-5 in float32 and 1e-9 in float64. The [last table](#tests) has the
schedulers, the tokenizer and whole images.

## Networks

Both sides have the same random weights: this package's key map writes them with CompVis's file keys, and the reference's converter
reads them, so each row tests a key map, too. The error is the largest difference over the largest value, with PyTorch's
convolutions and memory layout on both sides (for the faster ones, see
[performance](performance.md#winograds-convolution-and-rounding)); 0 means equal bits.

| component | size | reference | dtype | largest error | bound |
|---|---|---|---|---|---|
{table}

The float32 errors come from the order of sums. In float64, the timestep embedding is still float32, on both sides.

`python docs/parity.py{flag}` wrote this page with torch {torch}, diffusers {diffusers} and transformers {transformers}.
`tests/repository/test_parity.py` tests these bounds for small sizes, and `tests/loading/test_full_size.py` for SD1's size.

## Tests

| what | reference | bound | test |
|---|---|---|---|
| token ids | open_clip's tokenizer, for thousands of strings in every script and for generated ones; transformers, for special tokens in a prompt | equal | `tests/clip/test_tokenizer.py`, `test_tokenizer_special.py` |
| one step of DDIM, PNDM, DDPM | diffusers' schedulers with this package's float64 table | 1e-9 | `tests/schedulers/test_diffusers.py`, `test_pndm.py` |
| one step of DDIM and DDPM in float32 | diffusers' schedulers with their own table, which is inexact near t = 0 | 5e-6; 2e-5 if the network predicts x0 | `tests/schedulers/test_diffusers.py` |
| one step of DPM-Solver++, UniPC, Euler, ancestral Euler, Heun, LMS | diffusers' schedulers with this package's noise levels | 1e-9, or 1e-6 where theirs rounds x to float32 | `tests/schedulers/test_solvers_diffusers.py` |
| 50 steps of DDIM and PNDM in float32 | diffusers' schedulers | 1e-5; 4e-5 if the network predicts x0 | `tests/schedulers/test_diffusers.py`, `test_pndm.py` |
| DDIM and PLMS | CompVis's formulas in numpy | 1e-9 | `tests/schedulers/test_compvis.py` |
| whole images, from the prompt to pixels | diffusers' `StableDiffusionPipeline` and its img2img pipeline with the bundled weights; its U-Net's outer layers are built from diffusers' blocks, because diffusers' settings do not cover them | 1e-4 of the range, 3e-4 with PNDM | `tests/sampler/test_pipeline_parity.py` |
| latents of inpainting | diffusers' `StableDiffusionInpaintPipeline` with random weights | 1e-5 | `tests/sampler/test_pipeline_parity.py` |
| key maps | names and shapes of all published SD1 and SD2 tensors | exact, both ways | `tests/loading/test_key_maps.py` |

[Schedulers](schedulers.md#differences-from-diffusers) lists what diffusers defines differently, such as the last alpha, spacings
and PNDM with v.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--full", action="store_true", help="also SD1 and SD2 at full size")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "parity.md")
    arguments = parser.parse_args()
    table = []
    for row in rows(arguments.full):
        print(row, flush=True)
        table.append(str(row))
    if any("**over**" in row for row in table):
        sys.exit("a row is over its bound")
    versions = {name: version(name).split("+")[0] for name in ("torch", "diffusers", "transformers")}
    flag = " --full" if arguments.full else ""
    arguments.output.write_text(PAGE.format(table="\n".join(table), flag=flag, **versions), encoding="utf-8")


if __name__ == "__main__":
    main()
