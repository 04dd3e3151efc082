"""The rows of the registry for the networks that restore, find and parse faces. They belong to no model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from ldm_core.checkpoint.key_map import KeyMap
from ldm_core.checkpoint.shapes import Shapes
from ldm_core.loading.part import Layout, Part
from ldm_core.restoration import published
from ldm_core.restoration.codeformer import (
    CodeFormer,
    CodeFormerConfig,
    FaceAutoencoder,
    FaceAutoencoderConfig,
)
from ldm_core.restoration.codeformer import names as codeformer_names
from ldm_core.restoration.codeformer import shapes as codeformer_shapes
from ldm_core.restoration.gfpgan import GFPGAN, GFPGANConfig
from ldm_core.restoration.gfpgan import names as gfpgan_names
from ldm_core.restoration.gfpgan import shapes as gfpgan_shapes
from ldm_core.restoration.gpen import GPEN, GPENConfig
from ldm_core.restoration.gpen import names as gpen_names
from ldm_core.restoration.gpen import shapes as gpen_shapes
from ldm_core.restoration.parsenet import ParseNet, ParseNetConfig
from ldm_core.restoration.parsenet import names as parsenet_names
from ldm_core.restoration.parsenet import shapes as parsenet_shapes
from ldm_core.restoration.retinaface import RetinaFace, RetinaFaceConfig
from ldm_core.restoration.retinaface import names as retinaface_names

# The entries of a file under which training programs store the weights; those before averaging come second.
EMA, TRAINED, EMA_GENERATOR = "params_ema", "params", "g_ema"
_PREFIXES = tuple((prefix, "") for prefix in (f"{EMA}.", f"{TRAINED}.", f"{EMA_GENERATOR}.", "module.", ""))
_BESIDE = {
    f"{TRAINED}.": f"the weights before averaging; {EMA} has the average",
    "g.": f"the weights before averaging; {EMA_GENERATOR} has the average",
    "d.": "the discriminator, used in training only",
    "g_optim.": "the optimizer's state, used in training only",
    "d_optim.": "the optimizer's state, used in training only",
}
_DOOR = "ldm_core.restoration.load({path!r})"


def _layout(
    name: str,
    marks: tuple[str, ...],
    key_map: Callable[[Any], KeyMap],
    prove: Callable[[Shapes], Any],
    entry: str = "",
    accepts: Callable[[Shapes], bool] | None = None,
) -> Layout:
    return Layout(name, marks, key_map, prove, _PREFIXES, beside=_BESIDE, pth_entry=entry, accepts=accepts)


def _part(
    name: str,
    words: str,
    config: type[Any],
    network: Callable[[Any], nn.Module],
    layouts: tuple[Layout, ...],
    fewest: Callable[[Any], int],
    **more: Any,
) -> Part:
    return Part(
        name, words, config, network, layouts,
        proves_all=True, fewest=fewest, files=published.files, licence=published.licence, door=_DOOR, **more,
    )  # fmt: skip


def _alone(shapes: Shapes) -> bool:
    """Whether an autoencoder is not that of a CodeFormer."""
    return "position_emb" not in shapes


RESTORATION_PARTS: tuple[Part, ...] = (
    _part(
        "codeformer", "CodeFormer face restorer", CodeFormerConfig, CodeFormer,
        (
            _layout(
                "codeformer", ("generator.blocks.", "idx_pred_layer."), codeformer_names.key_map,
                codeformer_shapes.codeformer_config, EMA,
            ),
        ),
        codeformer_shapes.fewest_tensors,
    ),
    _part(
        "face_autoencoder", "VQ autoencoder of faces", FaceAutoencoderConfig, FaceAutoencoder,
        (
            _layout(
                "codeformer", ("generator.blocks.", "quantize.embedding."), codeformer_names.key_map,
                codeformer_shapes.autoencoder_config, EMA, _alone,
            ),
        ),
        codeformer_shapes.fewest_tensors,
    ),
    _part(
        "gfpgan", "GFPGAN face restorer", GFPGANConfig, GFPGAN,
        (
            _layout(
                "clean", ("stylegan_decoder.", "conv_body_first.weight"), gfpgan_names.key_map,
                gfpgan_shapes.clean_config, EMA,
            ),
            _layout(
                "original", ("stylegan_decoder.", "conv_body_first.0."), gfpgan_names.key_map,
                gfpgan_shapes.scaled_config, EMA,
            ),
        ),
        gfpgan_shapes.fewest_tensors,
        blank=gfpgan_shapes.blank,
        written=lambda config: "original" if config.scaled else "clean",
    ),
    _part(
        "gpen", "GPEN face restorer", GPENConfig, GPEN,
        (_layout("gpen", ("generator.convs.", "ecd0."), gpen_names.key_map, gpen_shapes.gpen_config),),
        gpen_shapes.fewest_tensors,
    ),
    _part(
        "parsenet", "ParseNet face parser", ParseNetConfig, ParseNet,
        (
            _layout(
                "parsenet", ("encoder.0.conv2d.", "out_mask_conv."), parsenet_names.key_map,
                parsenet_shapes.parsenet_config,
            ),
        ),
        parsenet_shapes.fewest_tensors,
    ),
    _part(
        "retinaface", "RetinaFace face detector", RetinaFaceConfig, RetinaFace,
        (
            _layout(
                "retinaface", ("body.", "fpn.", "LandmarkHead."), retinaface_names.key_map,
                retinaface_names.retinaface_config,
            ),
        ),
        retinaface_names.fewest_tensors,
    ),
)  # fmt: skip
