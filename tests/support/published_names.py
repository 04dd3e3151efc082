"""Presets of Stable Diffusion, and the names of their published lists of tensors."""

PUBLISHED = {
    "sd1": "stable-diffusion/v1-inference",
    "sd2-base": "stable-diffusion-2/v2-inference",
    "sd2-v": "stable-diffusion-2/v2-inference-v",
    "sd2-inpaint": "stable-diffusion-2/v2-inpainting-inference",
    "sd2-depth": "stable-diffusion-2/v2-midas-inference",
    "sd2-unclip-h": "stable-diffusion-2/v2-1-stable-unclip-h-inference",
    "sd2-unclip-l": "stable-diffusion-2/v2-1-stable-unclip-l-inference",
    "x4-upscaler": "stable-diffusion-2/x4-upscaling",
}
