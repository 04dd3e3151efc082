"""The contract of `ldm_core.protocols.TextEncoder`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ldm_core.clip.config import TextEncoderConfig
from ldm_core.protocols import TextEncoder
from ldm_core.testing.contract import (
    TOLERANCE,
    Contract,
    device_of,
    dtypes_of,
    in_dtype,
    isolated,
    relative_error,
)
from ldm_core.testing.tensor_clauses import Case, check_dependence, check_result, check_tensor_function

BATCH = 3


@isolated
def check_text_encoder(
    encoder: TextEncoder,
    config: TextEncoderConfig,
    *,
    causal: bool = True,
    dtypes: Sequence[torch.dtype] | None = None,
    device: torch.device | str | None = None,
    tolerance: float | None = None,
) -> None:
    """Check that a text encoder meets its contract. Raises ContractError, which lists every violation.

    config: its vocab_size, context_length and width determine the shapes.
    causal: True if a token attends only to itself and earlier tokens, as in CLIP; False for bidirectional
        encoders.
    dtypes, device, tolerance: as in `check_unet`; dtypes are those of the result.
    Raises ValueError if `config` is not a TextEncoderConfig.
    """
    if not isinstance(config, TextEncoderConfig):
        wanted = "a TextEncoderConfig, as ldm_core.config.SD1.text_encoder"
        raise ValueError(f"expected {wanted}, not {type(config).__name__}")
    dtypes = dtypes_of(encoder) if dtypes is None else dtypes
    on = device_of(encoder) if device is None else torch.device(device)
    generator = torch.Generator().manual_seed(0)
    size = (BATCH, config.context_length)
    tokens = torch.randint(config.vocab_size, size, generator=generator)
    tokens[0, 0], tokens[0, 1] = 0, config.vocab_size - 1  # both ends of the table
    tokens = tokens.to(on)

    def case(dtype: torch.dtype) -> Case:
        limit = TOLERANCE[dtype] if tolerance is None else tolerance
        return Case(encoder, "encoder(tokens)", in_dtype(encoder, dtype), {"tokens": tokens}, limit)

    contract = Contract(encoder, "ldm_core.protocols.TextEncoder")
    for dtype in dtypes:
        name = f"shape and dtype, in {dtype}"
        check_result(contract, case(dtype), (*size, config.width), dtype, name)
    contract.raise_if_broken()
    main = case(dtypes[0])
    check_tensor_function(contract, main)
    check_dependence(
        contract,
        main,
        "an encoder that ignores the words or their order cannot condition the image",
        tokens=("the tokens", tokens.flip(0)),
    )
    _check_positions(contract, main, tokens, config.vocab_size, causal)
    contract.raise_if_broken()


def _check_positions(contract: Contract, case: Case, tokens: Tensor, vocab_size: int, causal: bool) -> None:
    result = case()
    length = tokens.shape[1]
    with contract.clause(
        "order", "the same words in another order are another prompt: positions must matter"
    ) as clause:
        swapped = tokens.clone()
        swapped[:, [0, 1]] = tokens[:, [1, 0]]
        error = relative_error(case(tokens=swapped)[:, 2:], result[:, 2:])
        clause.expect(
            error > case.tolerance,
            "the vectors after two tokens to change when the two are swapped",
            "the same vectors",
        )
    if not causal:
        return
    with contract.clause(
        "causality",
        "CLIP was trained with causal attention; a mask that is off by one still gives images",
    ) as clause:
        for position in (1, length // 2, length - 1):
            changed = tokens.clone()
            changed[:, position] = (changed[:, position] + vocab_size // 2) % vocab_size
            other = case(tokens=changed)
            before = (other[:, :position], result[:, :position])
            clause.expect_close(
                *before, f"the vectors before position {position} not to depend on it", case.tolerance
            )
            clause.expect(
                relative_error(other[:, position], result[:, position]) > case.tolerance,
                f"the vector at position {position} to depend on its own token",
                "the same vector",
            )
