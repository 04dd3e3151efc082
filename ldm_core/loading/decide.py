"""Choose a configuration: the strongest claim on each field, or an error if two of them contradict."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from ldm_core.checkpoint.folder import MODEL_INDEX
from ldm_core.checkpoint.key_map import NAMES_SHOWN
from ldm_core.checkpoint.reader import Checkpoint
from ldm_core.config import LatentDiffusionConfig
from ldm_core.errors import CheckpointError, ConfigError, UnknownModelError
from ldm_core.loading.claims import Claim, Strength, strongest
from ldm_core.loading.parts import Part, fitted, model_slots, part_of, parts
from ldm_core.loading.statements import StoredBetas, in_words
from ldm_core.noise_schedule import NoiseScheduleConfig, betas_of
from ldm_core.support.printable import shown

SCALE_RTOL = 1e-2  # a scale stored in 16 bits is off by up to 2**-9


@dataclass(frozen=True)
class Decision:
    """The configuration, and the possible prediction types of its U-Net: several if no source states one.

    The configuration then has the first of them, until the model is evaluated (see `prediction.py`).
    """

    config: LatentDiffusionConfig
    choices: tuple[str, ...]

    @property
    def prediction(self) -> str | None:
        """The prediction type of the U-Net; None if no source states one."""
        return self.choices[0] if len(self.choices) == 1 else None


def decide(name: str, claims: Sequence[Claim]) -> Decision:
    """The configuration that follows from the claims. name: of the file, for errors.

    Raises CheckpointError that names both sources of each contradiction, and UnknownModelError if no source
    states a value that tensors cannot prove.
    """
    choices = _predictions(claims)
    claims = _of_one_known_model(claims, choices[0])
    _require_parts_to_fit(name, claims)
    values: dict[str, Any] = dict.fromkeys(model_slots())
    lines: dict[str, str] = {}
    for field in dict.fromkeys(claim.field for claim in claims if claim.field != "added_words"):
        values[field], wrong = settle(field, claims)
        lines |= wrong
    if lines:
        sources = " and ".join(dict.fromkeys(lines.values()))
        listed = "\n    ".join(list(lines)[:NAMES_SHOWN])
        raise CheckpointError(f"{name} contradicts {sources}:\n    {listed}")
    wanted = {"noise_schedule", "latent_scale", *(claim.field for claim in claims if claim.value is not None)}
    wanted.discard("added_words")
    absent = {field for field in wanted if values.get(field) is None}
    if absent == {"latent_scale"}:
        raise UnknownModelError(
            f"{name} has no tensor scale_factor, and nothing else states its latent scale; "
            "pass config= (a configuration with the latent_scale)"
        )
    if absent:
        raise UnknownModelError(
            f"{name} matches no known model, and its tensors do not determine the number of attention heads, "
            "the latent scale or the prediction type; pass config= (a configuration or a CompVis YAML file)"
        )
    try:
        return Decision(_config(**values | {"prediction": choices[0]}), choices)
    except ConfigError as error:
        raise CheckpointError(f"{name}: {error}") from error


def needed(checkpoint: Checkpoint, claims: Iterable[Claim]) -> list[str]:
    """The slots that a model needs, by the claims or `model_index.json`; all slots without either."""
    said = {slot: strongest(claims, slot) for slot in model_slots()}
    if all(said.values()):
        values = {slot: words[0].value for slot, words in said.items()}
        return [slot for slot, own in values.items() if own is not None and part_of(own).has_weights(own)]
    index = checkpoint.metadata.get(MODEL_INDEX)
    if not isinstance(index, dict):
        return [slot for slot in said if getattr(LatentDiffusionConfig(), slot) is not None]
    named = {name for name, entry in index.items() if entry not in (None, [None, None])}
    return [
        slot
        for slot in said
        if any(p.folder and named & p.folder.stems.keys() for p in parts() if p.fills == slot)
    ]


def decide_part(name: str, part: Part, claims: Sequence[Claim]) -> Any:
    """The configuration of a single part. Raises CheckpointError if no known model matches, or several do."""
    value, lines = settle(part.slot, claims) if claims else (None, {})
    if lines:
        raise CheckpointError(f"{name} contradicts {next(iter(lines.values()))}: {'; '.join(lines)}")
    known = [claim.value for claim in strongest(claims, part.slot) if claim.strength == Strength.KNOWN]
    several = len({fitted(one, claims[0].value) for one in known}) > 1
    if value is None or several:
        what = "several known models" if several else "no known model"
        raise CheckpointError(
            f"{name}: its {part.name} matches {what}; pass config= (a preset's name or a configuration)"
        )
    return value


def settle(field: str, claims: Sequence[Claim]) -> tuple[Any, dict[str, str]]:
    """(the value of one field or None, {description of each contradiction: the contradicted source})."""
    proofs = [claim for claim in claims if claim.field == field and claim.strength == Strength.PROVED]
    words = strongest(claims, field)
    if not words:
        return _alone(proofs[0].value), {}
    word, value, lines = words[0], words[0].value, dict[str, str]()
    for other in words[1:]:
        if other.value != value and other.strength != Strength.KNOWN:
            lines |= _contradiction(word, other)
    for proof in proofs:
        fit = _fit(value, proof.value)
        if fit is None:
            lines |= _contradiction(word, proof)
        else:
            value = fit
    return value, lines


def _predictions(claims: Sequence[Claim]) -> tuple[str, ...]:
    """The possible prediction types: a single one if stated, otherwise those of all matching models."""
    words = strongest(claims, "prediction")
    if words and words[0].strength > Strength.KNOWN:
        return (words[0].value,)
    return tuple(sorted({claim.value for claim in words})) or ("eps", "v")


def _of_one_known_model(claims: Sequence[Claim], prediction: str) -> list[Claim]:
    """The claims without those of known models with another prediction type, if one has this type."""
    known = [claim for claim in claims if claim.field == "prediction" and claim.strength == Strength.KNOWN]
    fitting = {claim.source for claim in known if claim.value == prediction}
    others = {claim.source for claim in known} - fitting if fitting else set()
    return [claim for claim in claims if claim.source not in others or claim.strength != Strength.KNOWN]


def _require_parts_to_fit(name: str, claims: Iterable[Claim]) -> None:
    """Raise CheckpointError if the sizes that tensors prove are inconsistent."""
    slots: dict[str, Any] = dict.fromkeys(model_slots())
    proven = {c.field: c.value for c in claims if c.field in slots and c.strength == Strength.PROVED}
    try:
        LatentDiffusionConfig(**slots | proven)
    except ConfigError as error:
        raise CheckpointError(f"{name}: {error}") from error


def _alone(proof: Any) -> Any:
    """The value of a field for which there is only this proof, or None if it is incomplete."""
    if isinstance(proof, StoredBetas):
        return None
    if isinstance(proof, (bool, float)):
        return proof
    return proof if part_of(proof).proves_all else None


def _fit(value: Any, proof: Any) -> Any:
    """The value, reduced to what a proof allows; None if they contradict."""
    if isinstance(proof, StoredBetas):
        return value if proof.agree(value) else None
    if isinstance(proof, float):
        return value if math.isclose(proof, value, rel_tol=SCALE_RTOL) else None
    return fitted(value, proof)


def _contradiction(word: Claim, other: Claim) -> dict[str, str]:
    pairs = [("", word.value, other.value)]
    if type(word.value) is type(other.value) and other.field in model_slots():
        pairs = [(f".{name}", a, b) for name, a, b in _differences(word.value, other.value)]
    return {
        f"{word.field}{name} is {_shown(a)} according to {word.source}, and {_shown(b)} according to "
        f"{other.source}": word.source
        for name, a, b in pairs
    }


def _differences(config: Any, proven: Any) -> list[tuple[str, Any, Any]]:
    """(field, configured value, proved value) for each field of a part that contradicts its tensors."""
    ours = part_of(proven).blank(config)
    values = ((field.name, getattr(ours, field.name), getattr(proven, field.name)) for field in fields(ours))
    return [(name, a, b) for name, a, b in values if a != b]


def _shown(value: Any) -> str:
    if isinstance(value, NoiseScheduleConfig):
        value = StoredBetas(betas_of(value))
    return in_words(value.betas) if isinstance(value, StoredBetas) else shown(value)


def _config(
    latent_size: int | None = None, zero_terminal_snr: bool = False, **values: Any
) -> LatentDiffusionConfig:
    if zero_terminal_snr:
        values["noise_schedule"] = replace(values["noise_schedule"], zero_terminal_snr=True)
    config = LatentDiffusionConfig(**values)
    if latent_size is None:
        return config
    return replace(config, image_size=latent_size * config.autoencoder.downsampling)
