"""Load a model, or one of its networks, from files."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from ldm_core.checkpoint.key_map import report
from ldm_core.checkpoint.values import all_finite
from ldm_core.config import LatentDiffusionConfig
from ldm_core.errors import CheckpointError
from ldm_core.loading.claims import Claim, Strength
from ldm_core.loading.decide import decide
from ldm_core.loading.diffusers_config import Words
from ldm_core.loading.parts import model_slots, part_configs, part_of
from ldm_core.loading.prediction import predicted
from ldm_core.loading.weights import PARTS, Weights, build_networks, open_part, open_weights
from ldm_core.model import LatentDiffusion
from ldm_core.nn.placement import check_device, check_dtype, choose_dtype, fill
from ldm_core.noise_schedule import NoiseSchedule, PredictionType

BUNDLED = "emoji.safetensors"


def build(config: LatentDiffusionConfig, device: Any = "cpu") -> LatentDiffusion:
    """A model of this configuration with newly initialised weights, or without any on device "meta"."""
    return _bundle(config, build_networks(config, device))


def _bundle(
    config: LatentDiffusionConfig, networks: Mapping[str, nn.Module], tokenizer: Any = None
) -> LatentDiffusion:
    parts: dict[str, Any] = {slot: networks.get(slot) for slot in model_slots()}
    parts["tokenizer"] = tokenizer or _tokenizer(config)
    conditions = None if config.conditioner is None else part_of(config.conditioner).conditions
    if conditions is not None:
        conditioner = conditions(config.conditioner, parts)
        parts |= {"tokenizer": None, "text_encoder": None, "conditioner": conditioner}
    return LatentDiffusion(noise_schedule=NoiseSchedule(config.noise_schedule), config=config, **parts)


def _tokenizer(config: LatentDiffusionConfig, words: Words = (), source: str | None = None) -> Any:
    """The tokenizer of a model; None for a model without text.

    words: words that the file adds (DreamBooth, for example). source: the file, for errors.
    """
    for own in part_configs(config).values():
        make = part_of(own).tokenizer
        if make is None:
            continue
        tokenizer = make(own, ())
        if source is not None and own.vocab_size < tokenizer.vocab_size:
            raise CheckpointError(
                f"{source}: its text encoder has {own.vocab_size} tokens, its tokenizer "
                f"{tokenizer.vocab_size}"
            )
        try:
            return make(own, words)
        except ValueError as error:
            text = f"{source}: the words that its tokenizer adds cannot be used: {error}"
            warnings.warn(text, stacklevel=3)
            return tokenizer
    return None


def bundled_model() -> Path:
    """The path of the model that comes with the package, installed or in a source tree."""
    package = Path(__file__).parent.parent
    for folder in (package / "weights", package.parent / "weights"):
        if (folder / BUNDLED).is_file():
            return folder / BUNDLED
    raise CheckpointError(f"the bundled model {BUNDLED} was not found in {package} or beside it")


@contextmanager
def _collection_paused() -> Iterator[None]:
    """Pause garbage collection, which visits all objects of torch and takes much of the loading time."""
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
    ema: bool | None = None,
    variant: str | None = None,
    text_encoder: str | Path | None = None,
    unet: str | Path | None = None,
    autoencoder: str | Path | None = None,
    conditioner: str | Path | None = None,
    mmap: bool = True,
) -> LatentDiffusion:
    """Load a model: a `.ckpt` or `.safetensors` file, or a diffusers folder; without a path, the bundled one.

    device, dtype: of the networks. dtype None is float32 on a CPU and the file's dtype elsewhere; "auto" is
        bfloat16 on a CPU with instructions for it, and otherwise the same as None.
    config: a preset's name ("sd1", "sd2-v", …), a configuration, or the path of a CompVis YAML file. By
        default, the first of: a YAML file of the same name beside the checkpoint, metadata in the file, the
        settings of a folder, the one known model with exactly these tensors. Values that a file does not
        prove are never guessed.
    prediction: "eps", "v" or "x0", overrides the configuration. Without it, a U-Net whose file fits both eps
        and v is evaluated once to find out (`ldm_core.loading.prediction`), with a warning.
    ema: use the averaged U-Net weights that some files also contain. None: if the original scripts use them
        (`use_ema` of the configuration) and the file contains them.
    variant: which files of a diffusers folder, such as "fp16".
    text_encoder, unet, autoencoder, conditioner: other files or folders from which to load these parts.
    mmap: memory-map weights that are neither moved nor cast: loading is fast, and several processes share
        the memory. The files must then stay unchanged while the model is in use: overwriting one changes
        the weights, and truncating one ends the process with SIGBUS. (Moving another file into its place,
        as `save` does, is harmless.) With False the weights are read, and the files may be changed or
        deleted afterwards.

    Raises CheckpointError for a file that cannot be read, does not fit the configuration, or contains values
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
            parts=dict(zip(PARTS, (text_encoder, unet, autoencoder, conditioner), strict=True)),
            mmap=mmap,
        )
        assert weights.decision is not None
        chosen, name = weights.decision.config, weights.checkpoint.path.name
        main = next((s for s, source in weights.sources.items() if "prediction" in source.part.brings))
        _fill(weights, name, device, choose_dtype(dtype, device, weights.parameters[main].values()))
        model = _bundle(chosen, weights.networks, _tokenizer(chosen, weights.added_words, name))
    if weights.decision.prediction is not None:
        return model
    found = predicted(model, weights.sources[main].name, weights.decision.choices)
    claims = [*weights.claims, Claim("prediction", found, "its output for noise", Strength.ASKED)]
    return replace(model, config=decide(name, claims).config)


def load_part(
    path: str | Path,
    part: str,
    *,
    device: Any = "cpu",
    dtype: torch.dtype | Literal["auto"] | None = None,
    config: Any = None,
    variant: str | None = None,
    mmap: bool = True,
) -> nn.Module:
    """Load one network from a file or folder, which may contain others.

    part: the name of a row of `ldm_core.loading.parts`, such as `unet` or `autoencoder`.
    config: a preset's name, or the configuration of a whole model or of the part.

    The other options and the errors are those of `load`. An autoencoder needs no configuration, since its
    shapes prove it; other networks must match a known model, have settings in their file or folder, or be
    loaded with `config`.
    """
    check_dtype(dtype)
    check_device(device)
    with _collection_paused():
        weights = open_part(path, part, config, variant, mmap)
        ((slot, network),) = weights.networks.items()
        dtype = choose_dtype(dtype, device, weights.parameters[slot].values())
        _fill(weights, weights.checkpoint.path.name, device, dtype)
    return network


def _fill(weights: Weights, source: str, device: Any, dtype: torch.dtype) -> None:
    """Fill the networks with their weights. Raises CheckpointError naming tensors with NaN or infinity."""
    bad = {
        weights.keys[slot][name]: None
        for slot, tensors in weights.parameters.items()
        for name, tensor in tensors.items()
        if not all_finite(tensor)
    }
    report(source, {"with values that are not finite": bad})
    for slot, network in weights.networks.items():
        fill(network, weights.parameters[slot], device, dtype)
