"""Tensors that files contain and no network of this package uses, each with the reason.

The list is explicit, so that any other unused tensor raises an error instead of being dropped silently.
"""

from __future__ import annotations

_TABLE = "table of the noise schedule"

# By full key.
IGNORED = {
    "betas": "table of the noise schedule, compared with the configuration",
    "alphas_cumprod": _TABLE,
    "alphas_cumprod_prev": _TABLE,
    "sqrt_alphas_cumprod": _TABLE,
    "sqrt_one_minus_alphas_cumprod": _TABLE,
    "log_one_minus_alphas_cumprod": _TABLE,
    "sqrt_recip_alphas_cumprod": _TABLE,
    "sqrt_recipm1_alphas_cumprod": _TABLE,
    "posterior_variance": _TABLE,
    "posterior_log_variance_clipped": _TABLE,
    "posterior_mean_coef1": _TABLE,
    "posterior_mean_coef2": _TABLE,
    "logvar": "loss weight, used in training only",
    "lvlb_weights": "loss weight, used in training only",
    "denoiser.sigmas": _TABLE,
    "scale_factor": "latent scale, compared with the configuration",
    "v_pred": "marks a model that predicts v",
    "difference": "marks a ControlNet that is stored as differences to Stable Diffusion 1.5",
    "ztsnr": "marks a schedule whose last timestep is pure noise",
}

# By prefix of the key.
IGNORED_PREFIXES = {
    "model_ema.": "averaged U-Net weights, used with ema=True",
    "ddim_": "tables of a sampler that ran before the model was saved",
    "control_model.": "a ControlNet, which load_control loads",
    "diffusion.": "noise schedule tables of GLIGEN",
    "depth_model.": "MiDaS, the depth estimator of SD2's depth-to-image model",
    "embedder.": "the image encoder of SD2's unCLIP models",
    "noise_augmentor.": "tables of SD2's unCLIP models",
    "low_scale_model.": "noise schedule tables of the x4 upscaler",
    "safety_checker.": "diffusers' image filter, which is not part of the model",
    "embedding_manager.": "words of a textual inversion in training",
    "image_encoder.": "the image encoder of a diffusers folder",
    **dict.fromkeys(
        (
            *(f"cond_stage_model.{side}.conv_in." for side in ("encoder", "decoder")),
            *(f"cond_stage_model.{side}.conv_out." for side in ("encoder", "decoder")),
            *(f"cond_stage_model.{side}.norm_out." for side in ("encoder", "decoder")),
            *(f"cond_stage_model.{side}.mid." for side in ("encoder", "decoder")),
            "cond_stage_model.encoder.down.",
            "cond_stage_model.decoder.up.",
            "cond_stage_model.quant_conv.",
            "cond_stage_model.post_quant_conv.",
            "cond_stage_model.quantize.",
            "cond_stage_model.loss.",
        ),
        "a second copy of the autoencoder, which encodes the masked image",
    ),
}

AUTOENCODER_EXTRAS = {
    "loss.": "the autoencoder's discriminator and perceptual network, used in training",
    "colorize": "random colours in which segmentation maps are shown in training",
    "model_ema.": "averaged autoencoder weights, used in training only",
}
