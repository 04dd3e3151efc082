"""The layout of CompVis's and Stability AI's checkpoints, as key maps made from a configuration.

model.diffusion_model.                       the U-Net, with flat input_blocks and output_blocks
first_stage_model.                           the KL autoencoder
cond_stage_model.transformer.text_model.     CLIP's text encoder in transformers' names (SD1)
cond_stage_model.model.                      the same in open_clip's names (SD2)
"""

from __future__ import annotations

from ldm_core.checkpoint.key_map import CONV_1X1, FUSED_QKV, SAME, Entry, KeyMap, Transform, prefixed
from ldm_core.config import AutoencoderConfig, LatentDiffusionConfig, TextEncoderConfig, UNetConfig

UNET = "model.diffusion_model."
AUTOENCODER = "first_stage_model."
TEXT_ENCODER = "cond_stage_model.transformer.text_model."
OPEN_CLIP = "cond_stage_model.model."

WEIGHT, BIAS = ("weight",), ("bias",)
BOTH = WEIGHT + BIAS

# Leaf modules within a block: (name in the file, name here, which tensors, transform of the weight).
Leaf = tuple[str, str, tuple[str, ...], Transform]

UNET_RES: list[Leaf] = [
    ("in_layers.0", "norm1", BOTH, SAME),
    ("in_layers.2", "conv1", BOTH, SAME),
    ("emb_layers.1", "time_proj", BOTH, SAME),
    ("out_layers.0", "norm2", BOTH, SAME),
    ("out_layers.3", "conv2", BOTH, SAME),
]
TRANSFORMER_BLOCK: list[Leaf] = [
    *((f"norm{i}", f"norm{i}", BOTH, SAME) for i in (1, 2, 3)),
    *((f"attn{i}.to_{x}", f"attn{i}.to_{x}", WEIGHT, SAME) for i in (1, 2) for x in "qkv"),
    *((f"attn{i}.to_out.0", f"attn{i}.to_out", BOTH, SAME) for i in (1, 2)),
    ("ff.net.0.proj", "ff.proj_in", BOTH, SAME),
    ("ff.net.2", "ff.proj_out", BOTH, SAME),
]
AUTOENCODER_RES: list[Leaf] = [(x, x, BOTH, SAME) for x in ("norm1", "conv1", "norm2", "conv2")]
AUTOENCODER_ATTENTION: list[Leaf] = [
    ("norm", "norm", BOTH, SAME),
    *((x, f"attn.to_{x}", BOTH, CONV_1X1) for x in "qkv"),
    ("proj_out", "attn.to_out", BOTH, CONV_1X1),
]
CLIP_BLOCK: list[Leaf] = [
    ("layer_norm1", "norm1", BOTH, SAME),
    *((f"self_attn.{x}_proj", f"attn.to_{x}", BOTH, SAME) for x in "qkv"),
    ("self_attn.out_proj", "attn.to_out", BOTH, SAME),
    ("layer_norm2", "norm2", BOTH, SAME),
    ("mlp.fc1", "fc1", BOTH, SAME),
    ("mlp.fc2", "fc2", BOTH, SAME),
]
OPEN_CLIP_BLOCK: list[Leaf] = [
    ("ln_1", "norm1", BOTH, SAME),
    ("attn.out_proj", "attn.to_out", BOTH, SAME),
    ("ln_2", "norm2", BOTH, SAME),
    ("mlp.c_fc", "fc1", BOTH, SAME),
    ("mlp.c_proj", "fc2", BOTH, SAME),
]

# Tensors that published files hold and that no network of this package has, each with the reason.
IGNORED = {
    "betas": "table of the noise schedule, made from the configuration",
    "alphas_cumprod": "table of the noise schedule",
    "alphas_cumprod_prev": "table of the noise schedule",
    "sqrt_alphas_cumprod": "table of the noise schedule",
    "sqrt_one_minus_alphas_cumprod": "table of the noise schedule",
    "log_one_minus_alphas_cumprod": "table of the noise schedule",
    "sqrt_recip_alphas_cumprod": "table of the noise schedule",
    "sqrt_recipm1_alphas_cumprod": "table of the noise schedule",
    "posterior_variance": "table of the noise schedule",
    "posterior_log_variance_clipped": "table of the noise schedule",
    "posterior_mean_coef1": "table of the noise schedule",
    "posterior_mean_coef2": "table of the noise schedule",
    "logvar": "loss weight, used in training only",
    "lvlb_weights": "loss weight, used in training only",
    "scale_factor": "latent scale, held against the configuration",
    TEXT_ENCODER + "embeddings.position_ids": "0..76, and damaged in files that were cast to 16 bits",
    OPEN_CLIP + "attn_mask": "the causal mask, which follows from the number of tokens",
}
IGNORED_PREFIXES = {
    "model_ema.": "averaged U-Net weights, read instead of the U-Net's own with ema=True",
    "first_stage_model.loss.": "the autoencoder's discriminator and perceptual network, used in training",
    "depth_model.": "MiDaS, the depth estimator of SD2's depth-to-image model",
    "embedder.": "the image encoder of SD2's unCLIP models",
    "noise_augmentor.": "noise schedule tables of SD2's unCLIP models",
    "low_scale_model.": "noise schedule tables of the x4 upscaler",
}


