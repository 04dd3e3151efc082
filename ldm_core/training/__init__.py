"""Training: objectives, datasets and the training loop. Imported on first use of `ldm_core.training`.

objective                                            the interface between losses and the loop
diffusion_loss, autoencoder_loss, vq_loss, discriminator      the two stages of latent diffusion
clip_objective, contrastive                          CLIP
controlnet_loss                                      ControlNet
prior_loss                                           unCLIP's prior
lora, textual_inversion, dreambooth                  fine-tuning
dataset, image_folder, shards, latents, data_order   data and its order
loop, state, ema, muon, learning_rate, gradient_checkpointing, distributed, logs, signals      the run
metrics                                              evaluation
"""

from ldm_core.training.autoencoder_loss import AutoencoderLossWeights, AutoencoderObjective, init_logvar
from ldm_core.training.clip_objective import ContrastiveObjective
from ldm_core.training.controlnet_loss import ControlNetObjective
from ldm_core.training.dataset import BadSample, CaptionedDataset, TensorDataset
from ldm_core.training.diffusion_loss import DiffusionObjective
from ldm_core.training.discriminator import PatchDiscriminator
from ldm_core.training.distributed import World, init_distributed, shutdown_distributed
from ldm_core.training.dreambooth import PriorDataset, PriorPreservation, class_images
from ldm_core.training.ema import WeightAverage
from ldm_core.training.image_folder import ImageFolder
from ldm_core.training.latents import CachedLatents
from ldm_core.training.logs import reconstruction_grid, sample_grid
from ldm_core.training.loop import Trainer, TrainingError, TrainingSettings
from ldm_core.training.lora import TrainableLora
from ldm_core.training.objective import Objective
from ldm_core.training.prior_loss import PriorObjective
from ldm_core.training.shards import TarShards
from ldm_core.training.state import load_weights
from ldm_core.training.textual_inversion import TrainableEmbedding, fill_templates
from ldm_core.training.vq_loss import AutoencoderVQLossWeights, AutoencoderVQObjective

__all__ = [
    "AutoencoderLossWeights",
    "AutoencoderObjective",
    "AutoencoderVQLossWeights",
    "AutoencoderVQObjective",
    "BadSample",
    "CachedLatents",
    "CaptionedDataset",
    "ContrastiveObjective",
    "ControlNetObjective",
    "DiffusionObjective",
    "ImageFolder",
    "Objective",
    "PatchDiscriminator",
    "PriorDataset",
    "PriorObjective",
    "PriorPreservation",
    "TarShards",
    "TensorDataset",
    "TrainableEmbedding",
    "TrainableLora",
    "Trainer",
    "TrainingError",
    "TrainingSettings",
    "WeightAverage",
    "World",
    "class_images",
    "fill_templates",
    "init_distributed",
    "init_logvar",
    "load_weights",
    "reconstruction_grid",
    "sample_grid",
    "shutdown_distributed",
]
