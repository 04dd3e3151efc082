"""SD1's networks with random weights: a step of the U-Net, the decoder, and a whole picture.

Each in several ways: "eager" calls as they are, "graph" one CUDA graph around the call, "captured" by
`ldm_core.capture`, "compiled" by `ldm_core.compile`, and "compiled, captured" by both. Graphs are timed by
the GPU's clock, all else by the host's, since a user waits for the host, too.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from first_day_plan import KERNEL_PREDICTIONS, STEP_PREDICTIONS, Plan
from gpu_timing import called, kernels, replayed
from stage_report import NotHere, Row, StageReport
from torch import Tensor

import ldm_core
from ldm_core.kernels import set_kernels
from ldm_core.nn.placement import fill

PROMPT = "a photograph of an astronaut riding a horse"
KINDS = ("plain", "triton")  # PyTorch's operations, or this package's kernels, attention's among them
NEEDED_BY_PROMPTS = ("regex", "tqdm")


def unet(report: StageReport, plan: Plan) -> None:
    _measure(
        report, plan, plan.batches, ("eager", "graph", "captured", "compiled", "compiled, captured"), _step
    )


def decoder(report: StageReport, plan: Plan) -> None:
    _measure(report, plan, plan.pictures, ("eager", "graph", "compiled"), _decode)


def picture(report: StageReport, plan: Plan) -> None:
    _measure(report, plan, plan.pictures, ("eager", "captured", "compiled", "compiled, captured"), _draw)


@torch.no_grad()
def _measure(
    report: StageReport,
    plan: Plan,
    batches: tuple[int, ...],
    ways: tuple[str, ...],
    measure: Callable[..., Row],
) -> None:
    """A row for each way of each case. All compiled ones come last: each takes a minute to compile."""
    torch.backends.cudnn.benchmark = True
    models = Models(plan)
    for compiled in (False, True):
        for batch, dtype, kind, way in _cases(plan, batches, ways):
            if way.startswith("compiled") == compiled:
                name = f"{dtype}, batch {batch}, {kind}, {way}"
                case = {"dtype": dtype, "batch": batch, "kind": kind, "way": way}
                report.row(name, lambda case=case: case | _with_peak(partial(measure, models, plan, **case)))


def _cases(
    plan: Plan, batches: tuple[int, ...], ways: tuple[str, ...]
) -> Iterator[tuple[int, str, str, str]]:
    return ((b, dtype, kind, way) for b in batches for dtype in plan.dtypes for kind in KINDS for way in ways)


class Models:
    """Models with random weights, made when they are needed."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._unchanged: dict[str, ldm_core.LatentDiffusion] = {}  # by type
        self._compiled: dict[tuple[str, int, str], ldm_core.LatentDiffusion] = {}  # the last alone

    def get(self, dtype: str, batch: int, kind: str, way: str) -> ldm_core.LatentDiffusion:
        """The model for a way of calling. What a door changes in place is used for nothing else."""
        if kind == "triton" and self.plan.device == "cpu":
            raise NotHere("interpreted kernels would take minutes for a network")
        if way.endswith("captured") and self.plan.device != "cuda":
            raise NotHere("ldm_core.capture needs a CUDA device")
        if way.startswith("compiled"):
            key = dtype, batch, kind
            if key not in self._compiled:
                compile_model = _door("compile")
                torch._dynamo.reset()  # else a second batch size is compiled for sizes that vary
                model = self._with_kernels(self._new(dtype), kind)
                self._compiled = {key: compile_model(model, **self.plan.compile_options)}
            model = self._compiled[key]
            return _door("capture")(model) if way.endswith("captured") else model
        if way == "captured":
            capture = _door("capture")
            return capture(self._with_kernels(self._new(dtype), kind))
        if dtype not in self._unchanged:
            self._unchanged[dtype] = self._new(dtype)
        return self._with_kernels(self._unchanged[dtype], kind)

    def _new(self, dtype: str) -> ldm_core.LatentDiffusion:
        model = ldm_core.build(self.plan.config, self.plan.device)
        for network in model.modules.values():
            for parameter in network.parameters():
                if parameter.ndim <= 1:  # else the biases are zeros and the norms do nothing
                    parameter.data += 0.1 * torch.randn_like(parameter)
            fill(network, dict(network.state_dict()), self.plan.device, getattr(torch, dtype))
        return model

    @staticmethod
    def _with_kernels(model: ldm_core.LatentDiffusion, kind: str) -> ldm_core.LatentDiffusion:
        set_kernels(model, "triton" if kind == "triton" else "torch")
        ldm_core.set_attention(model, "triton" if kind == "triton" else "auto")
        return model


