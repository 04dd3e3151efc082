"""Fixtures that every room shares: the bundled model, and what is published about others."""

from __future__ import annotations

import gc
import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings
from support.examples import FULL, QUICK

import ldm_core

SLOW = [HealthCheck.too_slow]  # a check of the machine's load, which says nothing of the code
settings.register_profile("full", max_examples=FULL, suppress_health_check=SLOW)
settings.register_profile("quick", max_examples=QUICK, suppress_health_check=SLOW)
settings.load_profile("quick")  # unless --hypothesis-profile names another


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--threads", type=int, default=1, help="PyTorch's threads; more help full-size networks")


def pytest_configure(config: pytest.Config) -> None:
    # Small networks gain nothing from a second thread, and lose much where something else runs, too.
    torch.set_num_threads(config.getoption("--threads"))
    gc.disable()


def pytest_collection_finish() -> None:
    """What was imported stays: the garbage collector, which would take a tenth of the time, leaves it out."""
    gc.freeze()
    gc.enable()


@pytest.hookimpl(tryfirst=True)  # before the marks are selected by
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of the cases of a test with the mark `one_in(n)`, one in n stays; the others become slow."""
    counts: dict[str, int] = {}
    for item in items:
        mark = item.get_closest_marker("one_in")
        if mark is None or any(item.get_closest_marker(name) for name in ("slow", "exhaustive", "gpu")):
            continue
        test = item.nodeid.split("[")[0]
        counts[test] = counts.get(test, -1) + 1
        if counts[test] % mark.args[0]:
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def bundled() -> ldm_core.LatentDiffusion:
    """The model that comes with the package, in float32. Do not change its weights."""
    return ldm_core.load()


@pytest.fixture(scope="session")
def published() -> dict[str, dict[str, Any]]:
    """Configuration and tensor shapes of 40 published models, by name."""
    path = Path(__file__).parent / "data" / "compvis-models.json.gz"
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return json.load(file)["models"]
