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
from ldm_core.loading.weights import Weights, build_networks, open_part, open_weights
from ldm_core.model import LatentDiffusion
from ldm_core.nn.placement import check_device, check_dtype, choose_dtype, fill
from ldm_core.noise_schedule import NoiseSchedule, PredictionType

BUNDLED = "emoji.safetensors"


def build(config: LatentDiffusionConfig, device: Any = "cpu") -> LatentDiffusion:
    """A model of this configuration with freshly initialised weights; on "meta", with none at all."""
    return _bundle(config, build_networks(config, device))


def _bundle(
    config: LatentDiffusionConfig, networks: Mapping[str, nn.Module], tokenizer: Any = None
) -> LatentDiffusion:
    every: dict[str, Any] = dict.fromkeys(model_slots())
    return LatentDiffusion(
        tokenizer=tokenizer or _tokenizer(config),
        noise_schedule=NoiseSchedule(config.noise_schedule),
        config=config,
        **every | dict(networks),
    )


def _tokenizer(config: LatentDiffusionConfig, words: Words = (), source: str | None = None) -> Any:
    """What turns text into the model's input; None for a model without text.

    words: those that its file adds (from DreamBooth, say). source: the file, for errors.
    """
    for own in part_configs(config).values():
        make = part_of(own).tokenizer
        if make is None:
            continue
        tokenizer = make(own, ())
        if source is not None and own.vocab_size < tokenizer.vocab_size:
            raise CheckpointError(
                f"{source}: its text encoder knows {own.vocab_size} tokens, its tokenizer has "
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
    """Where the model that comes with the package lies: in an installed package, or in a source tree."""
    package = Path(__file__).parent.parent
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
    prediction: "eps", "v" or "x0", whatever the configuration says. Without it, a U-Net whose file fits both
        eps and v is evaluated once to tell (`ldm_core.loading.prediction`), with a warning.
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
            parts=dict(text_encoder=text_encoder, unet=unet, autoencoder=autoencoder),  # noqa: C408
            mmap=mmap,
        )
        assert weights.decision is not None
        chosen, name = weights.decision.config, weights.checkpoint.path.name
        model = _bundle(chosen, weights.networks, _tokenizer(chosen, weights.added_words, name))
        main = next((s for s, source in weights.sources.items() if "prediction" in source.part.brings))
        _fill(weights, name, device, choose_dtype(dtype, device, weights.parameters[main].values()))
    if weights.decision.prediction is not None:
        return model
    answer = predicted(model, weights.sources[main].name, weights.decision.choices)
    claims = [*weights.claims, Claim("prediction", answer, "its output for noise", Strength.ASKED)]
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
    """One network of a file or folder, which may hold nothing else.

    part: the name of a row of `ldm_core.loading.parts`, such as `unet` or `autoencoder`.
    config: a preset's name, a whole model's configuration, or the part's own.

    Other options and errors are `load`'s. An autoencoder needs no configuration, since its shapes prove it;
    the others must be a known model's, or have their settings beside them, or be given `config`.
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
    """Give the networks their weights. Raises CheckpointError that names tensors with NaN or infinity."""
    bad = {
        weights.keys[slot][name]: None
        for slot, tensors in weights.parameters.items()
        for name, tensor in tensors.items()
        if not all_finite(tensor)
    }
    report(source, {"with values that are not finite": bad})
    for slot, network in weights.networks.items():
        fill(network, weights.parameters[slot], device, dtype)
