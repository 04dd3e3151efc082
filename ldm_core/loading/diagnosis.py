"""Identify the model in a file, how certain that is, and the line of Python that loads it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from ldm_core.checkpoint.key_map import Problems, some
from ldm_core.checkpoint.reader import Checkpoint
from ldm_core.config import PRESETS, LatentDiffusionConfig
from ldm_core.errors import CheckpointError, UnknownModelError
from ldm_core.loading.claims import Claim, Strength, strongest
from ldm_core.loading.decide import decide, decide_part, needed
from ldm_core.loading.evidence import evidence, matching_presets, part_evidence, proofs
from ldm_core.loading.families import other_family
from ldm_core.loading.find import UNUSED, PartSource, leftovers
from ldm_core.loading.parts import model_slots, part_of, part_words
from ldm_core.loading.weights import misfits
from ldm_core.support.printable import shown

TITLES = {
    "sd1": "Stable Diffusion 1",
    "sd1-inpaint": "Stable Diffusion 1 for inpainting",
    "instruct-pix2pix": "InstructPix2Pix",
    "gligen": "GLIGEN",
    "sd2-base": "Stable Diffusion 2 base",
    "sd2-v": "Stable Diffusion 2 v",
    "sd2-inpaint": "Stable Diffusion 2 for inpainting",
    "sd2-depth": "Stable Diffusion 2 with depth",
    "sd2-unclip-h": "Stable Diffusion 2 unCLIP-H",
    "sd2-unclip-l": "Stable Diffusion 2 unCLIP-L",
    "x4-upscaler": "Stable Diffusion x4 upscaler",
    "celeba256": "latent diffusion of CelebA-HQ faces",
    "ffhq256": "of FFHQ faces",
    "lsun-beds256": "of LSUN bedrooms",
    "lsun-churches256": "latent diffusion of LSUN churches",
    "cin256": "latent diffusion of ImageNet's classes",
    "cin256-v2": "latent diffusion of ImageNet's classes, with guidance",
    "text2img256": "latent diffusion from text, 256 pixels",
    "text2img-large": "latent diffusion from text, 1.4 billion parameters",
    "layout2img256": "latent diffusion from layouts",
    "semantic-synthesis256": "latent diffusion from semantic maps, 256 pixels",
    "semantic-synthesis512": "or 512 pixels",
    "bsr-sr": "latent diffusion for super-resolution",
    "inpainting-big": "latent diffusion for inpainting",
    "rdm768": "retrieval-augmented latent diffusion",
}
OWN = "a latent diffusion model that matches no preset"
Sure = Literal["proved", "fits", "unknown"]


@dataclass(frozen=True)
class Diagnosis:
    """The fields of `doctor.Report` with the same names."""

    family: str
    sure: Sure
    why: str
    load: str | None
    sample: str | None = None
    presets: tuple[str, ...] = ()
    prediction: str | None = None
    contradictions: Sequence[str] = ()
    missing: tuple[str, ...] = ()
    claims: Sequence[Claim] = ()  # the claims from which `load` decides the configuration
    unused: tuple[str, ...] = ()  # tensors under a part's prefix that its network lacks
    licence: str | None = None  # of the published weights with these tensors
    is_other: bool = False  # not a latent diffusion model; its tensors are not reported as unknown


def diagnose(checkpoint: Checkpoint, sources: Mapping[str, PartSource]) -> Diagnosis:
    """Identify a file. Never raises for a file that could be read."""
    other = other_family(checkpoint.tensors)
    if other is not None:
        return _other(checkpoint, other)
    if not sources and len(checkpoint.tensors) == 1 and _is_embedding(checkpoint):
        return _other(checkpoint, "a textual inversion: load a model first, then apply it")
    if not sources:
        keys = ", ".join(map(shown, list(checkpoint.tensors)[:3]))
        return Diagnosis("not recognised", "unknown", f"no known tensor names (keys such as {keys})", None)
    try:
        proven = {slot: found for slot, found in proofs(sources).items() if found is not None}
    except CheckpointError as error:
        return Diagnosis("unknown structure", "unknown", str(error), None)
    if not any(source.part.fills for source in sources.values()):
        return _part_alone(checkpoint, next(iter(sources.values())))
    presets = tuple(matching_presets(proven))
    claims: list[Claim] = []
    try:
        claims = evidence(checkpoint, sources)
        missing = tuple(slot for slot in needed(checkpoint, claims) if slot not in sources)
        found = (
            _incomplete(checkpoint, sources, presets, missing)
            if missing
            else _whole(checkpoint, sources, claims, presets)
        )
    except CheckpointError as error:
        family = _titles(presets) if presets else OWN
        sure: Sure = "fits" if presets else "unknown"
        found = Diagnosis(family, sure, str(error), None, presets=presets, contradictions=[str(error)])
    return _with_misfits(replace(found, claims=claims), misfits(sources, proven))


def _part_alone(checkpoint: Checkpoint, source: PartSource) -> Diagnosis:
    """A file with a network that belongs to no model."""
    family, part = f"{source.part.words} alone", source.part
    claims: list[Claim] = []
    try:
        claims = part_evidence(source)
        config = decide_part(source.name, part, claims)
    except CheckpointError as error:
        return Diagnosis(family, "unknown", str(error), None, claims=claims)
    why, files = f"according to {claims[-1].source}", part.files(config)
    if files:
        family, why = f"{part.words} ({', '.join(files)})", "its tensors match"
    found = Diagnosis(family, "proved", why, source.door, claims=claims, licence=part.licence(config) or None)
    return _with_misfits(found, misfits({part.slot: source}, {part.slot: config}))


def _with_misfits(found: Diagnosis, problems: Problems) -> Diagnosis:
    """The diagnosis, updated if some tensors do not fit the model."""
    if not problems:
        return found
    said = [f"{some(names)} {what}" for what, names in problems.items() if what != UNUSED]
    return replace(
        found,
        sure="fits" if found.presets else "unknown",
        why="some tensors do not fit the model, so load rejects the file",
        load=None,
        contradictions=[*found.contradictions, *said],
        unused=tuple(problems.get(UNUSED, ())),
    )


_CALLS = {
    "a LoRA": "apply_lora(model, {})",
    "a textual inversion": "apply_textual_inversion(model, {})",
    "a ControlNet": "load_control({}, model=model)",
    "a T2I-Adapter": "load_control({}, model=model)",
    "an IP-Adapter": "apply_ip_adapter(model, {})",
}


def _other(checkpoint: Checkpoint, what: str) -> Diagnosis:
    load, family = None, what.split(",")[0].split(":")[0]
    for words, call in _CALLS.items():
        if what.startswith(words) and "not supported" not in what:
            load = f"ldm_core.{call.format(repr(str(checkpoint.path)))}"
            family += _made_for(checkpoint)
    return Diagnosis(family, "proved", what, load, is_other=True)


_MADE_FOR = {768: ", for models like SD1", 1024: ", for models like SD2"}


def _made_for(checkpoint: Checkpoint) -> str:
    """The models that an adapter fits, according to its text width."""
    for key, tensor in checkpoint.tensors.items():
        reads_context = "attn2" in key and "to_k" in key and "up" not in key and "lora_B" not in key
        is_word = len(checkpoint.tensors) == 1 or key == "emb_params" or key.startswith("string_to_param")
        if tensor.ndim > 1 and (reads_context or key.endswith("to_k_ip.weight")):
            return _MADE_FOR.get(tensor.shape[1], "")
        if tensor.ndim > 0 and is_word:
            return _MADE_FOR.get(tensor.shape[-1], "")
    return ""


def _is_embedding(checkpoint: Checkpoint) -> bool:
    """Whether the only tensor of a file may be a learned word, which diffusers stores under its name."""
    ((name, tensor),) = checkpoint.tensors.items()
    named = name.startswith("<") and name.endswith(">")
    vectors = 1 <= tensor.ndim <= 2 and tensor.is_floating_point()
    return vectors and (named or tensor.shape[-1] in _MADE_FOR)


def _incomplete(
    checkpoint: Checkpoint,
    sources: Mapping[str, PartSource],
    presets: tuple[str, ...],
    missing: tuple[str, ...],
) -> Diagnosis:
    """A file that contains only some of the parts of a model."""
    held = [slot for slot in model_slots() if slot in sources]
    path = repr(str(checkpoint.path))
    if any("prediction" in sources[slot].part.brings for slot in held):
        load = f"ldm_core.load({path}, {', '.join(f'{slot}=FILE' for slot in missing)})"
    else:
        load = f"ldm_core.load(MODEL, {', '.join(f'{slot}={path}' for slot in held)})"
    of = f", matching {' or '.join(presets)}" if presets else ", matching no known model"
    why = f"it contains no {' and no '.join(map(part_words, missing))}"
    sure: Sure = "proved" if presets else "unknown"
    family = f"{' and '.join(map(part_words, held))} alone{of}"
    return Diagnosis(family, sure, why, load, presets=presets, missing=missing)


def _whole(
    checkpoint: Checkpoint,
    sources: Mapping[str, PartSource],
    claims: list[Claim],
    presets: tuple[str, ...],
) -> Diagnosis:
    """A whole model. Raises CheckpointError where `load` does."""
    path = repr(str(checkpoint.path))
    try:
        decision = decide(checkpoint.path.name, claims)
    except UnknownModelError as error:
        with_config = f"ldm_core.load({path}, config=…)"
        if presets:
            return Diagnosis(_titles(presets), "fits", str(error), with_config, presets=presets)
        why = "its tensors match no preset, and the file does not state the rest of the configuration"
        return Diagnosis(OWN, "unknown", why, with_config)
    load = None if leftovers(checkpoint, sources.values())[1] else f"ldm_core.load({path})"
    if decision.prediction is None:
        told = " or ".join(f"prediction={choice!r}" for choice in decision.choices)
        load = load and f"{load}  # evaluates the U-Net to find its prediction type; or pass {told}"
        why = "its tensors match both, and the file does not state the prediction type"
        return Diagnosis(_titles(presets), "fits", why, load, presets=presets)
    sample = load and f"ldm_core.Sampler({load}).{_call(decision.config)}"
    named = tuple(name for name in presets if PRESETS[name].prediction == decision.prediction) or presets
    family = _titles(named) if named else OWN
    why = _why(claims, presets)
    return Diagnosis(family, "proved", why, load, sample, presets=named, prediction=decision.prediction)


def _call(config: LatentDiffusionConfig) -> str:
    """A call of the sampler that draws with such a model."""
    if config.conditioner is not None:
        return part_of(config.conditioner).call
    if config.text_encoder is None:
        return "sample(num_images=4)"
    takes_mask = config.unet.in_channels == 2 * config.unet.out_channels + 1
    return "inpaint('a cat', image, mask)" if takes_mask else "txt2img('a cat')"


def _titles(presets: tuple[str, ...]) -> str:
    return " or ".join(f"{TITLES[name]} ({name})" for name in presets)


def _why(claims: list[Claim], presets: tuple[str, ...]) -> str:
    """The evidence for a model."""
    whole = (*strongest(claims, "image_size"), *strongest(claims, "latent_size"))[0]
    if whole.strength > Strength.KNOWN:
        return f"according to {whole.source}, and its tensors agree"
    stated = strongest(claims, "prediction")[0]
    if stated.strength > Strength.KNOWN and len(presets) > 1:
        return f"its tensors match, and {stated.source} states the prediction type"
    return "its tensors match"
