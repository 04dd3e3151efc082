"""The API, as OpenAI's own client calls it."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest
from serve.conftest import PATIENCE, Make, serving

import ldm_core
from ldm_core.images import open_picture
from ldm_core.recipe import read_recipe

openai = pytest.importorskip("openai")
pytest.importorskip("gradio")


def client(address: str) -> Any:
    return openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)


def test_a_picture_in_openais_form(served: str, tiny: ldm_core.LatentDiffusion, tmp_path: Path) -> None:
    own = {"negative_prompt": "blue", "seed": 5, "steps": 2, "guidance_scale": 3.0, "scheduler": "euler"}
    answer = client(served).images.generate(
        model="tiny", prompt="a cat", n=2, size="48x32", response_format="b64_json", extra_body=own
    )
    assert answer.created > 1_700_000_000
    assert [one.url for one in answer.data] == [None, None]
    files = [base64.b64decode(one.b64_json) for one in answer.data]
    options = {"steps": 2, "guidance_scale": 3.0, "width": 48, "height": 32}
    sampler = ldm_core.Sampler(tiny, ldm_core.Euler())
    for k, file in enumerate(files):
        expected = sampler.txt2img("a cat", "blue", seed=5 + k, **options)[0]
        assert open_picture(file).tobytes() == expected.tobytes()
    (tmp_path / "cat.png").write_bytes(files[1])
    recipe = read_recipe(tmp_path / "cat.png")
    assert (recipe.seed, recipe.prompt, recipe.model.path) == (6, "a cat", None)


def test_defaults_and_the_list_of_models(served: str) -> None:
    answer = client(served).images.generate(prompt="a cat")
    assert open_picture(base64.b64decode(answer.data[0].b64_json)).size == (32, 32)
    assert [model.id for model in client(served).models.list()] == ["tiny"]


@pytest.mark.parametrize(
    ("options", "param", "message"),
    [
        ({"response_format": "url"}, "response_format", "this server keeps no pictures"),
        ({"output_format": "jpeg"}, "output_format", "must be 'png'"),
        ({"size": "1001x1000"}, "size", "multiple of 4 pixels"),
        ({"size": "4096x4096"}, "size", "at most 1,048,576 are allowed"),
        ({"size": "big"}, "size", "like '256x256', not 'big'"),
        ({"n": 9}, "n", "number of pictures must be a whole number from 1 to 4"),
        ({"model": "dall-e-3"}, "model", "There is no model 'dall-e-3'. Models: tiny."),
        ({"prompt": ""}, "prompt", "Write a prompt first"),
        ({"extra_body": {"prompt": 3}}, "prompt", "must be text"),
        ({"quality": "hd"}, "quality", "Unknown field 'quality'. Fields: prompt, model"),
        ({"extra_body": {"steps": 1e9}}, "steps", "number of steps"),
    ],
    ids=str,
)
def test_errors_are_openais(served: str, options: dict[str, Any], param: str, message: str) -> None:
    with pytest.raises(openai.BadRequestError) as error:
        client(served).images.generate(**{"prompt": "a cat", **options})
    assert error.value.body["param"] == param
    assert error.value.body["type"] == "invalid_request_error"
    assert message in error.value.body["message"]


def test_other_bodies_are_refused(served: str) -> None:
    import httpx

    url = f"{served}/v1/images/generations"
    for content, kind, message in (
        (b"[1]", "application/json", "Expected a JSON object, not [1]"),
        (b"{", "application/json", "no valid JSON"),
        (b'{"prompt": "a"}', "text/plain", "Expected the Content-Type application/json"),
        (b"{}", "application/json", "The field 'prompt' is missing."),
    ):
        answer = httpx.post(url, content=content, headers={"content-type": kind})
        assert answer.status_code == 400
        assert message in answer.json()["error"]["message"]


def test_a_full_queue_and_failures(make: Make, gated: Any, tmp_path: Path) -> None:
    from ldm_core.serve import Order

    engine = make(gated, waiting=1)
    with serving(engine, tmp_path) as address:
        first = engine.submit(Order("a", steps=1))
        while not gated.unet.calls:
            next(first.reports(0.01))
        second = engine.submit(Order("b", steps=1))
        with pytest.raises(openai.RateLimitError, match="busy: 1 others are waiting"):
            client(address).images.generate(prompt="c")
        second.cancel()
        with pytest.raises(openai.APITimeoutError):  # a client that goes takes its order with it
            client(address).with_options(timeout=2).images.generate(prompt="d")
        while engine._waiting:
            assert not next(first.reports(0.05)).final
        gated.unet.open()
        assert first.wait(PATIENCE).state == "done"
        gated.unet.error = RuntimeError("secret")
        with pytest.raises(openai.InternalServerError, match="The server's log says what"):
            client(address).images.generate(prompt="e")
        gated.unet.error = ValueError("too odd")
        with pytest.raises(openai.BadRequestError, match="too odd"):
            client(address).images.generate(prompt="e")
