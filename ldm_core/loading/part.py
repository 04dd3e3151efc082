"""The classes that make up a row of the registry in `parts`: one kind of network and its names in files.

A layout is one set of names that files give the tensors of a network, with the prefixes under which it
occurs: CompVis's `model.diffusion_model.`, the `unet.` of repackaged files, or none in a file of one part.
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
from ldm_core.protocols import Conditioner


def unchanged(config: Any) -> Any:
    return config


@dataclass(frozen=True)
class Layout:
    """One set of names for a part's tensors.

    marks      prefixes of keys, after the file's prefix; a file contains the part if each mark has a key
    key_map    configuration -> map from these names to the network's parameters
    prove      shapes -> the configuration that they prove; None if they prove nothing
    prefixes   pairs (prefix of the file, prefix of the part's class) to search, in this order
    original   the prefix that `save` writes in a file of a whole model
    extras     names of other tensors in such files -> why they are not needed
    canonical  older name -> the name in the map
    together   tensors that are dropped unless all of them are present
    accepts    shapes by name -> whether they can be this part; None for names that no other part has
    buffers    configuration -> the buffers of the original class
    beside     prefixes of the file besides the one that is used -> why their tensors are not needed
    pth_entry  the entry of a `.pth` file that contains the tensors; none: the file's dictionary does
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
    accepts: Callable[[Shapes], bool] | None = None
    buffers: Callable[[Any], dict[str, Tensor]] = lambda config: {}
    beside: Mapping[str, str] = field(default_factory=dict)
    pth_entry: str | None = None


@dataclass(frozen=True)
class Folder:
    """A part in a diffusers folder.

    stems    the subfolder, by its names in different pipelines -> the stem of the file of weights in it. If a
             pipeline has several of them, the part is in all, and its layout's names begin with theirs
    layout   the name of its layout; prefix: the prefix of its class
    read     (its `config.json`, all JSON files of the folder) -> configuration
    write    (a model's configuration, the subfolder) -> the files of the part, by path: JSON values, or text
    classes  name in `model_index.json` -> the library, the class to write, other classes that can be read
    stored   configuration -> the configuration of the weights that the folder stores
    filled   configuration -> the values of the parameters that only the stored one has
    """

    stems: Mapping[str, str]
    layout: str
    read: Callable[[Mapping[str, Any], Mapping[str, Any]], Any]
    write: Callable[[LatentDiffusionConfig, str], dict[str, Any]]
    classes: Mapping[str, tuple[str, ...]]
    prefix: str = ""
    stored: Callable[[Any], Any] = unchanged
    filled: Callable[[Any], dict[str, Tensor]] = lambda config: {}


@dataclass(frozen=True)
class Section:
    """A part in CompVis's YAML.

    name     the section; targets: the classes of the section or of the whole model, one of which it must
             name; empty for any
    read     the `params` of the whole model -> configuration, or None if they do not describe this part
    sized    (that configuration, the configuration that shapes prove) -> configuration with all sizes
    """

    name: str
    read: Callable[[Mapping[str, Any]], Any]
    targets: tuple[str, ...] = ()
    sized: Callable[[Any, Any], Any] = lambda named, proven: named


@dataclass(frozen=True)
class Part:
    """One kind of network.

    name       as in `load_part`; words: the name in messages
    config     the class of its configuration, a frozen dataclass that raises ConfigError for invalid values
    network    configuration -> network; not used for a part without layouts, which has no weights
    fills      the field of `LatentDiffusion` and its configuration, or None for a network outside models;
               of several parts that fill one field, the first that is found in a file is used
    layouts    the names that files give its tensors; written: configuration -> the layout that `save` writes
    blank      configuration -> the same with every value that shapes cannot prove set to a fixed one
    proves_all whether `blank` keeps everything that affects the network's output
    fewest     configuration -> a lower bound on the number of tensors, computed quickly
    reduced    configuration -> equivalent configurations with other tensors, for files that hold these
    without    configuration -> the same without weights, for a part that a file may lack; None: no file may
    says       file -> its claims on the whole model; brings: the fields of the model that belong to this part
    tokenizer  (configuration, words to add) -> tokenizer; adds_words: whether files may add words to it
    conditions (configuration, the model's networks and its "tokenizer") -> the model's conditioner
    call       an example of the sampler's method and arguments for this conditioner
    files      configuration -> the names of the published files of this network
    licence    configuration -> the licence of their weights; "" where this package says nothing about it
    door       the call that loads a file of a network outside models, a format of its path and name
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
    without: Callable[[Any], Any] | None = None
    says: Says = lambda checkpoint: ()
    brings: tuple[str, ...] = ()
    folder: Folder | None = None
    section: Section | None = None
    tokenizer: Callable[[Any, Any], Any] | None = None
    adds_words: bool = False
    conditions: Callable[[Any, Mapping[str, Any]], Conditioner] | None = None
    call: str = ""
    files: Callable[[Any], tuple[str, ...]] = lambda config: ()
    licence: Callable[[Any], str] = lambda config: ""
    door: str = "ldm_core.load_part({path!r}, {name!r})"

    @property
    def slot(self) -> str:
        """The key of this part in dictionaries of parts."""
        return self.fills or self.name

    @property
    def article(self) -> str:
        return f"{'an' if self.words[0] in 'aeio' else 'a'} {self.words}"

    def has_weights(self, config: Any) -> bool:
        """Whether files contain tensors of this configuration."""
        return bool(self.layouts) and (self.without is None or self.without(config) != config)

    def layout(self, name: str | None) -> Layout:
        """The layout with this name; None: the first."""
        return next(layout for layout in self.layouts if name in (None, layout.name))
