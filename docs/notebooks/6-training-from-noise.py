# %% [markdown]
# # Training a tiny model from noise
#
# Both stages of the latent diffusion paper in about a minute on a CPU: an autoencoder learns to compress pictures, then a U-Net
# learns to draw their latents from words. The pictures are coloured discs, made on the spot.

# %%
import tempfile
from dataclasses import replace
from pathlib import Path

import torch

from ldm_core import build, config, training
from ldm_core.images import tensor_to_pil
from ldm_core.training.logs import read_table
from ldm_core.watch import make_grid

SIZE, STEPS = 16, 200
folder = Path(tempfile.mkdtemp())

# %%
place = torch.Generator().manual_seed(0)
rows, columns = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
colours = {"red disc": (1, -1, -1), "green disc": (-1, 1, -1), "blue disc": (-1, -1, 1)}
images, texts = torch.ones(60, 3, SIZE, SIZE), list(colours) * 20
for image, text in zip(images, texts):
    y, x = (torch.rand(2, generator=place) * SIZE / 3 + SIZE / 3).tolist()
    image[:, (rows - y) ** 2 + (columns - x) ** 2 < (SIZE / 3) ** 2] = torch.tensor(colours[text]).float()[
        :, None
    ]
dataset = training.TensorDataset(images, texts)
large = [picture.resize((96, 96), 0) for picture in tensor_to_pil(images[:6] / 2 + 0.5)]
make_grid([large], labels=[texts[:6]])

# %% [markdown]
# ## The model
#
# A configuration describes a model, and `build` makes it with random weights.

# %%
TINY = config.LatentDiffusionConfig(
    text_encoder=config.TextEncoderConfig(context_length=8, width=32, layers=1, heads=2),
    unet=config.UNetConfig(
        model_channels=64, channel_mult=(1, 2), num_res_blocks=1, attention_resolutions=(2,), context_dim=32
    ),
    autoencoder=config.AutoencoderConfig(ch=64, ch_mult=(1, 1), num_res_blocks=1),
    image_size=SIZE,
)
torch.manual_seed(0)
tiny = build(TINY)
settings = training.TrainingSettings(
    STEPS,
    batch_size=16,
    learning_rate=1e-3,
    warmup=min(10, STEPS - 1),
    log_every=max(1, STEPS // 6),
    ema_decay=0.98,
)


def losses(trainer: training.Trainer) -> list[str]:
    return [f"step {row['step']}: {row['loss']:.3f}" for row in read_table(trainer.folder / "metrics.csv")[1]]


# %% [markdown]
# ## Stage 1: the autoencoder
#
# The loss is the distance of the decoded picture from the original, with a small KL term that keeps the latents near a normal
# distribution (section 3.1 of the paper).

# %%
training.init_logvar(tiny.autoencoder)
objective = training.AutoencoderObjective(
    tiny.autoencoder, weights=training.AutoencoderLossWeights(l1_start=STEPS)
)
first = training.Trainer(objective, dataset, folder / "autoencoder", settings)
first.run()
losses(first)

# %% [markdown]
# ## Stage 2: the diffusion model
#
# The autoencoder is frozen. The latents are computed once and scaled to variance 1. The loss is the squared error of the
# predicted noise (equation 3 of the paper, DDPM's equation 14).

# %%
latents = training.CachedLatents(dataset, tiny.autoencoder, folder / "latents.npy")
scale = 1 / torch.stack([latents[i]["mean"] for i in range(len(latents))]).std().item()
tiny = replace(tiny, config=replace(TINY, latent_scale=scale))
second = training.Trainer(
    training.DiffusionObjective(tiny, train_text_encoder=True),
    latents,
    folder / "unet",
    replace(settings, learning_rate=2e-3),
)
second.run()
losses(second)

# %% [markdown]
# ## What it draws
#
# With the averaged weights (EMA), from noise and three prompts:

# %%
with second.averaged():
    grid = training.sample_grid(tiny, list(colours), steps=10)
grid
