"""Collect claims about a model before it is built: from files, tensors, presets and the caller.

One source describes the whole model, in this order: a configuration that the caller passes, a YAML file of
the same name beside the checkpoint, metadata in the file, the settings of a diffusers folder, the known
models with exactly these tensors. A part from another file adds that file's claims. Tensors prove the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any

from ldm_core.checkpoint.folder import ALONE, MODEL_INDEX, SCHEDULER
from ldm_core.checkpoint.reader import Checkpoint
from ldm_core.clip.tokenizer import MAX_WORD_IDS, MAX_WORD_LETTERS, MAX_WORDS, CLIPTokenizer
from ldm_core.config import MEASURED_SCALE, PRESETS, LatentDiffusionConfig, preset
from ldm_core.errors import CheckpointError, ConfigError
from ldm_core.loading import diffusers_config
from ldm_core.loading.claims import Claim, Strength, strongest
from ldm_core.loading.compvis_yaml import read_yaml
from ldm_core.loading.diffusers_folder import check_classes
from ldm_core.loading.find import PartSource
from ldm_core.loading.parts import Part, fitted, model_slots, part_configs, part_of
from ldm_core.loading.pipelines import conditioner_in
from ldm_core.loading.statements import stored_scale
from ldm_core.support.json_text import parse_json
from ldm_core.support.limits import build, is_whole
from ldm_core.support.printable import shown

# Metadata keys (JSON values): a model's configuration, those of single parts, and added words.
CONFIG_KEY = "ldm_core.config"
PARTS_KEY = "ldm_core.parts"
WORDS_KEY = "ldm_core.added_words"

YAML = (".yaml", ".yml")
Sources = Mapping[str, PartSource]
Proven = Mapping[str, Any]  # configurations by slot
Config = str | Path | LatentDiffusionConfig | None


def evidence(
    checkpoint: Checkpoint, sources: Sources, config: Config = None, prediction: str | None = None
) -> list[Claim]:
    """The claims on a whole model.

    sources: the source of each part, by slot. config, prediction: the caller's, as in `load`.
    Raises CheckpointError for a claim that cannot be read.
    """
    proven = proofs(sources)
    claims = _of_the_whole(checkpoint, sources, proven, config)
    others = {slot: source for slot, source in sources.items() if source.checkpoint is not checkpoint}
    for slot, source in others.items():
        if config is None and "prediction" in source.part.brings:
            # The main file's prediction type belongs to its own U-Net.
            known = known_models({slot: proven[slot]})
            claims = [claim for claim in claims if claim.field != "prediction"]
            claims += [claim for claim in known if claim.field == "prediction"]
    for slot, source in sources.items():
        said = source.part.says(source.checkpoint)
        claims += _of_another_file(slot, source, proven, claims, said) if slot in others else said
        if proven.get(slot) is not None and not _ignores(claims, slot):
            of = f" of {source.name}" if slot in others else ""
            claims.append(Claim(slot, proven[slot], f"the tensors{of}", Strength.PROVED))
            claims += _of_a_tokenizer(source, proven[slot])
    if checkpoint.format == "diffusers" and not any(claim.field == "latent_scale" for claim in claims):
        claims.append(Claim("latent_scale", diffusers_config.LATENT_SCALE, "diffusers' default"))
    if prediction is not None:
        claims.append(Claim("prediction", prediction, f"prediction={prediction!r}", Strength.ASKED))
    return [_of_what_is_there(claim, sources) for claim in claims]


def _ignores(claims: Iterable[Claim], slot: str) -> bool:
    """Whether the model that the claims describe does without weights that it could have in this slot."""
    values = [claim.value for claim in strongest(claims, slot) if claim.value is not None]
    return any(
        part_of(value).without is not None and not part_of(value).has_weights(value) for value in values
    )


def _of_what_is_there(claim: Claim, sources: Sources) -> Claim:
    """The claim without weights that the files lack, if the model can do without them."""
    if claim.field not in model_slots() or claim.field in sources or claim.value is None:
        return claim
    without = part_of(claim.value).without
    return claim if without is None else replace(claim, value=without(claim.value))


def part_evidence(source: PartSource, config: Any = None) -> list[Claim]:
    """The claims on a single part. config: as in `load_part`."""
    slot, claims = source.part.slot, []
    proven, described = source.prove(), described_part(source)
    if proven is not None:
        claims.append(Claim(slot, proven, "the tensors", Strength.PROVED))
        claims += _of_a_tokenizer(source, proven)
    if config is not None:
        given = config if isinstance(config, source.part.config) else _given(config)
        if isinstance(given, LatentDiffusionConfig):
            given = getattr(given, slot, None)
        claims.append(Claim(slot, given, "the given configuration", Strength.GIVEN))
    elif described is not None:
        claims.append(Claim(slot, described, "its settings"))
    elif proven is not None and not source.part.proves_all:
        claims += [claim for claim in known_models({slot: proven}) if claim.field == slot]
    return claims


def proofs(sources: Sources) -> dict[str, Any]:
    """The configuration that shapes prove for each part, by slot."""
    return {slot: source.prove() for slot, source in sources.items()}


def matching_presets(proven: Proven) -> list[str]:
    """The names of the presets with exactly the proven tensors in each of these parts."""
    proven = {slot: found for slot, found in proven.items() if slot in model_slots()}
    return [
        name
        for name, config in PRESETS.items()
        if proven and all(found and fitted(getattr(config, slot), found) for slot, found in proven.items())
    ]


def known_models(proven: Proven) -> list[Claim]:
    """The claims of the presets with exactly these tensors in these parts."""
    return [
        claim
        for name in matching_presets(proven)
        for claim in _of_preset(name, f"preset {name}", Strength.KNOWN)
    ]


def _of_preset(name: str, source: str, strength: Strength = Strength.SAID) -> list[Claim]:
    """The claims of a preset, without a latent scale that only the checkpoint states."""
    claims = _all_of(PRESETS[name], source, strength)
    return [claim for claim in claims if claim.field != "latent_scale" or name not in MEASURED_SCALE]


def _all_of(config: LatentDiffusionConfig, source: str, strength: Strength = Strength.SAID) -> list[Claim]:
    return [Claim(field.name, getattr(config, field.name), source, strength) for field in fields(config)]


def _of_the_whole(checkpoint: Checkpoint, sources: Sources, proven: Proven, config: Config) -> list[Claim]:
    """The claims of the one source that describes the whole model."""
    yaml = _yaml(checkpoint, config)
    if yaml is not None:
        read = read_yaml(yaml, stored_scale=stored_scale(checkpoint))
        return [_sized(claim, sources, proven) for claim in _all_of(read, str(yaml))]
    if isinstance(config, LatentDiffusionConfig):
        return _all_of(config, "the given configuration", Strength.GIVEN)
    if config is not None:
        preset(str(config))  # raises ConfigError for an unknown name
        return _of_preset(str(config), f"preset {config}")
    if CONFIG_KEY in checkpoint.metadata:
        return _all_of(config_in_metadata(checkpoint), "the file's own metadata")
    if checkpoint.format == "diffusers":
        return _of_a_folder(checkpoint, sources, proven)
    return known_models(proven)


def _given(config: Any) -> LatentDiffusionConfig:
    if isinstance(config, LatentDiffusionConfig):
        return config
    return read_yaml(config) if Path(config).suffix in YAML else preset(str(config))


def _yaml(checkpoint: Checkpoint, config: Config) -> Path | None:
    """The YAML file that holds the configuration, if any."""
    if isinstance(config, (str, Path)):
        return Path(config) if Path(config).suffix in YAML else None
    if config is None and checkpoint.format != "diffusers":
        beside = (checkpoint.path.with_suffix(ending) for ending in YAML)
        return next((path for path in beside if path.is_file()), None)
    return None


def _sized(claim: Claim, sources: Sources, proven: Proven) -> Claim:
    """The claim with sizes from the tensors: YAML files name a text encoder's class, but not its size."""
    source, found = sources.get(claim.field), proven.get(claim.field)
    if source is None or found is None or source.part.section is None:
        return claim
    named = fitted(claim.value, found) or claim.value
    return replace(claim, value=source.part.section.sized(named, found))


