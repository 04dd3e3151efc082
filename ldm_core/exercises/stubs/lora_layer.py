"""Exercise 6: a LoRA layer."""

from torch import Tensor, nn


class LoRALinear(nn.Module):
    """A linear layer with a low-rank change: W x + b + (alpha / rank) B A x.

    Its parameters `down`, A (rank, inputs), and `up`, B (outputs, rank), are trained; W and b are frozen.
    """

    def __init__(self, layer: nn.Linear, rank: int, alpha: float) -> None:
        """layer: with W (outputs, inputs) and b (outputs,). rank: 1 or more. alpha: positive."""
        super().__init__()
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """(..., inputs) -> (..., outputs)."""
        raise NotImplementedError
