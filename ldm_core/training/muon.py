"""The Muon optimizer: momentum whose matrix is orthogonalized (Jordan et al. 2024, "Muon: an optimizer for
hidden layers in neural networks").

    M <- beta M + (1 - beta) G          G: a weight's gradient as a matrix (outputs, inputs)
    W <- W - lr 0.2 sqrt(max(rows, columns)) U V^T,    U S V^T = (1 - beta) G + beta M

Gradients have a few large singular values, which dominate Adam's steps; U V^T gives all singular directions
the same size. It is approximated by matrix products, without a singular value decomposition. The factor
0.2 sqrt(max(rows, columns)) makes the updates as large as AdamW's, so that AdamW's learning rates apply (Liu
et al. 2025, arXiv:2502.16982, section 2.2). Weights of convolutions and linear layers use Muon; all other
parameters (biases, norms, embeddings) use AdamW.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

# Jordan et al.'s quintic a s + b s^3 + c s^5: five iterations map every s in (0.01, 1] to 0.7 .. 1.2.
QUINTIC = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5


def orthogonalize(matrix: Tensor) -> Tensor:
    """Approximate U V^T of a matrix U S V^T (rows, columns), with singular values in 0.7..1.2.

    Zero singular values stay zero.
    """
    a, b, c = QUINTIC
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    x = wide / (wide.norm() + 1e-12)
    # Each iteration multiplies X by a polynomial of X X^T. The product of the five polynomials is computed
    # first: it is square, and no larger than X.
    square, product = x @ x.T, torch.eye(len(x), dtype=x.dtype, device=x.device)
    for _ in range(ITERATIONS):
        polynomial = torch.addmm(square, square, square, beta=b, alpha=c)
        polynomial.diagonal().add_(a)
        product = polynomial @ product
        square = polynomial @ square @ polynomial
    x = product @ x
    return x if wide is matrix else x.T


def matrix_weights(module: nn.Module) -> Iterator[Tensor]:
    """The weights of a module's linear layers and convolutions."""
    for part in module.modules():
        if isinstance(part, (nn.Linear, nn.Conv1d, nn.Conv2d)):
            yield part.weight


class Muon(torch.optim.Optimizer):
    """Muon for `matrix_weights`, AdamW for all other parameters of `groups`.

    momentum: beta of Muon. betas: of AdamW. weight_decay: decoupled, for all parameters.
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
            raise ValueError("Muon does not support a closure: compute the gradients before step()")
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
        """The names of a parameter's state tensors after its first step."""
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
        step = float(state["step"])
        state["exp_avg"].lerp_(gradient, 1 - beta1)
        state["exp_avg_sq"].lerp_(gradient.square(), 1 - beta2)
        scale = (state["exp_avg_sq"] / (1 - beta2**step)).sqrt() + 1e-8
        return state["exp_avg"] / (1 - beta1**step) / scale
