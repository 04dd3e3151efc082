"""Loading SD1's checkpoint of 4.3 GB: this package, diffusers' single-file loader, and a plain reader.

    python examples/benchmarks/loading.py [--cold] [--endings safetensors ckpt]

Each load is a process of its own; the time is that of loading and of reading every weight once, without
importing. Peak memory is that process's, with the pages of the file that it maps. The plain readers are
safetensors' and `torch.load(mmap=True)`. `--cold` takes the file out of the page cache before every load.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from measure import Measured
from networks import MODELS
from side_by_side import Case, options, run
from support.reference import random_model, settings_folder
from support.timed_loading import forget, measure

from ldm_core.checkpoint import save


def loader(path: Path, how: str, settings: Path) -> Callable[[], Measured]:
    def load() -> Measured:
        found = measure(path, how, settings)
        return Measured(found["seconds"], found["peak"])

    return load


def cases(args: argparse.Namespace) -> Iterator[Case]:
    config = MODELS[args.model]
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        settings = settings_folder(config, Path(folder, "settings"))
        for ending in args.endings:
            path = Path(folder, f"model.{ending}")
            save(random_model(config), path)
            yield Case(
                name=f"{args.model}, .{ending} of {path.stat().st_size / 1e6:,.0f} MB, "
                f"{'from the disk' if args.cold else 'in the page cache'}",
                candidates={
                    how: partial(loader, path, how, settings) for how in ("ldm_core", "diffusers", "plain")
                },
                peer="diffusers",
                before=partial(forget, path) if args.cold else None,
            )
            path.unlink()


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--model", choices=MODELS, default="sd1")
    parser.add_argument("--endings", nargs="+", choices=["safetensors", "ckpt"], default=["safetensors"])
    parser.add_argument("--cold", action="store_true", help="from the disk, not from the page cache")
    parser.add_argument("--folder", help="where to put the file, if not where temporary files are")
    args = parser.parse_args()
    run("loading", cases(args), args)


if __name__ == "__main__":
    main()