def _door(name: str) -> Callable[..., Any]:
    """`ldm_core.compile` or `ldm_core.capture`, which change a model in place and return it."""
    try:
        return getattr(ldm_core, name)
    except AttributeError:
        raise NotHere(f"ldm_core.{name} is not available in this version") from None


def _step(models: Models, plan: Plan, dtype: str, batch: int, kind: str, way: str) -> Row:
    """One call of the U-Net, with two rows a picture, as guidance needs."""
    model, config, rows = models.get(dtype, batch, kind, way), plan.config.unet, 2 * batch

    def inputs() -> tuple[Tensor, ...]:
        x = torch.randn(rows, config.in_channels, plan.side, plan.side).to(plan.device, model.dtype)
        context = torch.randn(rows, 77, config.context_dim or 1).to(plan.device, model.dtype)
        return x, torch.randint(0, 1000, (rows,)).to(plan.device), context

    row = _timed(model.unet, [inputs(), inputs()], plan, way)
    row |= {"it_per_s": 1 / row["seconds"], "picture_steps_per_s": batch / row["seconds"]}
    if batch == 1 and dtype == "float16":
        row["predicted_ms"] = STEP_PREDICTIONS.get((kind, way))
        row["predicted_kernels"] = KERNEL_PREDICTIONS[kind] if way == "eager" else None
    return row


def _decode(models: Models, plan: Plan, dtype: str, batch: int, kind: str, way: str) -> Row:
    model, config = models.get(dtype, batch, kind, way), plan.config.autoencoder

    def inputs() -> tuple[Tensor]:
        return (torch.randn(batch, config.embed_dim, plan.side, plan.side).to(plan.device, model.dtype),)

    row = _timed(model.autoencoder.decode, [inputs(), inputs()], plan, way)
    return row | {"pictures_per_s": batch / row["seconds"]}


def _draw(models: Models, plan: Plan, dtype: str, batch: int, kind: str, way: str) -> Row:
    """From a prompt to pictures as numbers on the CPU, with guidance, by DDIM."""
    missing = [name for name in NEEDED_BY_PROMPTS if importlib.util.find_spec(name) is None]
    if missing:
        raise NotHere(f"a prompt needs {', '.join(missing)}, which is not installed")
    sampler = ldm_core.Sampler(models.get(dtype, batch, kind, way), ldm_core.DDIM())
    pixels = plan.config.image_size
    draw = partial(
        sampler.txt2img, PROMPT, steps=plan.steps, guidance_scale=7.5, height=pixels, width=pixels,
        num_images=batch, seed=0, output="tensor",
    )  # fmt: skip
    row: Row = called(lambda: draw().cpu(), rounds=min(3, plan.rounds))
    return row | {"pictures_per_s": batch / row["seconds"], "it_per_s": plan.steps / row["seconds"]}


def _timed(call: Callable[..., Tensor], sets: list[tuple[Tensor, ...]], plan: Plan, way: str) -> Row:
    """Two sets of inputs are enough: the weights fill the cache many times over between two calls."""
    if way == "graph":
        return replayed(call, sets, plan.rounds)
    row: Row = called(lambda: [call(*inputs) for inputs in sets], plan.rounds, per=len(sets))
    return row | kernels(lambda: call(*sets[0]))


def _with_peak(measure: Callable[[], Row]) -> Row:
    """The row, and the most memory that was allocated on the GPU meanwhile, weights included."""
    if not torch.cuda.is_available():
        return measure()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    row = measure()
    return row | {"peak_gb": torch.cuda.max_memory_allocated() / 1e9}
