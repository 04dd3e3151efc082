# %% [markdown]
# # Inside a step
#
# A diffusion model starts from noise and removes a part of it in each step. This notebook takes one step apart, and then writes
# the loop of all steps by hand.

# %%
import torch

import ldm_core
from ldm_core.images import tensor_to_pil
from ldm_core.watch import make_grid, plot_schedules, plot_statistics

model = ldm_core.load()
sampler = ldm_core.Sampler(model, ldm_core.DDIM())
OPTIONS = {"steps": 10, "guidance_scale": 4.0, "seed": 0}

# %% [markdown]
# ## The words
#
# The tokenizer turns the prompt into numbers, and the text encoder turns these into 77 vectors, the *context*.

# %%
tokens = model.tokenizer(["grinning cat"])
context = model.text_encoder(tokens)
tokens[0, :6], context.shape

# %% [markdown]
# ## The noise schedule
#
# Training mixes a latent $x_0$ with noise $\epsilon$: $x_t = \sqrt{\bar\alpha_t}\,x_0 + \sqrt{1 - \bar\alpha_t}\,\epsilon$
# (DDPM, equation 4). The table of $\bar\alpha_t$ says how much of each there is at the timestep $t$.

# %%
plot_schedules(model.noise_schedule)

# %% [markdown]
# ## One prediction
#
# The U-Net sees the noisy latent, the timestep and the context. The bundled model predicts
# $v = \sqrt{\bar\alpha_t}\,\epsilon - \sqrt{1 - \bar\alpha_t}\,x_0$; Stable Diffusion 1 predicts $\epsilon$. Each of the three
# gives the other two.

# %%
x = torch.randn(1, 16, 8, 8, generator=torch.Generator().manual_seed(0))
t = 981
with torch.no_grad():
    v = model.unet(x, t, context)
alpha_bar = float(model.noise_schedule.alphas_cumprod[t])
x0 = alpha_bar**0.5 * x - (1 - alpha_bar) ** 0.5 * v
eps = (1 - alpha_bar) ** 0.5 * x + alpha_bar**0.5 * v
torch.testing.assert_close(x, alpha_bar**0.5 * x0 + (1 - alpha_bar) ** 0.5 * eps)
model.config.prediction, v.shape

# %% [markdown]
# ## Every step, decoded
#
# `steps` yields each step. The upper row decodes the latent itself, and the lower one the model's current prediction of the
# final picture. The first predictions are blurred: they are averages over all pictures that fit the noise.

# %%
steps = list(sampler.steps("grinning cat", **OPTIONS))


def decoded(latent):
    return tensor_to_pil(model.decode_latent(latent) / 2 + 0.5)[0]


shown = steps[::2] + steps[-1:]
make_grid(
    [[decoded(step.latent) for step in shown], [decoded(step.x0) for step in shown]],
    rows=["latent", "x0"],
    labels=[[f"t = {step.t:g}" for step in shown]],
    tile=96,
)

# %%
plot_statistics(steps)

# %% [markdown]
# ## The loop by hand
#
# Guidance evaluates the U-Net with the prompt and without it, and goes further in the direction in which the two differ
# (classifier-free guidance, equation 6). DDIM then removes the predicted noise of the timestep $t$, and adds that of the
# earlier one (DDIM, equation 12 with $\sigma = 0$).

# %%
empty = model.text_encoder(model.tokenizer([""]))
table = model.noise_schedule.alphas_cumprod
x = torch.randn(1, 16, 8, 8, generator=torch.Generator().manual_seed(0))
for t, t_prev in ldm_core.DDIM().timesteps(model.noise_schedule, OPTIONS["steps"]):
    with torch.no_grad():
        without, with_prompt = (model.unet(x, t, words) for words in (empty, context))
    v = without + OPTIONS["guidance_scale"] * (with_prompt - without)
    a, a_prev = float(table[t]), float(table[max(t_prev, 0)])
    x0 = a**0.5 * x - (1 - a) ** 0.5 * v
    eps = (1 - a) ** 0.5 * x + a**0.5 * v
    x = a_prev**0.5 * x0 + (1 - a_prev) ** 0.5 * eps

torch.testing.assert_close(x, steps[-1].latent, rtol=0, atol=1e-3)
decoded(x)
