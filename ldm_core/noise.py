"""One random number generator per image, so that an image does not depend on the batch it was drawn in.

Numbers are drawn on the CPU in float32 and then moved, so that all devices and dtypes start from the same
noise.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from numbers import Integral

import torch
from torch import Tensor

Generators = torch.Generator | Sequence[torch.Generator] | None


def image_seeds(seed: int | Sequence[int] | None, count: int) -> list[int]:
    """One seed per image: s, s+1, … from an int, a sequence as it is, fresh ones from None.

    NumPy's integers are ints, and an array (count,) of them is a sequence. PyTorch's CPU generator uses the
    low 32 bits, so seeds that differ by 2**32 give the same image. Raises ValueError for another number of
    seeds and for a seed outside 0..2**63-1.
    """
    if seed is not None and hasattr(seed, "tolist"):  # a NumPy number or array
        seed = seed.tolist()
    if seed is None:
        seeds = [secrets.randbits(32) for _ in range(count)]
    elif isinstance(seed, Integral) and not isinstance(seed, bool):
        seeds = [int(seed) + k for k in range(count)]
    else:
        if isinstance(seed, (str, bytes)) or not isinstance(seed, Sequence):
            raise ValueError(f"seed must be an int, one int per image, or None, not {type(seed).__name__}")
        seeds = list(seed)
        if len(seeds) != count:
            raise ValueError(f"expected one seed per image ({count}), got {len(seeds)}")
    for s in seeds:
        if not isinstance(s, Integral) or isinstance(s, bool) or not 0 <= s < 2**63:
            raise ValueError(f"a seed must be an int in 0..2**63-1, not {s!r:.60}")
    return [int(s) for s in seeds]


def generators(seeds: Sequence[int]) -> list[torch.Generator]:
    """One CPU generator per seed."""
    return [torch.Generator("cpu").manual_seed(int(seed)) for seed in seeds]


def randn(shape: Sequence[int], generator: Generators = None) -> Tensor:
    """Standard normal numbers of `shape`, float32 on the CPU.

    With a list of generators, row k comes from generator k, exactly as if it had been drawn alone.
    """
    if generator is None or isinstance(generator, torch.Generator):
        return torch.randn(*shape, generator=generator, dtype=torch.float32)
    if len(generator) != shape[0]:
        raise ValueError(f"expected one generator per image ({shape[0]}), got {len(generator)}")
    return torch.cat([torch.randn(1, *shape[1:], generator=g, dtype=torch.float32) for g in generator])


def randn_like(x: Tensor, generator: Generators = None) -> Tensor:
    """Standard normal numbers, drawn as by `randn`, in the shape, dtype and device of x."""
    noise = randn(x.shape, generator).to(x.dtype)
    if x.device.type != "cuda":
        return noise.to(x.device)
    # A copy from other memory would wait for all that the device still has to compute.
    return noise.pin_memory().to(x.device, non_blocking=True)
