"""Engines with small models, and a server of one."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.configs import TINY
from support.random_models import random_model

import ldm_core
from ldm_core.recipe import SourceFile
from ldm_core.serve import Engine, Limits, Source

PATIENCE = 300  # seconds for what takes one, where other work has the cores
FILE = SourceFile("tiny.safetensors", "ab" * 32, "/secret/place/tiny.safetensors")


class Gated(torch.nn.Module):
    """A U-Net that waits before each call until it is let through."""

    takes_kept_context = False

    def __init__(self, unet: torch.nn.Module) -> None:
        super().__init__()
        self.unet = unet
        self.gate = threading.Semaphore(0)
        self.calls = 0
        self.error: Exception | None = None

    def forward(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        self.calls += 1
        assert self.gate.acquire(timeout=PATIENCE)
        if self.error is not None:
            raise self.error
        return self.unet(*args, **kwargs)

    def open(self, calls: int = 1000) -> None:
        self.gate.release(calls)


@pytest.fixture(scope="session")
def tiny() -> ldm_core.LatentDiffusion:
    return random_model(TINY["sd1"])


@pytest.fixture
def gated(tiny: ldm_core.LatentDiffusion) -> ldm_core.LatentDiffusion:
    return replace(tiny, unet=Gated(tiny.unet))


@pytest.fixture(scope="session")
def source(tiny: ldm_core.LatentDiffusion) -> Source:
    return Source("tiny", lambda: tiny, FILE, steps=3, guidance_scale=4.0)


Make = Callable[..., Engine]


@pytest.fixture
def make() -> Iterator[Make]:
    """Makes engines of models, and closes them at the end."""
    engines: list[Engine] = []

    def make(*models: Any, **limits: Any) -> Engine:
        sources = [
            one if isinstance(one, Source) else Source("tiny", lambda one=one: one, FILE, steps=3)
            for one in models
        ]
        engines.append(Engine(sources, Limits(**limits)))
        return engines[-1]

    yield make
    for engine in engines:
        unet = engine._loaded.model.unet if engine._loaded else None
        if isinstance(unet, Gated):
            unet.open()
        engine.close()


@pytest.fixture(scope="session")
def engine(source: Source) -> Iterator[Engine]:
    engine = Engine([source])
    yield engine
    engine.close()


@pytest.fixture(scope="session")
def served(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server of the engine."""
    with serving(engine, tmp_path_factory.mktemp("uploads")) as address:
        yield address


class serving:
    """A server of an engine in a thread, as a context manager that gives its address."""

    def __init__(self, engine: Engine, uploads: Path) -> None:
        self.engine, self.uploads = engine, uploads

    def __enter__(self) -> str:
        import uvicorn

        from ldm_core.serve.app import create_app, listen

        self.environment = pytest.MonkeyPatch()
        for name in ("GRADIO_TEMP_DIR", "GRADIO_ANALYTICS_ENABLED", "HF_HUB_DISABLE_TELEMETRY"):
            self.environment.setenv(name, "")  # and so restored at the end
        self.socket = listen("127.0.0.1", 0)
        app = create_app(self.engine, self.uploads)
        self.server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1))
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self.socket]})
        self.thread.start()
        while not self.server.started:
            assert self.thread.is_alive()
            threading.Event().wait(0.02)
        return f"http://127.0.0.1:{self.socket.getsockname()[1]}"

    def __exit__(self, *_: object) -> None:
        self.server.should_exit = True
        self.thread.join()
        self.socket.close()
        self.environment.undo()
