"""Which timesteps are visited, against diffusers' and CompVis's definitions; and where img2img starts."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from diffusers import DDIMScheduler
from hypothesis import given
from hypothesis import strategies as st

from ldm_core.noise_schedule import NoiseSchedule
from ldm_core.schedulers import DDIM, DDPM, PNDM, Euler, spaced_pairs, truncate, truncate_compvis

T = 1000
EVERY_N = range(1, T + 1)
SCHEDULE = NoiseSchedule()


def visited(spacing: str, n: int, offset: int = 1) -> list[int]:
    return [t for t, _ in spaced_pairs(T, n, spacing, offset)]  # type: ignore[arg-type]


def diffusers_timesteps(spacing: str, n: int, offset: int = 1) -> list[int]:
    scheduler: Any = DDIMScheduler(T, timestep_spacing=spacing, steps_offset=offset)
    scheduler.set_timesteps(n)
    return scheduler.timesteps.tolist()


def make_ddim_timesteps(n: int) -> np.ndarray:
    """CompVis's ldm/modules/diffusionmodules/util.py, for the "uniform" method, in its own terms."""
    c = T // n
    ddim_timesteps = np.asarray(list(range(0, T, c)))
    return ddim_timesteps + 1


def compvis_leaves_the_table(n: int) -> bool:
    return bool(make_ddim_timesteps(n)[-1] >= T)


# --- all spacings, all n -------------------------------------------------------------------------------


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("total", [1, 2, 7, 100, 1000])
def test_exactly_n_falling_timesteps_of_the_table_for_every_n(spacing: str, total: int) -> None:
    for n in range(1, total + 1):
        pairs = spaced_pairs(total, n, spacing, 1)  # type: ignore[arg-type]
        levels = [t for t, _ in pairs]
        assert len(levels) == n
        assert all(isinstance(t, int) and 0 <= t < total for t in levels)
        assert all(later < earlier for earlier, later in itertools.pairwise(levels))
        assert [t_prev for _, t_prev in pairs] == [*levels[1:], -1]


@pytest.mark.parametrize("scheduler", [DDIM(), PNDM(), DDPM()])
def test_the_schedulers_defaults_give_exactly_n_steps(scheduler: DDIM | PNDM | DDPM) -> None:
    assert all(len(scheduler.timesteps(SCHEDULE, n)) == n for n in EVERY_N)


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace", "compvis"])
@pytest.mark.parametrize("n", [0, -1, 1001, 2.5, None, True, np.bool_(True), np.float32(5)])
def test_a_number_of_steps_that_does_not_exist_is_an_error(spacing: str, n: object) -> None:
    with pytest.raises(ValueError, match=r"whole number in 1\.\.1000, not"):
        DDIM(spacing=spacing).timesteps(SCHEDULE, n)  # type: ignore[arg-type]


@pytest.mark.parametrize("scheduler", [DDIM, PNDM, DDPM])
def test_settings_that_no_spacing_has_are_an_error_when_the_scheduler_is_made(scheduler: type) -> None:
    with pytest.raises(ValueError, match="spacing must be one of leading, trailing, linspace, compvis"):
        scheduler(spacing="karras")
    with pytest.raises(ValueError, match="steps_offset must be a whole number, 0 or more, not -1"):
        scheduler(steps_offset=-1)


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace", "compvis"])
def test_numpy_integers_are_whole_numbers_too(spacing: Any) -> None:
    pairs = spaced_pairs(T, np.int64(50), spacing, np.int64(1))
    assert pairs == spaced_pairs(T, 50, spacing, 1)
    assert all(type(t) is int for pair in pairs for t in pair)
    assert spaced_pairs(T, np.uint8(50), spacing, 1) == pairs


def test_numpy_numbers_are_strengths_and_settings() -> None:
    pairs = Euler(spacing="karras").timesteps(SCHEDULE, np.int64(10))
    assert pairs == Euler(spacing="karras").timesteps(SCHEDULE, 10)
    for strength in (np.float64(0.75), np.float32(0.75)):
        t_start, to_run = truncate(pairs, strength)  # type: ignore[arg-type]
        assert type(t_start) is float
        assert (t_start, to_run) == truncate(pairs, 0.75)


# --- against diffusers ---------------------------------------------------------------------------------


def test_linspace_is_diffusers_for_every_n() -> None:
    assert all(visited("linspace", n) == diffusers_timesteps("linspace", n) for n in EVERY_N)


def test_leading_is_diffusers_for_every_n_but_the_one_that_leaves_its_table() -> None:
    different = [n for n in EVERY_N if visited("leading", n) != diffusers_timesteps("leading", n)]
    assert different == [T]
    assert diffusers_timesteps("leading", T)[0] == T  # past the table: its step ends in an IndexError
    assert visited("leading", T) == list(range(T))[::-1]


