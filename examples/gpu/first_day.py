"""The first day on a GPU: the tests that need one, and a measurement of all that was predicted without one.

    python examples/gpu/first_day.py OUT                  at most 10 minutes; the same command again goes on
    python examples/gpu/first_day.py OUT --write-tiles    and puts the best tiles into kernels/tiles.py
    python examples/gpu/first_day.py OUT --dry-run        all of it on a CPU with tiny sizes, in seconds

It needs Linux, PyTorch, Triton and this repository, nothing else; what is missing is skipped by name.
OUT gets a JSON file for each stage, written again after each row, and summary.md. A run that was stopped, for
its time or in any other way, loses only the row that it was measuring. To measure a stage again, delete its
file.

    python examples/gpu/first_day.py OUT --train 20 --data emoji-data [--evaluator evaluator.safetensors]

trains the bundled model further for 20 minutes instead (see examples/train_emoji), evaluates it, and leaves
its weights in OUT/parts in files of less than 16 MiB. This needs the package's own dependencies, too.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).parents[2]
TILES = ROOT / "ldm_core" / "kernels" / "tiles.py"

if TYPE_CHECKING:
    from stage_report import StageReport

Measure = Callable[["StageReport", Any], None]


@dataclass(frozen=True)
class Stage:
    """A function that fills a report, and the seconds that it may take."""

    name: str
    measure: Measure
    seconds: float


def stages() -> list[Stage]:
    from attention_stages import attention, tiles
    from machine_stages import gpu_tests, machine
    from network_stages import decoder, picture, unet

    return [
        Stage("machine", machine, 30),
        Stage("tests", gpu_tests, 90),
        Stage("attention", attention, 80),
        Stage("tiles", tiles, 90),
        Stage("unet", unet, 150),
        Stage("decoder", decoder, 40),
        Stage("picture", picture, 70),
    ]


def run_stage(stage: Stage, folder: Path, plan: Any, seconds: float) -> None:
    """Run a stage in processes of its own until it is done or its time is over.

    A crash costs the row that was being measured: the next process goes on after it.
    """
    from processes import run_within
    from stage_report import LOST, StageReport

    path, begin = folder / f"{stage.name}.json", time.monotonic()
    earlier = StageReport(path).seconds
    code: int | None = LOST
    while code not in (0, None):
        code = run_within(begin + seconds - time.monotonic(), plan.start, _measure, stage.measure, path, plan)
        report = StageReport(path)
        if code not in (0, None, LOST):
            if not report.running:
                break  # outside of any row: another process would fail, too
            report.add({"name": report.running, "error": f"its process ended with exit code {code}"})
    report = StageReport(path)
    report.state = {0: "done", None: "out of time"}.get(code, "failed")
    report.running = ""
    report.seconds = earlier + time.monotonic() - begin
    report.save()
    print(f"{stage.name}: {report.state} after {report.seconds:.0f} s\n", flush=True)


def _measure(measure: Measure, path: Path, plan: Any) -> None:
    """What the process of a stage runs."""
    import torch
    from stage_report import StageReport

    if plan.device == "cpu":
        torch.set_num_threads(1)
    torch.manual_seed(0)
    report = StageReport(path)
    report.state = "running"
    report.save()
    measure(report, plan)


def put_tiles(folder: Path) -> None:
    """Write the best tiles that were found into the table of this GPU."""
    from attention_stages import best_tiles, write_tiles
    from first_day_summary import capability
    from stage_report import StageReport

    chip = capability(StageReport(folder / "machine.json").rows)
    best = best_tiles(StageReport(folder / "tiles.json").rows, chip)
    write_tiles(TILES, best)
    for table, tiles in best.items():
        print(f"{TILES}: {table} has the tiles of head sizes {', '.join(map(str, sorted(tiles)))}")


def train(args: argparse.Namespace) -> None:
    import subprocess

    from emoji_training import Training, run

    device = "cpu" if args.dry_run else "cuda"
    training = Training(args.out, args.data, args.train, device, evaluator=args.evaluator)
    try:
        print(run(training, args.minutes))
    except (OSError, subprocess.SubprocessError) as error:
        sys.exit(f"error: {error}")


def check_folder(folder: Path, kind: str) -> None:
    """Raises ValueError for a folder that holds a run of another kind, "full" or "dry"."""
    folder.mkdir(parents=True, exist_ok=True)
    note = folder / "kind.txt"
    if not note.exists():
        note.write_text(kind, encoding="utf-8")
    elif note.read_text(encoding="utf-8") != kind:
        raise ValueError(f"{folder} holds a {note.read_text(encoding='utf-8')} run: name another folder")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, metavar="OUT", help="the folder of the results")
    parser.add_argument("--minutes", type=float, help="after which no stage goes on (9.5; 60 of a dry run)")
    parser.add_argument("--only", nargs="+", metavar="STAGE", help="these stages alone")
    parser.add_argument("--write-tiles", action="store_true", help=f"rewrite {TILES.relative_to(ROOT)}")
    parser.add_argument("--dry-run", action="store_true", help="on a CPU, with tiny sizes")
    training = parser.add_argument_group("training")
    training.add_argument("--train", type=float, metavar="MINUTES", help="train instead of measuring")
    training.add_argument("--data", type=Path, help="what examples/train_emoji/prepare.py made")
    training.add_argument("--evaluator", type=Path, help="a CLIP that judges the pictures")
    args = parser.parse_args(arguments)
    args.minutes = args.minutes or (60 if args.dry_run else 9.5)
    if (args.train is None) != (args.data is None):
        parser.error("--train and --data go together")
    return args


def main(arguments: Sequence[str] | None = None) -> None:
    begin = time.monotonic()
    args = parse(arguments)
    if args.dry_run:  # before PyTorch and Triton are imported
        os.environ |= {"CUDA_VISIBLE_DEVICES": "", "TRITON_INTERPRET": "1"}
    sys.path[:0] = [str(Path(__file__).parent), str(ROOT)]
    if args.train is not None:
        train(args)
        return
    from first_day_plan import DRY, FULL
    from first_day_summary import write_summary
    from stage_report import StageReport

    if args.dry_run:
        import torch._dynamo  # noqa: F401  once for all stages, which need it for profiles and compilation
    wanted = [stage for stage in stages() if not args.only or stage.name in args.only]
    try:
        check_folder(args.out, "dry" if args.dry_run else "full")
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    todo = [stage for stage in wanted if StageReport(args.out / f"{stage.name}.json").state != "done"]
    for k, stage in enumerate(todo):
        left = begin + 60 * args.minutes - time.monotonic()
        if left <= 0:
            break
        # A run that goes on has more time for the few stages that are left. A dry run has no limits.
        share = left if args.dry_run else left / (len(todo) - k)
        seconds = min(left, max(stage.seconds, share))
        print(f"{stage.name}: at most {seconds:.0f} s", flush=True)
        run_stage(stage, args.out, DRY if args.dry_run else FULL, seconds)
        write_summary(args.out)
        if stage.name == "machine" and "skipped" in StageReport(args.out / "machine.json").rows[0]:
            sys.exit("error: PyTorch finds no CUDA device; --dry-run needs none")
    print(write_summary(args.out))
    if args.write_tiles:
        put_tiles(args.out)


if __name__ == "__main__":
    main()