def ignored(key: str) -> str | None:
    """Why a file key is left out, or None if it must map to a parameter."""
    if key in IGNORED:
        return IGNORED[key]
    return next((why for prefix, why in IGNORED_PREFIXES.items() if key.startswith(prefix)), None)


def ema_key(key: str) -> str:
    """Where a file keeps the average of a U-Net tensor: without the dots, as CompVis's `LitEma` names it."""
    return "model_ema." + key.removeprefix("model.").replace(".", "")


def model_map(config: LatentDiffusionConfig) -> KeyMap:
    """The whole checkpoint; parameters are named `unet.…`, `autoencoder.…` and `text_encoder.…`."""
    return {
        **prefixed(unet_map(config.unet), UNET, "unet."),
        **prefixed(autoencoder_map(config.autoencoder), AUTOENCODER, "autoencoder."),
        **prefixed(
            text_encoder_map(config.text_encoder), text_encoder_prefix(config.text_encoder), "text_encoder."
        ),
    }


def _leaves(leaves: list[Leaf], file_prefix: str, parameter_prefix: str) -> KeyMap:
    """Expand a table of leaf modules. A transform changes the weight; biases are always the same."""
    return {
        f"{file_prefix}{there}.{tensor}": Entry(
            (f"{parameter_prefix}{here}.{tensor}",), transform if tensor == "weight" else SAME
        )
        for there, here, tensors, transform in leaves
        for tensor in tensors
    }


def _module(there: str, here: str, transform: Transform = SAME) -> KeyMap:
    return _leaves([(there, here, BOTH, transform)], "", "")


def unet_map(config: UNetConfig) -> KeyMap:
    """`UNetModel` of `ldm.modules.diffusionmodules.openaimodel`.

    Its blocks are numbered across levels: input_blocks.0 is the first convolution, then come each level's
    blocks and its downsampling. A block is a list: 0 the residual block, 1 the transformer if there is
    one, and last, at the end of a level on the way up, the upsampling.
    """
    key_map: KeyMap = {}
    key_map |= _module("time_embed.0", "time_embed.linear1") | _module("time_embed.2", "time_embed.linear2")
    if config.num_classes is not None:
        key_map |= _leaves([("label_emb", "label_emb", WEIGHT, SAME)], "", "")
    elif config.adm_in_channels is not None:
        key_map |= _module("label_emb.0.0", "label_emb.linear1")
        key_map |= _module("label_emb.0.2", "label_emb.linear2")
    key_map |= _module("input_blocks.0.0", "conv_in")

    levels = len(config.channel_mult)
    widths = [config.model_channels * mult for mult in config.channel_mult]
    channels, skips, number = config.model_channels, [config.model_channels], 1
    for level, width in enumerate(widths):
        for i in range(config.num_res_blocks):
            there, here = f"input_blocks.{number}", f"down.{level}.blocks.{i}"
            key_map |= _unet_block(config, there, here, level, changes_width=channels != width)
            channels, number = width, number + 1
            skips.append(width)
        if level < levels - 1:
            key_map |= _module(f"input_blocks.{number}.0.op", f"down.{level}.resample.conv")
            skips.append(width)
            number += 1

    key_map |= _leaves(UNET_RES, "middle_block.0.", "mid.res1.")
    key_map |= _spatial_transformer(config, "middle_block.1.", "mid.attention.")
    key_map |= _leaves(UNET_RES, "middle_block.2.", "mid.res2.")

    number = 0
    for position, (level, width) in enumerate(reversed(list(enumerate(widths)))):
        for i in range(config.num_res_blocks + 1):
            there, here = f"output_blocks.{number}", f"up.{position}.blocks.{i}"
            key_map |= _unet_block(config, there, here, level, changes_width=channels + skips.pop() != width)
            if i == config.num_res_blocks and level > 0:
                place = 2 if level in config.attention_levels else 1
                key_map |= _module(f"{there}.{place}.conv", f"up.{position}.resample.conv")
            channels, number = width, number + 1

    return key_map | _module("out.0", "norm_out") | _module("out.2", "conv_out")


def _unet_block(config: UNetConfig, there: str, here: str, level: int, *, changes_width: bool) -> KeyMap:
    key_map = _leaves(UNET_RES, f"{there}.0.", f"{here}.res.")
    if changes_width:
        key_map |= _module(f"{there}.0.skip_connection", f"{here}.res.skip")
    if level in config.attention_levels:
        key_map |= _spatial_transformer(config, f"{there}.1.", f"{here}.attention.")
    return key_map


