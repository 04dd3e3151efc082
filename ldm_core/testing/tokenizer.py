"""The contract of `ldm_core.protocols.Tokenizer`."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from ldm_core.clip.config import TextEncoderConfig
from ldm_core.protocols import Tokenizer
from ldm_core.testing.contract import Contract, describe, isolated

PROMPTS = ["a cat", "", "Ein Bär, gemalt von Dürer", "火事 🔥 и кот", "very long prompt " * 100]


@isolated
def check_tokenizer(tokenizer: Tokenizer, config: TextEncoderConfig) -> None:
    """Check that a tokenizer meets its contract. Raises ContractError, which lists every violation.

    config: its vocab_size and context_length limit the ids. Warnings about truncated prompts are ignored.
    Raises ValueError if `config` is not a TextEncoderConfig.
    """
    if not isinstance(config, TextEncoderConfig):
        wanted = "a TextEncoderConfig, as ldm_core.config.SD1.text_encoder"
        raise ValueError(f"expected {wanted}, not {type(config).__name__}")
    contract = Contract(tokenizer, "ldm_core.protocols.Tokenizer")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _check_ids(contract, tokenizer, config)
        contract.raise_if_broken()
        _check_rows(contract, tokenizer)
    contract.raise_if_broken()


def _check_ids(contract: Contract, tokenizer: Tokenizer, config: TextEncoderConfig) -> None:
    with contract.clause(
        "shape and range", "ids index the text encoder's token and position embeddings"
    ) as clause:
        for prompts in (PROMPTS, PROMPTS[:1], [""], "a cat"):
            tokens = tokenizer(prompts)
            rows = 1 if isinstance(prompts, str) else len(prompts)
            what = f"tokens of {prompts!r:.40}"
            if not clause.expect(isinstance(tokens, Tensor), f"{what} as a tensor", describe(tokens)):
                continue
            fits = tokens.dtype == torch.long and tokens.ndim == 2 and len(tokens) == rows
            clause.expect(fits, f"{what} as a LongTensor ({rows}, N)", describe(tokens))
            length = config.context_length
            clause.expect(tokens.shape[-1] <= length, f"at most {length} tokens", tokens.shape[-1])
            low, high = int(tokens.min()), int(tokens.max())
            known = low >= 0 and high < config.vocab_size
            clause.expect(known, f"ids in 0..{config.vocab_size - 1}", f"{low}..{high}")


def _check_rows(contract: Contract, tokenizer: Tokenizer) -> None:
    with contract.clause(
        "rows",
        "ids must not depend on the batch, and prompts and negative prompts need the same N",
    ) as clause:
        together = tokenizer(PROMPTS)
        for row, prompt in enumerate(PROMPTS):
            for alone in (tokenizer([prompt]), tokenizer(prompt)):
                same = alone.shape[-1] == together.shape[-1] and torch.equal(alone[0], together[row])
                clause.expect(same, f"{prompt!r:.40} alone to have the same ids as in a batch", "other ids")
        clause.expect(
            torch.equal(tokenizer(PROMPTS), together), "the same ids when called again", "other ids"
        )
        distinct = len({tuple(row) for row in together.tolist()})
        clause.expect(
            distinct == len(PROMPTS), f"{len(PROMPTS)} different prompts to differ", f"{distinct} rows"
        )
