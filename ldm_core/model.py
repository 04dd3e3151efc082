"""The model: three networks, a tokenizer and a noise schedule in one plain bundle; and how to load it.

CompVis's counterpart is `LatentDiffusion` of `ldm.models.diffusion.ddpm`, which is also the trainer; here
it only holds the parts. `dataclasses.replace(model, unet=mine)` exchanges one.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ldm_core.autoencoder import AutoencoderKL
from ldm_core.checkpoint.compvis import UNET, ema_key, ignored, model_map
from ldm_core.checkpoint.config_source import resolve_config
from ldm_core.checkpoint.errors import CheckpointError
from ldm_core.checkpoint.inspect import has_ema
from ldm_core.checkpoint.key_map import report, to_parameters
from ldm_core.checkpoint.reader import Checkpoint, read
from ldm_core.config import LatentDiffusionConfig
from ldm_core.noise_schedule import NoiseSchedule
from ldm_core.protocols import Autoencoder, NoisePredictor, TextEncoder, Tokenizer
from ldm_core.random import Generators
from ldm_core.text_encoder import CLIPTextEncoder
from ldm_core.tokenizer import CLIPTokenizer
from ldm_core.unet import UNet

BUNDLED = "emoji.safetensors"

# A file's table of betas in 16 bits is off by up to 2**-11; one of another schedule by far more.
BETAS_RTOL = 1e-2


@dataclass
class LatentDiffusion:
    """The bundle of parts. Each may be exchanged for anything that fits its seam in `ldm_core.protocols`."""

    tokenizer: Tokenizer
    text_encoder: TextEncoder
    unet: NoisePredictor
    autoencoder: Autoencoder
    noise_schedule: NoiseSchedule
    config: LatentDiffusionConfig

    @property
    def modules(self) -> dict[str, nn.Module]:
        """The parts that are torch modules, by field name."""
        parts = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: part for name, part in parts.items() if isinstance(part, nn.Module)}

    @property
    def device(self) -> torch.device:
        """Where the U-Net's weights are; the CPU if no part has any."""
        return self.weight_of("unet").device

    @property
    def dtype(self) -> torch.dtype:
        """The type of the U-Net's weights; float32 if no part has any."""
        return self.weight_of("unet").dtype

    def weight_of(self, part: str) -> Tensor:
        """A weight of this part or, if it is a plain function without any, of another one."""
        modules = self.modules
        for name in (part, *modules):
            weight = next(modules[name].parameters(), None) if name in modules else None
            if weight is not None:
                return weight
        return torch.empty(0)

    def to(self, device: Any = None, dtype: torch.dtype | None = None) -> LatentDiffusion:
        """Move or cast the networks, in place as torch modules do, and return the model."""
        for module in self.modules.values():
            module.to(device=device, dtype=dtype)
        return self

    def encode_image(self, images: Tensor, generator: Generators = None) -> Tensor:
        """Images (B, 3, H, W) in [-1, 1] to the U-Net's latents (B, C, H/f, W/f): the autoencoder's, scaled.

        With a generator, or one per image, a draw from the encoder's Gaussian, as CompVis does; without,
        its mode.
        """
        posterior = self.autoencoder.encode(images.to(self.weight_of("autoencoder")))
        z = posterior.mode() if generator is None else posterior.sample(generator)
        return z * self.config.latent_scale

    def decode_latent(self, latent: Tensor) -> Tensor:
        """The U-Net's latents (B, C, h, w) to images (B, 3, h*f, w*f), about [-1, 1]; the inverse scaling."""
        z = latent / self.config.latent_scale
        return self.autoencoder.decode(z.to(self.weight_of("autoencoder")))


class _SkipInitialisation(TorchFunctionMode):
    """Weights that a file is about to replace need no values; drawing them on "meta" takes two seconds."""

    FILLS = ("uniform_", "normal_", "kaiming_uniform_", "fill_", "zero_")

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if getattr(func, "__name__", "") in self.FILLS:
            return args[0] if args else (kwargs or {})["tensor"]
        return func(*args, **(kwargs or {}))


def build(config: LatentDiffusionConfig, device: Any = "cpu") -> LatentDiffusion:
    """A model of this configuration with freshly initialised weights; on "meta", with none at all."""
    with torch.device(device):
        text_encoder = CLIPTextEncoder(config.text_encoder)
        unet = UNet(config.unet)
        autoencoder = AutoencoderKL(config.autoencoder)
    return LatentDiffusion(
        tokenizer=CLIPTokenizer(config.text_encoder.context_length, config.text_encoder.pad_token_id),
        text_encoder=text_encoder.eval(),
        unet=unet.eval(),
        autoencoder=autoencoder.eval(),
        noise_schedule=NoiseSchedule(config.noise_schedule),
        config=config,
    )


