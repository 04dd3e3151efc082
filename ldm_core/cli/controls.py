"""Controls and image prompts of a drawing: from the options, or the recipe of `--from`, to the sampler.

What the command line lacks comes from the recipe, also for a single value: the k-th `--control` has the
settings of the recipe's k-th control, unless they are given.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from ldm_core.adapters.ip_adapter import apply_ip_adapter, image_encoder_of
from ldm_core.cli.inputs import fitted, named, open_rgb
from ldm_core.cli.model import chosen
from ldm_core.cli.recipe_files import CONTROL_FILES, control_files, recorded_path
from ldm_core.control.coadapter import CoAdapterFuser, StyleAdapter
from ldm_core.control.control import Control
from ldm_core.loading.control import load_control
from ldm_core.model import LatentDiffusion
from ldm_core.recipe import ControlFile, Recipe, SourceFile, source_file

if TYPE_CHECKING:
    from PIL.Image import Image

SETTINGS = {  # fields of a control, by the option that gives them
    "control_strength": ("strength",),
    "control_window": ("start", "end"),
    "control_guess": ("guess",),
    "control_mid_only": ("mid_only",),
    "control_pool": ("global_pool",),
}


@dataclass(frozen=True)
class Controls:
    """Controls with their hints, and the image prompt with its pictures, before the model is loaded.

    scale: of the image prompt; None without one.
    """

    controls: Sequence[tuple[ControlFile, Image]] = ()
    ip_adapter: SourceFile | None = None
    clip: SourceFile | None = None
    prompts: Sequence[tuple[SourceFile, Image]] = ()
    scale: float | None = None

    def apply(self, model: LatentDiffusion, size: tuple[int, int]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Load the networks: (the arguments of `Sampler.sample`, the fields of a recipe).

        size: width and height in pixels, to which hints are cropped and scaled. The IP-Adapter is put on the
        model. Raises CheckpointError for a file that does not fit the model, and ValueError for settings that
        a control does not take.
        """
        arguments: dict[str, Any] = {}
        clip: Any = None
        if self.clip is not None:
            clip = image_encoder_of(self.clip.path, next(model.modules["unet"].parameters()))
        if self.controls:
            arguments["controls"] = [_control(*one, model, size, clip) for one in self.controls]
        if self.ip_adapter is not None:
            apply_ip_adapter(model, str(self.ip_adapter.path), clip=clip)
            arguments |= {"image_prompt": [picture for _, picture in self.prompts], "image_scale": self.scale}
        elif clip is not None and not any(_is_style(one) for one in arguments["controls"]):
            raise ValueError("--clip is for --ip-adapter, or for a style adapter as --control")
        return arguments, {
            "controls": tuple(record for record, _ in self.controls),
            "ip_adapter": self.ip_adapter,
            "clip": self.clip,
            "image_prompts": tuple(record for record, _ in self.prompts),
            "image_scale": self.scale,
        }


def open_controls(args: Namespace, again: Recipe | None) -> Controls:
    """Check the options and open the pictures. Raises ValueError or OSError, before the model is loaded."""
    if "controls" not in args:
        return Controls()
    paths = {name: _paths(args, again, name) for name in CONTROL_FILES}
    adapter, clip, prompts = (paths[name] for name in ("ip_adapter", "clip", "image_prompts"))
    scale = chosen(args, again, "image_scale")
    settings = _settings(args, again, len(paths["controls"]))
    if len(paths["controls"]) != len(paths["hints"]):
        counts = (len(paths[name]) for name in ("hints", "controls"))
        raise ValueError("expected a --hint for each --control, got {} for {}".format(*counts))
    require_clip(adapter, clip, or_controls=bool(paths["controls"]))
    if bool(adapter) != bool(prompts):
        needs = ("--ip-adapter FILE", "--image-prompt PICTURE")
        raise ValueError("{} needs {}".format(*(needs if adapter else needs[::-1])))
    if scale is not None and not prompts:
        raise ValueError("--image-scale needs --image-prompt PICTURE")
    return Controls(
        controls=[
            (ControlFile(source_file(network), source_file(hint), **own), open_rgb(hint, "--hint"))
            for network, hint, own in zip(paths["controls"], paths["hints"], settings)
        ],
        ip_adapter=source_file(adapter[0]) if adapter else None,
        clip=source_file(clip[0]) if clip else None,
        prompts=[(source_file(path), open_rgb(path, "--image-prompt")) for path in prompts],
        scale=1.0 if scale is None and prompts else scale,
    )


def require_clip(adapter: Any, clip: Any, *, or_controls: bool = False) -> None:
    """Raise ValueError for an IP-Adapter without a CLIP, or a CLIP that nothing takes."""
    if adapter and not clip:
        raise ValueError("--ip-adapter needs --clip FILE|FOLDER, the CLIP that it was made for")
    if clip and not adapter and not or_controls:
        raise ValueError("--clip needs --ip-adapter FILE")


def _paths(args: Namespace, again: Recipe | None, name: str) -> list[str]:
    """The paths of one kind of files: the given ones, or else the recipe's."""
    given = getattr(args, name)
    if given is not None:
        return given if isinstance(given, list) else [given]
    files = [] if again is None else control_files(again)[name]
    folder = name in ("controls", "clip")
    return [recorded_path(args.recipe, file, CONTROL_FILES[name], folder=folder) for file in files]


def _settings(args: Namespace, again: Recipe | None, count: int) -> list[dict[str, Any]]:
    """The settings of each control, of those that are given or in the recipe."""
    own = [field.name for field in fields(ControlFile) if field.name not in ("network", "hint")]
    recorded = () if again is None else again.controls[:count]
    settings = [{name: getattr(one, name) for name in own} for one in recorded]
    settings += [{} for _ in range(count - len(settings))]
    for name, names in SETTINGS.items():
        values, option = getattr(args, name), f"--{name.replace('_', '-')}"
        if values is None:
            continue
        if not count:
            raise ValueError(f"{option} needs --control FILE")
        if len(values) not in (1, count):
            raise ValueError(f"{option}: expected one value, or one for each --control, got {len(values)}")
        for row, value in zip(settings, values * (count // len(values))):
            row |= zip(names, value if len(names) > 1 else (value,))
    return settings


def _control(
    record: ControlFile, hint: Image, model: LatentDiffusion, size: tuple[int, int], clip: Any
) -> Control:
    path = str(record.network.path)
    net = load_control(path, model=model, global_pool=record.global_pool)
    with named(f"--control {path}"):
        if isinstance(net, CoAdapterFuser):
            raise ValueError("a CoAdapter fuser takes other adapters, for which there are no options")
        if isinstance(net, StyleAdapter) and clip is None:
            raise ValueError("a style adapter needs --clip FILE|FOLDER, the CLIP that it was made for")
        return Control(
            net,
            hint if isinstance(net, StyleAdapter) else fitted(hint, size),
            strength=record.strength,
            start=record.start,
            end=record.end,
            guess=record.guess or False,
            mid_only=record.mid_only,
            clip=clip if isinstance(net, StyleAdapter) else None,
        )


def _is_style(control: Control) -> bool:
    return isinstance(control.net, StyleAdapter)