def test_trailing_is_diffusers_wherever_that_gives_n_steps_inside_the_table() -> None:
    different = [n for n in EVERY_N if visited("trailing", n) != diffusers_timesteps("trailing", n)]
    # np.arange with a fractional stride sometimes yields one value more, close to 0, which becomes t = -1.
    assert all(diffusers_timesteps("trailing", n)[-1] == -1 for n in different)
    assert all(len(diffusers_timesteps("trailing", n)) == n + 1 for n in different)
    assert all(visited("trailing", n) == diffusers_timesteps("trailing", n)[:-1] for n in different)


@pytest.mark.parametrize("offset", [0, 1, 2, 19])
def test_the_offset_shifts_leading_as_in_diffusers(offset: int) -> None:
    assert visited("leading", 50, offset) == diffusers_timesteps("leading", 50, offset)


def test_a_large_offset_is_lowered_until_the_last_timestep_fits() -> None:
    assert visited("leading", 50, offset=500) == list(range(T - 1, 0, -20))


@pytest.mark.parametrize("spacing", ["trailing", "linspace"])
def test_the_offset_means_nothing_to_the_other_spacings_as_in_diffusers(spacing: str) -> None:
    assert visited(spacing, 50, 0) == visited(spacing, 50, 7) == diffusers_timesteps(spacing, 50, 7)


# --- against CompVis -----------------------------------------------------------------------------------


def test_the_default_is_compvis_wherever_n_divides_the_table() -> None:
    # n = 1000 is the exception: there the original leaves its table, and the default lowers the offset.
    for n in (n for n in EVERY_N if T % n == 0 and n != T):
        assert [t for t, _ in DDIM().timesteps(SCHEDULE, n)] == make_ddim_timesteps(n)[::-1].tolist()


def test_compvis_spacing_is_the_originals_or_a_clear_error() -> None:
    for n in EVERY_N:
        if compvis_leaves_the_table(n):
            with pytest.raises(ValueError, match=f"n={n} reaches timestep 1000, past the table's last, 999"):
                visited("compvis", n)
        else:
            assert visited("compvis", n) == make_ddim_timesteps(n)[::-1].tolist()


def test_which_n_leave_the_table_and_which_give_other_than_n_steps() -> None:
    bad = [n for n in EVERY_N if compvis_leaves_the_table(n)]
    assert bad == [3, 9, 27, 36, 37, *range(101, 112), *range(251, 334), *range(501, 1001)]
    assert len(visited("compvis", 30)) == 31
    assert len(visited("compvis", 50)) == 50


# --- where img2img starts ------------------------------------------------------------------------------


def img2img_start_of_diffusers(n: int, strength: float) -> tuple[int, list[int]]:
    """`StableDiffusionImg2ImgPipeline.get_timesteps` in our terms: noise to the first that is left."""
    timesteps = diffusers_timesteps("leading", n)
    init_timestep = min(int(n * strength), n)
    left = timesteps[max(n - init_timestep, 0) :]
    return left[0], left


@pytest.mark.parametrize("n", [1, 2, 10, 30, 50, 100])
def test_a_whole_number_of_steps_starts_where_diffusers_does(n: int) -> None:
    pairs = DDIM().timesteps(SCHEDULE, n)
    for k in range(1, n + 1):
        t_start, to_run = truncate(pairs, k / n)
        assert (t_start, to_run) == (pairs[n - k][0], pairs[n - k :])
        if int(n * (k / n)) == k:
            assert (t_start, [t for t, _ in to_run]) == img2img_start_of_diffusers(n, k / n)


def test_rounding_errors_do_not_cost_or_add_a_step() -> None:
    pairs = spaced_pairs(T, 100, "leading", 1)
    assert 0.07 * 100 > 7
    assert truncate(pairs, 0.07) == (61, pairs[93:])
    assert 0.29 * 100 < 29
    assert truncate(pairs, 0.29) == (281, pairs[71:])
    assert img2img_start_of_diffusers(100, 0.29)[0] == 271  # int(28.999999999999996) loses a step


def test_a_fraction_of_a_step_starts_in_between() -> None:
    pairs = spaced_pairs(T, 10, "leading", 1)  # 901, 801, .. 1
    assert truncate(pairs, 0.75) == (651, [(651, 601), *pairs[3:]])
    assert truncate(pairs, 0.05) == (0, [(0, -1)])  # below L_1 = 1: half-way from the end, -1
    assert truncate(spaced_pairs(T, 10, "trailing"), 0.05) == (49, [(49, -1)])  # L_1 = 99


def test_different_strengths_start_differently_where_int_of_steps_does_not() -> None:
    pairs = spaced_pairs(T, 10, "leading", 1)
    strengths = [0.70, 0.72, 0.74, 0.76, 0.78]
    assert len({img2img_start_of_diffusers(10, s)[0] for s in strengths}) == 1
    assert [truncate(pairs, s)[0] for s in strengths] == [601, 621, 641, 661, 681]


