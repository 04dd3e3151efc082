"""The initial weights of a CLIP: `initialize_parameters` of OpenAI's `clip/model.py`.

The standard deviations are those of GPT-2 (Radford et al. 2019, section 2.3). The last weights of each
residual branch are divided by the square root of the number of branches, so that the sum of the branches
keeps its variance. OpenAI's code does so in the text encoder only and uses PyTorch's defaults in the image
encoder's blocks; this package does so in both. The initial temperature is 0.07 (Radford et al. 2021, section
2.5).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ldm_core.clip.block import ResidualAttentionBlock
from ldm_core.clip.image_encoder import CLIPImageEncoder
from ldm_core.clip.text_encoder import CLIPTextEncoder

TEMPERATURE = 0.07


@torch.no_grad()
def initialise(
    image_encoder: CLIPImageEncoder, text_encoder: CLIPTextEncoder, generator: torch.Generator
) -> None:
    """Initialise all weights of the two encoders in place, with a generator on the CPU.

    Raises ValueError for a text encoder without a projection.
    """
    if text_encoder.text_projection is None or text_encoder.logit_scale is None:
        raise ValueError(
            "expected a text encoder with a projection to CLIP's joint space; its projection_dim is None"
        )

    def draw(parameter: Tensor, deviation: float) -> None:
        parameter.copy_(deviation * torch.randn(parameter.shape, generator=generator))

    for encoder in (image_encoder, text_encoder):
        width, layers = encoder.config.width, encoder.config.layers
        for module in encoder.modules():
            if isinstance(module, nn.LayerNorm):
                module.weight.fill_(1)
                module.bias.zero_()
            elif isinstance(module, ResidualAttentionBlock):
                into = width**-0.5
                out_of = into * (2 * layers) ** -0.5
                attn = module.attn
                for linear in (attn.to_q, attn.to_k, attn.to_v):
                    draw(linear.weight, into)
                draw(attn.to_out.weight, out_of)
                draw(module.fc1.weight, (2 * width) ** -0.5)
                draw(module.fc2.weight, out_of)
                for linear in (attn.to_q, attn.to_k, attn.to_v, attn.to_out, module.fc1, module.fc2):
                    linear.bias.zero_()

    width = image_encoder.config.width
    fan_in = 3 * image_encoder.config.patch_size**2
    draw(image_encoder.patch_embedding.weight, fan_in**-0.5)
    draw(image_encoder.class_embedding, width**-0.5)
    draw(image_encoder.position_embedding, width**-0.5)
    draw(image_encoder.projection, width**-0.5)
    draw(text_encoder.token_embedding.weight, 0.02)
    draw(text_encoder.position_embedding.weight, 0.01)
    draw(text_encoder.text_projection, text_encoder.config.width**-0.5)
    text_encoder.logit_scale.fill_(math.log(1 / TEMPERATURE))