def bundled_model() -> Path:
    """Where the model that comes with the package lies: in an installed package, or in a source tree."""
    package = Path(__file__).parent
    for folder in (package / "weights", package.parent / "weights"):
        if (folder / BUNDLED).is_file():
            return folder / BUNDLED
    raise CheckpointError(f"the bundled model {BUNDLED} is neither in {package} nor beside it")


@contextmanager
def _collection_paused() -> Iterator[None]:
    """A full garbage collection walks all of torch's objects, which takes as long as reading 2 GB."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@_collection_paused()
def load(
    path: str | Path | None = None,
    *,
    device: Any = "cpu",
    dtype: torch.dtype | None = None,
    config: str | Path | LatentDiffusionConfig | None = None,
    ema: bool = False,
) -> LatentDiffusion:
    """Load a checkpoint in CompVis's layout (`.ckpt` or `.safetensors`); without a path, the bundled model.

    device, dtype: where to and as what; dtype None is float32 on a CPU and the file's own type elsewhere.
    config: a preset's name ("sd1", "sd2-v", …), a configuration, or the path of a CompVis YAML file. With
        none: a YAML file of the same name beside the checkpoint, then metadata in the file, then the one
        known model that has exactly these tensors. What a file cannot prove is never guessed.
    ema: take the averaged U-Net weights that some files also hold.

    On a CPU and without a cast, the weights stay views of the memory-mapped file. Raises CheckpointError
    for a file that cannot be read, does not fit the configuration, or holds values that are not finite.
    """
    checkpoint = read(path if path is not None else bundled_model())
    source = checkpoint.path.name
    config = resolve_config(checkpoint, config)
    tensors = _with_ema(checkpoint) if ema else checkpoint.tensors
    key_map = model_map(config)
    weights = {key: tensors[key] for key in key_map if key in tensors}
    with _SkipInitialisation():
        model = build(config, device="meta")
    _check_betas(checkpoint, model.noise_schedule)
    states = {part: module.state_dict() for part, module in model.modules.items()}
    shapes = {f"{part}.{name}": v.shape for part, state in states.items() for name, v in state.items()}
    parameters = to_parameters(key_map, weights, shapes, source=source)
    unexpected = [key for key in tensors if key not in key_map and ignored(key) is None]
    report(source, {"that no network of the model takes": unexpected})
    report(source, {"with values that are not finite": _not_finite(weights)})

    if dtype is None:
        on_cpu = torch.device(device).type == "cpu"
        dtype = torch.float32 if on_cpu else tensors[f"{UNET}input_blocks.0.0.weight"].dtype
    for part, module in model.modules.items():
        state = {name: _placed(parameters.pop(f"{part}.{name}"), device, dtype) for name in states[part]}
        module.load_state_dict(state, strict=True, assign=True)
    return model


def _with_ema(checkpoint: Checkpoint) -> Mapping[str, Tensor]:
    """The file's tensors with the averaged U-Net in the place of the trained one."""
    if not has_ema(checkpoint):
        raise CheckpointError(
            f"{checkpoint.path.name} holds no averaged (EMA) weights: load it with ema=False"
        )
    tensors = dict(checkpoint.tensors)
    for key in checkpoint.tensors:
        if key.startswith(UNET):
            if ema_key(key) not in tensors:
                raise CheckpointError(f"{checkpoint.path.name}: no averaged weights for {key}")
            tensors[key] = tensors[ema_key(key)]
    return tensors


def _placed(tensor: Tensor, device: Any, dtype: torch.dtype) -> Tensor:
    """A weight where and as it is wanted; without a move or a cast, the mapped file's own bytes.

    Convolutions of 16-bit types go by channels-last kernels only: without, PyTorch takes a fallback that
    is 25 times slower on CPUs without 16-bit arithmetic, and transposes at every call elsewhere.
    """
    tensor = tensor.to(device, dtype)
    if tensor.ndim == 4 and dtype in (torch.float16, torch.bfloat16):
        tensor = tensor.contiguous(memory_format=torch.channels_last)
    return tensor


def _not_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """The keys of tensors with NaN or infinity. A sum reads each value once and all but always settles it."""
    bad = []
    for key, tensor in tensors.items():
        wide = tensor.float()  # sums of 16-bit values are slow on a CPU
        if not bool(wide.sum().isfinite()) and not bool(wide.isfinite().all()):
            bad.append(key)
    return bad


def _check_betas(checkpoint: Checkpoint, schedule: NoiseSchedule) -> None:
    """Files of CompVis's trainer also hold the betas that they were trained with."""
    stored, betas = checkpoint.tensors.get("betas"), schedule.betas
    if stored is None:
        return
    if stored.shape != betas.shape or not stored.double().allclose(betas, rtol=BETAS_RTOL, atol=0):
        raise CheckpointError(
            f"{checkpoint.path.name} was trained with {len(stored)} betas from {float(stored[0]):.6g} to "
            f"{float(stored[-1]):.6g}, but its configuration says {len(betas)} from {float(betas[0]):.6g} to "
            f"{float(betas[-1]):.6g}"
        )
