"""The web application: the API, the page, and the guard before both; and the server that runs it."""

from __future__ import annotations

import ipaddress
import os
import socket
import tempfile
from pathlib import Path
from typing import Any

from ldm_core.serve.engine import Engine

SPARE = 2**16  # bytes of an upload's body besides the file
# Fonts of systems: Gradio's own default is loaded from Google.
FONTS = ["Segoe UI", "Roboto", "Helvetica Neue", "Arial", "sans-serif"]
MONO_FONTS = ["Menlo", "Consolas", "DejaVu Sans Mono", "monospace"]
LOCAL_NAMES = ("localhost",)


def create_app(engine: Engine, uploads: Path, *, local: bool = True) -> Any:
    """The ASGI application of an engine.

    uploads: a folder of its own for the pictures that users give; nothing else is ever served or read.
    local: whether to answer to the names of the loopback address alone.
    Raises ModuleNotFoundError without the packages of the extra "web".
    """
    # Gradio reads its settings from the environment alone, and at its import.
    os.environ["GRADIO_TEMP_DIR"] = str(uploads)
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    import gradio as gr
    from fastapi import FastAPI

    from ldm_core.serve import fragments
    from ldm_core.serve.api import router
    from ldm_core.serve.guard import Guard
    from ldm_core.serve.page import Page

    app = FastAPI(title="ldm_core", docs_url=None, redoc_url=None, openapi_url=None)
    app.include_router(router(engine))
    fonts = {"font": FONTS, "font_mono": MONO_FONTS}
    gr.mount_gradio_app(
        app,
        Page(engine, uploads).build(),
        path="/",
        theme=gr.themes.Default(primary_hue="indigo", neutral_hue="slate", **fonts),
        css=fragments.CSS,
        footer_links=[],
        run_history=False,
        allowed_paths=[],
        blocked_paths=[],
        max_file_size=engine.limits.upload_bytes,
        ssr_mode=False,
        mcp_server=False,
        enable_monitoring=False,
        pwa=False,
        show_error=False,
    )
    return Guard(app, uploads, local=local, max_upload=engine.limits.upload_bytes + SPARE)


def is_loopback(host: str) -> bool:
    """Whether a host's name or address is of this machine alone."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() in LOCAL_NAMES


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens. Raises OSError, naming the address, if it is taken or not of this machine."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host.strip("[]"), port), family=family)
    except OSError as error:
        raise OSError(f"cannot listen on {host}:{port}: {error.strerror or error}") from None


def run(engine: Engine, listening: socket.socket, *, local: bool = True) -> None:
    """Serve until the process is interrupted. Uploads are removed at the end."""
    import uvicorn

    with tempfile.TemporaryDirectory(prefix="ldm_core-") as uploads:
        app = create_app(engine, Path(uploads), local=local)
        config = uvicorn.Config(
            app, log_level="warning", access_log=False, server_header=False, timeout_graceful_shutdown=2
        )
        try:
            uvicorn.Server(config).run(sockets=[listening])
        finally:
            engine.close()
