"""The latents of a dataset, computed once and cached on disk, so that training does not run the encoder.

A memory-mapped .npy file of the Gaussians' means and log-variances, and a .json file with the fingerprints of
the encoder and the dataset, by which stale latents are detected.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ldm_core.autoencoder.gaussian import DiagonalGaussian
from ldm_core.autoencoder.kl import AutoencoderKL
from ldm_core.autoencoder.vq import AutoencoderVQ, PointMass
from ldm_core.checkpoint.writer import write_bytes, write_then_move
from ldm_core.support.atomic_files import exclusive
from ldm_core.support.warn import warn
from ldm_core.training.dataset import BadSample, Dataset, Sample, SkipUnreadable, digest

MISSING = "missing"
Autoencoder = AutoencoderKL | AutoencoderVQ


def fingerprint(autoencoder: Autoencoder) -> str:
    """Fingerprint of the encoder and quant_conv. The decoder does not affect latents."""
    state = autoencoder.state_dict()
    return digest({name: t for name, t in state.items() if name.startswith(("encoder.", "quant_conv."))})


class CachedLatents:
    """Replaces "image" by "mean" and "logvar" (C, h, w), the Gaussian that the autoencoder's encoder returns.

    A VQ autoencoder's latents are a Gaussian of variance 0: their "logvar" is -inf.

    The captions, and the conditioner's inputs if the dataset has a method `inputs(index)`, are those of the
    dataset.

    path: a .npy file. If it does not exist, or belongs to another encoder or dataset (with a warning), the
    latents are computed and saved first. Unreadable images raise the same BadSample as when they were
    encoded.
    batch_size: for encoding.
    """

    def __init__(
        self, dataset: Dataset, autoencoder: Autoencoder, path: str | Path, *, batch_size: int = 16
    ) -> None:
        self.dataset, self.path = dataset, Path(path)
        if self.path.suffix != ".npy":
            raise ValueError(f"{self.path}: expected a file name that ends in .npy")
        self.facts = {"autoencoder": fingerprint(autoencoder), "samples": dataset.fingerprint}
        if self._stale():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # Of several processes, one computes the latents and the others wait.
            with exclusive(self.path.with_name(f".{self.path.name}.lock"), wait=True):
                stale = self._stale()
                if stale not in ("", MISSING):
                    warn(f"{self.path}: {stale}; computing the latents again")
                if stale:
                    self._write(autoencoder, batch_size)
        self._bad: dict[str, str] = json.loads(self._note.read_text(encoding="utf-8"))["bad"]
        self._latents = np.load(self.path, mmap_mode="r", allow_pickle=False)

    @property
    def _note(self) -> Path:
        return self.path.with_suffix(".json")

    @property
    def fingerprint(self) -> str:
        """A string that changes when the images change."""
        return hashlib.sha256(repr(self.facts).encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Sample:
        if str(index) in self._bad:
            raise BadSample(self._bad[str(index)])
        mean, logvar = torch.from_numpy(self._latents[index].copy())
        inputs = getattr(self.dataset, "inputs", None)
        more = {} if inputs is None else {"inputs": inputs(index)}
        return {"mean": mean, "logvar": logvar, "text": self.text(index), **more}

    def text(self, index: int) -> tuple[str, ...]:
        """The captions of one image, without reading the image."""
        return self.dataset.text(index)

    def _stale(self) -> str:
        """Why the files on disk cannot be used; "" if they can."""
        if not self.path.exists() or not self._note.exists():
            return MISSING
        try:
            note = json.loads(self._note.read_text(encoding="utf-8"))
            if not isinstance(note, dict) or not isinstance(note.get("bad"), dict):
                raise ValueError(f"{self._note.name} has no latents' fingerprints")
            shape = np.load(self.path, mmap_mode="r", allow_pickle=False).shape
        except (ValueError, OSError, EOFError) as error:
            return f"damaged ({error})"
        for what in ("autoencoder", "samples"):
            if note.get(what) != self.facts[what]:
                return "made with another autoencoder" if what == "autoencoder" else "made from other images"
        return "" if note.get("shape") == list(shape) else "damaged (another shape)"

    @torch.no_grad()
    def _write(self, autoencoder: Autoencoder, batch_size: int) -> None:
        """Write the latents, then the .json file, whose existence shows that the latents are complete."""
        self._note.unlink(missing_ok=True)
        height, width = SkipUnreadable(self.dataset)[0]["image"].shape[1:]
        f = autoencoder.config.downsampling
        row = (2, autoencoder.config.embed_dim, height // f, width // f)
        header = {"descr": "<f4", "fortran_order": False, "shape": (len(self), *row)}
        bad: dict[str, str] = {}

        def write(target: Path) -> None:
            with target.open("wb") as file:
                np.lib.format.write_array_header_1_0(file, header)
                for first in range(0, len(self), batch_size):
                    indices = range(first, min(first + batch_size, len(self)))
                    values = np.zeros((len(indices), *row), "<f4")
                    good = self._read(indices, bad)
                    if good:
                        images = torch.stack(list(good.values())).to(next(autoencoder.parameters()))
                        both = _moments(autoencoder.encode(images))
                        values[[index - first for index in good]] = both.float().cpu().numpy()
                    file.write(values.tobytes())

        write_then_move(self.path, write)
        note = json.dumps({**self.facts, "shape": header["shape"], "bad": bad})
        write_bytes(self._note, note.encode())
        for message in bad.values():
            warn(message)

    def _read(self, indices: range, bad: dict[str, str]) -> dict[int, Tensor]:
        good = {}
        for index in indices:
            try:
                good[index] = self.dataset[index]["image"]
            except BadSample as error:
                bad[str(index)] = str(error)
        return good


def _moments(posterior: DiagonalGaussian | PointMass) -> Tensor:
    """The mean and the log-variance (B, 2, C, h, w)."""
    if isinstance(posterior, PointMass):
        mean = posterior.latents
        return torch.stack([mean, torch.full_like(mean, float("-inf"))], dim=1)
    return torch.stack([posterior.mean, posterior.logvar], dim=1)
