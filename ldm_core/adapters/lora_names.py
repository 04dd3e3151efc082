"""The names of layers and of their tensors in the files of adapters.

    kohya-ss      lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight, and LyCORIS likewise;
                  also with CompVis's names: lora_unet_input_blocks_1_1_proj_in
    diffusers     unet.down_blocks.0.attentions.0.proj_in.lora_A.weight; in older versions .lora.down.weight,
                  or down_blocks.0.….attn1.processor.to_q_lora.down.weight
    PEFT          base_model.model.down_blocks.0.attentions.0.proj_in.lora_A.weight

All are derived from the key maps, which have the names of CompVis, diffusers and transformers.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from ldm_core.checkpoint.key_map import Transform
from ldm_core.config import LatentDiffusionConfig
from ldm_core.loading.parts import part_named

PEFT = "base_model.model."
SECOND_TEXT_ENCODER = ("lora_te2_", "text_encoder_2.")

# The names of kohya's networks; transformers dropped its `text_model` in version 5.
_KOHYA: dict[str, tuple[str, ...]] = {
    "unet": ("lora_unet_",),
    "text_encoder": tuple(f"lora_{te}_{inner}" for te in ("te", "te1") for inner in ("text_model_", "")),
}
# The layouts whose names `lora_writer` writes, and those that `lora_file` reads.
_WRITTEN: tuple[tuple[str, str], ...] = (("unet", "diffusers"), ("text_encoder", "transformers"))
_LAYOUTS: tuple[tuple[str, str], ...] = (*_WRITTEN, ("unet", "compvis"))

# In diffusers' first versions, adapters were attention processors.
_PROCESSOR_NAMES = (
    (re.compile(r"(?<=\.attn[12]\.)to_([qkv])$"), r"processor.to_\1_lora"),
    (re.compile(r"(?<=\.attn[12]\.)to_out\.0$"), "processor.to_out_lora"),
    (re.compile(r"(?<=\.self_attn\.)(q|k|v|out)_proj$"), r"to_\1_lora"),
)


def layer_names(config: LatentDiffusionConfig) -> dict[str, str]:
    """{layer name in any file format: layer name here, such as `unet.mid.attention.proj_in`}."""
    return {
        spelling: layer
        for part, name in _LAYOUTS
        for module, layer, _ in _modules(part, name, config)
        for spelling in _spellings(part, name, module)
    }


def module_names(config: LatentDiffusionConfig) -> dict[str, tuple[str, Transform]]:
    """{layer name here: (name in diffusers' or transformers' network, transform of its weight)}.

    For example, `unet.mid.attention.proj_in` is `mid_block.attentions.0.proj_in`, a convolution in SD1.
    """
    return {
        layer: (module, transform)
        for part, name in _WRITTEN
        for module, layer, transform in _modules(part, name, config)
    }


def kohya_name(part: str, module: str) -> str:
    """The name in kohya-ss's files of a module of diffusers' U-Net or transformers' text encoder."""
    return _KOHYA[part][0] + module.replace(".", "_")


def _modules(part: str, name: str, config: LatentDiffusionConfig) -> Iterator[tuple[str, str, Transform]]:
    """(module name in the layout, layer name here, transform of its weight) of modules with one layer."""
    own = getattr(config, part)
    key_map = {} if own is None else part_named(part).layout(name).key_map(own)
    for key, entry in key_map.items():
        if key.endswith(".weight") and len(entry.parameters) == 1:
            layer = f"{part}.{entry.parameters[0]}".removesuffix(".weight")
            yield key.removesuffix(".weight"), layer, entry.transform


def _spellings(part: str, name: str, module: str) -> Iterator[str]:
    """All names of a module in files, given its name in the layout."""
    for prefix in _KOHYA[part]:
        yield prefix + module.replace(".", "_")
    older = [pattern.sub(new, module) for pattern, new in _PROCESSOR_NAMES if pattern.search(module)]
    for base, inner in part_named(part).layout(name).prefixes:
        for spelling in (module, *older):
            yield base + inner + spelling


_FACTORS = (
    *("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2"),
    *("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2"),
)
_ADAPTER = r"(?:\.[^.]+)?"  # PEFT may add the adapter's name, by default "default", to its keys
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
    """(layer name in the file, role of the tensor), or None if the key is not an adapter's.

    Roles have kohya-ss's and LyCORIS's names in all formats: `lora_A.weight` has the role `lora_down`.
    """
    found = _KEY.fullmatch(key.removeprefix(PEFT))
    return None if found is None or found.lastgroup is None else (found["layer"], found.lastgroup)
