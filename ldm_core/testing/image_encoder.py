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
from ldm_core.testing.tensor_clauses import Case, check_dependence, check_result, check_tensor_function

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
    """Check that an image encoder meets its contract. Raises ContractError, which lists every violation.

    config: its image_size and projection_dim determine the shapes. dtypes, device, tolerance: as in
    `check_unet`. Raises ValueError if `config` is not an ImageEncoderConfig.
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
        check_result(contract, case(dtype), shape, dtype, f"shape and dtype, in {dtype}")
    contract.raise_if_broken()
    main = case(dtypes[0])
    check_tensor_function(contract, main)
    pixels = main.arguments["pixels"]
    why = "an embedding that ignores the image matches every text equally"
    check_dependence(contract, main, why, pixels=("the pixels", pixels.flip(0)))
    with contract.clause("every patch", "text cannot match what the encoder ignores") as clause:
        result = main()
        for name, part in (("first", slice(0, config.patch_size)), ("last", slice(-config.patch_size, None))):
            changed = pixels.clone()
            changed[:, :, part, part] *= -1
            clause.expect(
                relative_error(main(pixels=changed), result) > main.tolerance,
                f"the embedding to depend on the {name} patch",
                "the same embedding",
            )
    contract.raise_if_broken()
