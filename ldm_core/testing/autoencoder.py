"""The contract of `ldm_core.protocols.Autoencoder` and of the posterior that its encoder returns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ldm_core.autoencoder.config import AutoencoderConfig, AutoencoderVQConfig
from ldm_core.noise import generators
from ldm_core.protocols import Autoencoder
from ldm_core.testing.contract import (
    TOLERANCE,
    Contract,
    describe,
    device_of,
    draw,
    dtypes_of,
    in_dtype,
    isolated,
)
from ldm_core.testing.tensor_clauses import Case, check_dependence, check_result, check_tensor_function

BATCH = 3
DRAWS = 64
MIN_VALUES = 20_000  # values for standard errors of 0.7 % (mean) and 0.5 % (standard deviation)
MOMENT_ERROR = 0.05  # of the standardised samples' mean and standard deviation; ten standard errors or more


@isolated
def check_autoencoder(
    autoencoder: Autoencoder,
    config: AutoencoderConfig,
    *,
    reconstruction: float | None = None,
    images: Tensor | None = None,
    dtypes: Sequence[torch.dtype] | None = None,
    device: torch.device | str | None = None,
    tolerance: float | None = None,
) -> None:
    """Check that an autoencoder meets its contract. Raises ContractError, which lists every violation.

    config: determines the shapes; an AutoencoderVQConfig also that latents are not random, but quantised.
    reconstruction: for a trained autoencoder, the largest RMS error of decode(encode(images).mode()); None
        skips this clause.
    images: (B, 3, H, W) in [-1, 1] to reconstruct; by default three smooth gradients of 8 f pixels.
    dtypes, device, tolerance: as in `check_unet`.
    Raises ValueError if `config` is not an AutoencoderConfig.
    """
    if not isinstance(config, AutoencoderConfig):
        wanted = "an AutoencoderConfig, as ldm_core.config.SD1.autoencoder"
        raise ValueError(f"expected {wanted}, not {type(config).__name__}")
    dtypes = dtypes_of(autoencoder) if dtypes is None else dtypes
    on = device_of(autoencoder) if device is None else torch.device(device)
    f, channels = config.downsampling, config.embed_dim
    sizes = ((2, 3), (4, 2))
    is_vq = isinstance(config, AutoencoderVQConfig)
    outputs, names = (_latents, "mode()") if is_vq else (_moments, "mean and .std")

    def encoding(dtype: torch.dtype, h: int, w: int) -> Case:
        part = in_dtype(autoencoder, dtype)
        x = draw(BATCH, config.in_channels, h * f, w * f, seed=0, dtype=dtype, device=on).clamp(-1, 1)
        what = f"encode(images of {h * f}x{w * f}).{names}"
        return Case(autoencoder, what, lambda x: outputs(part.encode(x)), {"images": x}, limit(dtype))

    def decoding(dtype: torch.dtype, h: int, w: int) -> Case:
        part = in_dtype(autoencoder, dtype)
        z = draw(BATCH, channels, h, w, seed=1, dtype=dtype, device=on)
        return Case(autoencoder, f"decode(z of {h}x{w})", part.decode, {"z": z}, limit(dtype))

    def limit(dtype: torch.dtype) -> float:
        return TOLERANCE[dtype] if tolerance is None else tolerance

    contract = Contract(autoencoder, "ldm_core.protocols.Autoencoder")
    for dtype in dtypes:
        for h, w in sizes if dtype == dtypes[0] else sizes[:1]:
            moments = (BATCH, channels if is_vq else 2 * channels, h, w)
            images_shape = (BATCH, config.out_ch, h * f, w * f)
            check_result(contract, encoding(dtype, h, w), moments, dtype, f"encode: shape, in {dtype}")
            check_result(contract, decoding(dtype, h, w), images_shape, dtype, f"decode: shape, in {dtype}")
    contract.raise_if_broken()
    encode, decode = encoding(dtypes[0], *sizes[0]), decoding(dtypes[0], *sizes[0])
    _check_functions(contract, encode, decode)
    (_check_latents if is_vq else _check_posterior)(contract, autoencoder.encode(encode.arguments["images"]))
    if is_vq and hasattr(autoencoder, "quantize"):
        _check_codes(contract, autoencoder, decode.arguments["z"])
    if reconstruction is not None:
        images = _gradients(8 * f) if images is None else images
        _check_inverse(contract, autoencoder, images.to(on, dtypes[0]), reconstruction)
    contract.raise_if_broken()


def _check_functions(contract: Contract, encode: Case, decode: Case) -> None:
    why = "a latent or an image must encode its input"
    for case, name in ((encode, "images"), (decode, "z")):
        check_tensor_function(contract, case)
        check_dependence(contract, case, why, **{name: (f"its {name}", case.arguments[name].flip(0))})


def _moments(posterior: Any) -> Tensor:
    tensors = all(isinstance(getattr(posterior, name, None), Tensor) for name in ("mean", "std"))
    if not tensors or not hasattr(posterior, "sample") or not hasattr(posterior, "mode"):
        wanted = "a DiagonalGaussian, with the tensors mean and std, sample(generator) and mode()"
        raise TypeError(f"encode must give {wanted}, not {describe(posterior)}")
    return torch.cat([posterior.mean, posterior.std], dim=1)


def _latents(posterior: Any) -> Tensor:
    if not hasattr(posterior, "sample") or not hasattr(posterior, "mode"):
        wanted = "a PointMass, with sample(generator) and mode()"
        raise TypeError(f"encode must give {wanted}, not {describe(posterior)}")
    return posterior.mode()


def _check_latents(contract: Contract, posterior: Any) -> None:
    with contract.clause("posterior", "latents before quantisation have no randomness") as clause:
        for seeds in ([5, 6, 7], [8, 6, 9]):
            sample = posterior.sample(generators(seeds))
            clause.expect_close(sample, posterior.mode(), "sample(generators) to equal mode()", 0)


def _check_codes(contract: Contract, autoencoder: Any, h: Tensor) -> None:
    with contract.clause("codes", "decode replaces latents by their nearest codes") as clause:
        z_q, indices = autoencoder.quantize(h)
        shape = (len(h), *h.shape[2:])
        clause.expect(
            indices.dtype == torch.long and indices.shape == shape,
            f"quantize(h) to return indices {shape} of torch.int64",
            describe(indices),
        )
        clause.expect(describe(z_q) == describe(h), f"quantize(h) to return {describe(h)}", describe(z_q))
        again, same = autoencoder.quantize(z_q)
        clause.expect_close(again, z_q, "the nearest codes of codes to be themselves", 0)
        clause.expect(torch.equal(same, indices), "codes to keep their indices", "other indices")
        decoded = autoencoder.decode(h)
        direct = autoencoder.decode(z_q, quantize=False)
        limit = TOLERANCE[decoded.dtype]
        clause.expect_close(
            decoded, direct, "decode(h) to equal decode(quantize(h)[0], quantize=False)", limit
        )


def _check_posterior(contract: Contract, posterior: Any) -> None:
    mean, std = posterior.mean, posterior.std
    with contract.clause(
        "posterior", "latents are sampled as mean + std * noise, or are the mode, which equals the mean"
    ) as clause:
        clause.expect(bool((std > 0).all()), "std to be positive", f"{float(std.min()):.3g} as the smallest")
        clause.expect_close(posterior.mode(), mean, "mode() to equal the mean", 0)
        logvar = getattr(posterior, "logvar", None)
        if logvar is not None:
            expected = torch.exp(0.5 * logvar)
            clause.expect_close(std, expected, "std to be exp(logvar / 2)", TOLERANCE[std.dtype])
    with contract.clause(
        "sample", "image k must depend on its own generator only; its spread is what was trained"
    ) as clause:
        first, again = (posterior.sample(generators([5, 6, 7])) for _ in range(2))
        clause.expect(describe(first) == describe(mean), f"sample() to be {describe(mean)}", describe(first))
        clause.expect_close(again, first, "sample(generators) to repeat with generators of the same seeds", 0)
        other = posterior.sample(generators([8, 6, 9]))
        clause.expect_close(other[1], first[1], "row 1 to depend on the generator of row 1 alone", 0)
        clause.expect(
            not torch.equal(other[0], first[0]), "another seed to return another sample", "the same sample"
        )
        single = (posterior.sample(torch.Generator().manual_seed(5)) for _ in range(2))
        clause.expect(
            torch.equal(*single), "sample(generator) to repeat with one of the same seed", "another sample"
        )
        with torch.random.fork_rng(devices=[]):
            before = torch.get_rng_state()
            posterior.sample(generators([5, 6, 7]))
            unmoved = torch.equal(before, torch.get_rng_state())
        clause.expect(
            unmoved, "sample(generators) not to use torch's global random numbers", "random numbers drawn"
        )
        _expect_standard_normal(clause, posterior)


def _expect_standard_normal(clause: Any, posterior: Any) -> None:
    mean, std = posterior.mean.double(), posterior.std.double()
    generator = torch.Generator().manual_seed(0)
    draws = max(DRAWS, MIN_VALUES // mean.numel())
    z = torch.stack([(posterior.sample(generator).double() - mean) / std for _ in range(draws)])
    location, spread = float(z.mean()), float(z.std())
    clause.expect(
        abs(location) < MOMENT_ERROR and abs(spread - 1) < MOMENT_ERROR,
        "(sample - mean) / std to be standard normal",
        f"a mean of {location:.3g} and a standard deviation of {spread:.3g}",
    )


def _check_inverse(contract: Contract, autoencoder: Autoencoder, images: Tensor, limit: float) -> None:
    with contract.clause(
        "inverse", "details that the decoder cannot reconstruct are lost in every image"
    ) as clause:
        restored = autoencoder.decode(autoencoder.encode(images).mode())
        error = float((restored.double() - images.double()).square().mean().sqrt())
        clause.expect(
            error <= limit,
            f"decode(encode(images).mode()) to equal the images within {limit:g} (RMS)",
            f"{error:.3g}",
        )


def _gradients(size: int) -> Tensor:
    """Three smooth images in [-1, 1]: (3, 3, size, size)."""
    ramp = torch.linspace(-1, 1, size)
    across, down = ramp.expand(size, size), ramp[:, None].expand(size, size)
    round_ = 1 - (across.square() + down.square())
    return torch.stack(
        [
            torch.stack([across, down, round_]),
            torch.stack([down, -across, across * down]),
            torch.stack([round_, round_, -down]),
        ]
    )
