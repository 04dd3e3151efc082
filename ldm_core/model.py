"""The model: three networks, a tokenizer and a noise schedule in one plain bundle; and how to load it.

CompVis's counterpart is `LatentDiffusion` of `ldm.models.diffusion.ddpm`, which is also the trainer; here
it only holds the parts. `dataclasses.replace(model, unet=mine)` exchanges one.
"""

from __future__ import annotations

import gc
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ldm_core.attention import multiplies_bfloat16
from ldm_core.checkpoint.config_source import undecided
from ldm_core.checkpoint.errors import CheckpointError
from ldm_core.checkpoint.key_map import report
from ldm_core.checkpoint.parts import Part
from ldm_core.checkpoint.values import all_finite
from ldm_core.config import LatentDiffusionConfig, PredictionType
from ldm_core.noise_schedule import NoiseSchedule
from ldm_core.printable import shown_error
from ldm_core.protocols import Autoencoder, NoisePredictor, TextEncoder, Tokenizer
from ldm_core.random import Generators
from ldm_core.tokenizer import CLIPTokenizer
from ldm_core.weights import Weights, build_networks, open_part, open_weights

BUNDLED = "emoji.safetensors"


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


def build(config: LatentDiffusionConfig, device: Any = "cpu") -> LatentDiffusion:
    """A model of this configuration with freshly initialised weights; on "meta", with none at all."""
    return _bundle(config, build_networks(config, device))


