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
from ldm_core.clip.tokenizer import CLIPTokenizer
from ldm_core.config import LatentDiffusionConfig
from ldm_core.errors import CheckpointError
from ldm_core.loading.parts import Part
from ldm_core.loading.resolve import undecided
from ldm_core.loading.weights import Weights, build_networks, open_part, open_weights
from ldm_core.model import LatentDiffusion
from ldm_core.nn.placement import check_device, check_dtype, choose_dtype, fill
from ldm_core.noise_schedule import NoiseSchedule, PredictionType

BUNDLED = "emoji.safetensors"


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
    path: str | Path,
    part: Part,
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


def _with_asked_prediction(
    model: LatentDiffusion, configs: list[LatentDiffusionConfig], source: str
) -> LatentDiffusion:
    """The model with that one of the configurations that its U-Net's answer fits."""
    from ldm_core.loading.prediction import decide_prediction, noise_similarity

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
