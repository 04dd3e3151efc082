"""Where the parts of a model lie in a file, and under whose names.

People's files put the same three networks under many prefixes: CompVis's `model.diffusion_model.`, the
`unet.` of repackaged files, nothing at all in a file of one part. A layout is a set of names with the
prefixes that it is found under; `find_parts` says which of them a file has, and `leftovers` what else
is in it.

EMA: CompVis's trainer keeps averaged U-Net weights beside the trained ones, under names without dots.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import product
from typing import Any, Literal

from torch import Tensor

from ldm_core.autoencoder import names as autoencoder_names
from ldm_core.checkpoint.key_map import KeyMap, prefixed
from ldm_core.checkpoint.reader import Checkpoint
from ldm_core.clip import names as clip_names
from ldm_core.clip.extras import OPEN_CLIP_EXTRAS, TRANSFORMERS_EXTRAS
from ldm_core.loading.ignored import AUTOENCODER_EXTRAS, IGNORED, IGNORED_PREFIXES
from ldm_core.unet import names as unet_names

Part = Literal["text_encoder", "unet", "autoencoder"]
PARTS: tuple[Part, ...] = ("text_encoder", "unet", "autoencoder")

# The prefixes of the original files, which `save` writes.
UNET = "model.diffusion_model."
AUTOENCODER = "first_stage_model."
TEXT_ENCODER = "cond_stage_model.transformer.text_model."
OPEN_CLIP = "cond_stage_model.model."

# Where a text encoder lies: in CompVis's files, SDXL's, diffusers' and mlx's, ComfyUI's, or alone.
_TEXT_BASES = (
    "cond_stage_model.clip_l.",
    "cond_stage_model.clip_h.",
    "cond_stage_model.",
    "conditioner.embedders.0.",
    "text_encoder.",
    "te.",
    "clip_l.",
    "clip_h.",
    "",
)


@dataclass(frozen=True)
class Layout:
    """One part's names: the prefixes they are found under, and the key map of a configuration.

    mark: how a key of this layout begins, after the prefix. A prefix is a pair: what the part's own
    class puts before its names follows what the file puts before the part.
    """

    part: Part
    name: str
    mark: str
    prefixes: tuple[tuple[str, str], ...]
    key_map: Callable[[Any], KeyMap]
    extras: Mapping[str, str] = field(default_factory=dict)  # what else such files hold, and why
    canonical: Callable[[str], str] = str  # older spellings of a key to the map's


def _alone(*prefixes: str) -> tuple[tuple[str, str], ...]:
    return tuple((prefix, "") for prefix in prefixes)


# The longest prefix first, since a shorter one would also match.
_TRANSFORMERS_INNER = ("transformer.text_model.", "text_model.", "transformer.", "")
LAYOUTS = (
    Layout(
        "text_encoder",
        "transformers",
        "encoder.layers.",
        tuple(product(_TEXT_BASES, _TRANSFORMERS_INNER)),
        clip_names.transformers_map,
        TRANSFORMERS_EXTRAS,
    ),
    Layout(
        "text_encoder",
        "open_clip",
        "transformer.resblocks.",
        tuple(product(_TEXT_BASES, ("model.", ""))),
        clip_names.open_clip_map,
        OPEN_CLIP_EXTRAS,
    ),
    Layout(
        "unet",
        "compvis",
        "input_blocks.",
        _alone(UNET, "diffusion_model.", "unet.", ""),
        unet_names.compvis_map,
    ),
    Layout("unet", "diffusers", "down_blocks.", _alone("unet.", UNET, ""), unet_names.diffusers_map),
    Layout(
        "autoencoder",
        "compvis",
        "decoder.up.",
        _alone(AUTOENCODER, "vae.", ""),
        autoencoder_names.compvis_map,
        AUTOENCODER_EXTRAS,
        autoencoder_names.original_name,
    ),
    Layout(
        "autoencoder",
        "diffusers",
        "decoder.up_blocks.",
        _alone("vae.", AUTOENCODER, ""),
        autoencoder_names.diffusers_map,
        AUTOENCODER_EXTRAS,
        autoencoder_names.modern_name,
    ),
)


def layout_of(part: Part, name: str) -> Layout:
    """The layout of this name for this part."""
    return next(layout for layout in LAYOUTS if (layout.part, layout.name) == (part, name))


@dataclass(frozen=True)
class PartSource:
    """One part in one file: its tensors by the layout's own names, without a prefix."""

    checkpoint: Checkpoint
    layout: Layout
    base: str  # the file's prefix
    prefix: str  # the file's, and the part's own
    tensors: Mapping[str, Tensor]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tuple(tensor.shape) for name, tensor in self.tensors.items()}

    def key_map(self, config: Any) -> KeyMap:
        """The part's map from the file's keys; spellings are the present ones."""
        return prefixed(self.layout.key_map(config), self.prefix, "")

    def file_tensors(self) -> dict[str, Tensor]:
        """The tensors under the keys of `key_map`."""
        return {self.prefix + name: tensor for name, tensor in self.tensors.items()}


