"""What models take from the command line: one row for each kind of conditioner."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, stack

from ldm_core.cli.defaults import GUIDANCE
from ldm_core.cli.printing import PROG
from ldm_core.conditioners import (
    ClassEmbedder,
    Depth,
    Grounding,
    Instruction,
    Layout,
    LowResolution,
    MaskedImage,
    NoisedImage,
    Retrieval,
    SemanticMap,
    TextConditioner,
    Unclip,
    Unconditional,
)
from ldm_core.conditioners.noised_image import LEVEL

VALUES = {  # of options, as in their help
    "class": "NAME|NUMBER",
    "layout": "FILE.json",
    "until": "X",
    "map": "FILE.png",
    "depth": "FILE",
    "embeddings": "FILE.safetensors",
    "image": "FILE",
    "mask": "FILE",
    "prompt": "TEXT",
    "number": "N",
}
TEXT = ("prompt", "negative-prompt")


@dataclass(frozen=True)
class Kind:
    """A kind of conditioner.

    words: what its models take, in an error. needs: options of which one must be given; also: others that it
    takes. fields: whether its inputs are mappings with a field for each option, rather than one value.
    picture: the attribute that it lacks if it cannot use an image alone. noise_level: the default.
    command: the command for its models.
    """

    words: str
    needs: tuple[str, ...] = ()
    also: tuple[str, ...] = ()
    fields: bool = False
    picture: str | None = None
    noise_level: int | None = None
    command: str = "sample"

    @property
    def takes(self) -> tuple[str, ...]:
        return (*self.needs, *self.also)

    @property
    def inputs(self) -> tuple[str, ...]:
        """The options that become fields of the conditioner's inputs."""
        return tuple(name for name in self.takes if name != "negative-prompt")

    @property
    def takes_text(self) -> bool:
        return "prompt" in self.takes


KINDS: dict[type[Any], Kind] = {
    TextConditioner: Kind("prompts", ("prompt",), TEXT, command="txt2img"),
    Unconditional: Kind("no inputs"),
    ClassEmbedder: Kind("class labels", ("class",), ("names",)),
    Layout: Kind("layouts", ("layout",), ("names",)),
    SemanticMap: Kind("a map of classes", ("map",)),
    LowResolution: Kind("a small picture", ("image",), command="upscale"),
    NoisedImage: Kind(
        "a small picture and a prompt", ("image",), (*TEXT, "noise-level"), True, None, LEVEL, "upscale"
    ),
    MaskedImage: Kind("a picture and a mask, and no text", ("image", "mask"), command="inpaint"),
    Instruction: Kind("a picture and an instruction", ("image",), TEXT, True),
    Grounding: Kind("a prompt and boxes with words", ("layout", "prompt"), (*TEXT, "until"), True),
    Depth: Kind("a depth map and a prompt", ("depth", "image"), TEXT, True, "estimate"),
    Retrieval: Kind("CLIP embeddings", ("embeddings",)),
    Unclip: Kind(
        "CLIP embeddings or a picture, and a prompt",
        ("embeddings", "image"),
        (*TEXT, "noise-level"),
        True,
        "image_encoder",
        0,
    ),
}


def kind_of(conditioner: Any) -> Kind:
    """Raises ValueError for a conditioner that has no row."""
    kind = KINDS.get(type(conditioner))
    if kind is None:
        raise ValueError(
            f"the command line has no options for the inputs of this model, a {type(conditioner).__name__}"
        )
    return kind


def needed(conditioner: Any) -> tuple[str, ...]:
    """The options of which one must be given for this model."""
    kind = kind_of(conditioner)
    lacks = kind.picture is not None and getattr(conditioner, kind.picture) is None
    return tuple(name for name in kind.needs if not (lacks and name == "image"))


def usage(conditioner: Any) -> str:
    """What a model takes, and the command for it."""
    kind = kind_of(conditioner)
    if kind.command == "txt2img":
        example = "txt2img PROMPT --model FILE"
    elif kind.command == "inpaint":
        example = f"inpaint --model FILE {_options(kind.needs, ' ')}"
    else:
        example = f"{kind.command} FILE {_options(needed(conditioner) or ('number',), ' | ')}"
    return f"this model takes {kind.words}: {PROG} {example}"


def _options(names: Sequence[str], separator: str) -> str:
    return separator.join(f"--{name} {VALUES[name]}" for name in names)


def require_inputs(conditioner: Any, command: str, given: Collection[str]) -> None:
    """Raise ValueError unless this command with these options can draw with this model."""
    kind = kind_of(conditioner)
    if kind.command == "inpaint" or (command == "upscale" and kind.command != command):
        raise ValueError(f"{command} cannot draw with this model; {usage(conditioner)}")
    refused = [f"--{name}" for name in given if name not in kind.takes]
    if refused:
        raise ValueError(f"{', '.join(refused)}: not taken by this model; {usage(conditioner)}")
    if kind.needs and not set(needed(conditioner)) & set(given):
        raise ValueError(usage(conditioner))


def is_guided(conditioner: Any) -> bool:
    """Whether the model has an unconditional condition, which guidance requires."""
    return conditioner.unconditional is not None or hasattr(conditioner, "unconditional_for")


def default_guidance(conditioner: Any) -> float:
    """The guidance scale of the original scripts; 1 without an unconditional condition."""
    return float(getattr(conditioner, "guidance_scale", GUIDANCE)) if is_guided(conditioner) else 1.0


def joined(inputs: Sequence[Any]) -> tuple[Any, int]:
    """Inputs of one picture each as the conditioner takes them, and the number of pictures for each.

    Pictures without an input of their own, of unconditional models, count as pictures of one input.
    """
    if inputs[0] is None:
        return None, len(inputs)
    return (stack(list(inputs)) if isinstance(inputs[0], Tensor) else list(inputs)), 1
