"""The JSON files of a diffusers folder that concern the whole model: the scheduler and the added words.

The settings of a network are read in the `settings.py` of that network. Note that `scaled_linear` is
CompVis's "linear".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ldm_core.checkpoint.folder import ADDED_TOKENS, SCHEDULER, TOKENIZER, UNET
from ldm_core.checkpoint.setting_values import MAX_ID, Settings, check_fixed, one_of, reading, real, whole
from ldm_core.clip.settings import END_OF_TEXT
from ldm_core.errors import CheckpointError
from ldm_core.noise_schedule import NoiseScheduleConfig
from ldm_core.support.limits import MAX_SIZE, is_whole
from ldm_core.support.printable import shown

LATENT_SCALE = 0.18215  # diffusers' default

PREDICTIONS = {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}
BETA_SCHEDULES = {"scaled_linear": "scaled_linear", "linear": "linear", "squaredcos_cap_v2": "cosine"}

# A setting that changes the schedule, with its only supported value (None: absent).
_SCHEDULER_FIXED = {"trained_betas": None}


def prediction(scheduler: Settings) -> Any:
    """The prediction type in the scheduler's settings: "eps", "v" or "x0"."""
    return one_of(SCHEDULER, "prediction_type", scheduler.get("prediction_type", "epsilon"), PREDICTIONS)


def sample_size(settings: Mapping[str, Settings]) -> int:
    """The latent size (rows and columns) that the U-Net was trained for."""
    size = settings.get(UNET, {}).get("sample_size")
    if size is None or isinstance(size, list):  # [rows, columns]
        return 64
    if not is_whole(size, 1, MAX_SIZE):
        raise CheckpointError(
            f"{UNET}: sample_size must be a whole number in 1..{MAX_SIZE}, not {shown(size)}"
        )
    return int(size)


Words = tuple[tuple[str, tuple[int, ...]], ...]


def added_words(settings: Mapping[str, Settings], source: str) -> Words:
    """The words that the folder's tokenizer adds to CLIP's vocabulary, each with its ids.

    `<toy>`, `<toy>_1`, `<toy>_2` … are read as one word of several vectors, as diffusers stores it.
    """
    tokens: dict[str, Any] = dict(settings.get(ADDED_TOKENS, {}))
    decoder = settings.get(TOKENIZER, {}).get("added_tokens_decoder")
    for number, entry in decoder.items() if isinstance(decoder, dict) else ():
        if isinstance(entry, dict) and isinstance(entry.get("content"), str):
            tokens.setdefault(
                entry["content"], int(number) if number.isdecimal() and len(number) < 20 else number
            )
    for word, number in tokens.items():
        if not is_whole(number, 0, MAX_ID):
            raise CheckpointError(
                f"{source}: {ADDED_TOKENS}: expected a whole number for each word, not {shown(number)} for "
                f"{shown(word)}"
            )
    added = {word: number for word, number in tokens.items() if number > END_OF_TEXT}
    words: dict[str, list[int]] = {}
    for word, number in sorted(added.items(), key=lambda item: item[1]):
        stem, _, place = word.rpartition("_")
        if stem in words and place == str(len(words[stem])):
            words[stem].append(number)
        else:
            words[word] = [number]
    return tuple((word, tuple(numbers)) for word, numbers in words.items())


def noise_schedule_config(settings: Settings, file: str = SCHEDULER) -> NoiseScheduleConfig:
    """The noise schedule in the settings of any scheduler. Missing settings have diffusers' defaults."""
    check_fixed(file, settings, _SCHEDULER_FIXED)
    with reading(file):
        name = settings.get("beta_schedule", "linear")
        return NoiseScheduleConfig(
            timesteps=whole(settings, "num_train_timesteps", 1000),
            beta_schedule=one_of(file, "beta_schedule", name, BETA_SCHEDULES),
            linear_start=real(settings, "beta_start", 0.0001),
            linear_end=real(settings, "beta_end", 0.02),
            zero_terminal_snr=settings.get("rescale_betas_zero_snr", False),
        )


def noise_schedule_settings(schedule: NoiseScheduleConfig) -> dict[str, Any]:
    """The inverse of `noise_schedule_config`. Raises KeyError for a schedule that diffusers does not have."""
    betas = {ours: theirs for theirs, ours in BETA_SCHEDULES.items()}
    return {
        "beta_end": schedule.linear_end,
        "beta_schedule": betas[schedule.beta_schedule],
        "beta_start": schedule.linear_start,
        "num_train_timesteps": schedule.timesteps,
        "rescale_betas_zero_snr": schedule.zero_terminal_snr,
    }
