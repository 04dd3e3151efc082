"""The command `serve`, up to the server itself."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest

from ldm_core.cli import main, serve
from ldm_core.serve import Order


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The engines, addresses and reaches of the servers that would run."""
    found: list[Any] = []

    def run(engine: Any, listening: socket.socket, *, local: bool) -> None:
        found.append((engine, listening.getsockname()[:2], local))
        engine.close()

    monkeypatch.setattr(serve, "run", run)
    monkeypatch.setattr(serve, "find_spec", lambda name: object())
    return found


def test_serves_the_bundled_model_on_this_machine_alone(
    started: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", "--port", "0", "--scheduler", "plms", "--max-pixels", "65536"]) == 0
    ((engine, (host, port), local),) = started
    assert (host, local) == ("127.0.0.1", True)
    assert f"serving emoji at http://127.0.0.1:{port}" in capsys.readouterr().err
    info = engine.models["emoji"]
    assert (info.steps, info.guidance_scale, engine.scheduler) == (25, 4.0, "plms")
    assert engine.limits.pixels == 65536
    with pytest.raises(ValueError, match="shutting down"):
        engine.submit(Order("a"))


def test_models_are_named_by_their_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(serve, "source_file", lambda path: None)
    args = {"models": ["a/x.ckpt", "b/x.safetensors", str(tmp_path), "y.v1.ckpt"], "device": "cpu"}
    sources = serve._sources(serve.Namespace(**args, dtype="bfloat16"))
    assert [one.name for one in sources] == ["x (1)", "x (2)", tmp_path.name, "y.v1"]
    assert {one.steps for one in sources} == {50}


def test_a_server_for_others_says_so(started: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--host", "0.0.0.0", "--port", "0"]) == 0
    assert started[0][2] is False
    assert "anybody who can reach 0.0.0.0 can use this server" in capsys.readouterr().err


def test_what_is_missing_or_taken_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(serve, "find_spec", lambda name: None)
    assert main(["serve"]) == 2
    assert "serve needs gradio, fastapi, uvicorn: pip install 'ldm_core[web]'" in capsys.readouterr().err
    monkeypatch.setattr(serve, "find_spec", lambda name: object())
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert main(["serve", "--port", str(taken.getsockname()[1])]) == 2
    assert "cannot listen on 127.0.0.1:" in capsys.readouterr().err
    assert main(["serve", "nowhere.ckpt", "--port", "0"]) == 2
    assert "nowhere.ckpt" in capsys.readouterr().err
