"""Jobs of the tests: a small model, a core that paints its seeds instead of sampling, and files of rows."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from PIL import Image
from support.configs import TINY
from support.random_models import random_model

import ldm_core
from ldm_core.jobs import Draw, Job, Options, open_job, open_rows


@cache
def tiny() -> ldm_core.LatentDiffusion:
    """A model of 32x32 pixels with random weights."""
    return random_model(TINY["sd1"])


class Painted(Draw):
    """Pictures in the colour of their seed. A prompt "break" fails, in whatever batch it is."""

    def _sample(self, tasks: Sequence[Any]) -> list[Image.Image]:
        if any(task.row.prompt == "break" for task in tasks):
            raise RuntimeError("the shapes do not\nmatch")
        recipes = [task.recipe for task in tasks]
        return [
            Image.new("RGB", (recipe.width, recipe.height), tuple(recipe.seed.to_bytes(8, "big")[-3:]))
            for recipe in recipes
        ]


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def many(count: int) -> list[dict[str, Any]]:
    return [{"id": f"r{k}", "prompt": f"thing {k}", "steps": 2 + k % 2} for k in range(count)]


def painted_job(
    rows: Path, output: Path, *, shard_size: int = 4, format: str = "webdataset", **options: Any
) -> Job:
    draw = Painted(tiny(), Options(steps=2, batch_size=3, **options))
    return open_job(open_rows(rows), draw, output, format=format, shard_size=shard_size)


def contents(folder: Path) -> dict[str, bytes]:
    """The bytes of all files in a folder, by name."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}
