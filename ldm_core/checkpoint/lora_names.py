"""The names that files of adapters have for the layers of the networks, and for the tensors of a layer.

    kohya-ss      lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight, and LyCORIS likewise;
                  also with CompVis's names: lora_unet_input_blocks_1_1_proj_in
    diffusers     unet.down_blocks.0.attentions.0.proj_in.lora_A.weight, before that .lora.down.weight,
                  and at first down_blocks.0.….attn1.processor.to_q_lora.down.weight
    PEFT          base_model.model.down_blocks.0.attentions.0.proj_in.lora_A.weight

All are made from the key maps, which know each layer under CompVis's, diffusers' and transformers' names.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from ldm_core.checkpoint.parts import Layout, Part, layout_of
from ldm_core.config import LatentDiffusionConfig

PEFT = "base_model.model."
SECOND_TEXT_ENCODER = ("lora_te2_", "text_encoder_2.")

# The names of kohya's networks; transformers dropped its `text_model` in version 5.
_KOHYA: dict[Part, tuple[str, ...]] = {
    "unet": ("lora_unet_",),
    "text_encoder": tuple(f"lora_{te}_{inner}" for te in ("te", "te1") for inner in ("text_model_", "")),
}
_LAYOUTS: tuple[tuple[Part, str], ...] = (
    ("unet", "diffusers"),
    ("unet", "compvis"),
    ("text_encoder", "transformers"),
)

# Diffusers' first adapters were attention processors beside the layers.
_PROCESSOR_NAMES = (
    (re.compile(r"(?<=\.attn[12]\.)to_([qkv])$"), r"processor.to_\1_lora"),
    (re.compile(r"(?<=\.attn[12]\.)to_out\.0$"), "processor.to_out_lora"),
    (re.compile(r"(?<=\.self_attn\.)(q|k|v|out)_proj$"), r"to_\1_lora"),
)


def layer_names(config: LatentDiffusionConfig) -> dict[str, str]:
    """{a layer's name in files: its name here}, such as `unet.mid.attention.proj_in`, for every spelling."""
    names: dict[str, str] = {}
    for part, name in _LAYOUTS:
        layout = layout_of(part, name)
        for key, entry in layout.key_map(getattr(config, part)).items():
            if key.endswith(".weight"):
                layer = f"{part}.{entry.parameters[0]}".removesuffix(".weight")
                for spelling in _spellings(layout, key.removesuffix(".weight")):
                    names[spelling] = layer
    return names


def _spellings(layout: Layout, module: str) -> Iterator[str]:
    """Every name that files have for a module, given its name in this layout."""
    for prefix in _KOHYA[layout.part]:
        yield prefix + module.replace(".", "_")
    older = [pattern.sub(new, module) for pattern, new in _PROCESSOR_NAMES if pattern.search(module)]
    for base, inner in layout.prefixes:
        for name in (module, *older):
            yield base + inner + name


_FACTORS = (
    *("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2"),
    *("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2"),
)
_ADAPTER = r"(?:\.[^.]+)?"  # PEFT can leave the adapter's own name in its keys, by default "default"
_TENSORS = {
    "lora_down": rf"(?:lora_down|lora\.down|lora_linear_layer\.down|lora_A{_ADAPTER}|down)\.weight",
    "lora_up": rf"(?:lora_up|lora\.up|lora_linear_layer\.up|lora_B{_ADAPTER}|up)\.weight",
    "lora_mid": r"lora_mid\.weight",
    "lora_bias": rf"lora_B{_ADAPTER}\.bias",
    **{name: name + _ADAPTER for name in _FACTORS},
    "diff": "diff",
    "diff_b": "diff_b",
    "alpha": "alpha",
    "dora": r"(?:dora_scale|lora_magnitude_vector(?:\.[^.]+)*)",
}
_KEY = re.compile(
    r"(?P<layer>.+?)\.(?:" + "|".join(f"(?P<{name}>{pattern})" for name, pattern in _TENSORS.items()) + ")"
)


def split_key(key: str) -> tuple[str, str] | None:
    """(the layer's name in the file, which of its tensors this is), or None for no adapter's key.

    The tensors have kohya's and LyCORIS's names, whatever the file's: `lora_A.weight` is `lora_down`.
    """
    found = _KEY.fullmatch(key.removeprefix(PEFT))
    return None if found is None or found.lastgroup is None else (found["layer"], found.lastgroup)
