"""Exercise 12: the keys of a CompVis U-Net, from the names of this package's parameters."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import lru_cache

from ldm_core.exercises.user_file import UserFile, Wrong
from ldm_core.nn.placement import parameter_names
from ldm_core.unet import UNet, UNetConfig
from ldm_core.unet.names import compvis_map

CONFIG = UNetConfig(
    model_channels=32,
    channel_mult=(1, 2, 4),
    num_res_blocks=2,
    attention_resolutions=(1, 2),
    num_heads=4,
    context_dim=32,
)
BLOCKS, ATTENDS = CONFIG.num_res_blocks, (True, True, False)

# What is tested together, in the order of the walk through the network.
GROUPS = (
    ("the embedding of t, and the first and last layers", r"(time_embed|conv_in|norm_out|conv_out)\."),
    ("the residual blocks on the way down", r"down\.\d+\.blocks\.\d+\.res\."),
    ("the transformers on the way down", r"down\.\d+\.blocks\.\d+\.attention\."),
    ("the downsampling", r"down\.\d+\.resample\."),
    ("the middle", r"mid\."),
    ("the residual blocks on the way up", r"up\.\d+\.blocks\.\d+\.res\."),
    ("the transformers on the way up", r"up\.\d+\.blocks\.\d+\.attention\."),
    ("the upsampling", r"up\.\d+\.resample\."),
)


@lru_cache(maxsize=1)
def library_keys() -> dict[str, str]:
    """The key of each parameter of a small U-Net: {name here: key in a CompVis file}."""
    return {parameter: key for key, entry in compvis_map(CONFIG).items() for parameter in entry.parameters}


def check(answer: UserFile) -> Iterator[str]:
    file_key = answer.get("file_key")
    expected = library_keys()
    actual: dict[str, str] = {}
    for words, pattern in GROUPS:
        yield f"{words}"
        for name in parameter_names(UNet, CONFIG):
            if re.match(pattern, name):
                actual[name] = answer.call(file_key, name, BLOCKS, ATTENDS)
        _compare({name: key for name, key in actual.items() if re.match(pattern, name)}, expected)
    yield "each parameter has a key of its own"
    if len(set(actual.values())) != len(actual):
        raise Wrong("Two parameters have the same key.")


def _compare(actual: dict[str, str], expected: dict[str, str]) -> None:
    wrong = [name for name, key in actual.items() if key != expected[name]]
    if not wrong:
        return
    name = wrong[0]
    if not isinstance(actual[name], str):
        raise Wrong(f"file_key must return a string, not a {type(actual[name]).__name__}.")
    lines = [f"{len(wrong)} of {len(actual)} keys are wrong."]
    lines += [words for words, mistake in MISTAKES.items() if _gives(mistake, actual, expected, wrong)][:1]
    lines.append(f"for  {name}\n  got       {actual[name]}\n  expected  {expected[name]}")
    raise Wrong("\n".join(lines))


Mistake = Callable[[str, str], str]  # (the parameter's name, its right key) -> the wrong key


def _gives(mistake: Mistake, actual: dict[str, str], expected: dict[str, str], wrong: list[str]) -> bool:
    """Whether a mistake explains all wrong keys."""
    return all(mistake(name, expected[name]) == actual[name] for name in wrong)


def _renumbered(path: str, number: Callable[[int, int], int]) -> Mistake:
    """Another number of the block: of level l and block i on the way `path`."""

    def mistake(name: str, key: str) -> str:
        found = re.match(rf"{path}\.(\d+)\.(?:blocks\.(\d+)|resample)\.", name)
        if not found:
            return key
        level, block = int(found[1]), BLOCKS if found[2] is None else int(found[2])
        return re.sub(r"^(\w+)\.\d+", rf"\g<1>.{number(level, block)}", key)

    return mistake


def _replaced(pattern: str, by: str) -> Mistake:
    return lambda name, key: re.sub(pattern, by, key)


R = BLOCKS + 1
MISTAKES: dict[str, Mistake] = {
    "input_blocks.0 is the first convolution: the blocks begin at 1, and yours at 0.": _renumbered(
        "down", lambda level, i: level * R + i
    ),
    "The downsampling at the end of a level has a number of its own: a level has blocks + 1.": _renumbered(
        "down", lambda level, i: 1 + level * BLOCKS + i
    ),
    "The numbers begin at 2; input_blocks.0 is the first convolution, and 1 the first block.": _renumbered(
        "down", lambda level, i: 2 + level * R + i
    ),
    "The numbers begin anew at each level: the file counts across levels.": lambda name, key: _renumbered(
        "down", lambda level, i: 1 + i
    )(name, _renumbered("up", lambda level, i: i)(name, key)),
    "A level has one block more on the way up than on the way down, blocks + 1: the numbers of yours "
    "overlap.": _renumbered("up", lambda level, i: level * BLOCKS + i),
    "The upsampling has no number of its own: a level on the way up is blocks + 1 long.": (
        _renumbered("up", lambda level, i: level * (R + 1) + i)
    ),
    "The upsampling has no number of its own: it is in the last block of its level, one before yours.": (
        _renumbered(r"up(?=\.\d+\.resample)", lambda level, i: level * R + i + 1)
    ),
    "output_blocks begin at 0: only input_blocks has another layer before them.": _renumbered(
        "up", lambda level, i: 1 + level * R + i
    ),
    "up.0 is the coarsest level, the first on the way up, as in the file: you count from the other end.": (
        _renumbered("up", lambda level, i: (len(ATTENDS) - 1 - level) * R + i)
    ),
    "The upsampling stands last in its block: after the transformer, at 2, if the level has one, or else "
    "after the residual block, at 1. Yours is always at 1.": _replaced(
        r"^(output_blocks\.\d+)\.2\.conv", r"\1.1.conv"
    ),
    "The upsampling stands last in its block: after the transformer, at 2, if the level has one, or else "
    "after the residual block, at 1. Yours is always at 2.": _replaced(
        r"^(output_blocks\.\d+)\.1\.conv", r"\1.2.conv"
    ),
    "In its block, the residual block is at 0 and the transformer at 1: you have them at the same place.": (
        _replaced(r"^((?:in|out)put_blocks\.\d+)\.1\.", r"\1.0.")
    ),
    "The downsampling is named `op`, not `conv`: only the upsampling is `conv`.": _replaced(
        r"\.op\.", ".conv."
    ),
    "The upsampling is named `conv`, not `op`: only the downsampling is `op`.": _replaced(
        r"(output_blocks.*)\.conv\.", r"\1.op."
    ),
    "The first convolution is the list input_blocks.0, so its place in it, 0, belongs to the key.": _replaced(
        r"^input_blocks\.0\.0", "input_blocks.0"
    ),
    "out_layers has a dropout at 2: the second convolution is out_layers.3.": _replaced(
        r"out_layers\.3", "out_layers.2"
    ),
    "The SiLU has a number, too: the first convolution is in_layers.2 (norm 0, SiLU 1).": _replaced(
        r"in_layers\.2", "in_layers.1"
    ),
    "The SiLU in between has a number, too: the second convolution of a block is out_layers.3 (norm 0, SiLU "
    "1, dropout 2), and the first in_layers.2 (norm 0, SiLU 1).": lambda name, key: key.replace(
        "out_layers.3", "out_layers.2"
    ).replace("in_layers.2", "in_layers.1"),
    "The SiLU comes first in emb_layers, at 0: the linear layer is emb_layers.1.": _replaced(
        r"emb_layers\.1", "emb_layers.0"
    ),
    "The SiLU has a number, too: linear2 is time_embed.2, and conv_out is out.2.": _replaced(
        r"^(time_embed|out)\.2", r"\1.1"
    ),
    "The output of an attention is a list with a dropout: `to_out.0`.": _replaced(r"to_out\.0", "to_out"),
    "A transformer's blocks are named transformer_blocks in the file.": _replaced(
        r"transformer_blocks\.", "blocks."
    ),
    "The feed-forward is a list, net: ff.net.0.proj, dropout, ff.net.2.": lambda name, key: key.replace(
        "ff.net.0.proj", "ff.proj_in"
    ).replace("ff.net.2", "ff.proj_out"),
    "The second layer of the feed-forward is ff.net.2: the dropout is at 1.": _replaced(
        r"ff\.net\.2", "ff.net.1"
    ),
    "The middle has its parts at 0, 1 and 2: residual block, transformer, residual block.": _replaced(
        r"^middle_block\.2", "middle_block.1"
    ),
}
