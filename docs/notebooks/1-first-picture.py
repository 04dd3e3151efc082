# %% [markdown]
# # First picture
#
# This notebook draws a picture from a prompt with the bundled model. Everything runs offline on a CPU, in seconds.
#
# `ldm_core.load()` returns the model, a bundle of plain parts: a tokenizer and a text encoder, a U-Net and an autoencoder.

# %%
import ldm_core

model = ldm_core.load()
model

# %% [markdown]
# A `Sampler` joins a model and a scheduler. The seed decides the noise from which the picture starts, so the same line always
# draws the same picture.

# %%
sampler = ldm_core.Sampler(model, ldm_core.DDIM())
cat = sampler.txt2img("grinning cat", steps=25, guidance_scale=4, seed=0)[0]
cat

# %% [markdown]
# Four other seeds. Each picture of a batch has a noise of its own: seed 1 draws the same picture alone and beside others.

# %%
from ldm_core.watch import make_grid

cats = sampler.txt2img("grinning cat", num_images=4, steps=25, guidance_scale=4, seed=1)
make_grid([cats], labels=[[f"seed {seed}" for seed in range(1, 5)]])

# %% [markdown]
# ## Guidance and steps
#
# `guidance_scale` says how strongly the picture follows the prompt, and `steps` in how many steps the noise is removed. One
# seed at several of both:

# %%
from ldm_core.watch import guidance_sheet

guidance_sheet(sampler, "red apple", scales=(1, 2, 4, 8), steps=(5, 10, 25), tile=96)

# %% [markdown]
# ## From a picture
#
# `img2img` adds noise to a picture and removes it under another prompt. `strength` is the amount of noise, from 0 to 1.

# %%
strengths = (0.4, 0.6, 0.8)
tigers = [
    sampler.img2img("tiger face", cat, strength=s, steps=25, guidance_scale=4, seed=1)[0] for s in strengths
]
make_grid([[cat, *tigers]], labels=[["the picture", *(f"strength {s}" for s in strengths)]])

# %% [markdown]
# ## The recipe
#
# A picture carries what it was made from. `python -m ldm_core txt2img` writes it into the PNG file, and
# `python -m ldm_core txt2img --from cat.png` draws it again.

# %%
print(cat.info["recipe"])
