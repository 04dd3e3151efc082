"""Exercise 1: the forward process."""

from torch import Tensor


def add_noise(x0: Tensor, noise: Tensor, alphas_cumprod: Tensor, t: Tensor) -> Tensor:
    """A draw from q(x_t | x_0): float32 (B, C, h, w), as x0.

    x0, noise: float32 (B, C, h, w); the noise is standard normal.
    alphas_cumprod: float64 (T,), falling from nearly 1 to nearly 0. t: LongTensor (B,), each in 0..T-1.
    """
    raise NotImplementedError
