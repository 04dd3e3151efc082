"""The log of a run: a CSV file, TensorBoard files, a progress bar and images.

`metrics.csv` has one row per logged step, in full precision. A resumed run removes the rows after its saved
state and appends to the file.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ldm_core.checkpoint.writer import write_then_move
from ldm_core.images import tensor_to_pil
from ldm_core.model import LatentDiffusion
from ldm_core.protocols import Autoencoder
from ldm_core.sampler import Sampler
from ldm_core.support.warn import warn
from ldm_core.watch.grid import make_grid

if TYPE_CHECKING:
    from PIL.Image import Image


class RunLog:
    """The log of a run in a folder; only rank 0 has one. Rows after `step` are removed.

    step: the step to continue from. steps: the total number of steps. quiet: hide the progress bar.
    """

    def __init__(self, folder: Path, *, step: int, steps: int, quiet: bool = False) -> None:
        self.folder = folder
        self._table = _Table(folder / "metrics.csv", step)
        self._board = _tensorboard(folder / "tensorboard", step)
        # disable=None shows the bar on terminals only.
        self._bar = tqdm(initial=step, total=steps, unit="step", disable=True if quiet else None)

    def numbers(self, step: int, values: Mapping[str, float]) -> None:
        """Log the metrics of step 1, 2, …; the names must be the same at every step."""
        self._table.add({"step": step, **values})
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(name, value, step)

    def advance(self, loss: float) -> None:
        """Advance the progress bar by one step."""
        self._bar.set_postfix(loss=f"{loss:.4g}", refresh=False)
        self._bar.update()

    def picture(self, step: int, image: Image) -> Path:
        """Save an image of this step in `samples/`."""
        path = self.folder / "samples" / f"{step:08d}.png"
        path.parent.mkdir(exist_ok=True)
        write_then_move(path, partial(image.save, format="PNG"))
        if self._board is not None:
            self._board.add_image("samples", np.asarray(image.convert("RGB")), step, dataformats="HWC")
        return path

    def close(self) -> None:
        self._bar.close()
        self._table.close()
        if self._board is not None:
            self._board.close()


class _Table:
    """A CSV file to which rows are appended."""

    def __init__(self, path: Path, step: int) -> None:
        self._path = path
        self._names, rows = read_table(path)
        if self._names:
            kept = [[row[name] for name in self._names] for row in rows if row["step"] <= step]
            write_then_move(path, lambda target: _write_table(target, self._names, kept))
        self._file = path.open("a", newline="", encoding="utf-8")

    def add(self, row: Mapping[str, float]) -> None:
        if not self._names:
            self._names = list(row)
            csv.writer(self._file).writerow(self._names)
        if set(row) != set(self._names):
            odd = ", ".join(sorted(set(row) ^ set(self._names)))
            raise ValueError(f"{self._path}: every row must have the same columns; these differ: {odd}")
        csv.writer(self._file).writerow([row[name] for name in self._names])
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def _write_table(path: Path, names: list[str], rows: list[list[float]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([names, *rows])


def read_table(path: Path) -> tuple[list[str], list[dict[str, float]]]:
    """(columns, rows) of a `metrics.csv`, without an incomplete last row."""
    if not path.exists():
        return [], []
    with path.open(newline="", encoding="utf-8") as file:
        lines = [line for line in file if line.endswith("\n")]
    table = csv.DictReader(lines)
    names = list(table.fieldnames or [])
    number = {"step": int}
    return names, [{name: number.get(name, float)(row[name]) for name in names} for row in table]


def _tensorboard(folder: Path, step: int) -> Any:
    """A writer that discards events after `step`; None if TensorBoard is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        warn("TensorBoard is not installed: only metrics.csv is written (pip install tensorboard)")
        return None
    return SummaryWriter(str(folder), purge_step=step + 1)


def sample_grid(
    model: LatentDiffusion,
    prompts: Sequence[str],
    *,
    steps: int = 25,
    guidance_scale: float = 4.0,
    seed: int = 0,
    columns: int = 4,
) -> Image:
    """A grid of one image per prompt, sampled with the same noise at every call."""
    images = Sampler(model).txt2img(list(prompts), steps=steps, guidance_scale=guidance_scale, seed=seed)
    starts = range(0, len(images), columns)
    rows = [images[i : i + columns] for i in starts]
    return make_grid(rows, labels=[[str(p) for p in prompts[i : i + columns]] for i in starts])


@torch.no_grad()
def reconstruction_grid(autoencoder: Autoencoder, images: Tensor) -> Image:
    """A grid of images (B, 3, H, W) in [-1, 1] above their reconstructions."""
    decoded = autoencoder.decode(autoencoder.encode(images).mode())
    pictures = [tensor_to_pil((x + 1) / 2) for x in (images, decoded)]
    return make_grid(pictures, rows=["picture", "decoded"])
