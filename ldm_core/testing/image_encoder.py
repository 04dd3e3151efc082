"""The contract of `ldm_core.protocols.ImageEncoder`."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ldm_core.clip.config import ImageEncoderConfig
from ldm_core.protocols import ImageEncoder
from ldm_core.testing.contract import (
    TOLERANCE,
    Contract,
    device_of,
    draw,
    dtypes_of,
    in_dtype,
    isolated,
    relative_error,
)
from ldm_core.testing.tensor_clauses import Case, check_tensor_function, depends_on, result_is

BATCH = 3


@isolated
def check_image_encoder(
    encoder: ImageEncoder,
    config: ImageEncoderConfig,
    *,
    dtypes: Sequence[torch.dtype] | None = None,
    device: torch.device | str | None = None,
    tolerance: float | None = None,
) -> None:
    """Raise ContractError, which names every clause that an image encoder breaks; None if it keeps them all.

    config: its image_size and projection_dim are what CLIP relies on. dtypes, device, tolerance: as in
    `check_unet`. Raises ValueError for a configuration of another kind.
    """
    if not isinstance(config, ImageEncoderConfig):
        raise ValueError(f"expected an ImageEncoderConfig, not {type(config).__name__}")
    dtypes = dtypes_of(encoder) if dtypes is None else dtypes
    on = device_of(encoder) if device is None else torch.device(device)
    size = config.image_size

    def case(dtype: torch.dtype) -> Case:
        pixels = draw(BATCH, 3, size, size, seed=0, dtype=dtype, device=on)
        limit = TOLERANCE[dtype] if tolerance is None else tolerance
        return Case(encoder, "encoder(pixels)", in_dtype(encoder, dtype), {"pixels": pixels}, limit)

    contract = Contract(encoder, "ldm_core.protocols.ImageEncoder")
    for dtype in dtypes:
        shape = (BATCH, config.projection_dim)
        result_is(contract, case(dtype), shape, dtype, f"shape and dtype, in {dtype}")
    contract.verdict()
    main = case(dtypes[0])
    check_tensor_function(contract, main)
    pixels = main.arguments["pixels"]
    why = "an embedding that does not see the picture fits every text alike"
    depends_on(contract, main, why, pixels=("the pixels", pixels.flip(0)))
    with contract.clause(
        "every patch", "what an encoder does not look at cannot be found by words"
    ) as clause:
        result = main()
        for name, part in (("first", slice(0, config.patch_size)), ("last", slice(-config.patch_size, None))):
            changed = pixels.clone()
            changed[:, :, part, part] *= -1
            clause.expect(
                relative_error(main(pixels=changed), result) > main.tolerance,
                f"the embedding to depend on the {name} patch",
                "the same embedding",
            )
    contract.verdict()
