# %% [markdown]
# # A scheduler of your own
#
# A scheduler chooses the timesteps and computes the steps. Any object with the two methods `timesteps` and `step` is one; there
# is nothing to subclass. This notebook writes Heun's method, checks it, and measures what its second evaluation buys.

# %%
import ldm_core
from ldm_core import DDIM, testing
from ldm_core.schedulers import Step, spaced_pairs
from ldm_core.watch import make_grid, plot_errors, solver_errors

model = ldm_core.load()

# %% [markdown]
# In the variables $\hat x = x / \sqrt{\bar\alpha}$ and $\sigma = \sqrt{(1 - \bar\alpha) / \bar\alpha}$ the probability-flow ODE is
# $d\hat x / d\sigma = \epsilon(x, t)$ (Karras et al. 2022, arXiv:2206.00364). Euler's method follows the slope at the start of
# each step. Heun's method also evaluates the slope at the end, and follows the mean of the two.


# %%
class MyHeun:
    def timesteps(self, schedule, n):
        return spaced_pairs(len(schedule), n, "trailing")

    def step(self, predict, x, t, t_prev, history, noise):
        signal, sigma = predict.schedule.signal_and_noise(t)
        signal_prev, sigma_prev = predict.schedule.signal_and_noise(t_prev)
        step = sigma_prev / signal_prev - sigma / signal
        first = predict(x, t)
        x_prev = signal_prev * (x / signal + step * first.eps)
        if t_prev >= 0:  # at the clean end there is no noise to predict
            second = predict(x_prev, t_prev)
            x_prev = signal_prev * (x / signal + step * (first.eps + second.eps) / 2)
        return Step(x_prev, first.x0)


# %% [markdown]
# `ldm_core.testing` checks what a scheduler promises, and names each violation.

# %%
testing.check_scheduler(MyHeun(), stochastic=False)

# %% [markdown]
# It draws. Each step but the last evaluates the U-Net twice.

# %%
options = {"guidance_scale": 4.0, "seed": 0}
pictures = {
    "MyHeun, 6 steps": ldm_core.Sampler(model, MyHeun()).txt2img("panda", steps=6, **options)[0],
    "DDIM, 11 steps": ldm_core.Sampler(model, DDIM()).txt2img("panda", steps=11, **options)[0],
    "DDIM, 100 steps": ldm_core.Sampler(model, DDIM()).txt2img("panda", steps=100, **options)[0],
}
make_grid([list(pictures.values())], labels=[list(pictures)])

# %% [markdown]
# Which is nearer to the solution? The error of the final latents against DDIM in 200 steps, by steps:

# %%
measured = solver_errors(
    model, {"DDIM": DDIM(spacing="trailing"), "MyHeun": MyHeun()}, ["panda"],
    calls=(5, 10, 20), reference_steps=200,
)  # fmt: skip
measured["MyHeun"] = [(2 * steps - 1, error) for steps, error in measured["MyHeun"]]
plot_errors(measured)
