"""The forward process: the amounts of signal and noise at each of the T training timesteps.

    q(x_t | x_0) = N(a_t x_0, s_t^2 I),   a_t = sqrt(alphas_cumprod[t]),   s_t = sqrt(1 - alphas_cumprod[t])

(Ho et al. 2020, arXiv:2006.11239, equation 4). A network predicts eps (the noise), x_0, or
v = a_t eps - s_t x_0 (Salimans and Ho 2022, arXiv:2202.00512, appendix D). Given x_t and t, each of the three
determines the other two. CompVis keeps these tables as buffers of `DDPM.register_schedule`.

All tables are float64 on the CPU, and a coefficient is a Python float, so that using it never synchronises
with a device and never rounds to the dtype of the latents.

A timestep is an index into the tables, or a float between two indices, where log(s_t / a_t) is interpolated
linearly (as in k-diffusion's `DiscreteSchedule`). Solvers that choose noise levels use such timesteps.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real
from typing import Literal, Protocol, get_args

import torch
from torch import Tensor

from ldm_core.support.limits import MAX_TIMESTEPS, is_number, require, require_bool, require_whole
from ldm_core.support.printable import shown

BetaSchedule = Literal["scaled_linear", "linear", "cosine", "sqrt"]
PredictionType = Literal["eps", "v", "x0"]


@dataclass(frozen=True)
class NoiseScheduleConfig:
    """The forward process. CompVis's "linear" schedule is `scaled_linear` here: it is linear in sqrt(beta).

    zero_terminal_snr: change the betas so that the last timestep is pure noise
        (`ldm_core.noise_schedule.zero_terminal_snr`), for models that predict v or x0.
    """

    timesteps: int = 1000
    beta_schedule: BetaSchedule = "scaled_linear"
    linear_start: float = 0.00085
    linear_end: float = 0.012
    zero_terminal_snr: bool = False

    def __post_init__(self) -> None:
        part = "noise schedule"
        require_whole(part, self, "timesteps", 1, MAX_TIMESTEPS)
        require(
            is_number(self.linear_start)
            and is_number(self.linear_end)
            and 0 < self.linear_start <= self.linear_end <= 1,
            "noise schedule: linear_start and linear_end must be numbers with 0 < start <= end <= 1, not "
            f"{shown(self.linear_start)} and {shown(self.linear_end)}",
        )
        require(
            isinstance(self.beta_schedule, str) and self.beta_schedule in get_args(BetaSchedule),
            f"noise schedule: unknown beta_schedule {shown(self.beta_schedule)}; "
            "expected 'scaled_linear', 'linear', 'cosine' or 'sqrt'",
        )
        require_bool(part, self, "zero_terminal_snr")
        require(
            self.timesteps > 1 or not self.zero_terminal_snr,
            "noise schedule: zero_terminal_snr needs two timesteps or more, not 1",
        )


def make_betas(beta_schedule: BetaSchedule, timesteps: int, start: float, end: float) -> Tensor:
    """The variance beta_t that each step of the forward process adds (DDPM, equation 2), float64 (T,).

    `scaled_linear` is linear in sqrt(beta); CompVis's configurations call it "linear", and call `linear`
    "sqrt_linear". `cosine` is equation 17 of Nichol and Dhariwal 2021 (arXiv:2102.09672) and ignores `start`
    and `end`. `sqrt` is the square root of the linear schedule.
    """
    if beta_schedule == "scaled_linear":
        return torch.linspace(start**0.5, end**0.5, timesteps, dtype=torch.float64) ** 2
    if beta_schedule == "linear":
        return torch.linspace(start, end, timesteps, dtype=torch.float64)
    if beta_schedule == "sqrt":
        return torch.linspace(start, end, timesteps, dtype=torch.float64) ** 0.5
    if beta_schedule == "cosine":
        offset = 8e-3
        u = torch.arange(timesteps + 1, dtype=torch.float64) / timesteps
        alphas_cumprod = torch.cos((u + offset) / (1 + offset) * math.pi / 2) ** 2
        return (1 - alphas_cumprod[1:] / alphas_cumprod[:-1]).clamp(0, 0.999)
    raise ValueError(
        f"unknown beta_schedule {beta_schedule!r}; expected 'scaled_linear', 'linear', 'cosine' or 'sqrt'"
    )


def zero_terminal_snr(betas: Tensor) -> Tensor:
    """Change betas (T,) so that the last timestep is pure noise: float64 (T,).

    Shifts sqrt(alphas_cumprod) so that its last value is 0, and rescales it so that its first value is
    unchanged (Lin et al. 2023, arXiv:2305.08891, algorithm 1). In pure noise eps does not determine x_0, so
    the network has to predict v. Raises ValueError if the last timestep has no more noise than the first.
    """
    roots = torch.cumprod(1 - betas.to("cpu", torch.float64), dim=0).sqrt()  # sqrt(alphas_cumprod)
    first, last = roots[0].clone(), roots[-1].clone()
    if not first > last:
        raise ValueError("expected betas of two timesteps or more, whose signal falls from first to last")
    alphas_cumprod = ((roots - last) * first / (first - last)) ** 2
    return 1 - torch.cat([alphas_cumprod[:1], alphas_cumprod[1:] / alphas_cumprod[:-1]])


def betas_of(config: NoiseScheduleConfig) -> Tensor:
    """The betas that a configuration describes: float64 (T,)."""
    betas = make_betas(config.beta_schedule, config.timesteps, config.linear_start, config.linear_end)
    return zero_terminal_snr(betas) if config.zero_terminal_snr else betas


@dataclass(frozen=True)
class Prediction:
    """The network's prediction for x_t in the two forms that update rules use, each of x_t's shape."""

    x0: Tensor
    eps: Tensor


class NoiseSchedule:
    """The tables of one forward process, and the conversions between eps, v and x0.

    Attributes: `betas`, `alphas_cumprod` and `log_sigmas` = log(s_t / a_t), float64 (T,).
    """

    def __init__(self, config: NoiseScheduleConfig | None = None, *, betas: Tensor | None = None) -> None:
        """Build the tables from a configuration (by default SD1's) or from a table of betas.

        betas: (T,), each in (0, 1]. Raises ValueError that names the first value outside this range.
        """
        if betas is None:
            betas = betas_of(config or NoiseScheduleConfig())
        betas = torch.as_tensor(betas, dtype=torch.float64).cpu()
        if betas.ndim != 1 or len(betas) == 0:
            raise ValueError(f"betas must be a vector of one value per step, got shape {tuple(betas.shape)}")
        outside = ~((betas > 0) & (betas <= 1))
        if bool(outside.any()):
            t = int(outside.nonzero()[0])
            raise ValueError(f"betas must lie in (0, 1], got {float(betas[t])} at timestep {t}")
        self.betas = betas
        self.alphas_cumprod = torch.cumprod(1 - betas, dim=0)
        self.log_sigmas = ((1 - self.alphas_cumprod) / self.alphas_cumprod).log() / 2

    def __len__(self) -> int:
        return len(self.betas)

    def alpha_cumprod(self, t: float) -> float:
        """alphas_cumprod[t] of one timestep: 1 for the clean image, t = -1.

        t: an int or float, of Python or NumPy, or a tensor of no dimensions. Between two whole timesteps,
        log(s / a) is interpolated linearly. Raises ValueError for anything else, for t outside 0..T-1 other
        than -1, and for a fraction next to a timestep whose alphas_cumprod is 0.
        """
        if getattr(t, "ndim", None) == 0:
            t = t.item()  # type: ignore[attr-defined]
        if not isinstance(t, Real) or isinstance(t, bool):
            raise ValueError(f"a timestep must be a number, not {shown(t)}")
        last = len(self) - 1
        if not (t == -1 or 0 <= t <= last):
            raise ValueError(f"timestep {t} is outside the table of {len(self)} steps (-1..{last})")
        if t == -1:
            return 1.0
        below = int(t)
        if t == below:
            return float(self.alphas_cumprod[below])
        low, high = self.log_sigmas[below : below + 2].tolist()
        if math.isinf(high):
            raise ValueError(
                f"timestep {t} has no noise level: alphas_cumprod is 0 at timestep {below + 1}, where "
                "log(s / a) is infinite and cannot be interpolated"
            )
        return 1 / (1 + math.exp(2 * (low + (t - below) * (high - low))))

    def timestep(self, sigma: float) -> float:
        """The timestep whose s / a is sigma, a float in 0..T-1; the inverse of `alpha_cumprod`.

        Raises ValueError for a sigma outside the range of the table.
        """
        log_sigma = math.log(sigma) if sigma > 0 else -math.inf  # a Python float, also for a NumPy number
        first, last = float(self.log_sigmas[0]), float(self.log_sigmas[-1])
        # An end of the range that was computed as exp(log(sigma)) may lie outside by a rounding error.
        if not first - 1e-12 <= log_sigma <= last + 1e-12:
            raise ValueError(
                f"sigma {sigma} is outside the table, which has {math.exp(first):.6g} to {math.exp(last):.6g}"
            )
        above = int(torch.searchsorted(self.log_sigmas, log_sigma))
        if above == 0:
            return 0.0
        if above == len(self):
            return float(len(self) - 1)
        low, high = self.log_sigmas[above - 1 : above + 1].tolist()
        return above - 1 + (log_sigma - low) / (high - low)

    def signal_and_noise(self, t: float) -> tuple[float, float]:
        """(a_t, s_t): the factors of x_0 and of the noise in x_t."""
        alpha_cumprod = self.alpha_cumprod(t)
        return math.sqrt(alpha_cumprod), math.sqrt(1 - alpha_cumprod)

    def add_noise(self, x0: Tensor, noise: Tensor, t: float | Tensor) -> Tensor:
        """x_t = a_t x_0 + s_t noise, a draw from q(x_t | x_0) (DDPM, equation 4): shape and dtype of x_0.

        x0: (B, ...). noise: a standard normal draw of the same shape. t: one timestep for all rows (an int or
        a float), or an integer tensor (B,) of one whole timestep per row. Raises ValueError for other shapes
        and for a timestep outside the table.
        """
        if noise.shape != x0.shape:
            raise ValueError(f"noise must have x0's shape {tuple(x0.shape)}, got {tuple(noise.shape)}")
        a, s = self._factors(t, x0)
        return (a * x0 + s * noise).to(x0.dtype)

    def _factors(self, t: float | Tensor, x: Tensor) -> tuple[float | Tensor, float | Tensor]:
        """a_t and s_t to multiply x (B, ...) by: floats; for a tensor t, (B, 1, ...) in float32 at least."""
        if not isinstance(t, Tensor) or t.ndim == 0:
            return self.signal_and_noise(t)  # type: ignore[arg-type]
        if t.shape != x.shape[:1]:
            raise ValueError(
                f"expected one timestep per row, t of {tuple(x.shape[:1])}, got {tuple(t.shape)}"
            )
        if t.is_floating_point() or t.is_complex() or t.dtype == torch.bool:
            raise ValueError(f"expected whole timesteps, got {t.dtype}")
        wide = torch.promote_types(x.dtype, torch.float32)
        factors = x.new_tensor([self.signal_and_noise(row) for row in t.tolist()], dtype=wide)
        a, s = factors.reshape(len(t), 2).T.reshape(2, len(t), *[1] * (x.ndim - 1))
        return a, s

    def x0_from_eps(self, x: Tensor, eps: Tensor, t: float) -> Tensor:
        """x_0 = (x_t - s_t eps) / a_t (DDPM, equation 15), of x's shape.

        Raises ValueError if a_t is 0, where eps does not determine x_0.
        """
        a, s = self.signal_and_noise(t)
        if a == 0:
            raise ValueError(
                f"eps does not determine x0 at timestep {t}, where alphas_cumprod is 0; a network that "
                "predicts v does, with a scheduler that uses its x0 (DDIM or DDPM, not PNDM)"
            )
        return (x - s * eps) / a

    def eps_from_x0(self, x: Tensor, x0: Tensor, t: float) -> Tensor:
        """eps = (x_t - a_t x_0) / s_t. Raises ValueError at t = -1, where s_t is 0 and there is no noise."""
        a, s = self.signal_and_noise(t)
        if s == 0:
            raise ValueError(f"x0 does not determine eps at timestep {t}, where there is no noise")
        return (x - a * x0) / s

    def v_from_eps_x0(self, eps: Tensor, x0: Tensor, t: float | Tensor) -> Tensor:
        """v = a_t eps - s_t x_0, of shape (B, ...). t: as in `add_noise`."""
        a, s = self._factors(t, x0)
        return (a * eps - s * x0).to(x0.dtype)

    def x0_from_v(self, x: Tensor, v: Tensor, t: float) -> Tensor:
        """x_0 = a_t x_t - s_t v, which is defined for every t, including a_t = 0."""
        a, s = self.signal_and_noise(t)
        return a * x - s * v

    def eps_from_v(self, x: Tensor, v: Tensor, t: float) -> Tensor:
        """eps = s_t x_t + a_t v."""
        a, s = self.signal_and_noise(t)
        return s * x + a * v

    def interpret(self, x: Tensor, output: Tensor, t: float, prediction: PredictionType) -> Prediction:
        """Convert a network's output to (x_0, eps). Raises ValueError if it does not have x's shape."""
        if output.shape != x.shape:
            raise ValueError(
                f"the network's output must have x's shape {tuple(x.shape)}, got {tuple(output.shape)}"
            )
        if prediction == "eps":
            return Prediction(x0=self.x0_from_eps(x, output, t), eps=output)
        if prediction == "v":
            return Prediction(x0=self.x0_from_v(x, output, t), eps=self.eps_from_v(x, output, t))
        if prediction == "x0":
            return Prediction(x0=output, eps=self.eps_from_x0(x, output, t))
        raise ValueError(f"prediction must be 'eps', 'v' or 'x0', not {prediction!r}")


class Predict(Protocol):
    """The interface of the network for a scheduler: `predict(x, t)`, and the noise schedule of the model."""

    @property
    def schedule(self) -> NoiseSchedule:
        """The noise schedule of the model."""

    def __call__(self, x: Tensor, t: float) -> Prediction: ...


@dataclass(frozen=True)
class Denoiser:
    """A `Predict` from any function (x, t) -> network output of x's shape.

    The function may return two outputs: then x_0 is that of the first, and eps that of the second.
    """

    function: Callable[[Tensor, float], Tensor | tuple[Tensor, Tensor]]
    schedule: NoiseSchedule
    prediction: PredictionType = "eps"

    def __call__(self, x: Tensor, t: float) -> Prediction:
        output = self.function(x, t)
        if isinstance(output, Tensor):
            return self.schedule.interpret(x, output, t, self.prediction)
        first, second = (self.schedule.interpret(x, one, t, self.prediction) for one in output)
        return Prediction(x0=first.x0, eps=second.eps)