def _bundle(config: LatentDiffusionConfig, networks: Mapping[Part, Any]) -> LatentDiffusion:
    return LatentDiffusion(
        tokenizer=CLIPTokenizer(config.text_encoder.context_length, config.text_encoder.pad_token_id),
        noise_schedule=NoiseSchedule(config.noise_schedule),
        config=config,
        text_encoder=networks["text_encoder"],
        unet=networks["unet"],
        autoencoder=networks["autoencoder"],
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
    """A full garbage collection walks all of torch's objects, which takes a good part of the whole time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def load(
    path: str | Path | None = None,
    *,
    device: Any = "cpu",
    dtype: torch.dtype | Literal["auto"] | None = None,
    config: str | Path | LatentDiffusionConfig | None = None,
    prediction: PredictionType | None = None,
    ema: bool = False,
    variant: str | None = None,
    text_encoder: str | Path | None = None,
    unet: str | Path | None = None,
    autoencoder: str | Path | None = None,
    mmap: bool = True,
) -> LatentDiffusion:
    """Load a model: a `.ckpt` or `.safetensors` file, or a diffusers folder; without a path, the bundled one.

    device, dtype: where to and as what; dtype None is float32 on a CPU and the file's own type elsewhere,
        and "auto" is bfloat16 on a CPU that has instructions for it, and otherwise as None.
    config: a preset's name ("sd1", "sd2-v", …), a configuration, or the path of a CompVis YAML file. With
        none: a YAML file of the same name beside the checkpoint, then metadata in the file, a folder's
        settings, then the one known model that has exactly these tensors. What a file cannot prove is
        never guessed.
    prediction: "eps", "v" or "x0", whatever the configuration says. Without it, a file whose tensors fit
        models of eps and of v is asked: see `ldm_core.prediction`. A warning then says what it answered.
    ema: take the averaged U-Net weights that some files also hold.
    variant: which files of a diffusers folder, such as "fp16".
    text_encoder, unet, autoencoder: other files to take these parts from: files or folders of one part, or
        of whole models.
    mmap: leave weights that are neither moved nor cast in the files, which are mapped into memory: loading
        is quick, and several processes share them. The files must then stay as they are while the model
        lives: overwriting one changes the model's pictures, and cutting one short ends the process with
        SIGBUS. (Moving another file into its place, as `save` does, is harmless.) With False the weights
        are read, and the files may be changed or deleted afterwards.

    Raises CheckpointError for a file that cannot be read, does not fit the configuration, or holds values
    that are not finite, and ValueError for an unknown device or dtype.
    """
    check_dtype(dtype)
    check_device(device)
    with _collection_paused():
        weights = open_weights(
            path if path is not None else bundled_model(),
            config=config,
            prediction=prediction,
            ema=ema,
            variant=variant,
            parts={"text_encoder": text_encoder, "unet": unet, "autoencoder": autoencoder},
            mmap=mmap,
        )
        model = _bundle(weights.configs[0], weights.networks)
        model.tokenizer = _tokenizer(weights)
        source = weights.checkpoint.path.name
        parameters = weights.parameters
        report(source, {"with values that are not finite": _not_finite(weights)})
        dtype = choose_dtype(dtype, device, parameters["unet"].values())
        for part, network in weights.networks.items():
            fill(network, parameters[part], device, dtype)
    if len(weights.configs) == 1:
        return model
    return _with_asked_prediction(model, weights.configs, source if unet is None else Path(unet).name)


def load_part(
    part: Part,
    path: str | Path,
    *,
    device: Any = "cpu",
    dtype: torch.dtype | Literal["auto"] | None = None,
    config: str | LatentDiffusionConfig | None = None,
    variant: str | None = None,
    mmap: bool = True,
) -> nn.Module:
    """One network of a file or folder, which may hold nothing else: "text_encoder", "unet" or "autoencoder".

    Options and errors are `load`'s. An autoencoder needs no configuration, since its shapes prove it; the
    others must be a known model's, or have their settings beside them, or be given `config`.
    """
    check_dtype(dtype)
    check_device(device)
    with _collection_paused():
        network, parameters = open_part(path, part, config, variant, mmap)
        bad = [name for name, tensor in parameters.items() if not all_finite(tensor)]
        report(Path(path).name, {"with values that are not finite": bad})
        fill(network, parameters, device, choose_dtype(dtype, device, parameters.values()))
    return network


def fill(network: nn.Module, parameters: dict[str, Tensor], device: Any, dtype: torch.dtype) -> None:
    """Give a network its weights, each taken out of `parameters` as it is placed."""
    state = {name: _placed(parameters.pop(name), device, dtype) for name in list(parameters)}
    network.load_state_dict(state, strict=True, assign=True)


def _with_asked_prediction(
    model: LatentDiffusion, configs: list[LatentDiffusionConfig], source: str
) -> LatentDiffusion:
    """The model with that one of the configurations that its U-Net's answer fits."""
    from ldm_core.prediction import decide_prediction, noise_similarity

    try:
        similarity = noise_similarity(model)
    except (RuntimeError, NotImplementedError) as error:  # on "meta", or in a type in which nothing computes
        raise undecided(source, configs, f", and it cannot be asked here ({error})") from error
    answer = decide_prediction(similarity)
    fitting = [config for config in configs if config.prediction == answer]
    if len(fitting) != 1:
        raise undecided(source, configs, f", and its answer to pure noise settles nothing ({similarity:.2f})")
    warnings.warn(
        f"nothing in {source} says what its U-Net predicts. Its answer to pure noise has a likeness of "
        f"{similarity:.2f} to that noise, as of one that predicts {answer}; prediction={answer!r} spares "
        "the question",
        stacklevel=3,
    )
    return replace(model, config=fitting[0])


def check_dtype(dtype: torch.dtype | str | None) -> None:
    """Raise ValueError for what is no type of weights."""
    floating = isinstance(dtype, torch.dtype) and dtype.is_floating_point
    if dtype not in (None, "auto") and not floating:
        raise ValueError(f"dtype must be a floating-point type of torch or 'auto', not {dtype!r}")


def check_device(device: Any) -> None:
    """Raise ValueError for a device that torch does not know, or that this machine does not have."""
    try:
        torch.empty(0, device=torch.device(device))
    # An unknown name is a RuntimeError, another type a TypeError, a torch without CUDA an AssertionError.
    except (RuntimeError, TypeError, AssertionError) as error:
        raise ValueError(f"device {device!r} cannot be used: {shown_error(error)}") from error


def choose_dtype(
    dtype: torch.dtype | Literal["auto"] | None, device: Any, tensors: Iterable[Tensor]
) -> torch.dtype:
    """The type that is asked for, or the one that suits the device and the file's tensors."""
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype == "auto" and torch.device(device).type == "cpu" and multiplies_bfloat16():
        return torch.bfloat16
    return _usual_dtype(device, tensors)


def _usual_dtype(device: Any, tensors: Iterable[Tensor]) -> torch.dtype:
    """Float32 on a CPU; elsewhere the type of most of the weights, or float16 for float8's."""
    if torch.device(device).type == "cpu":
        return torch.float32
    sizes: Counter[torch.dtype] = Counter()
    for tensor in tensors:
        if tensor.is_floating_point():
            sizes[tensor.dtype] += tensor.numel()
    dtype = sizes.most_common(1)[0][0]
    return dtype if dtype.itemsize > 1 else torch.float16


def _placed(tensor: Tensor, device: Any, dtype: torch.dtype) -> Tensor:
    """A weight where and as it is wanted; without a move or a cast, the mapped file's own bytes.

    Convolutions of 16-bit types go by channels-last kernels only: without, PyTorch takes a fallback that
    is many times slower on CPUs without 16-bit arithmetic, and transposes at every call elsewhere.
    """
    tensor = tensor.to(device, dtype)
    if tensor.ndim == 4 and dtype in (torch.float16, torch.bfloat16):
        tensor = tensor.contiguous(memory_format=torch.channels_last)
    return tensor


def _tokenizer(weights: Weights) -> CLIPTokenizer:
    """The tokenizer, with the words that were added to a diffusers folder's (by DreamBooth, say)."""
    text, name = weights.configs[0].text_encoder, weights.checkpoint.path.name
    if text.vocab_size < CLIPTokenizer.vocab_size:
        raise CheckpointError(
            f"{name}: its text encoder knows {text.vocab_size} tokens, CLIP's tokenizer has "
            f"{CLIPTokenizer.vocab_size}"
        )
    tokenizer = CLIPTokenizer(text.context_length, text.pad_token_id)
    try:
        return replace(tokenizer, added_words=weights.added_words)
    except ValueError as error:
        warnings.warn(f"{name}: the words that its tokenizer adds cannot be used: {error}", stacklevel=3)
        return tokenizer


def _not_finite(weights: Weights) -> list[str]:
    """The keys of tensors with NaN or infinity."""
    bad = [
        weights.keys[part][name]
        for part, tensors in weights.parameters.items()
        for name, tensor in tensors.items()
        if not all_finite(tensor)
    ]
    return list(dict.fromkeys(bad))
