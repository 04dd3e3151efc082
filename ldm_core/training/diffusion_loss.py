"""The loss of latent diffusion: the error of the U-Net's prediction on noisy latents.

    L = E_{z_0, y, eps, t} [ w_t || target - unet(a_t z_0 + s_t eps, t, tau(y)) ||^2 ]

Rombach et al. 2022 (arXiv:2112.10752), equation 3, with w_t = 1 and target eps, as in Ho et al. 2020
(arXiv:2006.11239), equation 14; or v = a_t eps - s_t z_0 (Salimans and Ho 2022, arXiv:2202.00512), or z_0
itself. The norm is a mean over the latent's values.
Captions are dropped at random, so that the network also learns the unconditional prediction of
classifier-free guidance (Ho and Salimans 2022, arXiv:2207.12598, algorithm 1). CompVis's counterpart:
`LatentDiffusion.p_losses`.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor, nn

from ldm_core.autoencoder.gaussian import DiagonalGaussian
from ldm_core.condition import Condition
from ldm_core.conditioners.text import TextConditioner
from ldm_core.conditioners.unconditional import Unconditional
from ldm_core.model import LatentDiffusion
from ldm_core.noise import randn
from ldm_core.support.warn import warn
from ldm_core.training.objective import Batch, Metrics, Objective, require_float32, uniform

Target = Literal["eps", "v", "x0"]


def min_snr_weight(alphas_cumprod: Tensor, gamma: float, target: Target) -> Tensor:
    """The min-SNR loss weight w_t: min(SNR_t, gamma) for x0, over SNR_t for eps, over SNR_t + 1 for v.

    SNR_t = a_t^2 / s_t^2 (Hang et al. 2023, arXiv:2303.09556, section 3.4). alphas_cumprod: (T,) float64, as
    the result. At zero SNR, the weight is 0 for x0 and v, and 1 for eps.
    """
    noise = 1 - alphas_cumprod
    x0 = (alphas_cumprod / noise).clamp(max=gamma)
    if target == "x0":
        return x0
    if target == "v":
        return x0 * noise  # SNR + 1 = 1 / s^2
    return (gamma * noise / alphas_cumprod).clamp(max=1.0)


class DiffusionObjective(Objective):
    """Trains a model's U-Net and optionally its text encoder or conditioner, or an adapter instead.

    model: its networks train in place, on their device; the autoencoder is not trained.
    target: "eps", "v" or "x0"; by default the model's `config.prediction`, which sampling uses. Warns if they
        differ.
    condition_dropout: the probability of replacing a caption by the empty prompt, in [0, 1].
    min_snr_gamma: gamma of `min_snr_weight`, 5 in the paper; None for w_t = 1.
    train_text_encoder: also train the text encoder; otherwise it is frozen.
    train_conditioner: also train the network of a conditioner of something else, such as a table of classes.
    adapter: a `TrainableLora` or a `TrainableEmbedding` of the model. Only the adapter is trained; the
        networks are frozen and may be in bfloat16.

    Batches have "image", or "mean" and "logvar" from `CachedLatents`; and "text", or "inputs" for a
    conditioner of something else, such as class labels, or neither for an unconditional model. "inputs" is
    what the conditioner takes for the whole batch: a list, or a tensor of maps or pictures.
    Raises ValueError for a U-Net with input channels that the conditioner does not fill, for 16-bit weights
    (with an adapter, for float16), and for target "eps" with a zero-terminal-SNR schedule.
    """

    def __init__(
        self,
        model: LatentDiffusion,
        *,
        target: Target | None = None,
        condition_dropout: float = 0.1,
        min_snr_gamma: float | None = None,
        train_text_encoder: bool = False,
        train_conditioner: bool = False,
        adapter: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.model = model  # not an nn.Module, so frozen networks are not among this module's parameters
        self.target: Target = target or model.config.prediction
        self.condition_dropout = condition_dropout
        self.train_text_encoder = train_text_encoder
        self.train_conditioner = train_conditioner
        _check(model, self.target, condition_dropout, min_snr_gamma)
        if self.target != model.config.prediction:
            warn(
                f"training with target {self.target!r}, but model.config.prediction, which sampling uses, is "
                f"{model.config.prediction!r}; to change it, set model.config to "
                f"dataclasses.replace(model.config, prediction={self.target!r})"
            )
        self.adapter = adapter
        if adapter is None:
            self.unet = _module(model, "unet").requires_grad_(True)
            self.text_encoder = _trainable(_module(model, "text_encoder")) if train_text_encoder else None
            own = _module(model, "conditioner").requires_grad_(True) if train_conditioner else None
            self.conditioner = own
        else:
            _freeze(model, train_text_encoder, train_conditioner)

        alphas_cumprod = model.noise_schedule.alphas_cumprod
        weight = torch.ones_like(alphas_cumprod)
        if min_snr_gamma is not None:
            weight = min_snr_weight(alphas_cumprod, min_snr_gamma, self.target)
        # Tables of a_t, s_t and w_t, float32 (T,) on the CPU, where t is drawn.
        self._a, self._s = alphas_cumprod.sqrt().float(), (1 - alphas_cumprod).sqrt().float()
        self._weight = weight.float()

    def loss(self, batch: Batch, generators: Sequence[torch.Generator], step: int) -> tuple[Tensor, Metrics]:
        """Equation 3 of the latent diffusion paper; without a condition equation 2, DDPM's equation 14.

        Each generator draws a timestep, the caption, the latent and the noise, in this order.
        """
        like = self.model.weight_of("unet")
        wide = like.new_empty(0, dtype=torch.promote_types(like.dtype, torch.float32))
        t = (uniform(generators) * len(self._a)).long()
        condition = self._condition(batch, generators)
        z0 = self._latents(batch, generators).to(wide)
        noise = randn(z0.shape, generators).to(wide)

        a, s = (table[t].to(wide)[:, None, None, None] for table in (self._a, self._s))
        noisy = (a * z0 + s * noise).to(like)
        if condition.concat is not None:
            noisy = torch.cat([noisy, condition.concat], dim=1)
        predicted = self.predict(noisy, t.to(like.device), condition, batch)
        target = {"eps": noise, "v": a * noise - s * z0, "x0": z0}[self.target]
        errors = (predicted.float() - target).square().mean(dim=(1, 2, 3))  # (B,)
        loss = (self._weight[t].to(errors) * errors).mean()
        return loss, {"error": errors.detach().mean()}

    def predict(self, x: Tensor, t: Tensor, condition: Condition, batch: Batch) -> Tensor:
        """The U-Net's prediction for noisy latents x (B, C, h, w) at timesteps t (B,)."""
        vector = () if condition.vector is None else (condition.vector,)
        predicted: Tensor = self.model.unet(x, t, condition.context, *vector)
        return predicted

    def _condition(self, batch: Batch, generators: Sequence[torch.Generator]) -> Condition:
        """The Condition of a batch, with gradients if the text encoder or an adapter is trained."""
        inputs: Any = None
        if "text" in batch and isinstance(self.model.conditioner, TextConditioner):
            inputs = self._captions(batch["text"], generators)
        elif "inputs" in batch:
            inputs, drops = batch["inputs"], uniform(generators).tolist()
            inputs = inputs.tolist() if isinstance(inputs, Tensor) and inputs.ndim == 1 else inputs
            nothing = self.model.conditioner.unconditional
            if nothing is not None:
                inputs = [
                    nothing if drop < self.condition_dropout else one for one, drop in zip(inputs, drops)
                ]
        learns = self.train_text_encoder or self.train_conditioner or self.adapter is not None
        with nullcontext() if learns else torch.no_grad():
            return self.model.condition(inputs)

    def networks(self) -> list[nn.Module]:
        """The networks that gradients flow through: with an adapter, all of the model."""
        return [self] if self.adapter is None else list(self.model.modules.values())

    def _captions(self, texts: Sequence[Sequence[str]], generators: Sequence[torch.Generator]) -> list[str]:
        """One caption per sample, or the empty prompt."""
        drops, choices = uniform(generators).tolist(), uniform(generators).tolist()
        return [
            "" if drop < self.condition_dropout or not text else text[int(choice * len(text))]
            for text, drop, choice in zip(texts, drops, choices)
        ]

    @torch.no_grad()
    def _latents(self, batch: Batch, generators: Sequence[torch.Generator]) -> Tensor:
        if "mean" not in batch:
            return self.model.encode_image(batch["image"], generators)
        posterior = DiagonalGaussian(batch["mean"].float(), batch["logvar"].float())
        return posterior.sample(generators) * self.model.config.latent_scale


