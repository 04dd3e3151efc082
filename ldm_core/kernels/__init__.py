"""GPU kernels in Triton that replace plain PyTorch operations. Importing this module does not import Triton.

attention              flash_attention.py     `set_attention(model, "triton")`
group norm, and SiLU   group_norm_silu.py     `set_kernels(model, "triton")`
value * GELU(gate)     geglu.py               `set_kernels(model, "triton")`
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from ldm_core.kernels.requirements import require_triton
from ldm_core.support.modules import named_modules


def triton_attention(q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False) -> Tensor:
    """FlashAttention in Triton, which is imported at the first call. Raises ValueError if it cannot run."""
    require_triton("attention backend 'triton'")
    from ldm_core.kernels.flash_attention import flash_attention

    return flash_attention(q, k, v, causal=causal)


def set_kernels(model: Any, backend: str) -> None:
    """Make `model` compute group norm, SiLU after it, and GEGLU by kernels ("triton") or PyTorch ("torch").

    model: a module or a dataclass of modules, such as `LatentDiffusion`. Each block holds the functions that
    it uses, so other models are not affected. For attention use `set_attention`. Raises ValueError for an
    unknown name, if the kernels cannot run, or if `model` has no such block.
    """
    functions = _functions(backend)
    modules = [module for _, module in named_modules(model)]
    places = [(module, name) for module in modules for name in functions if name in module.__dict__]
    if not places:
        raise ValueError(f"{type(model).__name__} has no block that a kernel could be set for")
    for module, name in places:
        setattr(module, name, functions[name])


def _functions(backend: str) -> dict[str, Callable[..., Tensor]]:
    """The functions for the attributes of the blocks, by attribute name."""
    if backend == "torch":
        from ldm_core.nn.blocks import geglu, norm_silu, normalise

        return {"norm_silu": norm_silu, "normalise": normalise, "geglu": geglu}
    if backend == "triton":
        require_triton("set_kernels(model, 'triton')")
        from ldm_core.kernels.geglu import geglu as fused_geglu
        from ldm_core.kernels.group_norm_silu import group_norm, group_norm_silu

        return {"norm_silu": group_norm_silu, "normalise": group_norm, "geglu": fused_geglu}
    raise ValueError(f"unknown kernels {backend!r}; expected torch or triton")
