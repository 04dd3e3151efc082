"""Exercise 5: attention."""

from torch import Tensor


def attention(q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False) -> Tensor:
    """softmax(q k^T / sqrt(D)) v: (B, heads, N, D), in q's dtype.

    q: (B, heads, N, D). k, v: (B, heads, M, D).
    causal: position i attends to positions 0..i only; N equals M then.
    """
    raise NotImplementedError
