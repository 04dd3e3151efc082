"""Muon: steps in which every direction of a matrix of weights moves equally far.

    M <- beta M + (1 - beta) G          G the gradient of a kernel, as a matrix of its outputs by its inputs
    W <- W - lr 0.2 sqrt(max(rows, columns)) U V^T,    U S V^T = (1 - beta) G + beta M

A gradient is mostly a few directions; Adam follows those, and the rest of the matrix learns late. U V^T has
all of them with the same strength. It is found by matrix products alone, without a singular value
decomposition (Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks"). With the factor
in front a step changes a weight as much as AdamW's does, so that AdamW's learning rates hold (Liu et al.
2025, arXiv:2502.16982, section 2.2). Kernels of convolutions and linear layers go this way; the rest
(biases, norms, embeddings) goes AdamW's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

# The quintic a s + b s^3 + c s^5 of Jordan et al.: five turns bring every s in (0.01, 1] to 0.7 .. 1.2.
QUINTIC = (3.4445, -4.7750, 2.0315)
TURNS = 5


def orthogonalize(matrix: Tensor) -> Tensor:
    """U V^T of a matrix (rows, columns) U S V^T, roughly: its singular values are 0.7 to 1.2, and zero of
    zeros."""
    a, b, c = QUINTIC
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    x = wide / (wide.norm() + 1e-12)
    # A turn is a polynomial of X X^T times X: all five are gathered in the square one, which is smaller.
    square, turns = x @ x.T, torch.eye(len(x), dtype=x.dtype, device=x.device)
    for _ in range(TURNS):
        turn = torch.addmm(square, square, square, beta=b, alpha=c)
        turn.diagonal().add_(a)
        turns = turn @ turns
        square = turn @ square @ turn
    x = turns @ x
    return x if wide is matrix else x.T


def matrix_weights(module: nn.Module) -> Iterator[Tensor]:
    """The weights of a module that are matrices: of its linear layers and convolutions."""
    for part in module.modules():
        if isinstance(part, (nn.Linear, nn.Conv1d, nn.Conv2d)):
            yield part.weight


class Muon(torch.optim.Optimizer):
    """Parameters of AdamW's groups, of which `kernels` are moved as the head of this file says.

    momentum: beta. The other settings are AdamW's; weight decay is of all parameters.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        matrix_weights: Iterable[Tensor],
        *,
        lr: float,
        momentum: float = 0.9,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 0.01,
    ) -> None:
        self._matrix_weights = {id(p) for p in matrix_weights}
        settings = {"lr": lr, "momentum": momentum, "betas": betas, "weight_decay": weight_decay}
        super().__init__(groups, settings)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        if closure is not None:
            raise ValueError("Muon takes no closure: compute the gradients first")
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                if id(p) in self._matrix_weights:
                    change = self._muon(p, p.grad, group)
                else:
                    change = self._adam(p, p.grad, group)
                p.mul_(1 - group["lr"] * group["weight_decay"]).add_(change, alpha=-group["lr"])

    def moments(self, p: Tensor) -> set[str]:
        """The names of the state that is kept for a parameter after its first step."""
        return {"momentum"} if id(p) in self._matrix_weights else {"step", "exp_avg", "exp_avg_sq"}

    def _muon(self, p: Tensor, gradient: Tensor, group: dict[str, Any]) -> Tensor:
        state, beta = self.state[p], group["momentum"]
        if not state:
            state["momentum"] = torch.zeros_like(p)
        state["momentum"].lerp_(gradient, 1 - beta)
        matrix = gradient.lerp(state["momentum"], beta).flatten(1)
        return (0.2 * max(matrix.shape) ** 0.5 * orthogonalize(matrix)).reshape(p.shape)

    def _adam(self, p: Tensor, gradient: Tensor, group: dict[str, Any]) -> Tensor:
        state, (beta1, beta2) = self.state[p], group["betas"]
        if not state:
            state["step"] = torch.zeros(())
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(p), torch.zeros_like(p)
        state["step"] += 1
        turn = float(state["step"])
        state["exp_avg"].lerp_(gradient, 1 - beta1)
        state["exp_avg_sq"].lerp_(gradient.square(), 1 - beta2)
        spread = (state["exp_avg_sq"] / (1 - beta2**turn)).sqrt() + 1e-8
        return state["exp_avg"] / (1 - beta1**turn) / spread
