"""Exercise 3: DDIM's step."""

from torch import Tensor

from ldm_core.noise_schedule import NoiseSchedule


def ddim_step(
    schedule: NoiseSchedule, x: Tensor, eps: Tensor, t: int, t_prev: int, eta: float, noise: Tensor
) -> Tensor:
    """x at t_prev, from x at t: (B, C, h, w).

    schedule: schedule.alpha_cumprod(t) is the paper's alpha_t, a float; at t = -1, the clean image, it is 1.
    x, eps, noise: (B, C, h, w); eps is the predicted noise in x, `noise` a standard normal draw.
    t: in 0..T-1. t_prev: smaller than t, in -1..T-2. eta: in [0, 1]; 0 adds no noise.
    """
    raise NotImplementedError
