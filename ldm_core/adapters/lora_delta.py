"""The weight changes of adapters: the formulas of LoRA, LoHa and LoKr.

    LoRA   dW = s B A            Hu et al. 2021, arXiv:2106.09685, section 4.1; s = alpha / r
           dW = s B C A          with a core C, for convolutions (Tucker decomposition, in LyCORIS)
    LoHa   dW = s (B1 A1) * (B2 A2), element by element (Hyeon-Woo et al. 2021, arXiv:2108.06098, section 2.2)
    LoKr   dW = s C (x) D, a Kronecker product whose factors may be low-rank products
    full   dW itself

The last three, and all forms for convolutions, are from LyCORIS (Yeh et al. 2023, arXiv:2309.14859, section
3). Letters: r rank, O outputs, I inputs, k the kernel size (kh, kw), absent for linear layers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

Shape = tuple[int, ...]
Factors = Mapping[str, Tensor]


class WidthError(ValueError):
    """The change is for a layer with another number of inputs."""

    def __init__(self, made_for: int, inputs: int) -> None:
        super().__init__(f"expected {inputs} inputs, got {made_for}")
        self.made_for, self.inputs = made_for, inputs


@dataclass(frozen=True)
class Delta:
    """The change of one layer's weight.

    factors  by kohya-ss's and LyCORIS's names, in the file's dtype, on the CPU
    shape    of the weight, (O, I, *k)
    rank     r, or None for a change without a rank
    scale    s; already included in the bias
    bias     (O,), added to the layer's bias
    """

    factors: Factors
    shape: Shape
    rank: int | None
    scale: float = 1.0
    bias: Tensor | None = None

    kind: ClassVar[str] = ""

    @classmethod
    def fit(cls, tensors: Factors, shape: Shape) -> tuple[Factors, int | None]:
        """(factors, rank) for a weight of this shape. Raises ValueError if the tensors do not fit."""
        raise NotImplementedError

    @property
    def spatial(self) -> int:
        """The index of the weight in the chain that has the layer's kernel and stride."""
        return 0

    def weight(self, device: Any = "cpu") -> Tensor:
        """dW / s, in float32: (O, I, *k)."""
        raise NotImplementedError

    def chain(self, device: Any = "cpu") -> tuple[Tensor, ...]:
        """Weights that, applied one after another to the layer's input, compute dW x / s."""
        return (self.weight(device),)

    def _wide(self, name: str, device: Any) -> Tensor:
        return self.factors[name].to(device, torch.float32)


class LoRA(Delta):
    """A: lora_down (r, I, *k), B: lora_up (O, r). With a core C: lora_mid (r, r, *k), A is (r, I)."""

    kind = "LoRA"

    @property
    def spatial(self) -> int:
        """1 with a core, else 0; see `Delta.spatial`."""
        return int("lora_mid" in self.factors)

    @classmethod
    def fit(cls, tensors: Factors, shape: Shape) -> tuple[Factors, int | None]:
        """(factors, rank) for a weight of this shape. Raises ValueError if the tensors do not fit."""
        outputs, inputs, *kernel = shape
        core = "lora_mid" in tensors
        axes = {"lora_down": 0, "lora_up": 1, "lora_mid": 0}
        rank = _rank(*((name, tensors[name], axis) for name, axis in axes.items() if name in tensors))
        _check_inputs(tensors["lora_down"].shape[1], inputs)
        ones = [1] * len(kernel)
        shapes = {
            "lora_down": (rank, inputs, *(ones if core else kernel)),
            "lora_mid": (rank, rank, *kernel),
            "lora_up": (outputs, rank, *ones),
        }
        return {n: _fitted(n, tensors[n], shapes[n]) for n in shapes if n in tensors}, rank

    def weight(self, device: Any = "cpu") -> Tensor:
        """dW / s, in float32: (O, I, *k)."""
        down, up = (self._wide(name, device).flatten(1) for name in ("lora_down", "lora_up"))
        if "lora_mid" not in self.factors:
            return (up @ down).reshape(self.shape)
        return torch.einsum("om,mn...,ni->oi...", up, self._wide("lora_mid", device), down)

    def chain(self, device: Any = "cpu") -> tuple[Tensor, ...]:
        """A, the core if there is one, and B: applied one after another, they compute dW x / s."""
        names = [name for name in ("lora_down", "lora_mid", "lora_up") if name in self.factors]
        return tuple(self.factors[name].to(device) for name in names)


