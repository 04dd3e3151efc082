"""What the first day measures, in full and as a dry run, and what was predicted beforehand.

The floors and predictions are for an H200 (790 TFLOP/s and 4.3 TB/s measured, 1.755 GHz), in 16-bit types.
They were written down before any run, so that a run can refute them: a miss by more than a third has a cause
to be found.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from ldm_core.config import SD1, LatentDiffusionConfig
from ldm_core.kernels.tiles import Tile

Range = tuple[float, float]


@dataclass(frozen=True)
class Size:
    """The size of an attention: batch, heads, queries, keys, head size.

    calls    how often a step of SD1's U-Net computes it
    floor    the least time in microseconds by the arithmetic or the memory, whatever binds
    predicted    microseconds by kernel, from least to most
    backward     whether the gradients are measured, too
    """

    name: str
    batch: int
    heads: int
    n: int
    m: int
    d: int
    calls: int = 0
    floor: float | None = None
    predicted: dict[str, Range] = field(default_factory=dict)
    backward: bool = False

    @property
    def operations(self) -> int:
        """Additions and multiplications of the two matrix products."""
        return 4 * self.batch * self.heads * self.n * self.m * self.d


@dataclass(frozen=True)
class Plan:
    """The sizes of a run. rounds: how many times a measurement is repeated, for its median."""

    device: str
    start: str  # of the stages' processes, see processes.py
    dtypes: tuple[str, ...]
    attention: tuple[Size, ...]
    tiles: tuple[Tile, ...]
    config: LatentDiffusionConfig
    batches: tuple[int, ...]  # pictures of a U-Net step; each is two rows, with guidance
    pictures: tuple[int, ...]  # pictures drawn and decoded at once
    steps: int
    rounds: int
    matmul: int  # rows of the matrix product that gives the ceiling
    copy_bytes: int
    compile_options: dict[str, str] = field(default_factory=dict)

    @property
    def side(self) -> int:
        """Rows and columns of the latents."""
        return self.config.image_size // self.config.autoencoder.downsampling


FULL = Plan(
    device="cuda",
    start="spawn",
    dtypes=("float16", "bfloat16"),
    attention=(
        Size(
            "self 4096", 2, 8, 4096, 4096, 40, 5, 72,
            {"triton": (105, 160), "flash": (195, 235), "cuDNN": (150, 185)}, backward=True,
        ),
        Size("self 1024", 2, 8, 1024, 1024, 80, 5, 6.8, backward=True),
        Size("self 256", 2, 8, 256, 256, 160, 5, 1.2),
        Size("self 64", 2, 8, 64, 64, 160, 1, 0.3),
        Size("cross 4096", 2, 8, 4096, 77, 40, 5, 2.5),
        Size("cross 1024", 2, 8, 1024, 77, 80, 5, 1.3),
        Size("cross 256", 2, 8, 256, 77, 160, 5),
        Size("cross 64", 2, 8, 64, 77, 160, 1),
        Size("decoder", 1, 1, 4096, 4096, 512, 0, 43.5, {"triton": (200, 400)}),
    ),
    tiles=(
        Tile(128, 64, 8, 3),
        Tile(128, 128, 8, 2),
        Tile(128, 128, 8, 3),
        Tile(64, 64, 4, 3),
        Tile(64, 64, 4, 2),
        Tile(64, 128, 4, 2),
        Tile(64, 32, 4, 3),
        Tile(128, 32, 8, 3),
    ),
    config=SD1,
    batches=(1, 4, 16),
    pictures=(1, 4),
    steps=50,
    rounds=20,
    matmul=8192,
    copy_bytes=2**32,
)  # fmt: skip

DRY = Plan(
    device="cpu",
    start="fork",
    dtypes=("float32",),
    attention=(
        Size("self 16", 1, 1, 16, 16, 40, 1, 1, {"triton": (1, 2)}, backward=True),
        Size("cross 16", 1, 1, 16, 7, 40, 1),
    ),
    tiles=(Tile(16, 16, 4, 1), Tile(16, 32, 4, 1)),
    config=replace(
        SD1,
        text_encoder=replace(SD1.text_encoder, width=32, layers=1, heads=2),
        unet=replace(
            SD1.unet,
            model_channels=32,
            channel_mult=(1, 2),
            num_res_blocks=1,
            attention_resolutions=(2,),
            num_heads=2,
            context_dim=32,
        ),
        autoencoder=replace(SD1.autoencoder, ch=32, ch_mult=(1, 2), num_res_blocks=1),
        image_size=16,
    ),
    batches=(1,),
    pictures=(1,),
    steps=2,
    rounds=2,
    matmul=64,
    copy_bytes=2**20,
    compile_options={"backend": "aot_eager"},
)

# Milliseconds of a step of SD1's U-Net in float16, one picture with guidance, by kernels and way of calling.
STEP_PREDICTIONS: dict[tuple[str, str], Range] = {
    ("plain", "eager"): (10, 15),
    ("triton", "eager"): (11, 16),
    ("plain", "graph"): (6, 6.5),
    ("plain", "compiled, captured"): (5, 5.5),
    ("plain", "captured"): (6, 6.5),
    ("triton", "graph"): (4.2, 6),
    ("triton", "captured"): (4.2, 6),
}
KERNEL_PREDICTIONS = {"plain": 980, "triton": 780}  # launches a step
