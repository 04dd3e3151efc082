"""What an order may ask for, and what is said of the rest."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import pytest
from PIL import Image

from ldm_core.recipe import SourceFile
from ldm_core.serve import BadOrder, Limits, ModelInfo, Order, Upload, open_upload
from ldm_core.serve.order import complete

MODELS = {
    "tiny": ModelInfo("tiny", 32, 16, 1000, 3, 4.0),
    "sd": ModelInfo("sd", 512, 64, 1000, 50, 7.5),
}
GIVEN = Upload(Image.new("RGB", (32, 32)), SourceFile("a.png", ""))
ORDER = Order("a cat", scheduler="ddim")


def test_defaults_are_the_models() -> None:
    order = complete(replace(ORDER, model="sd"), MODELS, Limits())
    assert (order.steps, order.guidance_scale, order.width, order.height) == (50, 7.5, 512, 512)
    assert complete(ORDER, MODELS, Limits()).model == "tiny"
    assert complete(ORDER, MODELS, Limits()).seed != complete(ORDER, MODELS, Limits()).seed
    assert complete(replace(ORDER, task="img2img", image=GIVEN), MODELS, Limits()).strength == 0.75


@pytest.mark.parametrize(
    ("changes", "field", "message"),
    [
        ({"prompt": ""}, "prompt", "Write a prompt first"),
        ({"prompt": " \n"}, "prompt", "Write a prompt first"),
        ({"prompt": "x" * 2001}, "prompt", "2,001 letters; at most 2,000"),
        ({"prompt": 5}, "prompt", "must be text, not 5"),
        ({"prompt": "a\0b"}, "prompt", "characters that are no text"),
        ({"negative_prompt": "\ud800"}, "negative_prompt", "characters that are no text"),
        ({"model": "/etc/passwd"}, "model", "There is no model '/etc/passwd'. Models: tiny, sd"),
        ({"model": ["sd"]}, "model", "There is no model"),
        ({"scheduler": "ddimm"}, "scheduler", "There is no scheduler 'ddimm'. Schedulers: ddim, ddpm"),
        ({"scheduler": {}}, "scheduler", "There is no scheduler"),
        ({"steps": 0}, "steps", "number of steps must be a whole number from 1 to 150, not 0"),
        ({"steps": 151}, "steps", "from 1 to 150"),
        ({"steps": 2.5}, "steps", "not 2.5"),
        ({"steps": True}, "steps", "not True"),
        ({"num_images": 5}, "num_images", "number of pictures must be a whole number from 1 to 4"),
        ({"seed": -1}, "seed", "from 0 to 4294967295, not -1"),
        ({"seed": 2**32}, "seed", "from 0 to 4294967295"),
        ({"guidance_scale": 51}, "guidance_scale", "from 0 to 50, not 51"),
        ({"guidance_scale": float("nan")}, "guidance_scale", "not nan"),
        ({"width": 40}, "size", "width must be a multiple of 16 pixels with tiny, not 40"),
        ({"height": 0}, "size", "height must be a multiple of 16"),
        ({"height": "32"}, "size", "not '32'"),
        ({"width": 2**12, "height": 2**9}, "size", "4096×512 has 2,097,152 pixels; at most 1,048,576"),
        ({"width": 2**40}, "size", "width must be"),
        ({"task": "delete"}, "task", "There is no task 'delete'"),
        ({"task": []}, "task", "There is no task"),
        ({"task": "img2img"}, "image", "Give a picture to redraw first"),
        ({"task": "inpaint"}, "image", "Give a picture to repaint first"),
        ({"task": "img2img", "image": GIVEN, "strength": 0}, "strength", "from 0.01 to 1, not 0"),
        ({"task": "inpaint", "image": GIVEN}, "mask", "Paint over the part"),
        (
            {"task": "inpaint", "image": GIVEN, "mask": replace(GIVEN, image=Image.new("L", (32, 32)))},
            "mask",
            "Paint over the part",
        ),
        (
            {"task": "inpaint", "image": GIVEN, "mask": replace(GIVEN, image=Image.new("L", (16, 32), 255))},
            "mask",
            "same size",
        ),
    ],
)
def test_what_is_out_of_bounds_is_said_in_words(changes: Any, field: str, message: str) -> None:
    with pytest.raises(BadOrder) as error:
        complete(replace(ORDER, **changes), MODELS, Limits())
    assert message in str(error.value)
    assert error.value.field == field


FIELDS = [name for name in Order.__dataclass_fields__ if name not in ("image", "mask")]
ANYTHING = [None, True, -1, 0, 7, 2**70, 0.5, -1e300, float("inf"), float("nan"), "", "sd", "é", [], {}, b"x"]


@pytest.mark.parametrize("field", FIELDS)
def test_any_value_is_in_bounds_or_a_bad_order(field: str) -> None:
    for value in ANYTHING:
        try:
            order = complete(replace(ORDER, **{field: value}), MODELS, Limits())
        except BadOrder:
            continue
        assert order.width * order.height <= Limits().pixels
        assert 1 <= order.steps <= 150
        assert 1 <= order.num_images <= 4


def png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def test_pictures_are_opened_within_bounds() -> None:
    upload = open_upload(png(Image.new("RGBA", (5, 4), (0, 0, 0, 0))), "C:\\me\\../a\nb.png", Limits())
    assert (upload.image.mode, upload.image.size, upload.file.name) == ("RGB", (5, 4), "ab.png")
    assert len(upload.file.sha256) == 64
    assert open_upload(png(Image.new("1", (5, 4))), "", Limits(), mask=True).image.mode == "L"
    for data, limits, message in (
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", Limits(), "not a picture in one of the"),
        (b"", Limits(), "not a picture"),
        (png(Image.new("RGB", (50, 40))), Limits(upload_pixels=1999), "2,000 pixels, more than 1,999"),
        (png(Image.new("RGB", (50, 40)))[:60], Limits(), "cannot be read"),
        (b"x" * (2**20 + 1), Limits(upload_bytes=2**20), "more than 1 MiB"),
    ):
        with pytest.raises(BadOrder, match=message) as error:
            open_upload(data, "a.png", limits)
        assert error.value.field == "image"
