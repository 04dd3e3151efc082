"""Exercise 4: min-SNR weights."""

from torch import Tensor


def min_snr_weight(alphas_cumprod: Tensor, gamma: float, target: str) -> Tensor:
    """The weight of the loss at each timestep: float64 (T,), 0 or more.

    alphas_cumprod: float64 (T,), in [0, 1); the last may be 0, where the SNR is 0.
    gamma: positive, 5 in the paper. target: what the network predicts, "x0", "eps" or "v".
    """
    raise NotImplementedError