def _check(model: LatentDiffusion, target: str, dropout: float, gamma: float | None) -> None:
    config = model.config.unet
    if target not in get_args(Target):
        raise ValueError(f"target must be 'eps', 'v' or 'x0', not {target!r}")
    if not 0 <= dropout <= 1:
        raise ValueError(f"condition_dropout must be in [0, 1], not {dropout}")
    if gamma is not None and not gamma > 0:
        raise ValueError(f"min_snr_gamma must be positive, not {gamma}")
    labels = config.num_classes is not None or config.adm_in_channels is not None
    reads_text = isinstance(model.conditioner, TextConditioner)
    unconditional = isinstance(model.conditioner, Unconditional)
    if not unconditional and dropout > 0 and model.conditioner.unconditional is None:
        dropout_needs = "a conditioner with unconditional inputs, which this model's does not have"
        raise ValueError(f"condition_dropout {dropout} needs {dropout_needs}: use condition_dropout=0")
    fills = config.in_channels == config.out_channels or not (reads_text or unconditional)
    if not fills or (labels and reads_text):
        raise ValueError(
            "expected a U-Net whose only inputs are latents, timesteps and contexts, got one with "
            f"{config.in_channels} input channels, {config.out_channels} output channels, or class labels"
        )
    if target == "eps" and model.noise_schedule.alphas_cumprod[-1] == 0:
        raise ValueError(
            "target='eps' cannot be trained at the zero SNR that the noise schedule ends in: use target='v'"
        )


