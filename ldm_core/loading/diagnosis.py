"""What model a file is of, how sure that is, and the line of Python that loads it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from ldm_core.checkpoint.key_map import Problems, some
from ldm_core.checkpoint.reader import Checkpoint
from ldm_core.config import PRESETS, LatentDiffusionConfig
from ldm_core.errors import CheckpointError, UnknownModelError
from ldm_core.loading.evidence import CONFIG_KEY, added_words_of, stated_prediction
from ldm_core.loading.families import other_family
from ldm_core.loading.match import Proven, matching_presets
from ldm_core.loading.parts import PARTS, Part, PartSource, leftovers
from ldm_core.loading.resolve import resolve_config
from ldm_core.loading.shapes import prove_all
from ldm_core.loading.stored_schedule import check_schedule
from ldm_core.loading.weights import UNUSED, misfits
from ldm_core.support.printable import shown

TITLES = {
    "sd1": "Stable Diffusion 1",
    "sd1-inpaint": "Stable Diffusion 1 for inpainting",
    "sd2-base": "Stable Diffusion 2 base",
    "sd2-v": "Stable Diffusion 2 v",
    "sd2-inpaint": "Stable Diffusion 2 for inpainting",
    "sd2-depth": "Stable Diffusion 2 with depth",
    "sd2-unclip-h": "Stable Diffusion 2 unCLIP-H",
    "sd2-unclip-l": "Stable Diffusion 2 unCLIP-L",
    "x4-upscaler": "Stable Diffusion x4 upscaler",
}
OWN = "a latent diffusion model of its own"
Sure = Literal["proved", "fits", "unknown"]
_WORDS = {"text_encoder": "text encoder", "unet": "U-Net", "autoencoder": "autoencoder"}


@dataclass(frozen=True)
class Diagnosis:
    """The findings that `doctor.Report` has under the same names."""

    family: str
    sure: Sure
    why: str
    load: str | None
    presets: tuple[str, ...] = ()
    prediction: str | None = None
    contradictions: list[str] = field(default_factory=list)
    unused: tuple[str, ...] = ()  # tensors under a part's prefix that its network does not have
    is_other: bool = False  # of a kind that is no latent diffusion model, so its tensors are not unknown


def diagnose(checkpoint: Checkpoint, sources: Mapping[Part, PartSource]) -> Diagnosis:
    """What a file is. Never raises for a file that could be read."""
    other = other_family(checkpoint.tensors)
    if other is not None:
        return _other(checkpoint, other)
    if not sources and len(checkpoint.tensors) == 1 and _is_embedding(checkpoint):
        return _other(checkpoint, "a textual inversion: load a model first, then apply it")
    if not sources:
        keys = ", ".join(map(shown, list(checkpoint.tensors)[:3]))
        return Diagnosis("not a known kind", "unknown", f"no names known here (keys such as {keys})", None)
    try:
        proven = prove_all(sources)
    except CheckpointError as error:
        return Diagnosis("of an unknown structure", "unknown", str(error), None)
    presets = tuple(matching_presets(proven))
    missing = [part for part in PARTS if part not in sources]
    if missing:
        found = _incomplete(checkpoint, proven, presets, missing)
    else:
        found = _whole(checkpoint, sources, proven, presets)
    return _with_misfits(found, misfits(sources, proven))


def _with_misfits(found: Diagnosis, problems: Problems) -> Diagnosis:
    """The diagnosis of a file some of whose tensors are not its model's."""
    if not problems:
        return found
    said = [f"{some(names)} {what}" for what, names in problems.items() if what != UNUSED]
    return replace(
        found,
        sure="fits" if found.presets else "unknown",
        why="some of its tensors do not fit the rest, so load refuses it",
        load=None,
        contradictions=[*found.contradictions, *said],
        unused=tuple(problems.get(UNUSED, ())),
    )


def _other(checkpoint: Checkpoint, what: str) -> Diagnosis:
    load, family = None, what.split(",")[0].split(":")[0]
    for call, words in (("apply_lora", "a LoRA"), ("apply_textual_inversion", "a textual inversion")):
        if what.startswith(words) and "not supported" not in what:
            load = f"ldm_core.{call}(model, {str(checkpoint.path)!r})"
            family += _made_for(checkpoint)
    return Diagnosis(family, "proved", what, load, is_other=True)


_MADE_FOR = {768: ", for models like SD1", 1024: ", for models like SD2"}


