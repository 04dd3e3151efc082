"""The forward process: its tables against diffusers' and published numbers, and its algebra."""

from __future__ import annotations

import itertools
import math
from typing import Any, get_args

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from hypothesis import given
from hypothesis import strategies as st

from ldm_core.config import NoiseScheduleConfig, PredictionType
from ldm_core.noise_schedule import Denoiser, NoiseSchedule, make_betas

SD1 = NoiseSchedule()


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


# diffusers makes its betas in float32, so that a beta of 0.0001..1 agrees to a few float32 roundings of it;
# its cosine comes from Python floats and is rounded once.
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [("scaled_linear", "scaled_linear"), ("linear", "linear"), ("cosine", "squaredcos_cap_v2")],
)
@pytest.mark.parametrize("total", [10, 1000])
def test_betas_agree_with_diffusers(ours: Any, theirs: str, total: int) -> None:
    betas = make_betas(ours, total, 0.00085, 0.012)
    scheduler: Any = DDPMScheduler(total, beta_start=0.00085, beta_end=0.012, beta_schedule=theirs)
    torch.testing.assert_close(betas, scheduler.betas.double(), rtol=1e-6, atol=0)


def test_sqrt_betas_are_the_roots_of_the_linear_ones() -> None:
    torch.testing.assert_close(
        make_betas("sqrt", 1000, 1e-4, 2e-2) ** 2, make_betas("linear", 1000, 1e-4, 2e-2), rtol=1e-14, atol=0
    )


def test_compvis_linear_is_linear_in_the_root_of_beta() -> None:
    roots = SD1.betas.sqrt()
    torch.testing.assert_close(roots.diff(), roots.diff()[:1].expand(999), rtol=1e-9, atol=0)
    assert float(SD1.betas[0]) == pytest.approx(0.00085, rel=1e-14)
    assert float(SD1.betas[-1]) == pytest.approx(0.012, rel=1e-14)


@pytest.mark.parametrize("name", ["scaled_linear", "linear", "cosine", "sqrt"])
def test_tables_are_float64_and_fall_from_near_one_towards_zero(name: Any) -> None:
    schedule = NoiseSchedule(NoiseScheduleConfig(beta_schedule=name))
    assert schedule.betas.dtype == schedule.alphas_cumprod.dtype == torch.float64
    assert len(schedule) == 1000
    assert bool((schedule.alphas_cumprod.diff() < 0).all())
    assert 0 < float(schedule.alphas_cumprod[-1]) < float(schedule.alphas_cumprod[0]) < 1


def test_stable_diffusions_published_end_points() -> None:
    # alphas_cumprod[0] = 1 - 0.00085 by definition; the last is 0.0047 in the papers and the checkpoints.
    # Published numbers are rounded: the bounds are half of their last digit.
    assert float(SD1.alphas_cumprod[0]) == pytest.approx(0.99915, abs=1e-12)
    assert float(SD1.alphas_cumprod[-1]) == pytest.approx(0.0047, abs=5e-5)
    # k-diffusion states the same two ends as sigmas, 0.0292 and 14.6146.
    sigmas = ((1 - SD1.alphas_cumprod) / SD1.alphas_cumprod).sqrt()
    assert float(sigmas[0]) == pytest.approx(0.0292, abs=5e-5)
    assert float(sigmas[-1]) == pytest.approx(14.6146, abs=5e-5)


def test_alphas_cumprod_is_the_running_product() -> None:
    product = 1.0
    for t, beta in enumerate(SD1.betas.tolist()):
        product *= 1 - beta
        assert SD1.alpha_cumprod(t) == pytest.approx(product, rel=1e-12)
    assert SD1.alpha_cumprod(-1) == 1.0


