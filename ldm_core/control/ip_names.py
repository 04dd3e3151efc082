"""The names of an IP-Adapter's parameters in its files, and what their shapes prove.

The layers of `ip_adapter.` are numbered over all attentions of the U-Net, of which the even ones are
self-attentions without weights here.
"""

from __future__ import annotations

from ldm_core.checkpoint.key_map import KeyMap, Template, expand, same, within
from ldm_core.checkpoint.shapes import Shapes, children
from ldm_core.control.image_projection import IPAdapter, IPAdapterConfig
from ldm_core.errors import ConfigError
from ldm_core.nn.placement import parameter_names

_LAYER: Template = {
    "norm_patches": "0.norm1",
    "norm_queries": "0.norm2",
    "to_q": "0.to_q",
    "to_kv": "0.to_kv",
    "to_out": "0.to_out",
    "norm": "1.0",
    "fc1": "1.1",
    "fc2": "1.3",
}
_PROJECTION: dict[str, Template] = {
    "base": {"linear": "proj", "norm": "norm"},
    "full": {"linear1": "proj.0", "linear2": "proj.2", "norm": "proj.3"},
    "plus": {
        "queries": "latents",
        **same("proj_in", "proj_out", "norm_out"),
        **within("layers.{i}.", "layers.{i}.", _LAYER),
    },
}
FULL_TOKENS = 257  # of 16 x 16 patches and the class token; what it is given decides


def ip_adapter_map(config: IPAdapterConfig) -> KeyMap:
    """The key map of the authors' names."""
    template: Template = {
        **within("projection.", "image_proj.", _PROJECTION[config.kind]),
        "to_k.{i}": "ip_adapter.{n}.to_k_ip",
        "to_v.{i}": "ip_adapter.{n}.to_v_ip",
    }
    names = parameter_names(IPAdapter, config)
    return expand(template, names, lambda i=0: {"i": i, "n": 2 * i + 1})


def ip_adapter_config(shapes: Shapes) -> IPAdapterConfig:
    """From the authors' names. Raises KeyError, ValueError or ConfigError if they form no such adapter."""
    numbers = children(shapes, "ip_adapter.")
    keys = [shapes[f"ip_adapter.{n}.to_k_ip.weight"] for n in numbers]
    channels, context_dim = tuple(key[0] for key in keys), keys[0][1]
    if context_dim == 2048:
        raise ConfigError("an IP-Adapter for Stable Diffusion XL, which is not supported")
    prefix = "image_proj."
    if f"{prefix}latents" in shapes:
        _, tokens, width = shapes[f"{prefix}latents"]
        embedding = shapes[f"{prefix}proj_in.weight"][1]
        depth = len(children(shapes, f"{prefix}layers."))
        return IPAdapterConfig("plus", embedding, context_dim, tokens, depth, width, channels)
    if f"{prefix}proj.0.weight" in shapes:
        embedding = shapes[f"{prefix}proj.0.weight"][1]
        if shapes[f"{prefix}proj.2.weight"][0] != context_dim:
            raise ConfigError(
                "an IP-Adapter FaceID (an adapter of ArcFace's embeddings), which is not supported"
            )
        return IPAdapterConfig("full", embedding, context_dim, FULL_TOKENS, channels=channels)
    out, embedding = shapes[f"{prefix}proj.weight"]
    return IPAdapterConfig("base", embedding, context_dim, out // context_dim, channels=channels)