def _made_for(checkpoint: Checkpoint) -> str:
    """Which models an adapter fits, by the width of the text that it has to do with."""
    for key, tensor in checkpoint.tensors.items():
        reads_context = "attn2" in key and "to_k" in key and "up" not in key and "lora_B" not in key
        is_word = len(checkpoint.tensors) == 1 or key == "emb_params" or key.startswith("string_to_param")
        if tensor.ndim > 1 and reads_context:
            return _MADE_FOR.get(tensor.shape[1], "")
        if tensor.ndim > 0 and is_word:
            return _MADE_FOR.get(tensor.shape[-1], "")
    return ""


def _is_embedding(checkpoint: Checkpoint) -> bool:
    """Whether a file's only tensor may be a learned word, as diffusers writes it under the word's name."""
    ((name, tensor),) = checkpoint.tensors.items()
    named = name.startswith("<") and name.endswith(">")
    vectors = 1 <= tensor.ndim <= 2 and tensor.is_floating_point()
    return vectors and (named or tensor.shape[-1] in _MADE_FOR)


def _incomplete(
    checkpoint: Checkpoint, proven: Proven, presets: tuple[str, ...], missing: list[Part]
) -> Diagnosis:
    """A file of one or two parts."""
    held = " and ".join(_WORDS[part] for part in PARTS if part in proven)
    path = repr(str(checkpoint.path))
    if "unet" in proven:
        load = f"ldm_core.load({path}, {', '.join(f'{part}=FILE' for part in missing)})"
    else:
        load = f"ldm_core.load(MODEL, {', '.join(f'{part}={path}' for part in proven)})"
    of = f", as of {' or '.join(presets)}" if presets else ", of no known model's size"
    why = f"it holds no {' and no '.join(_WORDS[part] for part in missing)}"
    return Diagnosis(f"{held} alone{of}", "proved" if presets else "unknown", why, load, presets)


def _whole(
    checkpoint: Checkpoint, sources: Mapping[Part, PartSource], proven: Proven, presets: tuple[str, ...]
) -> Diagnosis:
    path = repr(str(checkpoint.path))
    try:
        configs = resolve_config(checkpoint, sources)
    except CheckpointError as error:
        if not isinstance(error, UnknownModelError):
            family = _titles(presets) if presets else OWN
            sure: Sure = "fits" if presets else "unknown"
            return Diagnosis(family, sure, str(error), None, presets, contradictions=[str(error)])
        why = "its tensors are of no preset, and nothing in it says the rest"
        return Diagnosis(OWN, "unknown", why, f"ldm_core.load({path}, config=…)")
    contradictions = _contradictions(checkpoint, sources, configs[0])
    loadable = not leftovers(checkpoint, sources.values())[1] and not contradictions
    if len(configs) > 1:
        words = " or ".join(f"prediction={config.prediction!r}" for config in configs)
        load = f"ldm_core.load({path})  # asks the U-Net what it predicts; or say {words}"
        why = "its tensors are exactly those of both, and nothing in it says what it predicts"
        return Diagnosis(
            _titles(presets), "fits", why, load if loadable else None, presets, None, contradictions
        )
    named = [name for name in presets if _agrees(name, configs[0])]
    return Diagnosis(
        _titles(tuple(named) or presets) if presets else OWN,
        "proved",
        _why(checkpoint, presets),
        f"ldm_core.load({path})" if loadable else None,
        tuple(named) or presets,
        configs[0].prediction,
        contradictions,
    )


def _agrees(name: str, config: LatentDiffusionConfig) -> bool:
    return PRESETS[name].prediction == config.prediction


def _titles(presets: tuple[str, ...]) -> str:
    return " or ".join(f"{TITLES[name]} ({name})" for name in presets)


def _why(checkpoint: Checkpoint, presets: tuple[str, ...]) -> str:
    if CONFIG_KEY in checkpoint.metadata:
        return "its configuration is in its metadata, and its tensors agree"
    if checkpoint.format == "diffusers":
        return "its settings say so, and its tensors agree"
    stated = stated_prediction(checkpoint)
    if stated is not None and len(presets) > 1:
        return f"its tensors are exactly those, and {stated[1]} says what it predicts"
    return (
        "its tensors are exactly those" if presets else "a YAML file beside it says so, and its tensors agree"
    )


def _contradictions(
    checkpoint: Checkpoint, sources: Mapping[Part, PartSource], config: LatentDiffusionConfig
) -> list[str]:
    """What `load` refuses once it has the configuration."""
    try:
        check_schedule(checkpoint, config)
        added_words_of(sources["text_encoder"].checkpoint, config.text_encoder.vocab_size)
    except CheckpointError as error:
        return [str(error)]
    return []