def find_parts(checkpoint: Checkpoint) -> dict[Part, PartSource]:
    """The parts that a file holds, each where it is found first."""
    places: dict[Part, tuple[Layout, str, str]] = {}
    for layout in LAYOUTS:
        if layout.part in places:
            continue
        for base, inner in layout.prefixes:
            if any(key.startswith(base + inner + layout.mark) for key in checkpoint.tensors):
                places[layout.part] = layout, base, base + inner
                break
    # A part without a prefix lies beside the others, and what is under their prefixes is theirs.
    claimed = tuple(base or prefix for _, base, prefix in places.values() if prefix)
    found: dict[Part, PartSource] = {}
    for part, (layout, base, prefix) in places.items():
        others = () if prefix else claimed
        tensors = _part_tensors(checkpoint, layout, base, prefix, others)
        found[part] = PartSource(checkpoint, layout, base, prefix, tensors)
    return found


def _part_tensors(
    checkpoint: Checkpoint, layout: Layout, base: str, prefix: str, others: tuple[str, ...]
) -> dict[str, Tensor]:
    """The tensors under a prefix by the layout's own names, but for those that are known not to be needed.

    A tensor that is there under its older spelling, too, keeps that, and so is left over.
    """
    named = {
        key[len(prefix) :]: tensor
        for key, tensor in checkpoint.tensors.items()
        if key.startswith(prefix)
        and not key.startswith(others)
        and _why_ignored(layout, key, base, prefix) is None
    }
    tensors: dict[str, Tensor] = {}
    for name, tensor in named.items():
        canonical = layout.canonical(name)
        tensors[name if canonical != name and (canonical in named or canonical in tensors) else canonical] = (
            tensor
        )
    if layout.name == "open_clip" and ("text_projection" in tensors) != ("logit_scale" in tensors):
        # Neither conditions a U-Net; a converter dropped one of the two.
        tensors.pop("text_projection", None), tensors.pop("logit_scale", None)
    return tensors


def leftovers(checkpoint: Checkpoint, sources: Iterable[PartSource]) -> tuple[dict[str, str], list[str]]:
    """What is in a file besides its parts: ({key: why it is not needed}, keys that nobody knows).

    A key under a part's prefix counts as the part's, whether its network takes it or not.
    """
    mine = [source for source in sources if source.checkpoint is checkpoint]
    known: dict[str, str] = {}
    unknown: list[str] = []
    for key in checkpoint.tensors:
        reasons = (_why_ignored(s.layout, key, s.base, s.prefix) for s in mine)
        why = next(filter(None, reasons), None) or ignored(key)
        if why is not None:
            known[key] = why
        elif not any(key.startswith(source.prefix) for source in mine):
            unknown.append(key)
    return known, unknown


def ignored(key: str) -> str | None:
    """Why a key that lies in no part is not needed, or None if that is not known."""
    if key in IGNORED:
        return IGNORED[key]
    return next((why for prefix, why in IGNORED_PREFIXES.items() if key.startswith(prefix)), None)


def _why_ignored(layout: Layout, key: str, base: str, prefix: str) -> str | None:
    """Why a key that lies in this part is not needed, or None."""
    if not base and (why := ignored(key)) is not None:
        return why  # a file of one part, without a prefix, and what its trainer left beside it
    for name, why in layout.extras.items():
        names = (base + name, prefix + name)
        if key in names or (name.endswith(".") and key.startswith(names)):
            return why
    return None


EMA = "model_ema."


def ema_key(name: str) -> str:
    """Where a file keeps the average of a U-Net tensor, given its name without prefix (`LitEma`)."""
    return EMA + "diffusion_model" + name.replace(".", "")


def has_ema(checkpoint: Checkpoint) -> bool:
    """Whether a file holds averaged weights, and not only the counters that every training run leaves."""
    counters = (f"{EMA}decay", f"{EMA}num_updates")
    return any(key.startswith(EMA) and key not in counters for key in checkpoint.tensors)
