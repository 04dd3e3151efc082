"""The order of samples, and latents that are computed once."""

from __future__ import annotations

import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.configs import TINY
from support.examples import examples
from support.training_pictures import png, quietly
from support.training_runs import pictures

from ldm_core.autoencoder import AutoencoderKL
from ldm_core.checkpoint import CheckpointError
from ldm_core.training import BadSample, CachedLatents, ImageFolder, TensorDataset
from ldm_core.training.data_order import ResumableBatchSampler, noise_generators
from ldm_core.training.latents import fingerprint

# --- order ---


@examples(50)
@given(
    length=st.integers(1, 30),
    batch=st.integers(1, 7),
    size=st.integers(1, 4),
    seed=st.integers(0, 2**40),
    start=st.integers(0, 5),
)
def test_every_epoch_has_every_sample_once_however_it_is_shared(
    length: int, batch: int, size: int, seed: int, start: int
) -> None:
    turns = 3 * length // (batch * size) + start + 2
    alone = ResumableBatchSampler(length, seed, batch * size)
    everything = [index for _, indices in zip(range(turns), alone) for index in indices]
    for epoch in range(len(everything) // length):
        assert sorted(everything[epoch * length : (epoch + 1) * length]) == list(range(length))
    position = start * batch * size
    ranks = [
        iter(ResumableBatchSampler(length, seed, batch, position=position, rank=r, size=size))
        for r in range(size)
    ]
    shared = [index for _ in range(turns - start) for rank in ranks for index in next(rank)]
    assert shared == everything[position:]


def test_orders_and_noise_depend_on_seed_epoch_and_position() -> None:
    order = ResumableBatchSampler(100, 1, 1)
    first, second = ([order.index(100 * epoch + k) for k in range(100)] for epoch in (0, 1))
    assert first != second
    assert first != [ResumableBatchSampler(100, 2, 1).index(k) for k in range(100)]
    draws = {
        float(torch.rand((), generator=stream)) for s in (0, 1) for stream in noise_generators(s, range(500))
    }
    assert len(draws) > 990
    again = noise_generators(1, [7])[0]
    assert float(torch.rand((), generator=again)) in draws


# --- latents on disk ---


@pytest.fixture
def autoencoder() -> AutoencoderKL:
    torch.manual_seed(0)
    return AutoencoderKL(TINY["sd1"].autoencoder).eval()


def test_latents_are_the_encoders_and_are_computed_once(
    tmp_path: Path, autoencoder: AutoencoderKL, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples, path = pictures(5, 16), tmp_path / "new" / "latents.npy"
    cached = quietly(lambda: CachedLatents(samples, autoencoder, path, batch_size=2))
    with torch.no_grad():
        posterior = autoencoder.encode(samples.images)
    for i in range(5):
        torch.testing.assert_close(cached[i]["mean"], posterior.mean[i], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(cached[i]["logvar"], posterior.logvar[i], rtol=1e-4, atol=1e-5)
        assert cached[i]["text"] == samples.text(i)
    assert isinstance(cached._latents, np.memmap)
    monkeypatch.setattr(AutoencoderKL, "encode", None)
    again = quietly(lambda: CachedLatents(samples, autoencoder, path))
    assert torch.equal(again[3]["mean"], cached[3]["mean"])
    with torch.no_grad():
        autoencoder.decoder.conv_in.weight += 1
    quietly(lambda: CachedLatents(samples, autoencoder, path))  # the decoder makes no latents


def test_stale_latents_are_noticed(tmp_path: Path, autoencoder: AutoencoderKL) -> None:
    samples, path = pictures(3, 16), tmp_path / "latents.npy"
    CachedLatents(samples, autoencoder, path)
    before = fingerprint(autoencoder)
    with torch.no_grad():
        autoencoder.encoder.conv_in.bias[0] += 1e-6
    assert fingerprint(autoencoder) != before
    with pytest.warns(UserWarning, match="made with another autoencoder; computing the latents again"):
        CachedLatents(samples, autoencoder, path)
    with pytest.warns(UserWarning, match="made from other images; computing the latents again"):
        CachedLatents(pictures(3, 16, seed=1), autoencoder, path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.warns(UserWarning, match="damaged"):
        CachedLatents(pictures(3, 16, seed=1), autoencoder, path)
    quietly(lambda: CachedLatents(pictures(3, 16, seed=1), autoencoder, path))
    path.with_suffix(".json").write_text("[]")
    with pytest.warns(UserWarning, match=r"damaged \(latents.json has no latents' fingerprints\)"):
        CachedLatents(pictures(3, 16, seed=1), autoencoder, path)
    with pytest.raises(ValueError, match=r"expected a file name that ends in .npy"):
        CachedLatents(samples, autoencoder, tmp_path / "latents.bin")


def test_a_changed_picture_makes_latents_stale(folder: Path, autoencoder: AutoencoderKL) -> None:
    def make() -> CachedLatents:
        return CachedLatents(ImageFolder(folder, 16, captions=False), autoencoder, folder / "latents.npy")

    quietly(make)
    quietly(make)
    (folder / "a.png").write_bytes(png((9, 9, 9), (20, 20)))
    with pytest.warns(UserWarning, match="made from other images"):
        make()


def test_bad_pictures_have_no_latents(folder: Path, autoencoder: AutoencoderKL) -> None:
    (folder / "a.png").write_bytes(b"")
    samples = ImageFolder(folder, 16, captions=False)
    for _ in range(2):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            cached = CachedLatents(samples, autoencoder, folder / "latents.npy")
        with pytest.raises(BadSample, match=r"a.png: cannot be read"):
            cached[0]
        assert cached[1]["mean"].abs().sum() > 0
    assert caught == [], "reported when they were read"


def test_a_full_disk_leaves_no_half_cache(
    tmp_path: Path, autoencoder: AutoencoderKL, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: Any, **options: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np.lib.format, "write_array_header_1_0", full)
    with pytest.raises(CheckpointError, match="No space left on device"):
        CachedLatents(pictures(3, 16), autoencoder, tmp_path / "latents.npy")
    monkeypatch.undo()
    assert list(tmp_path.iterdir()) == []
    quietly(lambda: CachedLatents(pictures(3, 16), autoencoder, tmp_path / "latents.npy"))


def test_tensors_and_captions_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match=r"expected images \(n, 3, H, W\) and n captions"):
        TensorDataset(torch.zeros(2, 3, 4, 4), ["one"])


def test_of_two_processes_one_computes_the_latents(
    tmp_path: Path, autoencoder: AutoencoderKL, monkeypatch: pytest.MonkeyPatch
) -> None:
    stale, written = CachedLatents._stale, []
    write, barrier = CachedLatents._write, threading.Barrier(2, timeout=60)

    def stale_for_both(cached: CachedLatents) -> str:
        reason = stale(cached)
        if not hasattr(cached, "looked"):
            cached.looked = True  # type: ignore[attr-defined]
            barrier.wait()
        return reason

    def write_and_count(cached: CachedLatents, *arguments: Any) -> None:
        written.append(cached)
        write(cached, *arguments)

    monkeypatch.setattr(CachedLatents, "_stale", stale_for_both)
    monkeypatch.setattr(CachedLatents, "_write", write_and_count)
    with ThreadPoolExecutor(2) as threads:
        both = list(
            threads.map(
                lambda _: CachedLatents(pictures(3, 16), autoencoder, tmp_path / "latents.npy"), range(2)
            )
        )
    assert len(written) == 1
    assert torch.equal(both[0][2]["mean"], both[1][2]["mean"])
    assert {path.name for path in tmp_path.iterdir()} == {"latents.npy", "latents.json"}
