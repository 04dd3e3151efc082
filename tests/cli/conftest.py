"""Fixtures of the tests of the command line."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from support import cli_runs
from support.cli_runs import draw, run
from support.small_models import small_model

from ldm_core.checkpoint import save

__all__ = [
    "draw",
    "run",
]


@pytest.fixture(scope="session")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """The path of a small model of each kind of `support.small_models`, written once."""
    folder = tmp_path_factory.mktemp("zoo")

    def path(kind: str) -> str:
        file = folder / f"{kind}.safetensors"
        if not file.exists():
            save(small_model(kind), file)
            cli_runs.zoo[str(file)] = None
        return str(file)

    return path
