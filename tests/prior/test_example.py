"""The example that trains a small unCLIP: two steps of every stage, and again without training."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

import ldm_core
from ldm_core.images import tensor_to_pil

SCRIPT = Path(__file__).parents[2] / "examples" / "train_unclip.py"


@pytest.mark.slow  # 30 s
def test_a_small_unclip_is_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, runs = tmp_path / "data" / "train", tmp_path / "runs"
    folder.mkdir(parents=True)
    rows = []
    for k in range(6):
        squares = torch.rand(1, 3, 4, 4).repeat_interleave(32, 2).repeat_interleave(32, 3)
        tensor_to_pil(squares)[0].save(folder / f"{k}.png")
        rows.append({"file_name": f"{k}.png", "text": "red apple", "style": f"style {k}"})
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")

    def run(*options: str) -> None:
        monkeypatch.setattr(sys, "argv", [SCRIPT.name, str(folder.parent), str(runs), *options])
        runpy.run_path(str(SCRIPT), run_name="__main__")

    run("--steps", "2", "--stages", "clip", "decoder", "prior")
    model = ldm_core.load(runs / "decoder.safetensors")
    prior = ldm_core.load_prior(runs / "prior.safetensors", clip=runs / "clip.safetensors")
    unclip = ldm_core.UnCLIP(ldm_core.Sampler(model), prior)
    drawn = unclip.change("red apple", "fire", steps=1, output="tensor")
    assert drawn.shape == (1, 3, 128, 128)
    before = (runs / "prior" / "metrics.csv").read_text()
    run("--steps", "2", "--stages", "prior", "sheet", "--draw-steps", "1")
    assert (runs / "prior" / "metrics.csv").read_text() == before, "a stage that is done is not trained again"
    with Image.open(runs / "unclip.png") as sheet:
        assert sheet.height > 8 * 128
