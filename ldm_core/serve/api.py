"""`POST /v1/images/generations` and `GET /v1/models` in the form of OpenAI's image API.

    client = openai.OpenAI(base_url="http://127.0.0.1:7860/v1", api_key="none")
    client.images.generate(model="emoji", prompt="a cat", size="128x128").data[0].b64_json

Pictures are returned as base64 alone, since the server keeps none. Besides OpenAI's fields,
`negative_prompt`, `seed`, `steps`, `guidance_scale` and `scheduler` are taken (the client's `extra_body`).
"""

from __future__ import annotations

import base64
import json
import re
import time
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from ldm_core.serve.engine import Engine
from ldm_core.serve.order import BadOrder, Order, TooBusy
from ldm_core.support.printable import shown

OWN = ("negative_prompt", "seed", "steps", "guidance_scale", "scheduler")
FIELDS = ("prompt", "model", "n", "size", "response_format", "output_format", "user", *OWN)
BEAT = 0.5  # seconds between looks at whether the client is still there
CLOSED = 499  # the client has gone


def router(engine: Engine) -> APIRouter:
    """The routes, which put orders into the queue of the engine."""
    routes = APIRouter(prefix="/v1")

    @routes.get("/models")
    async def models() -> Response:
        data = [
            {"id": name, "object": "model", "created": 0, "owned_by": "ldm_core"} for name in engine.models
        ]
        return JSONResponse({"object": "list", "data": data})

    @routes.post("/images/generations")
    async def generations(request: Request) -> Response:
        try:
            order = order_of(_json(request.headers.get("content-type", ""), await request.body()))
            job = engine.submit(order)
        except TooBusy as error:
            return _error(429, str(error), None, "server_busy")
        except BadOrder as error:
            return _error(400, str(error), "n" if error.field == "num_images" else error.field)
        report = job.report
        while not report.final:
            report = await _next(job)
            if await request.is_disconnected():
                job.cancel()
                return Response(status_code=CLOSED)
        if report.result is None:
            if report.refused:
                return _error(400, report.message, None)
            return _error(500, report.message or "The drawing was cancelled.", None, "server_error")
        files = [report.result.png(k) for k in range(len(report.result.pictures))]
        data = [{"b64_json": base64.b64encode(file).decode()} for file in files]
        return JSONResponse({"created": int(time.time()), "output_format": "png", "data": data})

    return routes


async def _next(job: Any) -> Any:
    """The report after a moment, while the server answers others."""
    from anyio import to_thread

    def wait() -> Any:
        try:
            return job.wait(BEAT)
        except TimeoutError:
            return job.report

    return await to_thread.run_sync(wait)


def _json(content_type: str, body: bytes) -> Any:
    # A page of another site can send JSON as text without asking the server, but not under this type.
    if content_type.partition(";")[0].strip().lower() != "application/json":
        raise BadOrder(f"Expected the Content-Type application/json, not {shown(content_type)}.")
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        raise BadOrder("The body is no valid JSON.") from None


def order_of(body: Any) -> Order:
    """The order of a request's JSON. Raises BadOrder, with the field's name, for one that is not OpenAI's."""
    if not isinstance(body, dict):
        raise BadOrder(f"Expected a JSON object, not {shown(body)}.")
    given = {name: value for name, value in body.items() if value is not None}
    for name in given:
        if name not in FIELDS:
            raise BadOrder(f"Unknown field {shown(name)}. Fields: {', '.join(FIELDS)}.", str(name)[:100])
    if "prompt" not in given:
        raise BadOrder("The field 'prompt' is missing.", "prompt")
    if given.get("response_format", "b64_json") != "b64_json":
        raise BadOrder(
            "response_format must be 'b64_json': this server keeps no pictures, so it has no url of one.",
            "response_format",
        )
    if given.get("output_format", "png") != "png":
        raise BadOrder("output_format must be 'png', which carries the recipe.", "output_format")
    width, height = _size(given.get("size", "auto"))
    return Order(
        prompt=given["prompt"],
        model=given.get("model", ""),
        num_images=given.get("n", 1),
        width=width,
        height=height,
        watched=False,
        **{name: given[name] for name in OWN if name in given},
    )


def _size(size: Any) -> tuple[int | None, int | None]:
    if size == "auto":
        return None, None
    match = re.fullmatch(r"(\d{1,6})x(\d{1,6})", size) if isinstance(size, str) else None
    if match is None:
        raise BadOrder(f"size must be 'auto' or like '256x256', not {shown(size)}.", "size")
    return int(match[1]), int(match[2])


def _error(status: int, message: str, param: str | None, kind: str = "invalid_request_error") -> Response:
    error = {"message": message, "type": kind, "param": param, "code": None}
    return JSONResponse({"error": error}, status_code=status)
