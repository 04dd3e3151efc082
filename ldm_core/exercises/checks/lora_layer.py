"""Exercise 6: h = W x + (alpha / r) B A x (Hu et al. 2021, arXiv:2106.09685, equation 3)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm_core.adapters.lora import change_of
from ldm_core.exercises.expect import draw, expect_function, expect_values
from ldm_core.exercises.user_file import UserFile, Wrong

INPUTS, OUTPUTS, RANK, ALPHA = 6, 5, 2, 3.0


def check(answer: UserFile) -> Iterator[str]:
    make = answer.get("LoRALinear")
    x = draw(4, INPUTS, seed=0)

    yield "A and B: their names, shapes and first values"
    base, lora = _made(answer, make)
    _expect_factors(lora)
    yield "a new layer gives what the layer under it gives, since B is 0"
    expect_values("the output of a new layer", answer.call(lora, x), base(x), lambda: _new(base, x))
    yield "the output, with other A and B"
    _set(lora)
    with torch.no_grad():
        expected = base(x) + ALPHA / RANK * change_of(base, x, (lora.down, lora.up))
        actual = answer.call(lora, x)
    expect_values("the output", actual, expected, lambda: mistakes(base, lora, x))
    yield "what is trained: A and B, and nothing else"
    _expect_training(answer, make, x)
    yield "the clauses for networks of ldm_core.testing"
    expect_function(answer, 6, "the layer", lora, x=x)


def _made(answer: UserFile, make: Any) -> tuple[nn.Linear, Any]:
    base = nn.Linear(INPUTS, OUTPUTS)
    with torch.no_grad():
        base.weight.copy_(draw(OUTPUTS, INPUTS, seed=1))
        base.bias.copy_(draw(OUTPUTS, seed=2))
    weight = base.weight.detach().clone()
    with answer.guarded("LoRALinear(layer, rank, alpha)"):
        lora = make(base, RANK, ALPHA)
    if not isinstance(lora, nn.Module):
        raise Wrong("LoRALinear must be a torch.nn.Module, so that an optimizer finds its parameters.")
    if not torch.equal(base.weight, weight):
        raise Wrong("LoRALinear changes the weight of the layer under it. W stays as it is.")
    return base, lora


def _expect_factors(lora: Any) -> None:
    shapes = {"down": ("A", (RANK, INPUTS)), "up": ("B", (OUTPUTS, RANK))}
    for name, (letter, shape) in shapes.items():
        factor = getattr(lora, name, None)
        if not isinstance(factor, nn.Parameter):
            raise Wrong(f"`self.{name}` must be {letter}, an nn.Parameter {shape}: it is what is trained.")
        if tuple(factor.shape) != shape:
            swapped = " A is (rank, inputs) and B (outputs, rank)."
            raise Wrong(
                f"`self.{name}`, {letter}, has shape {tuple(factor.shape)}; expected {shape}.{swapped}"
            )
    if not bool(lora.down.any()):
        raise Wrong(
            "A is zero. Only B is: with both at 0, the gradients of both are 0, and nothing is ever learned."
        )
    if bool(lora.up.any()):
        raise Wrong("B is not zero: training must begin with the model as it was, so B A x must be 0.")


def _set(lora: Any) -> None:
    with torch.no_grad():
        lora.down.copy_(draw(RANK, INPUTS, seed=3))
        lora.up.copy_(draw(OUTPUTS, RANK, seed=4))


def _new(base: nn.Linear, x: Tensor) -> dict[str, Tensor]:
    return {
        "W x is missing: the output of a new layer is 0. Add B A x to the output of the layer under it.": (
            torch.zeros_like(base(x))
        ),
        "The bias of the layer under it is missing.": base(x) - base.bias,
        "The bias of the layer under it is added twice.": base(x) + base.bias,
    }


def mistakes(base: nn.Linear, lora: Any, x: Tensor) -> dict[str, Tensor]:
    change = F.linear(F.linear(x, lora.down), lora.up)
    plain, scale = base(x), ALPHA / RANK
    return {
        "The scale alpha / rank is missing: you return W x + B A x.": plain + change,
        "The scale is alpha, without / rank.": plain + ALPHA * change,
        "The scale is 1 / rank: alpha is missing.": plain + change / RANK,
        "The scale is upside down: rank / alpha.": plain + change / scale,
        "The scale is alpha / sqrt(rank), that of rsLoRA; here it is alpha / rank.": plain
        + ALPHA / RANK**0.5 * change,
        "The change has the wrong sign: you return W x - (alpha / rank) B A x.": plain - scale * change,
        "The scale is applied to W x, too: (alpha / rank) (W x + B A x).": scale * (plain + change),
        "The scale is applied twice.": plain + scale**2 * change,
        "The bias is added once more with the change.": plain + scale * change + base.bias,
        "W x is missing: you return the change alone.": scale * change,
        "The change is missing: you return W x, whatever A and B are.": plain,
    }


def _expect_training(answer: UserFile, make: Any, x: Tensor) -> None:
    _, lora = _made(answer, make)
    trained = {name for name, p in lora.named_parameters() if p.requires_grad}
    others = sorted(trained - {"down", "up"})
    if others:
        raise Wrong(
            f"{', '.join(others)} would be trained, too. Only A and B learn: freeze the layer under them, as "
            "by `layer.requires_grad_(False)`."
        )
    if len(trained) < 2:
        raise Wrong(f"The parameters that are trained are {sorted(trained)}; expected `down` and `up`.")
    before = answer.call(lora, x).detach()
    answer.call(lora, x).square().sum().backward()
    if lora.up.grad is None or not bool(lora.up.grad.any()):
        raise Wrong(
            "B gets no gradient: is the change computed under `torch.no_grad()`, or from `self.up.detach()` "
            "or `.data`? Only W is frozen."
        )
    with torch.no_grad():
        lora.up -= 0.1 * lora.up.grad
    lora.zero_grad()
    after = answer.call(lora, x)
    after.square().sum().backward()
    if torch.equal(after.detach(), before):
        raise Wrong("After a step of training, the output is unchanged: does `forward` use `self.up`?")
    if lora.down.grad is None or not bool(lora.down.grad.any()):
        raise Wrong("A gets no gradient, even after B has moved away from 0: is it detached?")
