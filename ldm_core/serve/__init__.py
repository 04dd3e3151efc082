"""A page and an API to try models in a browser: `python -m ldm_core serve`.

order      what a user asks for, and the bounds that it is checked against
job        an order in the queue, with reports of its state
drawing    one order drawn with a loaded model
engine     the queue, and the thread that owns the model
page       the page, made with Gradio; `fragments` are its parts in plain HTML
api        `POST /v1/images/generations` in OpenAI's form
guard      which requests reach the web framework
app        all of them joined, and the server

The first four know no web framework. The others need the extra "web".
"""

from ldm_core.serve.engine import Engine, Source
from ldm_core.serve.job import Job, Report, Result
from ldm_core.serve.order import BadOrder, Limits, ModelInfo, Order, TooBusy, Upload, open_upload

__all__ = [
    "BadOrder",
    "Engine",
    "Job",
    "Limits",
    "ModelInfo",
    "Order",
    "Report",
    "Result",
    "Source",
    "TooBusy",
    "Upload",
    "open_upload",
]
