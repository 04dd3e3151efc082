"""The prompts of `txt2img`, `img2img` and `inpaint`, checked against the model."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import dataclass

from ldm_core.cli.inputs import Subject, read_prompts, uninterpreted
from ldm_core.cli.kinds import kind_of, usage
from ldm_core.cli.model import chosen
from ldm_core.model import LatentDiffusion
from ldm_core.recipe import Recipe
from ldm_core.support.warn import warn

NOTHING = "there is nothing to draw; give a prompt, --prompts FILE or --from FILE.png"


@dataclass(frozen=True)
class Prompts:
    """The prompts, and a negative prompt for each. None at all: one picture by a model that takes no text."""

    command: str
    prompts: list[str]
    negatives: list[str]

    @property
    def count(self) -> int:
        return max(len(self.prompts), 1)

    def subjects(self, model: LatentDiffusion) -> list[Subject]:
        """The inputs of the pictures. Raises ValueError for a model of other inputs."""
        kind = kind_of(model.conditioner)
        if kind.command == "inpaint" == self.command:
            if any([*self.prompts, *self.negatives]):
                raise ValueError(f"expected no prompt: {usage(model.conditioner)}")
            return [Subject(None, {})] * self.count
        if kind.command != "txt2img":
            raise ValueError(f"{self.command} cannot draw with this model; {usage(model.conditioner)}")
        if not self.prompts:
            raise ValueError(NOTHING)
        texts = zip(self.prompts, self.negatives)
        return [Subject(one, {"prompt": one, "negative_prompt": negative}) for one, negative in texts]


def open_prompts(args: Namespace, again: Recipe | None) -> Prompts:
    """The prompts of the command line or of the recipe. Warns of syntax that is not interpreted."""
    if args.prompt and args.prompts is not None:
        raise ValueError("expected prompts or --prompts FILE, not both")
    if args.prompts is not None:
        prompts = read_prompts(args.prompts)
    elif args.prompt or again is None:
        prompts = args.prompt
    else:
        prompts = [again.prompt]
    if not prompts and (args.command != "inpaint" or args.model is None):
        raise ValueError(NOTHING)
    negatives = args.negative_prompt or [again.negative_prompt if again else ""]
    count = max(len(prompts), 1)
    if len(negatives) not in (1, count):
        raise ValueError(
            f"expected one --negative-prompt, or {count}, one for each prompt, got {len(negatives)}"
        )
    weighted = chosen(args, again, "prompt_syntax") is not None
    _warn_of_uninterpreted([*prompts, *negatives], weighted)
    return Prompts(args.command, prompts, negatives * (count // len(negatives)))


def _warn_of_uninterpreted(prompts: list[str], weighted: bool) -> None:
    """weighted: whether a syntax is set that reads weights."""
    found = [text for text in uninterpreted(prompts) if text.startswith("<") or not weighted]
    if found:
        quoted = ", ".join(f"{text!r:.100}" for text in found)
        hint = "; apply a LoRA with --lora FILE" if found[0].startswith("<") else ""
        warn(f"this syntax in prompts is not interpreted, but read as ordinary text: {quoted}{hint}")
