"""Tensors in CLIP files that this package ignores, each with the reason."""

from __future__ import annotations

_PROJECTION = "CLIP's projection to the space it shares with images, which conditions no U-Net"
_IMAGES = "CLIP's image encoder"

# In files of a text encoder, by name without the prefix; "x." stands for all names that begin with it.
TRANSFORMERS_EXTRAS = {
    "embeddings.position_ids": "0..76, and damaged in files that were cast to 16 bits",
    "text_projection": _PROJECTION,
    "text_projection.weight": _PROJECTION,
    "transformer.text_projection.weight": _PROJECTION,
    "transformer.visual_projection.weight": _PROJECTION,
    "transformer.logit_scale": _PROJECTION,
    "transformer.vision_model.": _IMAGES,
    "visual_projection.weight": _PROJECTION,
    "logit_scale": _PROJECTION,
    "vision_model.": _IMAGES,
}
_SIZE = "a size that OpenAI's files state, and that their tensors' shapes prove"
# In files of a whole CLIP, of which both encoders and projections are loaded.
CLIP_OPENAI_EXTRAS = {
    "attn_mask": "the causal mask, which follows from the number of tokens",
    "input_resolution": _SIZE,
    "context_length": _SIZE,
    "vocab_size": _SIZE,
}
CLIP_TRANSFORMERS_EXTRAS = {
    "text_model.embeddings.position_ids": "0..76",
    "vision_model.embeddings.position_ids": "0..N, the patches' numbers",
}
OPEN_CLIP_EXTRAS = {
    **CLIP_OPENAI_EXTRAS,
    "visual.": _IMAGES,
    "transformer.text_model.embeddings.position_ids": "0..76, which diffusers' converter leaves",
}
