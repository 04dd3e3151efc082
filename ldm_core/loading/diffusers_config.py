"""The configuration files of a diffusers folder: JSON to ours; `diffusers_folder` is the way back.

A setting that changes a network is in the lists below; a value that no network here has is refused by name,
and so is a setting that is missing and has no default in diffusers.

Two of its names mislead: `attention_head_dim` of a U-Net is the number of heads, and `scaled_linear` is
CompVis's "linear".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ldm_core.autoencoder.config import AutoencoderConfig
from ldm_core.checkpoint.folder import (
    ADDED_TOKENS,
    ALONE,
    AUTOENCODER,
    MODEL_INDEX,
    SCHEDULER,
    TEXT_ENCODER,
    TOKENIZER,
    UNET,
)
from ldm_core.checkpoint.setting_values import (
    MAX_ID,
    Settings,
    block_kinds,
    block_widths,
    check_activation,
    check_fixed,
    multiple,
    one_number,
    one_of,
    reading,
    real,
    whole,
    wholes,
)
from ldm_core.clip.config import TextEncoderConfig
from ldm_core.clip.settings import END_OF_TEXT, text_encoder_config
from ldm_core.errors import CheckpointError, ConfigError
from ldm_core.noise_schedule import NoiseScheduleConfig
from ldm_core.support.limits import MAX_SIZE, is_whole
from ldm_core.support.printable import printable, shown
from ldm_core.unet.config import UNetConfig

if TYPE_CHECKING:
    from ldm_core.loading.parts import Part

LATENT_SCALE = 0.18215  # diffusers' default

PREDICTIONS = {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}
BETA_SCHEDULES = {"scaled_linear": "scaled_linear", "linear": "linear", "squaredcos_cap_v2": "cosine"}

# Settings that change a network, with the one value (or the absence) that the networks here have.
_UNET_FIXED = {
    "addition_embed_type": None,
    "center_input_sample": False,
    "class_embeddings_concat": False,
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "downsample_padding": 1,
    "dual_cross_attention": False,
    "encoder_hid_dim": None,
    "encoder_hid_dim_type": None,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "mid_block_only_cross_attention": None,
    "mid_block_scale_factor": 1,
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "norm_eps": 1e-5,
    "norm_num_groups": 32,
    "resnet_out_scale_factor": 1.0,
    "resnet_skip_time_act": False,
    "resnet_time_scale_shift": "default",
    "time_cond_proj_dim": None,
    "time_embedding_act_fn": None,
    "time_embedding_type": "positional",
    "timestep_post_act": None,
}
_AUTOENCODER_FIXED = {
    "latents_mean": None,
    "latents_std": None,
    "mid_block_add_attention": True,
    "norm_num_groups": 32,
    "shift_factor": None,
    "use_post_quant_conv": True,
    "use_quant_conv": True,
}
_SCHEDULER_FIXED = {"trained_betas": None}
_CLASSES = {
    "unet": ("UNet2DConditionModel",),
    "vae": ("AutoencoderKL",),
    "text_encoder": ("CLIPTextModel", "CLIPTextModelWithProjection"),
    "tokenizer": ("CLIPTokenizer", "CLIPTokenizerFast"),
}


def part_config(
    part: Part, settings: Mapping[str, Settings]
) -> TextEncoderConfig | UNetConfig | AutoencoderConfig | None:
    """What a folder of a model, or of this part alone, says of a part; None where it says nothing.

    Raises CheckpointError naming the setting that no network of this package has.
    """
    file = {"unet": UNET, "autoencoder": AUTOENCODER, "text_encoder": TEXT_ENCODER}[part]
    own = settings.get(file, settings.get(ALONE))
    if own is None:
        return None
    if part == "unet":
        return unet_config(own)
    if part == "autoencoder":
        return autoencoder_config(own)
    inner = own.get("text_config")  # of a folder of a whole CLIP
    if isinstance(inner, dict):
        return text_encoder_config(inner, settings, f"{ALONE}, text_config")
    return text_encoder_config(own, settings)


def check_classes(settings: Mapping[str, Settings]) -> None:
    """Raise CheckpointError for a folder whose parts are of classes that this package has no network for."""
    index = settings.get(MODEL_INDEX, {})
    for part, classes in _CLASSES.items():
        entry = index.get(part)
        name = entry[1] if isinstance(entry, list) and len(entry) == 2 else None
        if name is not None and name not in classes:
            raise CheckpointError(
                f"{MODEL_INDEX}: its {part} is a {printable(str(name)[:80])}; only "
                f"{' and '.join(classes)} can be read"
            )


def prediction(scheduler: Settings) -> Any:
    """What a scheduler's settings say that the U-Net predicts: "eps", "v" or "x0"."""
    return one_of(SCHEDULER, "prediction_type", scheduler.get("prediction_type", "epsilon"), PREDICTIONS)


def sample_size(settings: Mapping[str, Settings]) -> int:
    """The latents' rows and columns that the U-Net was trained for."""
    size = settings.get(UNET, {}).get("sample_size")
    if size is None or isinstance(size, list):  # of rows and columns
        return 64
    if not is_whole(size, 1, MAX_SIZE):
        raise CheckpointError(
            f"{UNET}: sample_size must be a whole number in 1..{MAX_SIZE}, not {shown(size)}"
        )
    return int(size)