class LoHa(Delta):
    """B1: hada_w1_a (O, r), A1: hada_w1_b (r, I * k); B2 and A2 likewise.

    With cores hada_t1, hada_t2 (r, r, *k), B1 is stored as (r, O) and A1 as (r, I).
    """

    kind = "LoHa"

    @classmethod
    def fit(cls, tensors: Factors, shape: Shape) -> tuple[Factors, int | None]:
        """(factors, rank) for a weight of this shape. Raises ValueError if the tensors do not fit."""
        outputs, inputs, *kernel = shape
        core = "hada_t1" in tensors
        area = 1 if core else math.prod(kernel)
        rank = _rank(*((name, x, int(name.endswith("a") and not core)) for name, x in tensors.items()))
        fitted = {}
        for i in (1, 2):
            a, b, t = f"hada_w{i}_a", f"hada_w{i}_b", f"hada_t{i}"
            right = tensors[b] if core else tensors[b].flatten(1)
            _check_inputs(right.shape[1] // area, inputs)
            fitted[a] = _fitted(a, tensors[a], (rank, outputs) if core else (outputs, rank))
            fitted[b] = _fitted(b, right, (rank, inputs * area))
            if core:
                fitted[t] = _fitted(t, tensors[t], (rank, rank, *kernel))
        return fitted, rank

    def weight(self, device: Any = "cpu") -> Tensor:
        """dW / s, in float32: (O, I, *k)."""
        return self._half(1, device) * self._half(2, device)

    def _half(self, i: int, device: Any) -> Tensor:
        a, b = (self._wide(f"hada_w{i}_{side}", device) for side in "ab")
        if f"hada_t{i}" not in self.factors:
            return (a @ b).reshape(self.shape)
        return torch.einsum("mn...,mo,ni->oi...", self._wide(f"hada_t{i}", device), a, b)


class LoKr(Delta):
    """C: lokr_w1 (a, c), D: lokr_w2 (b, d, *k), with a b = O and c d = I.

    C may be lokr_w1_a (a, r) times lokr_w1_b (r, c); D lokr_w2_a (b, r) times lokr_w2_b (r, d * k), or,
    with a core lokr_t2 (r, r, *k), of lokr_w2_a (r, b) and lokr_w2_b (r, d).
    """

    kind = "LoKr"

    @classmethod
    def fit(cls, tensors: Factors, shape: Shape) -> tuple[Factors, int | None]:
        """(factors, rank) for a weight of this shape. Raises ValueError if the tensors do not fit."""
        outputs, inputs, *kernel = shape
        w1, (a, c), rank1 = _kronecker_factor(tensors, 1, ())
        w2, (b, d), rank2 = _kronecker_factor(tensors, 2, tuple(kernel))
        if None not in (rank1, rank2) and rank1 != rank2:
            raise ValueError(f"ranks differ: {rank1} of lokr_w1, {rank2} of lokr_w2")
        _check_inputs(c * d, inputs)
        if a * b != outputs:
            raise ValueError(f"expected {outputs} outputs, got {a * b}")
        return w1 | w2, rank1 or rank2

    def weight(self, device: Any = "cpu") -> Tensor:
        """dW / s, in float32: (O, I, *k)."""
        kernel = self.shape[2:]
        if "lokr_w1" in self.factors:
            w1 = self._wide("lokr_w1", device)
        else:
            w1 = self._wide("lokr_w1_a", device) @ self._wide("lokr_w1_b", device)
        if "lokr_w2" in self.factors:
            w2 = self._wide("lokr_w2", device)
        elif "lokr_t2" in self.factors:
            core, a, b = (self._wide(name, device) for name in ("lokr_t2", "lokr_w2_a", "lokr_w2_b"))
            w2 = torch.einsum("mn...,mo,ni->oi...", core, a, b)
        else:
            product = self._wide("lokr_w2_a", device) @ self._wide("lokr_w2_b", device)
            w2 = product.reshape(len(product), -1, *kernel)
        # Not torch.kron, which fails on some results of einsum.
        return torch.einsum("ac,bd...->abcd...", w1, w2).reshape(self.shape)


def _kronecker_factor(
    tensors: Factors, number: int, kernel: Shape
) -> tuple[dict[str, Tensor], tuple[int, int], int | None]:
    """(tensors, (rows, columns), rank) of lokr_w1 or lokr_w2, full or as a product."""
    name, core = f"lokr_w{number}", f"lokr_t{number}"
    a, b = f"{name}_a", f"{name}_b"
    if name in tensors:
        _check_matrix(name, tensors[name])
        rows, columns = tensors[name].shape[:2]
        return {name: _fitted(name, tensors[name], (rows, columns, *kernel))}, (rows, columns), None
    if core in tensors:
        rank = _rank((a, tensors[a], 0), (b, tensors[b], 0), (core, tensors[core], 0))
        rows, columns = tensors[a].shape[1], tensors[b].shape[1]
        shapes = {a: (rank, rows), b: (rank, columns), core: (rank, rank, *kernel)}
        return {x: _fitted(x, tensors[x], shapes[x]) for x in shapes}, (rows, columns), rank
    rank = _rank((a, tensors[a], 1), (b, tensors[b], 0))
    right = tensors[b].flatten(1)  # (r, d * k) or (r, d, *k)
    rows, columns = len(tensors[a]), right.shape[1] // math.prod(kernel)
    fitted = {
        a: _fitted(a, tensors[a], (rows, rank)),
        b: _fitted(b, right, (rank, columns * math.prod(kernel))),
    }
    return fitted, (rows, columns), rank


class Full(Delta):
    """diff (O, I, *k)."""

    kind = "full"

    @classmethod
    def fit(cls, tensors: Factors, shape: Shape) -> tuple[Factors, int | None]:
        """(factors, rank) for a weight of this shape. Raises ValueError if the tensors do not fit."""
        if tensors["diff"].ndim > 1:
            _check_inputs(tensors["diff"].shape[1], shape[1])
        return {"diff": _fitted("diff", tensors["diff"], shape)}, None

    def weight(self, device: Any = "cpu") -> Tensor:
        """dW / s, in float32: (O, I, *k)."""
        return self._wide("diff", device)


_HALVES = {"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"}
_W1 = ({"lokr_w1"}, {"lokr_w1_a", "lokr_w1_b"})
_W2 = ({"lokr_w2"}, {"lokr_w2_a", "lokr_w2_b"}, {"lokr_w2_a", "lokr_w2_b", "lokr_t2"})
# The tensors of each kind of change.
FORMS: tuple[tuple[frozenset[str], type[Delta]], ...] = (
    (frozenset({"lora_down", "lora_up"}), LoRA),
    (frozenset({"lora_down", "lora_up", "lora_mid"}), LoRA),
    (frozenset(_HALVES), LoHa),
    (frozenset(_HALVES | {"hada_t1", "hada_t2"}), LoHa),
    *((frozenset(w1 | w2), LoKr) for w1 in _W1 for w2 in _W2),
    (frozenset({"diff"}), Full),
)


# The names of LoRA's factors in kohya-ss's files, and in PEFT's and diffusers'.
_ALSO = {"lora_down": "lora_down (lora_A)", "lora_up": "lora_up (lora_B)"}


def kind_of(names: set[str]) -> type[Delta]:
    """The kind of change with these tensors. Raises ValueError that names missing tensors."""
    for form, kind in FORMS:
        if form == names:
            return kind
    if not names:
        raise ValueError("there are no tensors that change the weight")
    missing = [sorted(form - names) for form, _ in FORMS if form > names]
    if not missing:
        raise ValueError(f"{', '.join(sorted(names))} do not belong to one kind of adapter")
    raise ValueError("missing " + " and ".join(_ALSO.get(name, name) for name in min(missing, key=len)))


def _check_matrix(name: str, tensor: Tensor) -> None:
    if tensor.ndim < 2:
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}, expected a matrix")


def _rank(*axes: tuple[str, Tensor, int]) -> int:
    """The common length of the axes (name, tensor, axis). Raises ValueError if they differ."""
    for name, tensor, _ in axes:
        _check_matrix(name, tensor)
    ranks = {name: tensor.shape[axis] for name, tensor, axis in axes}
    if len(set(ranks.values())) > 1:
        raise ValueError("ranks differ: " + ", ".join(f"{rank} of {name}" for name, rank in ranks.items()))
    rank = next(iter(ranks.values()))
    if rank == 0:
        raise ValueError("the rank is 0")
    return rank


def _check_inputs(made_for: int, inputs: int) -> None:
    if made_for != inputs:
        raise WidthError(made_for, inputs)


def _fitted(name: str, tensor: Tensor, shape: Shape) -> Tensor:
    """Reshape a tensor to a shape that may differ in trailing ones only.

    SD1's files have 1x1 convolutions for some linear layers of this package.
    """
    if _trimmed(tuple(tensor.shape)) != _trimmed(shape):
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}, expected {shape}")
    return tensor.reshape(shape)


def _trimmed(shape: Shape) -> Shape:
    while shape and shape[-1] == 1:
        shape = shape[:-1]
    return shape
