"""Checkpoints as people have them: the same small model in every structure that its files come in.

Each function takes the tensors of a file in the original layout and gives those of another structure.
"""

from __future__ import annotations

import collections
from pathlib import Path
from typing import Any

import numpy as np
import torch
from support.checkpoint_files import fake_class
from torch import Tensor

from ldm_core.config import NoiseScheduleConfig
from ldm_core.loading.find import ema_key
from ldm_core.noise_schedule import NoiseSchedule

Tensors = dict[str, Tensor]

UNET = "model.diffusion_model."
VAE = "first_stage_model."
TEXT = "cond_stage_model.transformer.text_model."
OPEN_CLIP = "cond_stage_model.model."
LIGHTNING = "pytorch_lightning.callbacks.model_checkpoint"


def trained(tensors: Tensors, *, ema: str = "weights") -> Tensors:
    """What CompVis's trainer leaves: schedule buffers, loss weights, and averages or only their counters."""
    schedule = NoiseSchedule(NoiseScheduleConfig())
    alphas = schedule.alphas_cumprod.float()
    extra = {
        "betas": schedule.betas.float(),
        "alphas_cumprod": alphas,
        "sqrt_alphas_cumprod": alphas.sqrt(),
        "posterior_variance": alphas.clone(),
        "logvar": torch.zeros(1000),
        "scale_factor": torch.tensor(0.18215),
        "first_stage_model.loss.logvar": torch.zeros(()),
        "first_stage_model.loss.discriminator.main.0.weight": torch.randn(4, 3, 4, 4),
        "model_ema.decay": torch.tensor(0.9999),
        "model_ema.num_updates": torch.tensor(470000, dtype=torch.int32),
    }
    if ema == "weights":
        extra |= {
            ema_key(key.removeprefix(UNET)): value + 1
            for key, value in tensors.items()
            if key.startswith(UNET)
        }
    return {**tensors, **extra}


def lightning_file(tensors: Tensors, path: Path, *, legacy: bool = False, nested: bool = False) -> None:
    """`torch.save` of pytorch-lightning 1.4: callbacks by class, optimizer states, numpy numbers."""
    with fake_class(LIGHTNING, "ModelCheckpoint") as callback:
        state: Any = collections.OrderedDict(tensors)
        content = {
            "epoch": 0,
            "global_step": np.int64(470000),
            "pytorch-lightning_version": "1.4.2",
            "state_dict": {"state_dict": state} if nested else state,
            "callbacks": {
                callback: {"monitor": None, "best_model_score": np.float32(0.5), "dirpath": "logs"}
            },
            "optimizer_states": [
                {
                    "state": {0: {"step": 1, "exp_avg": torch.zeros(3)}},
                    "param_groups": [{"lr": 1e-4, "params": [0]}],
                }
            ],
            "lr_schedulers": [{"base_lrs": [1.0], "last_epoch": np.float64(1)}],
        }
        torch.save(content, path, _use_new_zipfile_serialization=not legacy)


def renamed(tensors: Tensors, *prefixes: tuple[str, str]) -> Tensors:
    """The tensors with prefixes exchanged; a new prefix of "-" leaves these tensors out."""
    result = {}
    for key, value in tensors.items():
        old, new = next(((a, b) for a, b in prefixes if key.startswith(a)), ("", ""))
        if new != "-":
            result[new + key[len(old) :]] = value
    return result


def only(tensors: Tensors, prefix: str, new: str = "") -> Tensors:
    """One part, under a prefix of its own."""
    return {new + key[len(prefix) :]: value for key, value in tensors.items() if key.startswith(prefix)}


def damaged_position_ids(tensors: Tensors) -> Tensors:
    """A cast to 16 bits that went over the whole numbers, too: bfloat16 has no 257."""
    ids = {key: value.bfloat16() for key, value in tensors.items() if key.endswith("position_ids")}
    return {**tensors, **ids}


def mixed_types(tensors: Tensors) -> Tensors:
    """float8 weights, bfloat16 biases, float32 norms."""
    result = {}
    for key, value in tensors.items():
        if not value.is_floating_point():
            result[key] = value
        elif value.ndim > 1:
            result[key] = value.to(torch.float8_e4m3fn)
        else:
            result[key] = value.to(torch.bfloat16 if key.endswith("bias") else torch.float32)
    return result
