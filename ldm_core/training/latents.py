"""The autoencoder's Gaussians of a whole data set, on disk: training then never runs the encoder.

A file of numbers, memory-mapped, and beside it a note of the encoder and the data that they come from, so
that latents of another autoencoder, or of pictures that have changed since, are never trained on unawares.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ldm_core.autoencoder.kl import AutoencoderKL
from ldm_core.checkpoint.writer import write_bytes, write_then_move
from ldm_core.support.atomic_files import exclusive
from ldm_core.training.dataset import BadSample, Dataset, Sample, SkipUnreadable, digest


def fingerprint(autoencoder: AutoencoderKL) -> str:
    """Of what makes latents: the encoder and the convolution after it. The decoder may change."""
    state = autoencoder.state_dict()
    return digest({name: t for name, t in state.items() if name.startswith(("encoder.", "quant_conv."))})


class CachedLatents:
    """Samples with "mean" and "logvar" (C, h, w) in the place of the "image"; the rest is the original's.

    They are read from `path` (.npy) if they are there and belong to this autoencoder and these samples, and
    else computed and written there first; a warning says so where others had been there. What was bad
    then is bad now, with the same message.
    """

    def __init__(
        self, dataset: Dataset, autoencoder: AutoencoderKL, path: str | Path, *, batch_size: int = 16
    ) -> None:
        self.dataset, self.path = dataset, Path(path)
        if self.path.suffix != ".npy":
            raise ValueError(f"{self.path}: expected a name that ends in .npy")
        self.facts = {"autoencoder": fingerprint(autoencoder), "samples": dataset.fingerprint}
        if self._stale():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # Of several processes that want the same latents, the first computes them, and the others wait.
            with exclusive(self.path.with_name(f".{self.path.name}.lock"), wait=True):
                stale = self._stale()
                if stale not in ("", "not there"):
                    warnings.warn(f"{self.path}: {stale}; computed again", stacklevel=2)
                if stale:
                    self._write(autoencoder, batch_size)
        self._bad: dict[str, str] = json.loads(self._note.read_text(encoding="utf-8"))["bad"]
        self._latents = np.load(self.path, mmap_mode="r", allow_pickle=False)

    @property
    def _note(self) -> Path:
        return self.path.with_suffix(".json")

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(repr(self.facts).encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Sample:
        if str(index) in self._bad:
            raise BadSample(self._bad[str(index)])
        mean, logvar = torch.from_numpy(self._latents[index].copy())
        return {"mean": mean, "logvar": logvar, "text": self.text(index)}

    def text(self, index: int) -> tuple[str, ...]:
        return self.dataset.text(index)

    def _stale(self) -> str:
        """Why what is on disk cannot be used; "" if it can."""
        if not self.path.exists() or not self._note.exists():
            return "not there"
        try:
            note = json.loads(self._note.read_text(encoding="utf-8"))
            if not isinstance(note, dict) or not isinstance(note.get("bad"), dict):
                raise ValueError(f"{self._note.name} is no such note")
            shape = np.load(self.path, mmap_mode="r", allow_pickle=False).shape
        except (ValueError, OSError, EOFError) as error:
            return f"damaged ({error})"
        for what in ("autoencoder", "samples"):
            if note.get(what) != self.facts[what]:
                return (
                    f"its latents are of another {what}" if what == "autoencoder" else "its pictures differ"
                )
        return "" if note.get("shape") == list(shape) else "damaged (another shape)"

    @torch.no_grad()
    def _write(self, autoencoder: AutoencoderKL, batch_size: int) -> None:
        """The numbers first, the note last: with a note there, the numbers are whole."""
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
                        posterior = autoencoder.encode(images)
                        both = torch.stack([posterior.mean, posterior.logvar], dim=1)  # (B, 2, C, h, w)
                        values[[index - first for index in good]] = both.float().cpu().numpy()
                    file.write(values.tobytes())

        write_then_move(self.path, write)
        note = json.dumps({**self.facts, "shape": header["shape"], "bad": bad})
        write_bytes(self._note, note.encode())
        for message in bad.values():
            warnings.warn(message, stacklevel=3)

    def _read(self, indices: range, bad: dict[str, str]) -> dict[int, Tensor]:
        good = {}
        for index in indices:
            try:
                good[index] = self.dataset[index]["image"]
            except BadSample as error:
                bad[str(index)] = str(error)
        return good