@given(
    n=st.integers(1, T),
    strength=st.floats(0, 1, exclude_min=True),
    spacing=st.sampled_from(["leading", "trailing", "linspace"]),
)
def test_every_strength_runs_down_from_its_start_to_the_end(n: int, strength: float, spacing: str) -> None:
    pairs = spaced_pairs(T, n, spacing, 1)  # type: ignore[arg-type]
    t_start, to_run = truncate(pairs, strength)
    assert to_run[0][0] == t_start
    assert to_run[-1][1] == -1
    assert all(a[1] == b[0] for a, b in itertools.pairwise(to_run))
    assert all(t_prev < t for t, t_prev in to_run)
    assert to_run[1:] == pairs[len(pairs) - len(to_run) + 1 :]
    assert len(to_run) <= np.ceil(strength * n + 1e-6)


@given(
    n=st.integers(1, T),
    strengths=st.lists(st.floats(0, 1, exclude_min=True), min_size=2, max_size=2).map(sorted),
)
def test_more_strength_never_starts_lower(n: int, strengths: list[float]) -> None:
    pairs = spaced_pairs(T, n, "leading", 1)
    less, more = (truncate(pairs, s)[0] for s in strengths)
    assert less <= more


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
def test_full_strength_is_the_whole_run(spacing: str) -> None:
    for n in EVERY_N:
        pairs = spaced_pairs(T, n, spacing, 1)  # type: ignore[arg-type]
        assert truncate(pairs, 1.0) == (pairs[0][0], pairs)
        assert truncate(pairs, 1) == (pairs[0][0], pairs)


@pytest.mark.parametrize(
    "pairs",
    [[(1, 41), (41, 81)], [(601, 301), (301, -1), (301, 601), (601, -1)]],
    ids=["inversion", "restart"],
)
def test_a_list_that_rises_is_kept_at_full_strength_and_refused_below(pairs: list[tuple[int, int]]) -> None:
    assert truncate(pairs, 1.0) == (pairs[0][0], pairs)
    assert truncate(pairs, 1) == (pairs[0][0], pairs)
    for function in (truncate, truncate_compvis):
        with pytest.raises(ValueError, match=r"strength below 1 needs timesteps that fall; .* rises from"):
            function(pairs, 0.5)


@pytest.mark.parametrize("function", [truncate, truncate_compvis])
@pytest.mark.parametrize("strength", [0, -0.1, 1.0001, float("nan"), float("inf")])
def test_a_strength_outside_its_range_is_an_error(function: object, strength: float) -> None:
    with pytest.raises(ValueError, match=r"strength must be in \(0, 1\], not"):
        function(spaced_pairs(T, 10, "leading", 1), strength)  # type: ignore[operator]


@pytest.mark.parametrize("function", [truncate, truncate_compvis])
def test_an_empty_run_cannot_be_truncated(function: object) -> None:
    with pytest.raises(ValueError, match="pairs is empty"):
        function([], 0.5)  # type: ignore[operator]


def img2img_start_of_compvis(n: int, strength: float) -> tuple[int, list[int]]:
    """scripts/img2img.py with `stochastic_encode` and `decode`: (noised to, the timesteps decoded)."""
    ddim_timesteps = make_ddim_timesteps(n)
    t_enc = int(strength * n)
    noised_to = ddim_timesteps[t_enc]  # stochastic_encode gathers ddim_alphas at t_enc
    decoded = np.flip(ddim_timesteps[:t_enc])
    return int(noised_to), decoded.tolist()


@pytest.mark.parametrize("n", [10, 30, 50, 200])
def test_truncate_compvis_is_the_original_script(n: int) -> None:
    pairs = spaced_pairs(T, n, "compvis")
    for percent in range(1, 100):
        t_noise, to_run = truncate_compvis(pairs, percent / 100, n)
        assert (t_noise, [t for t, _ in to_run]) == img2img_start_of_compvis(n, percent / 100)
        assert to_run == pairs[len(pairs) - len(to_run) :]


def test_compvis_noises_one_level_above_where_it_denoises_and_ours_does_not() -> None:
    pairs = spaced_pairs(T, 50, "leading", 1)
    t_noise, to_run = truncate_compvis(pairs, 0.8)
    assert (t_noise, to_run[0][0]) == (801, 781)
    assert truncate(pairs, 0.8) == (781, to_run)


def test_compvis_runs_no_step_below_one_step_of_strength() -> None:
    assert truncate_compvis(spaced_pairs(T, 10, "leading", 1), 0.05) == (1, [])
    assert img2img_start_of_compvis(10, 0.05) == (1, [])


def test_compvis_has_no_start_at_full_strength() -> None:
    with pytest.raises(IndexError):
        img2img_start_of_compvis(50, 1.0)
    with pytest.raises(ValueError, match=r"no start for strength 1\.0 of 50 steps"):
        truncate_compvis(spaced_pairs(T, 50, "compvis"), 1.0)
    # Except where its spacing gave more steps than were asked for.
    assert truncate_compvis(spaced_pairs(T, 30, "compvis"), 1.0, n=30)[0] == 991
    assert img2img_start_of_compvis(30, 1.0)[0] == 991
