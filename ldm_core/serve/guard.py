"""What stands between the network and the web framework: which requests reach it, and what a page may load.

Gradio answers many more requests than the page makes. Some of them read files of the server, or fetch an
address, that the browser names. Here only the requests that the page and the API need come through:

* Host: a server on the loopback address answers to the names of that address alone, so that no other site
  reaches it through a name that it points there (DNS rebinding).
* Origin: a request that another site's page makes is refused.
* Path: a list of allowed routes. Files are served from the folder of uploads only.
* Body: bounded, and of a known length. Every "path" in an event's data must be that of an upload.
* Response: a content security policy, with which browsers load nothing from other hosts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
PAGE = re.compile(
    r"/|/config|/theme\.css|/favicon\.ico|/manifest\.json|/(?:assets|static|svelte)/[\w./@+~-]*"
)
EVENTS = re.compile(
    r"/gradio_api/(?:info|startup-events|queue/join|queue/data|cancel|reset|upload|upload_progress"
    r"|heartbeat/[\w-]+)/?"
)
API = re.compile(r"/v1/(?:models|images/generations)")
FILE = "/gradio_api/file="
JOIN, UPLOAD = "/gradio_api/queue/join", "/gradio_api/upload"
MAX_BODY = 2**20  # bytes of anything but an upload
POLICY = "; ".join(
    (
        "default-src 'self'",
        "script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:",  # as Gradio's pages need
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data: blob:",
        "font-src 'self' data:",
        "connect-src 'self' data: blob:",
        "worker-src 'self' blob:",
        "object-src 'none'",
        "base-uri 'self'",
        "form-action 'self'",
        "frame-ancestors 'none'",
    )
)
HEADERS = {
    "content-security-policy": POLICY,
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


class Guard:
    """ASGI middleware with the rules above.

    uploads: the only folder from which files are served. local: whether the server is on the loopback
    address. max_upload: bytes of the body of an upload.
    """

    def __init__(self, app: App, uploads: Path, *, local: bool, max_upload: int) -> None:
        self.app, self.uploads, self.local, self.max_upload = app, uploads.resolve(), local, max_upload

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        if scope["type"] != "http":  # the page needs no WebSocket
            return await send({"type": "websocket.close", "code": 1008})
        refusal = self._refusal(scope)
        if refusal is not None:
            return await _refuse(send, *refusal)
        if scope["path"].rstrip("/") == JOIN:
            body = await _body(receive)
            try:
                paths = list(_paths(json.loads(body)))
            except (ValueError, RecursionError):
                return await _refuse(send, 400, "The request is no valid JSON.")
            if not all(self._is_upload(path) for path in paths):
                return await _refuse(send, 403, "A picture must be an upload; no other file is read.")
            receive = _again(body, receive)
        await self.app(scope, receive, _with_headers(send))

    def _refusal(self, scope: Scope) -> tuple[int, str] | None:
        """The status and the words with which a request is refused, if it is."""
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        host, path = headers.get("host", ""), scope["path"]
        if self.local and re.sub(r":\d+$", "", host) not in LOOPBACK:
            return 403, "This server answers on its own machine only."
        origin = headers.get("origin")
        if origin is not None and origin.partition("://")[2] != host:
            return 403, "Requests of other sites are refused."
        if path.startswith(FILE):
            if not self._is_upload(path.removeprefix(FILE)):
                return 403, "Only uploads are served."
        elif not any(routes.fullmatch(path) for routes in (PAGE, EVENTS, API)) or ".." in path:
            return 404, "There is no such page."
        if scope["method"] in ("GET", "HEAD"):
            return None
        length = headers.get("content-length", "")
        most = self.max_upload if path.rstrip("/") == UPLOAD else MAX_BODY
        if not re.fullmatch(r"\d{1,12}", length):
            return 411, "The request needs a Content-Length."
        if int(length) > most:
            return 413, f"The request has more than {most // 2**20} MiB."
        return None

    def _is_upload(self, path: Any) -> bool:
        """Whether this is the absolute path of something in the folder of uploads, links resolved."""
        try:
            found = Path(path)
            inside = found.is_absolute() and found.resolve().is_relative_to(self.uploads)
        except (TypeError, ValueError, OSError, RuntimeError):
            return False
        return inside and ".." not in found.parts and unquote(path) == path


def _paths(value: Any) -> Iterator[Any]:
    """The values of all keys "path" at any depth, except for None."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if key == "path" and inner is not None:
                yield inner
            yield from _paths(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _paths(inner)


async def _body(receive: Receive) -> bytes:
    """The whole body, which the server has bounded by the Content-Length."""
    parts = []
    while True:
        message = await receive()
        parts.append(message.get("body", b""))
        if message["type"] != "http.request" or not message.get("more_body"):
            return b"".join(parts)


def _again(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives a body that has been read already, and then what follows."""
    given = False

    async def again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


def _with_headers(send: Send) -> Send:
    added = [(name.encode(), value.encode()) for name, value in HEADERS.items()]

    async def sent(message: Message) -> None:
        if message["type"] == "http.response.start":
            own = [
                (name, value) for name, value in message["headers"] if name.decode().lower() not in HEADERS
            ]
            message = {**message, "headers": [*own, *added]}
        await send(message)

    return sent


async def _refuse(send: Send, status: int, words: str) -> None:
    body = json.dumps(
        {"error": {"message": words, "type": "invalid_request_error", "param": None, "code": None}}
    )
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body.encode()})
