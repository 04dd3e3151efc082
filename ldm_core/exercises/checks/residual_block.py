"""Exercise 10: the U-Net's residual block with the weights of a file (Ho et al. 2020, appendix B)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from ldm_core.checkpoint.key_map import expand, to_file, to_parameters
from ldm_core.exercises.expect import draw, expect_function, expect_values
from ldm_core.exercises.user_file import UserFile
from ldm_core.nn.blocks import ResBlock
from ldm_core.unet.names import COMPVIS_RES

Tensors = Mapping[str, Tensor]

TIME = 16
CASES = (
    ("a block of 32 channels to 64, with a convolution as shortcut", 32, 64, 1.0),
    ("a block of 64 channels to 64, whose shortcut is x itself", 64, 64, 1.0),
    ("small values, where the epsilon of the norms shows", 32, 64, 3e-3),
)


def check(answer: UserFile) -> Iterator[str]:
    res_block = answer.get("res_block")
    for words, inputs, outputs, size in CASES:
        yield words
        tensors = file_tensors(inputs, outputs, size)
        x, emb = size * draw(2, inputs, 6, 5, seed=0), draw(2, TIME, seed=1)
        expected = library_block(x, emb, tensors)
        found = lambda: mistakes(x, emb, tensors)  # noqa: B023, E731
        actual = answer.call(res_block, x, emb, dict(tensors))
        expect_values("the output", actual, expected, found)
    yield "the clauses for networks of ldm_core.testing"
    arguments = {"x": draw(2, 32, 6, 5, seed=0), "emb": draw(2, TIME, seed=1)}
    tensors = file_tensors(32, 64, 1.0)
    expect_function(answer, 10, "the output", lambda x, emb: res_block(x, emb, tensors), **arguments)


def file_tensors(inputs: int, outputs: int, size: float) -> dict[str, Tensor]:
    """The tensors of a block as a CompVis file names them. size: of the first convolution's output."""
    block = ResBlock(inputs, outputs, time_channels=TIME)
    key_map = expand(COMPVIS_RES, dict(block.named_parameters()))
    values = {
        name: draw(*p.shape, seed=k) * (p[0].numel() ** -0.5 if p.ndim > 1 else 0.3) + (p.ndim == 1)
        for k, (name, p) in enumerate(block.named_parameters())
    }
    for name in ("conv1.weight", "conv1.bias", "time_proj.weight", "time_proj.bias"):
        values[name] = values[name] * size
    return to_file(key_map, values)


@torch.no_grad()
def library_block(x: Tensor, emb: Tensor, tensors: Tensors) -> Tensor:
    """The output of the library's block with the file's tensors; it takes SiLU(emb)."""
    outputs, inputs = tensors["in_layers.2.weight"].shape[:2]
    block = ResBlock(inputs, outputs, time_channels=emb.shape[1])
    shapes = {name: p.shape for name, p in block.named_parameters()}
    block.load_state_dict(to_parameters(expand(COMPVIS_RES, shapes), tensors, shapes, source="the exercise"))
    return block(x, F.silu(emb))


def block(
    x: Tensor,
    emb: Tensor,
    w: Tensors,
    *,
    groups: int = 32,
    eps: float = 1e-5,
    act: Callable[[Tensor], Tensor] = F.silu,
    time_act: Callable[[Tensor], Tensor] = F.silu,
    time_at: str = "after the first convolution",
    order: str = "norm, SiLU, convolution",
    shortcut: str = "x",
    biases: bool = True,
) -> Tensor:
    """The formula, with a switch for each mistake."""

    def norm(h: Tensor, name: str) -> Tensor:
        return F.group_norm(h, min(groups, h.shape[1]), w[f"{name}.weight"], w[f"{name}.bias"], eps)

    def conv(h: Tensor, name: str) -> Tensor:
        weight = w[f"{name}.weight"]
        return F.conv2d(h, weight, w[f"{name}.bias"] if biases else None, padding=weight.shape[-1] // 2)

    def half(h: Tensor, norm_name: str, conv_name: str) -> Tensor:
        if order == "convolution first" and conv_name == "out_layers.3":
            return act(norm(conv(h, conv_name), norm_name))
        if order == "SiLU, norm, convolution":
            return conv(norm(act(h), norm_name), conv_name)
        return conv(act(norm(h, norm_name)), conv_name)

    time = F.linear(time_act(emb), w["emb_layers.1.weight"], w["emb_layers.1.bias"])[:, :, None, None]
    h = half(x, "in_layers.0", "in_layers.2")
    if time_at == "after the first convolution":
        h = h + time
    h = h * (1 + time) if time_at == "as a factor" else h
    h = half(h, "out_layers.0", "out_layers.3")
    h = h + time if time_at == "at the end" else h
    if shortcut == "none":
        return h
    if shortcut == "norm":
        x = act(norm(x, "in_layers.0"))
    return h + (conv(x, "skip_connection") if "skip_connection.weight" in w else x)


def mistakes(x: Tensor, emb: Tensor, w: Tensors) -> dict[str, Tensor]:
    def with_(**switches: object) -> Tensor:
        return block(x, emb, w, **switches)  # type: ignore[arg-type]

    def none(h: Tensor) -> Tensor:
        return h

    return {
        "The epsilon of the norms is 1e-6, which is that of the autoencoder. The U-Net's blocks have 1e-5.": (
            with_(eps=1e-6)
        ),
        "The epsilon of the norms is too small: the U-Net's blocks have 1e-5.": with_(eps=1e-12),
        "The norms have 1 group (a layer norm over all channels); they have 32.": with_(groups=1),
        "The norms have 16 groups; they have 32.": with_(groups=16),
        "The norms have 8 groups; they have 32.": with_(groups=8),
        "The norms have a group for each channel (an instance norm); they have 32 groups.": with_(
            groups=10**6
        ),
        "emb has no SiLU: the projection is of SiLU(emb), since emb_layers.0 is the SiLU, and 1 the linear "
        "layer.": with_(time_act=none),
        "The activation is ReLU where SiLU belongs.": with_(act=F.relu, time_act=F.relu),
        "The activation in the convolutions' path is ReLU where SiLU belongs.": with_(act=F.relu),
        "The activation is GELU where SiLU belongs.": with_(act=F.gelu, time_act=F.gelu),
        "The activation is missing: a norm, SiLU, and then the convolution.": with_(act=none),
        "emb does not enter: add its projection after the first convolution.": with_(time_at="nowhere"),
        "The projection of emb is added at the end: it belongs between the first convolution and the second "
        "norm.": with_(time_at="at the end"),
        "The projection of emb is used as a factor, h * (1 + projection): this block adds it.": with_(
            time_at="as a factor"
        ),
        "SiLU comes before the norm: the order is norm, SiLU, convolution.": with_(
            order="SiLU, norm, convolution"
        ),
        "The second half is convolution, norm, SiLU: the order is norm, SiLU, convolution.": with_(
            order="convolution first"
        ),
        "The shortcut is missing: add x (or skip_connection of x) to the output.": with_(shortcut="none"),
        "The shortcut begins after the norm and SiLU: it is of x as it came.": with_(shortcut="norm"),
        "The convolutions' biases are missing.": with_(biases=False),
    }
