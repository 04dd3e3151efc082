# %% [markdown]
# # Attention to words
#
# Cross-attention is where the words enter the picture: each place of the latent weighs the 77 vectors of the prompt. This
# notebook records the weights, and changes the picture by changing them.

# %%
import torch

import ldm_core
from ldm_core.watch import make_grid, plot_token_attention

model = ldm_core.load()
sampler = ldm_core.Sampler(model)
OPTIONS = {"steps": 25, "guidance_scale": 4.0, "seed": 0}

# %% [markdown]
# `record_attention` collects softmax$(QK^T / \sqrt d)$ of each layer whose name contains `attn2`, at each step. The weights of a
# place sum to 1.

# %%
with ldm_core.record_attention(model, where="attn2") as maps:
    plain = sampler.txt2img("red apple, fluent emoji", **OPTIONS)[0]
name, calls = next(iter(maps.items()))
torch.testing.assert_close(calls[0].sum(dim=-1), torch.ones(calls[0].shape[:-1]))
print(f"{len(maps)} layers, {len(calls)} calls of each; {name}: {tuple(calls[0].shape)}")
plain

# %% [markdown]
# Which words matter when? The start of the text takes most of the attention and is left out here. The style weighs most in the
# first steps, in which the composition is decided.

# %%
plot_token_attention(maps, ["red", "apple", ",", "fluent", "emoji"])

# %% [markdown]
# ## Where a word acts
#
# The weight of a token, place by place, in the layers of the highest resolution, divided by its mean over the places:


# %%
def heat(token: int) -> torch.Tensor:
    largest = max(call.shape[2] for calls in maps.values() for call in calls)
    weights = torch.stack(
        [
            call[-1].mean(dim=0)[:, token]
            for calls in maps.values()
            for call in calls
            if call.shape[2] == largest
        ]
    ).mean(dim=0)
    side = round(largest**0.5)
    return (weights / weights.mean()).reshape(side, side)


def picture_of(map: torch.Tensor):
    from PIL import Image

    scaled = ((map - map.min()) / (map.max() - map.min()) * 255).round().byte()
    return Image.fromarray(scaled.numpy()).resize((128, 128)).convert("RGB")


make_grid(
    [[plain, *(picture_of(heat(token)) for token in (1, 2, 4))]], labels=[["", "red", "apple", "fluent"]]
)

# %% [markdown]
# ## An attention function of your own
#
# `set_attention` replaces the function that computes attention. This one makes the attention of one token stronger; the model is
# the same, and so is the noise.


# %%
def stronger(token: int, factor: float):
    def attention(q, k, v, *, causal=False):
        weights = (q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5).softmax(dim=-1)
        if k.shape[-2] == 77 and not causal:  # cross-attention
            weights = weights.clone()
            weights[..., token] *= factor
            weights = weights / weights.sum(dim=-1, keepdim=True)
        return weights @ v

    return attention


drawn = []
for factor in (1.0, 3.0, 9.0):
    changed = ldm_core.load()
    ldm_core.set_attention(changed.unet, stronger(4, factor))
    drawn.append(ldm_core.Sampler(changed).txt2img("red apple, fluent emoji", **OPTIONS)[0])
make_grid([drawn], labels=[["fluent × 1", "fluent × 3", "fluent × 9"]])
