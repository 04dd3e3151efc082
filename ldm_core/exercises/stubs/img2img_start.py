"""Exercise 8: where img2img starts."""

from torch import Tensor

from ldm_core.noise_schedule import NoiseSchedule

Pairs = list[tuple[float, float]]


def img2img_start(
    x0: Tensor, noise: Tensor, schedule: NoiseSchedule, pairs: Pairs, strength: float
) -> tuple[Tensor, Pairs]:
    """The noisy latents to begin with, and the steps to run: (x, pairs).

    x0: the image's latents (B, C, h, w). noise: standard normal, of the same shape.
    schedule: schedule.add_noise(x0, noise, t) is x_t.
    pairs: (t, t_prev) of the n steps of a whole run, noisiest first; the last t_prev is -1.
    strength: the share of the run to do, in (0, 1], such that strength * n is a whole number.
    """
    raise NotImplementedError
