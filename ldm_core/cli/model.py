"""Loading the model of a drawing with its adapters, and the fields that describe it in a recipe."""

from __future__ import annotations

import math
import os
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch

from ldm_core.adapters.lora import apply_lora
from ldm_core.adapters.textual_inversion import apply_textual_inversion
from ldm_core.cli.defaults import DTYPES
from ldm_core.cli.recipe_files import model_path, recorded_path
from ldm_core.config import PRESETS
from ldm_core.loading.load import bundled_model, load
from ldm_core.model import LatentDiffusion
from ldm_core.recipe import AdapterFile, Recipe, SourceFile, source_file
from ldm_core.support.printable import shown, shown_error


def usable_device(name: str | None) -> torch.device:
    """The named device, or by default a GPU if there is one. Raises ValueError for one that does not work."""
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.ones(1, device=device).cpu()
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {name} cannot be used here: {shown_error(error)}") from None
    return device


def load_model(
    args: Namespace, again: Recipe | None, device: torch.device
) -> tuple[LatentDiffusion, dict[str, Any]]:
    """The model with its adapters, and the fields of a recipe that describe it.

    Options that the command line lacks come from the recipe `again`. LoRAs given on the command line replace
    all LoRAs of the recipe; the same holds for embeddings.
    """
    path = _model_path(args, again)
    autoencoder = _autoencoder_path(args, again)
    named = {
        "config": _config(args, again),
        "prediction": chosen(args, again, "prediction"),
        "ema": chosen(args, again, "ema"),
    }
    model = load(path, device=device, dtype=_dtype(args, again), autoencoder=autoencoder, **named)
    fields = {
        "model": source_file(path or bundled_model(), bundled=path is None),
        "autoencoder": None if autoencoder is None else source_file(autoencoder),
        "loras": _apply(model, args, again, "loras", _apply_lora),
        "embeddings": _apply(model, args, again, "embeddings", _apply_embedding),
        "dtype": str(model.dtype).removeprefix("torch."),
        **named,
    }
    return model, fields


def chosen(args: Namespace, again: Recipe | None, name: str, default: Any = None) -> Any:
    """The value of an option: from the command line, else from the recipe, else the default."""
    for value in (getattr(args, name, None), getattr(again, name, None)):
        if value is not None:
            return value
    return default


def _model_path(args: Namespace, again: Recipe | None) -> str | None:
    """The checkpoint to load; None means the bundled model."""
    if args.model is not None or again is None:
        return args.model
    if again.model.path is None and again.model.same_as(source_file(bundled_model())):
        return None
    return model_path(args, again.model)


def _autoencoder_path(args: Namespace, again: Recipe | None) -> str | None:
    """The file whose autoencoder replaces the model's own, or None."""
    if args.autoencoder is not None or again is None or again.autoencoder is None:
        return args.autoencoder
    return recorded_path(args.recipe, again.autoencoder, "--autoencoder")


def _config(args: Namespace, again: Recipe | None) -> str | None:
    """A preset's name or a configuration file that replaces the model's own configuration, or None."""
    if args.config is not None or again is None or again.config is None or again.config in PRESETS:
        return chosen(args, again, "config")
    file = SourceFile(os.path.basename(again.config), "", again.config)
    return recorded_path(args.recipe, file, "--config")


def _dtype(args: Namespace, again: Recipe | None) -> torch.dtype | Literal["auto"] | None:
    name = chosen(args, again, "dtype")
    if name == "auto":
        return "auto"
    if name is not None and name not in DTYPES:
        raise ValueError(
            f"{args.recipe}: the dtype in the recipe must be one of {', '.join(DTYPES)}, not {shown(name)}"
        )
    return None if name is None else getattr(torch, name)


Apply = Callable[[LatentDiffusion, str, str], AdapterFile]


def _apply(
    model: LatentDiffusion, args: Namespace, again: Recipe | None, kind: str, apply: Apply
) -> tuple[AdapterFile, ...]:
    """Apply the adapters of one kind, in order, and return their records."""
    given = getattr(args, kind)
    if given is not None:
        return tuple(apply(model, *_file_and_value(text)) for text in given)
    recorded: tuple[AdapterFile, ...] = getattr(again, kind, ())
    return tuple(
        apply(
            model,
            recorded_path(args.recipe, adapter.file, f"--{kind.removesuffix('s')}"),
            adapter.name or repr(adapter.scale),
        )
        for adapter in recorded
    )


def _file_and_value(text: str) -> tuple[str, str]:
    """Split FILE=VALUE. The name of an existing file is not split, even if it contains "="."""
    file, equals, value = text.rpartition("=")
    return (file, value) if equals and not Path(text).exists() else (text, "")


def _apply_lora(model: LatentDiffusion, path: str, scale: str) -> AdapterFile:
    try:
        number = float(scale or 1.0)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"--lora {path}={scale}: expected a number as the scale")
    apply_lora(model, path, number)
    return AdapterFile(source_file(path), scale=number)


def _apply_embedding(model: LatentDiffusion, path: str, name: str) -> AdapterFile:
    embedding = apply_textual_inversion(model, path, name or None)
    return AdapterFile(source_file(path), name=embedding.name)
