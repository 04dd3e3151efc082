"""`serve`: a page and an API that draw with the models of the command line (`ldm_core.serve`)."""

from __future__ import annotations

from argparse import Namespace
from contextlib import suppress
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from ldm_core.cli import defaults
from ldm_core.cli.model import usable_device
from ldm_core.cli.printing import tell
from ldm_core.loading.load import bundled_model, load
from ldm_core.recipe import source_file
from ldm_core.serve.app import is_loopback, listen, run
from ldm_core.serve.engine import Engine, Source
from ldm_core.serve.order import Limits

NEEDED = ("gradio", "fastapi", "uvicorn")


def serve(args: Namespace) -> int:
    """Load the models, print the address, and serve until Ctrl-C. Returns the exit status."""
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise ValueError(f"serve needs {', '.join(missing)}: pip install 'ldm_core[web]'")
    local = is_loopback(args.host)
    with listen(args.host, args.port) as listening:
        engine = Engine(_sources(args), Limits(pixels=args.max_pixels), scheduler=args.scheduler)
        host = f"[{args.host}]" if ":" in args.host else args.host
        tell(f"serving {', '.join(engine.models)} at http://{host}:{listening.getsockname()[1]}")
        if not local:
            tell(f"warning: anybody who can reach {args.host} can use this server; it has no passwords")
        with suppress(KeyboardInterrupt):  # the way to end a server
            run(engine, listening, local=local)
    return 0


def _sources(args: Namespace) -> list[Source]:
    """The models of the command line, or the bundled one. Their names are those of their files."""
    device = usable_device(args.device)
    dtype: Any = args.dtype if args.dtype in (None, "auto") else getattr(torch, args.dtype)
    paths = [Path(path) for path in args.models] or [bundled_model()]
    names = _names([path.name if path.is_dir() else path.stem for path in paths])
    how: dict[str, Any] = (
        {"steps": defaults.STEPS}
        if args.models
        else {"steps": defaults.BUNDLED_STEPS, "guidance_scale": defaults.BUNDLED_GUIDANCE}
    )
    return [
        Source(name, partial(load, path, device=device, dtype=dtype), source_file(path), **how)
        for name, path in zip(names, paths)
    ]


def _names(names: list[str]) -> list[str]:
    """The names, of which equal ones are numbered."""
    return [
        name if names.count(name) == 1 else f"{name} ({names[: k + 1].count(name)})"
        for k, name in enumerate(names)
    ]
