"""What a row of the registry says of a kind of network: see `parts`.

A layout is one set of names that people's files give a network's tensors, with the prefixes that it is found
under: CompVis's `model.diffusion_model.`, the `unet.` of repackaged files, nothing in a file of one part.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from ldm_core.checkpoint.key_map import KeyMap
from ldm_core.checkpoint.shapes import Shapes
from ldm_core.config import LatentDiffusionConfig
from ldm_core.loading.statements import Says


def unchanged(config: Any) -> Any:
    return config


@dataclass(frozen=True)
class Layout:
    """One set of names for a part's tensors.

    marks      how keys begin, after the prefix; a file has the part where there is a key for each mark
    key_map    a configuration's map from these names to the network's parameters
    prove      the configuration that the shapes of tensors of these names prove; None if they prove none
    prefixes   where the part is found, in this order: pairs of what a file puts before the part, and what
               the part's own class puts before its names
    original   the prefix that `save` writes in a file of a whole model
    extras     what else such files hold, and why it is not needed
    canonical  older spellings of a name to the map's
    together   tensors that are dropped unless all of them are there
    buffers    what the original class keeps besides parameters, for a configuration
    """

    name: str
    marks: tuple[str, ...]
    key_map: Callable[[Any], KeyMap]
    prove: Callable[[Shapes], Any] | None = None
    prefixes: tuple[tuple[str, str], ...] = (("", ""),)
    original: str = ""
    extras: Mapping[str, str] = field(default_factory=dict)
    canonical: Callable[[str], str] = str
    together: tuple[str, ...] = ()
    buffers: Callable[[Any], dict[str, Tensor]] = lambda config: {}


@dataclass(frozen=True)
class Folder:
    """A part in a diffusers folder.

    name     the subfolder, and file the path of the weights without its ending
    layout   the names of its tensors, and prefix what its class puts before them
    read     its `config.json` and all of the folder's JSON files to a configuration
    write    a model's configuration to the part's files, by path: JSON values, or text
    classes  by name in `model_index.json`: the library, the class that is written, others that are read
    stored   the configuration of what the folder keeps
    """

    name: str
    file: str
    layout: str
    read: Callable[[Mapping[str, Any], Mapping[str, Any]], Any]
    write: Callable[[LatentDiffusionConfig], dict[str, Any]]
    classes: Mapping[str, tuple[str, ...]]
    prefix: str = ""
    stored: Callable[[Any], Any] = unchanged


@dataclass(frozen=True)
class Section:
    """A part in CompVis's YAML.

    name     the section, and targets the classes that it may name; none stands for any
    read     all of the model's parameters to a configuration
    sized    that configuration with the sizes, proved by shapes, that YAML does not state
    """

    name: str
    read: Callable[[Mapping[str, Any]], Any]
    targets: tuple[str, ...] = ()
    sized: Callable[[Any, Any], Any] = lambda named, proven: named


@dataclass(frozen=True)
class Part:
    """One kind of network.

    name       for `load_part`, and words for messages
    config     the class of its configuration, a frozen dataclass that raises ConfigError for values that no
               file may claim; network what is built from one
    fills      the field of `LatentDiffusion` and of its configuration that it is, or None for neither;
               several parts may fill one, and a file has the first of them that is found in it
    layouts    the names that files give its tensors; written: which of them `save` writes
    blank      a configuration with what shapes cannot prove set to one value; with proves_all, nothing that
               the network computes is lost by it
    fewest     how many tensors a network of a configuration has at least, counted in a moment
    reduced    configurations of fewer tensors that give the same numbers, for files that lack the others
    says       what a file of this part says of the whole model; brings: which of its fields are this part's
    tokenizer  (configuration, words beyond its vocabulary) to what turns text into its input
    """

    name: str
    words: str
    config: type[Any]
    network: Callable[[Any], nn.Module]
    layouts: tuple[Layout, ...]
    fills: str | None = None
    written: Callable[[Any], str | None] = lambda config: None
    blank: Callable[[Any], Any] = unchanged
    proves_all: bool = False
    fewest: Callable[[Any], int] = lambda config: 0
    reduced: Callable[[Any], tuple[Any, ...]] = lambda config: ()
    says: Says = lambda checkpoint: ()
    brings: tuple[str, ...] = ()
    folder: Folder | None = None
    section: Section | None = None
    tokenizer: Callable[[Any, Any], Any] | None = None

    @property
    def slot(self) -> str:
        """The key of this part among the parts of a file or model."""
        return self.fills or self.name

    @property
    def article(self) -> str:
        return f"{'an' if self.words[0] in 'aeio' else 'a'} {self.words}"

    def layout(self, name: str | None) -> Layout:
        """The layout of this name; None for the first."""
        return next(layout for layout in self.layouts if name in (None, layout.name))
