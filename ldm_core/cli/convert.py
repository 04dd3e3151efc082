"""The `convert` and `merge` commands, which write models."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ldm_core.cli.output import already_there
from ldm_core.cli.printing import print_path
from ldm_core.loading.convert import add_difference, convert, weighted_sum


def convert_file(args: Namespace) -> int:
    """Write a checkpoint in another layout, format or type, and print its path."""
    with _new_unless_forced(args.target, args.force):
        convert(
            args.source,
            args.target,
            ema=args.ema,
            variant=args.variant,
            text_encoder=args.text_encoder,
            unet=args.unet,
            autoencoder=args.autoencoder,
            **_options(args),
        )
    print_path(args.target)
    return 0


def merge_files(args: Namespace) -> int:
    """Write (1 - alpha) A + alpha B, or A + alpha (B - C), and print its path."""
    options = _options(args)
    with _new_unless_forced(args.target, args.force):
        if len(args.models) == 2:
            a, b = args.models
            weighted_sum(a, b, args.target, 0.5 if args.alpha is None else args.alpha, **options)
        elif len(args.models) == 3:
            a, b, c = args.models
            add_difference(a, b, c, args.target, 1.0 if args.alpha is None else args.alpha, **options)
        else:
            count = len(args.models)
            raise ValueError(f"merge takes two models, or three for A + alpha (B - C), got {count}")
    print_path(args.target)
    return 0


def _options(args: Namespace) -> dict[str, Any]:
    """The options that both commands have."""
    return {
        "layout": args.layout,
        "dtype": None if args.dtype is None else getattr(torch, args.dtype),
        "config": args.config,
        "prediction": args.prediction,
        "overwrite": args.force,
    }


@contextmanager
def _new_unless_forced(target: str, force: bool) -> Iterator[None]:
    """Raise ValueError if the target exists, before the block runs or because it appeared meanwhile."""
    taken = already_there(target)
    if Path(target).is_file() and not force:
        raise taken
    try:
        yield
    except FileExistsError:
        raise taken from None