def _of_a_folder(checkpoint: Checkpoint, sources: Sources, proven: Proven) -> list[Claim]:
    """The claims in a diffusers folder's settings, and without a scheduler those of known models."""
    settings, claims = checkpoint.metadata, []
    try:
        check_classes(settings)
        for slot, source in sources.items():
            if source.checkpoint is checkpoint and (described := described_part(source)) is not None:
                claims.append(Claim(slot, described, "the folder's settings"))
        if (conditioner := conditioner_in(settings)) is not None:
            claims.append(Claim("conditioner", conditioner, MODEL_INDEX))
        if SCHEDULER not in settings:
            return known_models(proven) + claims
        size = diffusers_config.sample_size(settings)
        return [*claims, *_of_a_scheduler(checkpoint), Claim("latent_size", size, "the folder's settings")]
    except CheckpointError as error:
        if str(error).startswith(checkpoint.path.name):
            raise
        raise CheckpointError(f"{checkpoint.path.name}: {error}") from error


def _of_a_scheduler(checkpoint: Checkpoint) -> list[Claim]:
    settings = checkpoint.metadata[SCHEDULER]
    return [
        Claim("noise_schedule", diffusers_config.noise_schedule_config(settings), SCHEDULER),
        Claim("prediction", diffusers_config.prediction(settings), SCHEDULER),
    ]