def _module(model: LatentDiffusion, part: str) -> nn.Module:
    if part not in model.modules:
        raise ValueError(f"the model's {part} is not a torch.nn.Module, so it cannot be trained")
    require_float32(model.modules[part], part)
    return model.modules[part]


def _freeze(model: LatentDiffusion, train_text_encoder: bool, train_conditioner: bool) -> None:
    """Freeze the networks, to train an adapter. Raises ValueError for float16 weights."""
    if train_text_encoder or train_conditioner:
        what = "train_text_encoder" if train_text_encoder else "train_conditioner"
        raise ValueError(f"{what} cannot be used with an adapter, which is trained alone")
    for part, network in model.modules.items():
        if any(p.dtype == torch.float16 for p in network.parameters()):
            raise ValueError(
                f"{part}: gradients underflow in float16 weights; load the model with dtype=torch.float32 or "
                "torch.bfloat16 to train an adapter"
            )
        network.requires_grad_(False)


def _trainable(text_encoder: nn.Module) -> nn.Module:
    """Freeze the weights without effect on the output: DistributedDataParallel waits for their gradients."""
    text_encoder.requires_grad_(True)
    config = getattr(text_encoder, "config", None)
    blocks = cast(Any, getattr(text_encoder, "blocks", ()))
    for block in list(blocks)[len(blocks) - getattr(config, "clip_skip", 0) :]:
        block.requires_grad_(False)
    for name, parameter in text_encoder.named_parameters(recurse=False):
        parameter.requires_grad_(name not in ("text_projection", "logit_scale"))
    return text_encoder
