"""The guard, before an application that answers everything."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from ldm_core.serve.guard import HEADERS, MAX_BODY, Guard

JSON = "application/json"


async def everything(scope: Any, receive: Any, send: Any) -> None:
    body = (await receive()).get("body", b"") if scope["method"] == "POST" else b""
    headers = [(b"content-type", b"text/plain"), (b"Referrer-Policy", b"unsafe-url")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"reached " + body})


def ask(
    uploads: Path,
    path: str,
    body: bytes | None = None,
    *,
    local: bool = True,
    host: str = "127.0.0.1:7860",
    **headers: str,
) -> tuple[int, bytes, dict[str, str]]:
    """The status, body and headers of the answer to GET, or with a body to POST."""
    given = {"host": host, **({} if body is None else {"content_length": str(len(body))}), **headers}
    scope = {
        "type": "http",
        "method": "GET" if body is None else "POST",
        "path": path,
        "headers": [(k.replace("_", "-").encode(), v.encode("latin-1")) for k, v in given.items() if v],
    }
    parts = [(body or b"")[:5], (body or b"")[5:]]
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": parts.pop(0), "more_body": bool(parts)}

    async def send(message: Any) -> None:
        sent.append(message)

    guard = Guard(everything, uploads, local=local, max_upload=2 * MAX_BODY)
    asyncio.run(guard(scope, receive, send))
    found = {k.decode().lower(): v.decode() for k, v in sent[0]["headers"]}
    return sent[0]["status"], sent[1]["body"], found


@pytest.fixture
def uploads(tmp_path: Path) -> Path:
    folder = tmp_path / "uploads"
    (folder / "ab12").mkdir(parents=True)
    (folder / "ab12" / "cat.png").write_bytes(b"")
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    return folder


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/config",
        "/theme.css",
        "/assets/index-a1.js",
        "/v1/models",
        "/gradio_api/heartbeat/ab1",
        "/static/a/b.js",
    ],
)
def test_what_the_page_needs_comes_through_with_a_policy(uploads: Path, path: str) -> None:
    status, body, headers = ask(uploads, path)
    assert (status, body) == (200, b"reached ")
    assert {name: headers[name] for name in HEADERS} == HEADERS
    assert "'self'" in headers["content-security-policy"]


@pytest.mark.parametrize(
    "path",
    [
        "/docs",
        "/gradio_api/proxy=https://example.com",
        "/gradio_api/run/predict",
        "/gradio_api/component_server",
        "/gradio_api/deep_link",
        "/monitoring",
        "/login",
        "/assets/../../../etc/passwd",
        "/file=/etc/passwd",
        "/file/etc/passwd",
        "/v1/chat/completions",
    ],
)
def test_all_other_routes_are_refused_in_words(uploads: Path, path: str) -> None:
    status, body, _ = ask(uploads, path)
    assert status == 404
    assert json.loads(body)["error"]["message"] == "There is no such page."


def test_files_are_served_from_the_folder_of_uploads_alone(uploads: Path) -> None:
    assert ask(uploads, f"/gradio_api/file={uploads}/ab12/cat.png")[0] == 200
    for path in (
        "/etc/passwd",
        "etc/passwd",
        f"{uploads}/../secret.png",
        f"{uploads}/ab12/../../secret.png",
        f"{uploads}/link.png",  # leads out of the folder
        f"{uploads}/%2e%2e/secret.png",
        f"{uploads}-2/secret.png",
        "https://example.com/a.png",
        "file:///etc/passwd",
        "\0",
        "",
    ):
        assert ask(uploads, f"/gradio_api/file={path}")[0] == 403, path


def test_an_event_names_no_file_but_an_upload(uploads: Path) -> None:
    def join(data: Any) -> int:
        status, body, _ = ask(uploads, "/gradio_api/queue/join", json.dumps(data).encode())
        assert status != 200 or body == b"reached " + json.dumps(data).encode()
        return status

    upload = {"path": f"{uploads}/ab12/cat.png", "meta": {"_type": "gradio.FileData"}}
    assert join({"data": [upload, {"layers": [upload], "background": {"path": None}}]}) == 200
    for path in ("/etc/passwd", "http://127.0.0.1/a.png", "https://example.com/a.png", 5, ["a"], "cat.png"):
        assert join({"data": [{"path": path}]}) == 403
        assert join({"data": [{"layers": [upload, {"path": path}]}]}) == 403
    assert ask(uploads, "/gradio_api/queue/join", b"{")[0] == 400
    assert ask(uploads, "/gradio_api/queue/join", b"[" * 100_000)[0] == 400


def test_a_local_server_answers_to_its_own_names_alone(uploads: Path) -> None:
    for host in ("localhost", "localhost:1", "127.0.0.1:7860", "[::1]:7860", "[::1]"):
        assert ask(uploads, "/", host=host)[0] == 200
    for host in ("evil.example", "evil.example:7860", "127.0.0.1.evil.example", "", "localhost:x"):
        assert ask(uploads, "/", host=host)[0] == 403
    assert ask(uploads, "/", host="lab.example", local=False)[0] == 200


def test_pages_of_other_sites_are_refused(uploads: Path) -> None:
    assert ask(uploads, "/", origin="http://127.0.0.1:7860")[0] == 200
    for origin in ("http://evil.example", "null", "http://127.0.0.1:80"):
        assert ask(uploads, "/v1/images/generations", b"{}", origin=origin)[0] == 403


def test_bodies_are_bounded(uploads: Path) -> None:
    route = "/v1/images/generations"
    assert ask(uploads, route, b"{}")[0] == 200
    assert ask(uploads, route, b"{}", content_length=str(MAX_BODY + 1))[0] == 413
    assert ask(uploads, "/gradio_api/upload", b"{}", content_length=str(MAX_BODY + 1))[0] == 200
    assert ask(uploads, "/gradio_api/upload", b"{}", content_length=str(2 * MAX_BODY + 1))[0] == 413
    for length in ("", "-1", "1e3", "9" * 50):
        assert ask(uploads, route, b"{}", content_length=length)[0] == 411


def test_there_are_no_websockets(uploads: Path) -> None:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    guard = Guard(everything, uploads, local=True, max_upload=0)
    asyncio.run(guard({"type": "websocket", "path": "/", "headers": []}, None, send))  # type: ignore[arg-type]
    assert sent[0]["type"] == "websocket.close"