def _of_another_file(
    slot: str, source: PartSource, proven: Proven, claims: list[Claim], said: Iterable[Claim]
) -> list[Claim]:
    """The claims on a part from a separate file: those of the file, or of known models that match it."""
    described = described_part(source)
    mine = list(said)
    if described is not None:
        mine.append(Claim(slot, described, "the settings"))
    elif proven[slot] and not any(c.field == slot and fitted(c.value, proven[slot]) for c in claims):
        known = known_models({slot: proven[slot]})
        values = {fitted(claim.value, proven[slot]) for claim in known if claim.field == slot}
        if source.part.proves_all or len(values) == 1:
            value = proven[slot] if source.part.proves_all else values.pop()
            mine.append(Claim(slot, value, "the tensors"))
    if CONFIG_KEY in source.checkpoint.metadata:
        theirs = _all_of(config_in_metadata(source.checkpoint), "the metadata")
        mine += [claim for claim in theirs if claim.field in source.part.brings]
    elif SCHEDULER in source.checkpoint.metadata and source.part.brings:
        mine += _of_a_scheduler(source.checkpoint)
    return [
        replace(claim, source=f"{claim.source} of {source.name}", strength=max(claim.strength, Strength.PART))
        for claim in mine
    ]


def config_in_metadata(checkpoint: Checkpoint) -> LatentDiffusionConfig:
    """The configuration of a whole model in the metadata. Raises CheckpointError if it is damaged."""
    return _built(checkpoint, CONFIG_KEY, LatentDiffusionConfig.from_dict)


def _built(checkpoint: Checkpoint, key: str, make: Callable[[Any], Any]) -> Any:
    damaged = f"{checkpoint.path.name}: the configuration in its metadata is damaged"
    stated = parse_json(checkpoint.metadata[key], damaged, CheckpointError)
    try:
        return make(stated)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{damaged}: {error}") from error


def _stated_part(part: Part, stated: Any) -> Any:
    if not isinstance(stated, dict) or part.name not in stated:
        raise ConfigError(f"expected a mapping with {part.name!r}, not {shown(stated)}")
    return build(part.config, stated[part.name])


def described_part(source: PartSource) -> Any:
    """The configuration of a part as stated in its file or folder; None if there is none."""
    metadata, part = source.checkpoint.metadata, source.part
    if CONFIG_KEY in metadata and part.fills:
        return part_configs(config_in_metadata(source.checkpoint)).get(part.fills)
    if PARTS_KEY in metadata:
        return _built(source.checkpoint, PARTS_KEY, partial(_stated_part, part))
    if source.checkpoint.format != "diffusers" or part.folder is None:
        return None
    own = metadata.get(f"{source.base.removesuffix('.')}/{ALONE}", metadata.get(ALONE))
    return None if own is None else part.folder.read(own, metadata)


def _of_a_tokenizer(source: PartSource, proven: Any) -> list[Claim]:
    """The claim on the words that a text encoder's file adds to its vocabulary."""
    words = added_words_of(source.checkpoint, proven.vocab_size) if source.part.adds_words else ()
    return [Claim("added_words", words, f"the tokenizer of {source.name}", Strength.PROVED)] if words else []


def added_words_of(checkpoint: Checkpoint, vocab_size: int) -> diffusers_config.Words:
    """The words that a file or folder adds to CLIP's vocabulary, each with its ids.

    vocab_size: of the text encoder's table. Raises CheckpointError for too many or too long words, and for
    ids outside the table.
    """
    name = checkpoint.path.name
    if checkpoint.format == "diffusers":
        words = diffusers_config.added_words(checkpoint.metadata, name)
    elif WORDS_KEY in checkpoint.metadata:
        words = _stored_words(
            checkpoint.metadata[WORDS_KEY], f"{name}: the words in its metadata are damaged"
        )
    else:
        return ()
    if len(words) > MAX_WORDS:
        raise CheckpointError(f"{name}: its tokenizer adds {len(words):,} words, more than {MAX_WORDS}")
    first = CLIPTokenizer.vocab_size
    for word, numbers in words:
        if len(word) > MAX_WORD_LETTERS or len(numbers) > MAX_WORD_IDS:
            raise CheckpointError(
                f"{name}: its tokenizer adds a word of {len(word):,} letters and {len(numbers):,} ids, "
                f"more than {MAX_WORD_LETTERS} and {MAX_WORD_IDS}"
            )
        if not all(is_whole(number, first, vocab_size - 1) for number in numbers):
            rows = f"rows {first}..{vocab_size - 1}" if vocab_size > first else "no rows"
            raise CheckpointError(
                f"{name}: its tokenizer adds {shown(word)} as {shown(numbers)}; the text encoder's table has "
                f"{rows} for added words"
            )
    return words


def _stored_words(text: Any, source: str) -> diffusers_config.Words:
    """The words in the metadata, [[word, [id, …]], …]."""
    stored = parse_json(text, source, CheckpointError)
    pairs = stored if isinstance(stored, list) else [stored]
    for pair in pairs:
        match pair:
            case [str(), [*_]]:
                continue
            case _:
                raise CheckpointError(f"{source}: expected [word, [id, …]], not {shown(pair)}")
    return tuple((word, tuple(numbers)) for word, numbers in pairs)