def test_between_whole_timesteps_log_sigma_is_linear() -> None:
    sigmas = [s / a for a, s in map(SD1.signal_and_noise, (500, 500.25, 500.5, 501))]
    logs = torch.tensor(sigmas, dtype=torch.float64).log()
    assert float(logs[1]) == pytest.approx(float(0.75 * logs[0] + 0.25 * logs[3]), abs=1e-12)
    assert float(logs[2]) == pytest.approx(float((logs[0] + logs[3]) / 2), abs=1e-12)
    a, s = SD1.signal_and_noise(500.5)
    assert a * a + s * s == pytest.approx(1, abs=1e-15)
    for t in (0, 1, 500, 998, 999):  # a float that is whole is that timestep, to the bit
        assert SD1.alpha_cumprod(float(t)) == SD1.alpha_cumprod(t) == float(SD1.alphas_cumprod[t])
    assert SD1.alpha_cumprod(-1.0) == 1.0
    levels = [SD1.alpha_cumprod(k / 7) for k in range(6994)]
    assert all(low < high for high, low in itertools.pairwise(levels))


def test_the_timestep_of_a_sigma_is_the_inverse() -> None:
    for t in (0.0, 1e-6, 0.5, 1.0, 437.32, 998.999, 999.0):
        a, s = SD1.signal_and_noise(t)
        assert SD1.timestep(s / a) == pytest.approx(t, abs=1e-8)
        assert type(SD1.timestep(s / a)) is float
    for sigma in (0.0, -1.0, 0.029, 14.7, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=r"is outside the table, which has 0\.0291\d* to 14\.61\d*"):
            SD1.timestep(sigma)


def test_floats_convert_eps_v_and_x0_as_whole_timesteps_do() -> None:
    x0, eps, t = draw(1, 4, 2, 2), draw(1, 4, 2, 2, seed=1), 437.32
    x, v = SD1.add_noise(x0, eps, t), SD1.v_from_eps_x0(eps, x0, t)
    for prediction, output in (("eps", eps), ("v", v)):
        found = SD1.interpret(x, output, t, prediction)  # type: ignore[arg-type]
        torch.testing.assert_close(found.x0, x0, rtol=0, atol=1e-12)
        torch.testing.assert_close(found.eps, eps, rtol=0, atol=1e-12)


@pytest.mark.parametrize("t", [-0.5, -1e-9, -1.0001, 999.0001, float("nan"), float("inf")])
def test_a_float_outside_the_table_is_an_error(t: float) -> None:
    with pytest.raises(ValueError, match=r"is outside the table of 1000 steps \(-1\.\.999\)"):
        SD1.alpha_cumprod(t)


@pytest.mark.parametrize("t", [-2, 1000, 10_000])
def test_a_timestep_outside_the_table_is_an_error(t: int) -> None:
    x = draw(1, 4, 2, 2)
    with pytest.raises(ValueError, match=rf"timestep {t} is outside the table of 1000 steps \(-1\.\.999\)"):
        SD1.add_noise(x, x, t)


