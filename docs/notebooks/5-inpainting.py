# %% [markdown]
# # Inpainting
#
# A mask says which part of a picture to draw anew: white is repainted, and black stays, to the last bit. Any text-to-image model
# can do it: after each step, the known part of the latent is replaced by the picture's own latent with the right amount of noise.

# %%
import numpy as np
from PIL import Image, ImageDraw

import ldm_core
from ldm_core.watch import make_grid

model = ldm_core.load()
sampler = ldm_core.Sampler(model)
OPTIONS = {"steps": 25, "guidance_scale": 4.0}
face = sampler.txt2img("grinning face", seed=0, **OPTIONS)[0]

# %% [markdown]
# The mask of this notebook covers the lower half of the face.

# %%
mask = Image.new("L", face.size, 0)
ImageDraw.Draw(mask).ellipse((16, 64, 112, 124), fill=255)
make_grid([[face, mask.convert("RGB")]], labels=[["the picture", "the mask"]])

# %%
prompts = ["crying face", "face with tongue", "kissing face"]
repainted = [sampler.inpaint(prompt, face, mask, seed=3, **OPTIONS)[0] for prompt in prompts]
make_grid([[face, *repainted]], labels=[["the picture", *prompts]])

# %% [markdown]
# Outside the mask, the pixels are those of the picture:

# %%
known = np.asarray(mask) == 0
for picture in repainted:
    assert np.array_equal(np.asarray(picture)[known], np.asarray(face)[known])
print(f"{known.mean():.0%} of the pixels are unchanged")

# %% [markdown]
# ## Strength
#
# `strength=1` starts from pure noise inside the mask. Less keeps more of what was there.

# %%
strengths = (0.5, 0.75, 1.0)
drawn = [sampler.inpaint("crying face", face, mask, strength=s, seed=3, **OPTIONS)[0] for s in strengths]
make_grid([drawn], labels=[[f"strength {s:g}" for s in strengths]])

# %% [markdown]
# ## Outpainting
#
# A picture on a larger canvas, with everything around it masked, is continued beyond its border.

# %%
canvas, outside = Image.new("RGB", (192, 128), "white"), Image.new("L", (192, 128), 255)
canvas.paste(face, (32, 0))
outside.paste(0, (32, 0, 160, 128))
sampler.inpaint("grinning face", canvas, outside, height=128, width=192, seed=1, **OPTIONS)[0]
