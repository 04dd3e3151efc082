"""The page without a browser: what is served, what is refused, and an order through Gradio's events."""

from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from serve.conftest import PATIENCE

from ldm_core.recipe import read_recipe
from ldm_core.serve import Engine

pytest.importorskip("gradio")
httpx = pytest.importorskip("httpx")

SECRET = Path(__file__).resolve()  # a file of the server, as good as any


@pytest.fixture(scope="module")
def page(served: str) -> Any:
    with httpx.Client(base_url=served, timeout=PATIENCE) as client:
        yield client


@pytest.fixture(scope="module")
def config(page: Any) -> dict[str, Any]:
    return page.get("/config").json()


def test_the_page_loads_nothing_from_other_hosts(page: Any, config: dict[str, Any]) -> None:
    html = page.get("/").text
    assert "<title>" in html or "ldm_core" in html
    loaded = re.findall(r'<(?:script|link|img|iframe)[^>]+(?:src|href)="(https?://[^"]+)"', html)
    assert loaded == []
    assert config["stylesheets"] == []
    assert "http" not in page.get("/theme.css").text.replace("http://www.w3.org", "")
    assert config["analytics_enabled"] is False
    for component in config["components"]:
        assert str(Path.cwd()) not in json.dumps(component)


def test_models_are_named_and_no_path_of_the_server_is_told(config: dict[str, Any]) -> None:
    text = json.dumps(config)
    assert "/secret/place" not in text
    labels = {
        one["props"].get("label"): one["props"] for one in config["components"] if one["type"] != "tabitem"
    }
    assert [name for name, _ in labels["Model"]["choices"]] == ["tiny"]
    assert labels["Width"]["step"] == 4
    assert labels["Steps"]["value"] == 3


@pytest.mark.parametrize(
    "route",
    [
        f"/gradio_api/file={SECRET}",
        f"/file={SECRET}",
        "/gradio_api/file=/etc/passwd",
        "/gradio_api/file=..%2f..%2fetc%2fpasswd",
        "/gradio_api/file=https://example.com/",
        "/gradio_api/proxy=https://example.com/",
    ],
)
def test_files_of_the_server_are_refused(page: Any, route: str) -> None:
    assert page.get(route).status_code in (403, 404)


def test_another_host_and_another_site_are_refused(page: Any) -> None:
    assert page.get("/", headers={"host": "evil.example"}).status_code == 403
    assert page.get("/", headers={"origin": "http://evil.example"}).status_code == 403


def draw(page: Any, config: dict[str, Any], **values: Any) -> list[dict[str, Any]]:
    """Send the form, as the page does, and return what each answer changes, by component."""
    components = {one["id"]: one for one in config["components"]}
    button = next(id for id, one in components.items() if one["props"].get("elem_id") == "draw")
    event = next(one for one in config["dependencies"] if [button, "click"] in one["targets"])
    labels = {id: one["props"].get("label") or one["props"].get("elem_id") for id, one in components.items()}
    data = [
        values.get(labels[id], components[id]["props"].get("value"))
        if components[id]["type"] != "state"
        else None
        for id in event["inputs"]
    ]
    body = {"data": data, "fn_index": event["id"], "session_hash": "s1", "trigger_id": button}
    joined = page.post("/gradio_api/queue/join", json=body)
    assert joined.status_code == 200, joined.text
    answers = []
    with page.stream("GET", "/gradio_api/queue/data", params={"session_hash": "s1"}) as stream:
        for line in stream.iter_lines():
            if line.startswith("data:"):
                message = json.loads(line[5:])
                if message["msg"] in ("process_generating", "process_completed"):
                    answers.append(message)
                if message["msg"] == "process_completed":
                    return answers
    raise AssertionError("the stream ended early")


def test_an_order_through_the_page(page: Any, config: dict[str, Any], tmp_path: Path) -> None:
    text = json.dumps(draw(page, config, Prompt="red <b>apple</b>", Seed="3"))
    file = text.split('href=\\"data:image/png;base64,')[1].split('\\"')[0]
    (tmp_path / "apple.png").write_bytes(base64.b64decode(file))
    recipe = read_recipe(tmp_path / "apple.png")
    assert (recipe.prompt, recipe.seed, recipe.task) == ("red <b>apple</b>", 3, "txt2img")
    assert "&lt;b&gt;apple" in text
    assert "<figcaption><b>" not in text
    assert "Steps: 3, Sampler: DDIM" in text


def test_a_bad_form_is_answered_in_words(page: Any, config: dict[str, Any], engine: Engine) -> None:
    assert "Write a prompt first" in json.dumps(draw(page, config))
    assert "The seed must be a whole number" in json.dumps(draw(page, config, Prompt="a", Seed="x"))


def test_pictures_of_the_browser_are_uploads(page: Any, served: str) -> None:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(file, "PNG")
    answer = page.post("/gradio_api/upload", files={"files": ("a.png", file.getvalue(), "image/png")})
    (path,) = answer.json()
    assert page.get(f"/gradio_api/file={path}").content == file.getvalue()
    for other in (str(SECRET), "/etc/passwd", "https://example.com/a.png"):
        meta = {"path": other, "meta": {"_type": "gradio.FileData"}}
        body = {"data": [meta], "fn_index": 0, "session_hash": "s2"}
        answer = page.post("/gradio_api/queue/join", json=body)
        assert answer.status_code == 403
        assert "no other file is read" in answer.json()["error"]["message"]


def test_the_page_itself_reads_no_other_file(engine: Engine, tmp_path: Path) -> None:
    """Should the guard ever fail."""
    from types import SimpleNamespace

    from ldm_core.serve import BadOrder
    from ldm_core.serve.page import Page

    uploads = tmp_path / "uploads"
    uploads.mkdir()
    page = Page(engine, uploads)
    for path in (SECRET, uploads / ".." / "secret.png", "http://127.0.0.1/a.png"):
        with pytest.raises(BadOrder, match="must be an upload"):
            page._read(SimpleNamespace(path=str(path)))
    with pytest.raises(BadOrder, match="no longer there"):
        page._read(SimpleNamespace(path=str(uploads / "gone.png")))


def test_the_painted_layer_is_the_mask(engine: Engine, tmp_path: Path) -> None:
    from types import SimpleNamespace

    from ldm_core.serve.page import Page

    layer = Image.new("RGBA", (20, 10), (0, 0, 0, 0))
    layer.paste((225, 29, 143, 255), (4, 2, 10, 8))
    layer.save(tmp_path / "layer.webp", lossless=True)
    mask = Page(engine, tmp_path)._painted(
        [None, SimpleNamespace(path=str(tmp_path / "layer.webp"))], (40, 20)
    )
    assert mask.image.getbbox() == (8, 4, 20, 16)
    assert set(mask.image.tobytes()) == {0, 255}
