"""`draw` and `verify`: jobs of many pictures (`ldm_core.jobs`).

`draw` prints the path of each shard that it writes. Its status is 0 if every row has a picture or the reason
why it has none, since a process of torchrun that fails ends the others; `verify` has status 1 in that case.
"""

from __future__ import annotations

import os
from argparse import Namespace
from functools import partial
from pathlib import Path
from typing import Any

import torch

import ldm_core
from ldm_core.cli import defaults
from ldm_core.cli.model import chosen, load_model, usable_device
from ldm_core.cli.plan import chosen_scheduler
from ldm_core.cli.printing import EXIT_FAILED, EXIT_INTERRUPTED, print_path, tell
from ldm_core.config import PRESETS
from ldm_core.guidance import ClassifierFreeGuidance
from ldm_core.jobs.checking import verify
from ldm_core.jobs.draw import Draw, Options
from ldm_core.jobs.job import Job, Shard, open_job
from ldm_core.jobs.on_ray import run_on_ray
from ldm_core.jobs.plan import JOB_FILE, read_plan
from ldm_core.jobs.running import Part, Summary, run, torchrun_part
from ldm_core.jobs.sources import open_rows
from ldm_core.recipe import Recipe
from ldm_core.support.printable import shown


def draw_rows(args: Namespace) -> int:
    """Draw the rows of a file, or this process's part of them, and return the exit status."""
    options: dict[str, Any] = {
        "retry_failed": args.retry_failed,
        "progress": False if args.quiet or os.environ.get("LOCAL_RANK", "0") != "0" else None,
        "on_shard": _print_shard,
    }
    try:
        if args.ray is None:
            mine = Part(*(args.part or (0, 1))).within(torchrun_part())
            summary = run(_job(args), mine, **options)
        else:
            summary = _run_on_ray(args, options)
    except KeyboardInterrupt:
        tell("interrupted; finished shards are kept, and the same command resumes")
        return EXIT_INTERRUPTED
    if not args.quiet:
        _tell_summary(summary)
    return 0


def _run_on_ray(args: Namespace, options: dict[str, Any]) -> Summary:
    if args.part is not None:
        raise ValueError("--part divides a job among processes without Ray; give one of --part and --ray")
    gpus = args.gpus if args.gpus is not None else float(torch.cuda.is_available())
    return run_on_ray(
        partial(_job_in, os.getcwd(), args),
        actors=args.actors,
        num_gpus=gpus,
        num_cpus=args.cpus,
        address=args.ray or None,
        **options,
    )


def _job_in(folder: str, args: Namespace) -> Job:
    """The job in another process, which may have another current folder."""
    os.chdir(folder)
    return _job(args)


def _job(args: Namespace) -> Job:
    args.recipe = None
    rows = open_rows(args.rows, dict(args.columns))
    draw = _draw(args, None, seed=args.seed, batch_size=args.batch_size)
    return open_job(rows, draw, args.output, format=args.format, shard_size=args.shard_size)


def _draw(args: Namespace, again: Recipe | None, **options: Any) -> Draw:
    """The core of a job, from the options or else from the recipe of an earlier one."""
    if args.images is not None and not os.path.isdir(args.images):
        raise ValueError(f"--images {args.images}: expected a folder")
    scheduler = chosen_scheduler(args, again)
    device = usable_device(args.device or _own_device())
    model, fields = load_model(args, again, device)
    bundled = args.model is None and (again is None or again.model.path is None)
    width, height = getattr(args, "size", None) or ((again.width, again.height) if again else (None, None))
    guidance = defaults.BUNDLED_GUIDANCE if bundled else None
    strength = getattr(args, "strength", None)
    return Draw(
        model,
        Options(
            steps=chosen(args, again, "steps", defaults.BUNDLED_STEPS if bundled else defaults.STEPS),
            guidance_scale=chosen(args, again, "guidance_scale", guidance),
            width=width,
            height=height,
            strength=defaults.STRENGTH["img2img"] if strength is None else strength,
            scheduler=scheduler,
            guidance=ClassifierFreeGuidance(rescale=chosen(args, again, "guidance_rescale", 0.0)),
            clip_skip=chosen(args, again, "clip_skip"),
            prompts=chosen(args, again, "prompt_syntax"),
            images=None if args.images is None else Path(args.images),
            model=fields.pop("model"),
            recorded={
                **{name: value for name, value in fields.items() if name != "dtype"},
                "versions": {"ldm_core": ldm_core.__version__, "torch": str(torch.__version__)},
            },
            **options,
        ),
    )


def _own_device() -> str | None:
    """The GPU of this process among those of one machine, if torchrun has started it."""
    local = os.environ.get("LOCAL_RANK", "")
    return f"cuda:{int(local)}" if local.isdecimal() and torch.cuda.is_available() else None


def _print_shard(shard: Shard) -> None:
    if not shard.kept:
        print_path(shard.path)


def _tell_summary(summary: Summary) -> None:
    rows = summary.drawn + summary.failed
    tell(
        f"{rows:,} rows in {summary.shards:,} shards ({summary.kept:,} of them finished before): "
        f"{summary.drawn:,} drawn, {summary.failed:,} failed"
    )
    for reason in summary.reasons:
        tell(f"failed: row {reason}")


def verify_job(args: Namespace) -> int:
    """Check the output folder of a job and return the exit status: 0 if every row has a sound picture."""
    output = Path(args.output)
    args.recipe = str(output / JOB_FILE)
    args.scheduler = args.eta = args.spacing = None
    again = read_plan(output).recipe
    if again.config is not None and again.config not in PRESETS and args.config is None and args.redraw:
        raise ValueError(f"{args.recipe}: drawn with {shown(again.config)}: give it with --config")
    draw = _draw(args, again) if args.redraw else None
    rows = None if args.rows is None else open_rows(args.rows, dict(args.columns))
    report = verify(output, redraw=args.redraw, draw=draw, rows=rows, tolerance=args.tolerance)
    for line in (*report.problems, *report.reasons):
        tell(line)
    if report.count > len(report.problems):
        tell(f"and {report.count - len(report.problems):,} more problems")
    if not args.quiet:
        again_text = (
            f"; {report.redrawn} drawn again, differing by at most {report.difference} of 255 levels"
            if report.redrawn
            else ""
        )
        tell(
            f"{report.rows:,} rows: {report.drawn:,} drawn, {report.failed:,} failed, "
            f"{report.count:,} problems{again_text}"
        )
    return EXIT_FAILED if report.count or report.failed else 0