Words = tuple[tuple[str, tuple[int, ...]], ...]


def added_words(settings: Mapping[str, Settings], source: str) -> Words:
    """The words beyond CLIP's own vocabulary that the folder's tokenizer knows, each with its ids.

    diffusers keeps a word of several vectors as `<toy>`, `<toy>_1`, `<toy>_2` …, and so is it read.
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


def unet_config(settings: Settings) -> UNetConfig:
    """`UNet2DConditionModel`'s settings. Raises CheckpointError naming what is missing or unknown here."""
    check_fixed(UNET, settings, _UNET_FIXED)
    check_activation(UNET, settings)
    with reading(UNET):
        widths = block_widths(settings)
        types = block_kinds(settings, "down_block_types")
        attends = [level for level, kind in enumerate(types) if kind == "CrossAttnDownBlock2D"]
        _check_blocks(types, block_kinds(settings, "up_block_types"))
        heads = settings.get("num_attention_heads") or settings.get("attention_head_dim", 8)
        heads = wholes("attention_head_dim", heads if isinstance(heads, list) else [heads] * len(widths))
        disabled = settings.get("only_cross_attention") or []
        if not isinstance(disabled, list):
            raise ConfigError("only_cross_attention must be one truth value for each level")
        embedding = settings.get("class_embed_type")
        one_of(UNET, "class_embed_type", embedding or "none", {"none": 0, "projection": 0})
        per_head = {width // count for width, count in zip(widths, heads, strict=True)}
        if len(set(heads)) > 1 and len(per_head) > 1:
            raise ConfigError(
                "every level must have the same number of heads, or heads of the same size, "
                f"not {shown(heads)} for widths {shown(widths)}"
            )
        return UNetConfig(
            in_channels=whole(settings, "in_channels"),
            out_channels=whole(settings, "out_channels"),
            model_channels=widths[0],
            channel_mult=tuple(multiple(width, widths[0]) for width in widths),
            num_res_blocks=one_number("layers_per_block", settings["layers_per_block"]),
            attention_resolutions=tuple(2**level for level in attends),
            num_heads=heads[0] if len(set(heads)) == 1 else None,
            num_head_channels=None if len(set(heads)) == 1 else per_head.pop(),
            transformer_depth=one_number(
                "transformer_layers_per_block", settings.get("transformer_layers_per_block", 1)
            ),
            context_dim=one_number("cross_attention_dim", settings["cross_attention_dim"]),
            use_linear_in_transformer=settings.get("use_linear_projection", False),
            disable_self_attentions=tuple(disabled) if any(disabled) else (),
            num_classes=whole(settings, "num_class_embeds") if settings.get("num_class_embeds") else None,
            adm_in_channels=whole(settings, "projection_class_embeddings_input_dim") if embedding else None,
        )


def autoencoder_config(settings: Settings) -> AutoencoderConfig:
    """`AutoencoderKL`'s settings. Raises CheckpointError naming what is missing or unknown here."""
    check_fixed(AUTOENCODER, settings, _AUTOENCODER_FIXED)
    check_activation(AUTOENCODER, settings)
    with reading(AUTOENCODER):
        widths, types = block_widths(settings), block_kinds(settings, "down_block_types")
        up = block_kinds(settings, "up_block_types")
        mirrored = [kind.replace("UpDecoder", "DownEncoder") for kind in reversed(up)]
        if types != mirrored or not set(types) <= {"DownEncoderBlock2D", "AttnDownEncoderBlock2D"}:
            raise ConfigError(f"blocks {shown(types)} and {shown(up)} are not known here")
        attends = [level for level, kind in enumerate(types) if kind.startswith("Attn")]
        latent_channels = whole(settings, "latent_channels")
        resolution = AutoencoderConfig.resolution
        return AutoencoderConfig(
            embed_dim=latent_channels,
            z_channels=latent_channels,
            in_channels=whole(settings, "in_channels", 3),
            out_ch=whole(settings, "out_channels", 3),
            ch=widths[0],
            ch_mult=tuple(multiple(width, widths[0]) for width in widths),
            num_res_blocks=one_number("layers_per_block", settings["layers_per_block"]),
            attn_resolutions=tuple(resolution // 2**level for level in attends),
        )


def noise_schedule_config(settings: Settings) -> NoiseScheduleConfig:
    """A scheduler's settings, of whatever class it is. Missing ones are diffusers' own defaults."""
    check_fixed(SCHEDULER, settings, _SCHEDULER_FIXED)
    with reading(SCHEDULER):
        name = settings.get("beta_schedule", "linear")
        return NoiseScheduleConfig(
            timesteps=whole(settings, "num_train_timesteps", 1000),
            beta_schedule=one_of(SCHEDULER, "beta_schedule", name, BETA_SCHEDULES),
            linear_start=real(settings, "beta_start", 0.0001),
            linear_end=real(settings, "beta_end", 0.02),
            zero_terminal_snr=settings.get("rescale_betas_zero_snr", False),
        )


def _check_blocks(down: list[str], up: list[str]) -> None:
    mirrored = [kind.replace("Up", "Down") for kind in reversed(up)]
    if down != mirrored or not set(down) <= {"CrossAttnDownBlock2D", "DownBlock2D"}:
        raise ConfigError(f"blocks {shown(down)} and {shown(up)} are not those of a cross-attention U-Net")
