# %% [markdown]
# # Loading Stable Diffusion
#
# `ldm_core.load` reads the files that were published: CompVis checkpoints (`.ckpt`, `.safetensors`), diffusers folders, single
# parts. No such file comes with this package, so this notebook writes a small one in the same format, and shows what happens on
# the way. With a real file, the lines are the same:
#
# ```python
# model = ldm_core.load("v1-5-pruned-emaonly.safetensors", device="cuda", dtype=torch.float16)
# ```

# %%
import tempfile
from dataclasses import replace
from pathlib import Path

import torch

import ldm_core
from ldm_core import checkpoint, config

folder = Path(tempfile.mkdtemp())

# %% [markdown]
# ## A file in the original layout
#
# A Stable Diffusion 1 with narrow layers and random weights, saved under the names that the original code uses.

# %%
SMALL = replace(
    config.SD1,
    text_encoder=replace(config.SD1.text_encoder, width=32, layers=2, heads=2),
    unet=replace(config.SD1.unet, model_channels=32, context_dim=32, num_heads=2),
    autoencoder=replace(config.SD1.autoencoder, ch=32),
    image_size=64,
)
torch.manual_seed(0)
path = folder / "small.ckpt"
checkpoint.save(ldm_core.build(SMALL), path)
tensors = checkpoint.read(path).tensors
for name in list(tensors)[:3]:
    print(name, tuple(tensors[name].shape))
print(f"{len(tensors)} tensors")

# %% [markdown]
# ## What a file holds
#
# A file consists of names and tensors. `inspect` says what it recognises and how it decided. Reading executes nothing: pickles are
# interpreted by a reader of our own that only knows tensors and plain values.

# %%
print(ldm_core.inspect(path))

# %% [markdown]
# ## Key maps
#
# Each network has its own parameter names, and a layout is a table from these to a file's. It is one to one, so that saving
# gives the file back.

# %%
model = ldm_core.load(path, config=SMALL)
again = folder / "again.ckpt"
checkpoint.save(model, again)
for name, value in checkpoint.read(again).tensors.items():
    assert torch.equal(value, tensors[name]), name
print("the same names and bits")

# %% [markdown]
# ## Settings that a file does not hold
#
# The number of heads, the noise schedule and the kind of prediction (noise or v) leave no trace in the tensors. For published
# models, they follow from the exact list of tensors. `save` writes them into the file, as it did above. For other files they come
# from a YAML or JSON file beside them, or from `config=`. Without any, loading stops with an error that says what is missing:

# %%
bare = folder / "bare.ckpt"
torch.save({"state_dict": tensors}, bare)  # as a training program saves it
try:
    ldm_core.load(bare)
except checkpoint.CheckpointError as error:
    print(error)

# %% [markdown]
# ## From here on
#
# A loaded model works as the bundled one does: `Sampler(model).txt2img(…)`, LoRAs, `convert` to other formats.

# %%
image = ldm_core.Sampler(model).txt2img("anything", steps=2, height=64, width=64, seed=0)[0]
image.size