@pytest.mark.parametrize(
    ("betas", "message"),
    [
        ([], "got shape"),
        ([[0.1, 0.2]], "got shape"),
        ([0.1, 0.0], "got 0.0 at timestep 1"),
        ([0.1, 0.2, 1.5], "got 1.5 at timestep 2"),
        ([float("nan")], "got nan at timestep 0"),
    ],
)
def test_betas_that_describe_no_process_are_an_error(betas: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NoiseSchedule(betas=torch.tensor(betas, dtype=torch.float64))


def test_an_unknown_schedule_is_an_error_that_lists_the_known() -> None:
    with pytest.raises(ValueError, match="'scaled_linear', 'linear', 'cosine' or 'sqrt'"):
        make_betas("sigmoid", 10, 0.1, 0.2)  # type: ignore[arg-type]


@pytest.mark.parametrize("t", [0, 1, 500, 999])
def test_add_noise_and_v_agree_with_diffusers(t: int) -> None:
    scheduler: Any = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    x0, noise, ts = draw(2, 4, 8, 8), draw(2, 4, 8, 8, seed=1), torch.tensor([t, t])

    # diffusers' table is float32, where 1 - alphas_cumprod[0] = 0.00085 has lost three digits: that sets
    # the error of s_0, which is 1e-6 of the largest value and not of each.
    x0_32, noise_32 = x0.float(), noise.float()
    for ours, theirs in (
        (SD1.add_noise(x0_32, noise_32, t), scheduler.add_noise(x0_32, noise_32, ts)),
        (SD1.v_from_eps_x0(noise_32, x0_32, t), scheduler.get_velocity(x0_32, noise_32, ts)),
    ):
        assert float((ours - theirs).abs().max() / theirs.abs().max()) < 2e-6

    scheduler.alphas_cumprod = SD1.alphas_cumprod  # with our float64 table it computes in float64
    torch.testing.assert_close(
        SD1.add_noise(x0, noise, t), scheduler.add_noise(x0, noise, ts), rtol=0, atol=1e-14
    )


def test_add_noise_leaves_the_clean_image_alone() -> None:
    x0, noise = draw(1, 4, 2, 2), draw(1, 4, 2, 2, seed=1)
    assert torch.equal(SD1.add_noise(x0, noise, -1), x0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_a_tensor_of_timesteps_is_one_for_each_row(dtype: torch.dtype) -> None:
    x0, noise = draw(3, 4, 2, 2, dtype=dtype), draw(3, 4, 2, 2, seed=1, dtype=dtype)
    ts = torch.tensor([0, 999, 37])
    for convert in (SD1.add_noise, SD1.v_from_eps_x0):
        together = convert(x0, noise, ts)
        alone = torch.cat([convert(x0[k : k + 1], noise[k : k + 1], int(t)) for k, t in enumerate(ts)])
        assert together.dtype == dtype
        if dtype == torch.bfloat16:  # three roundings of 8 bits alone, one together
            torch.testing.assert_close(together, alone, rtol=0, atol=3 * 2**-8 * 4)
        else:
            assert torch.equal(together, alone)
        assert torch.equal(convert(x0, noise, torch.tensor(500)), convert(x0, noise, 500))
    assert SD1.add_noise(x0[:0], noise[:0], ts[:0]).shape == (0, 4, 2, 2)


@pytest.mark.parametrize(
    ("t", "message"),
    [
        (torch.tensor([5]), r"expected one timestep per row, t of \(3,\), got \(1,\)"),
        (torch.tensor([[1, 2, 3]]), r"expected one timestep per row, t of \(3,\), got \(1, 3\)"),
        (torch.tensor([1.0, 2.0, 3.0]), "expected whole timesteps, got torch.float32"),
        (torch.tensor([True, False, True]), "expected whole timesteps, got torch.bool"),
        (torch.tensor([1, 2, 1000]), "timestep 1000 is outside the table"),
        (True, "a timestep must be a number, not True"),
        ("5", "a timestep must be a number, not '5'"),
        (None, "a timestep must be a number, not None"),
        (np.array([1, 2, 3]), "a timestep must be a number"),
    ],
)
def test_what_is_no_timestep_is_an_error(t: Any, message: str) -> None:
    x = draw(3, 4, 2, 2)
    with pytest.raises(ValueError, match=message):
        SD1.add_noise(x, x, t)


def test_noise_of_another_shape_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"noise must have x0's shape \(3, 4, 2, 2\), got \(1, 4, 2, 2\)"):
        SD1.add_noise(draw(3, 4, 2, 2), draw(1, 4, 2, 2), 500)


def test_numpy_numbers_are_timesteps() -> None:
    for t in (np.int64(5), np.uint8(5), np.float32(5), np.array(5)):
        assert SD1.alpha_cumprod(t) == SD1.alpha_cumprod(5)
    between = SD1.alpha_cumprod(np.float32(437.3))
    assert type(between) is float
    assert between == SD1.alpha_cumprod(float(np.float32(437.3)))  # computed in float64
    assert SD1.timestep(np.float32(1)) == SD1.timestep(1.0)
    assert type(SD1.timestep(np.float32(1))) is float


# Tolerances: a value of a few units, divided by a_t >= 0.068, in float64.
@given(t=st.integers(0, 999), seed=st.integers(0, 2**32 - 1))
def test_eps_v_and_x0_invert_one_another(t: int, seed: int) -> None:
    x0, eps = draw(3, 4, 2, 2, seed=seed), draw(3, 4, 2, 2, seed=seed + 1)
    x = SD1.add_noise(x0, eps, t)
    v = SD1.v_from_eps_x0(eps, x0, t)
    close: dict[str, Any] = {"rtol": 0, "atol": 1e-9}
    torch.testing.assert_close(SD1.x0_from_eps(x, eps, t), x0, **close)
    torch.testing.assert_close(SD1.eps_from_x0(x, x0, t), eps, **close)
    torch.testing.assert_close(SD1.x0_from_v(x, v, t), x0, **close)
    torch.testing.assert_close(SD1.eps_from_v(x, v, t), eps, **close)
    for output, prediction in ((eps, "eps"), (v, "v")):
        read = SD1.interpret(x, output, t, prediction)  # type: ignore[arg-type]
        torch.testing.assert_close(read.x0, x0, **close)
        torch.testing.assert_close(read.eps, eps, **close)


def test_a_configuration_may_ask_for_a_terminal_snr_of_zero() -> None:
    schedule = NoiseSchedule(NoiseScheduleConfig(zero_terminal_snr=True))
    assert schedule.alphas_cumprod[-1] == 0
    assert math.isclose(schedule.betas[0], SD1.betas[0], rel_tol=1e-12)
    with pytest.raises(ValueError, match="needs two timesteps or more"):
        NoiseScheduleConfig(timesteps=1, zero_terminal_snr=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_conversions_keep_the_dtype_and_their_inputs(dtype: torch.dtype) -> None:
    x, output = draw(1, 4, 2, 2, dtype=dtype), draw(1, 4, 2, 2, seed=1, dtype=dtype)
    x_before, output_before = x.clone(), output.clone()
    for prediction in get_args(PredictionType):
        read = SD1.interpret(x, output, 500, prediction)
        assert read.x0.dtype == read.eps.dtype == dtype
    assert SD1.add_noise(x, output, 500).dtype == dtype
    assert torch.equal(x, x_before)
    assert torch.equal(output, output_before)


def test_where_no_noise_or_no_signal_is_left_a_conversion_is_an_error_or_exact() -> None:
    schedule = NoiseSchedule(betas=torch.tensor([0.1, 0.5, 1.0]))  # ends in pure noise
    x0, eps = draw(1, 4, 2, 2), draw(1, 4, 2, 2, seed=1)
    assert schedule.signal_and_noise(2) == (0.0, 1.0)
    with pytest.raises(ValueError, match="eps does not determine x0 at timestep 2"):
        schedule.x0_from_eps(eps, eps, 2)
    with pytest.raises(ValueError, match="x0 does not determine eps at timestep -1"):
        schedule.eps_from_x0(x0, x0, -1)
    read = schedule.interpret(eps, schedule.v_from_eps_x0(eps, x0, 2), 2, "v")
    assert torch.equal(read.x0, x0)
    assert torch.equal(read.eps, eps)


def test_denoiser_reads_a_function_and_refuses_what_it_cannot_read() -> None:
    x = draw(2, 4, 2, 2)
    calls = []

    def network(x: torch.Tensor, t: int) -> torch.Tensor:
        calls.append(t)
        return x / 2

    predict = Denoiser(network, SD1)
    a, s = SD1.signal_and_noise(700)
    torch.testing.assert_close(predict(x, 700).x0, x * (1 - s / 2) / a, rtol=1e-12, atol=0)
    assert calls == [700]
    assert math.isclose(a * a + s * s, 1)
    with pytest.raises(ValueError, match="prediction must be 'eps', 'v' or 'x0', not 'x1'"):
        Denoiser(network, SD1, "x1")(x, 700)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"x's shape \(2, 4, 2, 2\), got \(2, 8, 2, 2\)"):
        Denoiser(lambda x, t: torch.cat([x, x], dim=1), SD1)(x, 700)