def _spatial_transformer(config: UNetConfig, there: str, here: str) -> KeyMap:
    projection = SAME if config.use_linear_in_transformer else CONV_1X1
    key_map = _leaves([("norm", "norm", BOTH, SAME)], there, here)
    key_map |= _leaves([(x, x, BOTH, projection) for x in ("proj_in", "proj_out")], there, here)
    for i in range(config.transformer_depth):
        key_map |= _leaves(TRANSFORMER_BLOCK, f"{there}transformer_blocks.{i}.", f"{here}blocks.{i}.")
    return key_map


def autoencoder_map(config: AutoencoderConfig) -> KeyMap:
    """`AutoencoderKL` of `ldm.models.autoencoder`. Its decoder numbers its levels from fine to coarse."""
    key_map = _module("quant_conv", "quant_conv") | _module("post_quant_conv", "post_quant_conv")
    last = len(config.ch_mult) - 1
    for side in ("encoder", "decoder"):
        for end in ("conv_in", "norm_out", "conv_out"):
            key_map |= _module(f"{side}.{end}", f"{side}.{end}")
        key_map |= _leaves(AUTOENCODER_RES, f"{side}.mid.block_1.", f"{side}.mid.res1.")
        key_map |= _leaves(AUTOENCODER_ATTENTION, f"{side}.mid.attn_1.", f"{side}.mid.attention.")
        key_map |= _leaves(AUTOENCODER_RES, f"{side}.mid.block_2.", f"{side}.mid.res2.")

    channels = config.ch
    for level, mult in enumerate(config.ch_mult):
        there, here = f"encoder.down.{level}", f"encoder.down.{level}"
        key_map |= _autoencoder_level(config, there, here, level, channels, config.num_res_blocks)
        if level < last:
            key_map |= _module(f"{there}.downsample.conv", f"{here}.resample.conv")
        channels = config.ch * mult
    for level in range(last, -1, -1):
        there, here = f"decoder.up.{level}", f"decoder.up.{last - level}"
        key_map |= _autoencoder_level(config, there, here, level, channels, config.num_res_blocks + 1)
        if level > 0:
            key_map |= _module(f"{there}.upsample.conv", f"{here}.resample.conv")
        channels = config.ch * config.ch_mult[level]
    return key_map


def _autoencoder_level(
    config: AutoencoderConfig, there: str, here: str, level: int, channels: int, blocks: int
) -> KeyMap:
    key_map: KeyMap = {}
    for i in range(blocks):
        key_map |= _leaves(AUTOENCODER_RES, f"{there}.block.{i}.", f"{here}.blocks.{i}.")
        if config.has_attention(level):
            key_map |= _leaves(AUTOENCODER_ATTENTION, f"{there}.attn.{i}.", f"{here}.attentions.{i}.")
    if channels != config.ch * config.ch_mult[level]:
        key_map |= _module(f"{there}.block.0.nin_shortcut", f"{here}.blocks.0.skip")
    return key_map


def text_encoder_prefix(config: TextEncoderConfig) -> str:
    """Where the text encoder lies: a model with a projection is open_clip's, one without transformers'."""
    return TEXT_ENCODER if config.projection_dim is None else OPEN_CLIP


def text_encoder_map(config: TextEncoderConfig) -> KeyMap:
    """transformers' `CLIPTextModel` (SD1), or open_clip's text tower, which fuses q, k and v (SD2)."""
    if config.projection_dim is None:
        key_map = {
            "embeddings.token_embedding.weight": Entry(("token_embedding.weight",)),
            "embeddings.position_embedding.weight": Entry(("position_embedding.weight",)),
            **_module("final_layer_norm", "final_norm"),
        }
        for i in range(config.layers):
            key_map |= _leaves(CLIP_BLOCK, f"encoder.layers.{i}.", f"blocks.{i}.")
        return key_map

    key_map = {
        "token_embedding.weight": Entry(("token_embedding.weight",)),
        "positional_embedding": Entry(("position_embedding.weight",)),
        "text_projection": Entry(("text_projection",)),
        "logit_scale": Entry(("logit_scale",)),
        **_module("ln_final", "final_norm"),
    }
    for i in range(config.layers):
        there, here = f"transformer.resblocks.{i}.", f"blocks.{i}."
        key_map |= _leaves(OPEN_CLIP_BLOCK, there, here)
        for tensor in BOTH:
            parameters = tuple(f"{here}attn.to_{x}.{tensor}" for x in "qkv")
            key_map[f"{there}attn.in_proj_{tensor}"] = Entry(parameters, FUSED_QKV)
    return key_map
