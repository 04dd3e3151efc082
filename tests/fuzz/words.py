"""What a fuzzer could not guess: the words of each target's format."""

from __future__ import annotations

from dataclasses import fields
from itertools import chain

from ldm_core.checkpoint.pickle_globals import KNOWN, KNOWN_RECORDS
from ldm_core.checkpoint.safetensors_reader import DTYPES
from ldm_core.recipe import Recipe
from ldm_core.recipe.parameters_text import SAMPLERS

_CONFIGURATION = """
    model params unet_config first_stage_config cond_stage_config ddconfig target in_channels out_channels
    model_channels attention_resolutions num_res_blocks channel_mult num_heads num_head_channels num_classes
    use_spatial_transformer transformer_depth context_dim use_linear_in_transformer disable_self_attentions
    adm_in_channels sequential embed_dim z_channels resolution out_ch ch ch_mult attn_resolutions double_z
    linear_start linear_end timesteps image_size scale_factor scale_by_std parameterization beta_schedule
    __is_unconditional__ __is_first_stage__ conditioning_key concat_mode crossattn concat hybrid adm n_embed
    anchor attn_type vanilla tanh_out give_pre_end resblock_updown use_scale_shift_norm conv_resample dims
    use_ema max_seq_len n_layer vocab_size use_tokenizer cosine sqrt_linear num_heads_upsample legacy remap
    layer penultimate FrozenOpenCLIPEmbedder &a *a !!float !!timestamp !!set !!binary !!python/name:os.system
    .inf .nan -1 1e999 0x10 1:30 null true << *
"""
_SETTINGS = (
    "Steps", "Sampler", "Seed", "Size", "Schedule type", "Eta", "CFG scale", "Denoising strength",
    "Clip skip", "Model", "Model hash", "Negative prompt",
)  # fmt: skip
_TAR = """
    GNU.sparse.major=1 GNU.sparse.minor=0 GNU.sparse.map=0,1 GNU.sparse.size=9 GNU.sparse.realsize=9
    GNU.sparse.numblocks=1 GNU.sparse.offset=0 GNU.sparse.numbytes=1 GNU.sparse.name=a.png size=9 path=a.png
    mtime=nan hdrcharset=BINARY linkpath=a.txt .png .txt .json .gif ././@LongLink ././@PaxHeader caption text
"""
_PROMPT = (
    "&amp; &lt; &#x &#1114112; &nbsp; <start_of_text> <end_of_text> <cat-toy> 's 'll â€œ Ã© ﬁ ſ \u0345 🐱"
    " <|startoftext|> <|endoftext|>"
)


def _globals() -> list[bytes]:
    names = (name.rpartition(".") for name in chain(KNOWN, KNOWN_RECORDS, ("posix.system", "__torch__.M")))
    return [f"c{module}\n{name}\n".encode() for module, _, name in names]


def _texts(*words: str) -> list[bytes]:
    return [f"X{chr(len(word))}\0\0\0{word}".encode() for word in words]


WORDS: dict[str, tuple[bytes, ...]] = {
    "pickle": (
        *_globals(), *_texts("storage", "state_dict", "cpu", "0", "<", "U5"),
        b"}(", b"(t", b"tR", b"\x85R", b"\x86R", b"Q", b"\x81", b"\x92", b"\x93", b"\x94", b"h\0", b"q\0",
        b"0h\0", b"sb", b"PK\1\2", b"PK\3\4", b"PK\5\6", b"PK\6\6", b"PK\6\7", b"\xff" * 4, b"\x8a\x08",
    ),
    "recipe": (
        *(f'"{field.name}": '.encode() for field in fields(Recipe)),
        *(f"{name}: ".encode() for name in _SETTINGS),
        *(name.encode() for name in SAMPLERS),
        b"\\ud800", b"NaN", b"1e999", b"-1", b'"path": ', b'"sha256": ', b'"scale": ', b'"file": {',
        b"tEXt", b"zTXt", b"iTXt", b"eXIf", b"ldm_core\0", b"parameters\0",
    ),
    "yaml": tuple(word.encode() for word in _CONFIGURATION.split()),
    "safetensors": (
        *(f'"{code}"'.encode() for code in DTYPES),
        b'"dtype":', b'"shape":[', b'"data_offsets":[', b'"__metadata__":{', b"9223372036854775807",
        b'"betas"', b'"v_pred"', b'"ztsnr"', b'"position_ids"', b'"global_step"', b'"ldm_core.config"',
        b"\\ud800",
    ),
    "shards": (*(word.encode() for word in _TAR.split()), b"\x80" + bytes(7), b"\xff" * 8, b"ustar\x0000"),
    "tokenizer": tuple(word.encode() for word in _PROMPT.split()),
}  # fmt: skip
