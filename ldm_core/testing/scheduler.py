"""The contract of `ldm_core.schedulers.Scheduler`: timesteps, pure steps and convergence."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ldm_core.noise_schedule import NoiseSchedule
from ldm_core.schedulers.base import Scheduler
from ldm_core.testing.contract import (
    Clause,
    Contract,
    describe,
    expect_no_global_random_numbers,
    isolated,
    random_state,
    relative_error,
    same_value,
    snapshot,
)
from ldm_core.testing.convergence import check_convergence
from ldm_core.testing.trial import SHAPE, STEPS, FixedNetwork, Trial

SINGLE = 1e-4  # of float32 against float64 after a few steps, relative to the largest value
DTYPES = (torch.float32, torch.bfloat16)


@isolated
def check_scheduler(
    scheduler: Scheduler,
    schedule: NoiseSchedule | None = None,
    *,
    stochastic: bool | None = None,
    converges: bool = True,
    steps: Sequence[int] = (1, 2, 7, 10, 50, 1000),
    dtypes: Sequence[torch.dtype] = DTYPES,
    device: torch.device | str = "cpu",
) -> None:
    """Check that a scheduler meets its contract. Raises ContractError, which lists every violation.

    schedule: the noise schedule, by default SD1's. The convergence limits are set for schedules of 500 or
        more timesteps that end in nearly pure noise.
    stochastic: whether the scheduler must use `noise`; None accepts both.
    converges: False for schedulers that do not approach the exact solution as steps increase, such as
        distilled few-step samplers.
    steps: numbers of steps to check, as far as the schedule has as many timesteps.
    dtypes: of the latents, in addition to float64.
    Raises ValueError for a schedule of fewer than 100 timesteps.
    """
    schedule = NoiseSchedule() if schedule is None else schedule
    if len(schedule) < 100:
        raise ValueError(f"expected a schedule of at least 100 timesteps, got {len(schedule)}")
    device = torch.device(device)
    trial = Trial(scheduler, schedule, device)
    contract = Contract(scheduler, "ldm_core.schedulers.Scheduler")
    _check_timesteps(contract, trial, steps)
    contract.raise_if_broken()
    _check_results(contract, trial, dtypes)
    contract.raise_if_broken()
    uses_noise = _check_noise(contract, trial, stochastic)
    _check_purity(contract, trial)
    _check_replay(contract, trial)
    _check_random_numbers(contract, trial)
    _check_rows(contract, trial)
    _check_starts(contract, trial)
    _check_precision(contract, trial)
    if converges:
        check_convergence(contract, scheduler, schedule, stochastic=uses_noise)
    contract.raise_if_broken()


def _check_timesteps(contract: Contract, trial: Trial, steps: Sequence[int]) -> None:
    total = len(trial.schedule)
    with contract.clause(
        "timesteps",
        "methods are compared by their number of steps, and each step starts where the previous one ended",
    ) as clause:
        for n in sorted({n for n in steps if n <= total}):
            pairs = clause.attempt(f"timesteps(schedule, {n})", partial(trial.pairs, n))
            if pairs is not None:
                _expect_pairs(clause, pairs, n, total)
    with contract.clause(
        "wrong numbers of steps", "users must get a ValueError, not an image or another error"
    ) as clause:
        for n in (0, -1, total + 1):
            what = f"timesteps(schedule, {n}) for a table of {total} timesteps"
            clause.expect_value_error(what, partial(trial.pairs, n))


def _expect_pairs(clause: Clause, pairs: list[Any], n: int, total: int) -> None:
    name = f"timesteps(schedule, {n})"
    if not clause.expect(len(pairs) == n, f"{name} to return exactly {n} pairs", len(pairs)):
        return
    are_numbers = all(len(pair) == 2 and all(type(t) in (int, float) for t in pair) for pair in pairs)
    if not clause.expect(are_numbers, f"{name} to return pairs of Python ints or floats", pairs[:2]):
        return
    levels = [t for t, _ in pairs]
    clause.expect(
        all(0 <= t < total for t in levels),
        f"{name} within the table, 0..{total - 1}",
        (levels[0], levels[-1]),
    )
    descending = all(t > following for t, following in itertools.pairwise(levels))
    clause.expect(descending, f"{name} to descend, noisiest first", levels[:5])
    broken = [(pair, t) for pair, t in zip(pairs, levels[1:]) if pair[1] != t]
    clause.expect(not broken, f"{name} to chain: t_prev is the next pair's t", broken[:1])
    clause.expect(pairs[-1][1] == -1, f"{name} to end at -1, the clean image", pairs[-1][1])


def _check_results(contract: Contract, trial: Trial, dtypes: Sequence[torch.dtype]) -> None:
    with contract.clause(
        "shape and dtype",
        "the next step and the decoder need a Step of two latents like x",
    ) as clause:
        for dtype in dict.fromkeys((torch.float64, *dtypes)):
            calls = clause.attempt(f"every step in {dtype}", partial(trial.run, dtype=dtype))
            for call in calls or []:
                for name in ("x", "x0"):
                    value = getattr(call.step, name)
                    clause.expect(
                        describe(value) == describe(call.x),
                        f"step({call.t}, {call.t_prev}).{name} to be {describe(call.x)}",
                        describe(value),
                    )
                    finite = not isinstance(value, Tensor) or bool(value.isfinite().all())
                    clause.expect(finite, f"step({call.t}, {call.t_prev}).{name} to be finite", "NaN or inf")
    with contract.clause(
        "network calls", "the network knows the timesteps 0..T-1 and latents of x's shape, nothing beyond"
    ) as clause:
        network = FixedNetwork(trial.schedule)
        trial.run(network=network)
        clause.expect(
            len(network.calls) >= STEPS, f"at least {STEPS} calls in as many steps", len(network.calls)
        )
        last = len(trial.schedule) - 1
        for shape, t in network.calls:
            fits = type(t) in (int, float) and 0 <= t <= last and shape == SHAPE
            clause.expect(fits, f"predict(x of {SHAPE}, a t in 0..{last})", f"x of {shape}, t = {t!r}")


def _check_noise(contract: Contract, trial: Trial, stochastic: bool | None) -> bool:
    """Whether the scheduler uses noise, which decides what it must converge to."""
    uses_noise = False
    with contract.clause(
        "noise",
        "the caller draws the noise from the image's seed; ignoring it changes the distribution",
    ) as clause:
        calls, others = trial.run(), trial.run(noise_seed=200)
        uses_noise = not same_value(calls[-1].step.x, others[-1].step.x)
        if stochastic is not None:
            words = ("not to use", "to use")
            clause.expect(
                uses_noise == stochastic, f"a step {words[stochastic]} `noise`", f"one {words[uses_noise]} it"
            )
        for call in calls:
            once, changed = trial.replay(call), trial.replay(replace(call, noise=trial.draw(300)))
            if not same_value(once.x, trial.replay(call).x):
                continue  # the difference is not due to noise; `replay` reports it
            name = f"step({call.t}, {call.t_prev}) with noise=None"
            without = partial(trial.replay, replace(call, noise=None))
            if same_value(changed.x, once.x):
                clause.attempt(f"{name}, which is ignored here,", without)
            else:
                clause.expect_value_error(f"{name}, where noise is needed,", without)
    return uses_noise


def _check_purity(contract: Contract, trial: Trial) -> None:
    with contract.clause(
        "purity", "the caller uses the arguments again, for example to replay the step"
    ) as clause:
        tables = (trial.schedule.betas, trial.schedule.alphas_cumprod)
        before = snapshot(tables)
        network = FixedNetwork(trial.schedule)
        for call in trial.run():
            given = snapshot(call)
            trial.step(given, network)
            for name in ("x", "history", "noise"):
                unchanged = same_value(getattr(given, name), getattr(call, name))
                what = f"step({call.t}, {call.t_prev}) not to modify {name}"
                clause.expect(unchanged, what, "modified values")
        for prediction, copied in network.given:
            clause.expect(
                same_value(prediction, copied), "a step not to modify predictions", "modified values"
            )
        clause.expect(
            same_value(tables, before), "a step not to modify the schedule's tables", "modified values"
        )
    with contract.clause(
        "results are kept",
        "callers collect the steps of a run to show or compare them",
    ) as clause:
        steps = [trial.replay(call) for call in trial.run()]
        copies = [snapshot((step.x, step.x0)) for step in steps[:-1]]
        trial.run(trial.draw(7))
        for step, result in zip(steps, copies):
            unchanged = same_value((step.x, step.x0), result)
            clause.expect(unchanged, "an earlier Step not to change (a reused buffer?)", "modified values")


def _check_replay(contract: Contract, trial: Trial) -> None:
    with contract.clause(
        "replay",
        "a step must depend on its arguments only: hidden counters break replays and previews",
    ) as clause:
        with random_state(0, trial.device):
            calls = trial.run()
        pairs = trial.pairs(STEPS)
        trial.pairs(2 * STEPS)  # a scheduler that remembers its last timesteps now has others
        trial.run(trial.draw(7), pairs=trial.pairs(2))
        theirs = trial.scheduler.timesteps(trial.schedule, STEPS)
        if isinstance(theirs, list):
            theirs.clear()
        clause.expect(
            trial.pairs(STEPS) == pairs, "timesteps to be the same when called again", "other timesteps"
        )
        for call in reversed(calls):
            with random_state(0, trial.device):
                step = trial.replay(call)
            what = f"step({call.t}, {call.t_prev}), repeated after other calls, to return the same {{}}"
            clause.expect_close(step.x, call.step.x, what.format("x"), 0)
            clause.expect_close(step.x0, call.step.x0, what.format("x0"), 0)
            alike = same_value(step.history, call.step.history)
            clause.expect(alike, what.format("history"), "another history")
    with contract.clause(
        "x comes from the caller",
        "inpainting and on_step change the latent between steps, so history must not replace it",
    ) as clause:
        for call in trial.run():
            same = same_value(trial.replay(replace(call, x=call.x + 0.5)).x, call.step.x)
            clause.expect(
                not same, f"step({call.t}, {call.t_prev}) to depend on its x", "the same result for another x"
            )


def _check_random_numbers(contract: Contract, trial: Trial) -> None:
    with contract.clause(
        "random numbers", "an image must depend on its seed only: noise is an argument, not global state"
    ) as clause:
        expect_no_global_random_numbers(clause, "steps", lambda: trial.run()[-1].step.x, trial.device)


def _check_rows(contract: Contract, trial: Trial) -> None:
    with contract.clause(
        "batch independence", "image k of a batch must equal the image sampled alone"
    ) as clause:
        together = trial.run()[-1].step.x
        for row in range(SHAPE[0]):
            rows = slice(row, row + 1)
            alone = trial.run(rows=rows)[-1].step.x
            clause.expect_close(
                alone, together[rows], f"row {row} alone to equal row {row} of the batch", 1e-10
            )


def _check_starts(contract: Contract, trial: Trial) -> None:
    with contract.clause(
        "starts", "img2img may start at any timestep, and a run may have a single step"
    ) as clause:
        pairs = trial.pairs(STEPS)
        middle = (pairs[2][0] + pairs[3][0]) // 2
        for start in (pairs[3:], [(middle, pairs[3][0]), *pairs[3:]], trial.pairs(1)):
            result = trial.run(pairs=start)[-1].step
            finite = all(bool(value.isfinite().all()) for value in (result.x, result.x0))
            clause.expect(finite, f"finite latents from a run that starts with {start[0]}", "NaN or infinity")


def _check_precision(contract: Contract, trial: Trial) -> None:
    with contract.clause(
        "precision",
        "coefficients must be Python floats: 16-bit tables lose too much precision",
    ) as clause:
        exact = trial.run()[-1].step.x
        single = trial.run(dtype=torch.float32)[-1].step.x
        error = relative_error(single, exact)
        clause.expect(
            error <= SINGLE,
            f"float32 to follow float64 within {SINGLE:g} of the largest value",
            f"{error:.2g}",
        )
