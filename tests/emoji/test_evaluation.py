"""The evaluation of an emoji model, at tiny size: its figures are right, and it goes on where it was."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from support.configs import TINY
from support.reference import random_model
from torch import Tensor

import ldm_core

FOLDER = Path(__file__).parents[2] / "examples" / "train_emoji"
sys.path.append(str(FOLDER))

import evaluate as script  # noqa: E402
import evaluation_data  # noqa: E402
import evaluation_pictures  # noqa: E402
from evaluation_data import EmojiData, Question, choose_concepts, choose_pairs  # noqa: E402
from evaluation_report import markdown  # noqa: E402
from evaluation_scores import (  # noqa: E402
    References,
    autoencoder_scores,
    concept_scores,
    neighbours,
    pair_scores,
)

STYLES = ("noto emoji", "twemoji", "flat emoji")


class Colours:
    """An evaluator that sees the mean colours of a picture's quarters, of any size."""

    def encode_image(self, images: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(images, 2).flatten(1) - 0.5


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve concepts, each of its own colours, in three styles that differ a little; 4 pictures held out."""
    root = tmp_path_factory.mktemp("data")
    generator = np.random.default_rng(0)
    rows = []
    for k in range(12):
        colours = generator.integers(0, 230, (2, 2, 3), dtype=np.uint8)
        for s, style in enumerate(STYLES):
            split = "held-out" if k < 4 and s == k % 3 else "train"
            name = f"{split}/{style.replace(' ', '-')}/concept-{k}.png"
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            pixels = np.kron(colours + np.uint8(8 * s), np.ones((24, 24, 1), np.uint8))
            Image.fromarray(pixels).save(root / name)
            row = {"file_name": name, "text": f"concept {k}", "concept": f"concept-{k}", "style": style}
            rows.append(row | {"common": k % 2 == 0, "names": [], "keywords": [], "split": split})
    (root / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


@pytest.fixture(scope="module")
def data(folder: Path) -> EmojiData:
    return EmojiData.read(folder)


@pytest.fixture(scope="module")
def references(data: EmojiData) -> References:
    paths = [data.path(row) for row in data.train]
    return References.of(data, evaluation_data.features_of(Colours(), paths))


def test_what_is_asked(data: EmojiData) -> None:
    questions = choose_concepts(data, 5, 0)
    assert questions == choose_concepts(data, 5, 0)
    assert questions != choose_concepts(data, 5, 1)
    assert len({question.concept for question in questions}) == 5
    assert [question.seed for question in questions] == list(range(5))
    assert all(question.common for question in choose_concepts(data, 99, 0, "common"))
    assert len(choose_concepts(data, 99, 0, "common")) == 6

    pairs = choose_pairs(data, 99, 0)
    held_out = {(row["concept"], row["style"]) for row in data.held_out}
    train = {(row["concept"], row["style"]) for row in data.train}
    assert {(q.concept, q.style) for q in pairs["held-out"]} == held_out
    assert {(q.concept, q.style) for q in pairs["seen"]} <= train
    assert sorted(str(q.style) for q in pairs["seen"]) == sorted(str(q.style) for q in pairs["held-out"])
    assert all(q.prompt == f"{q.concept.replace('-', ' ')}, {q.style}" for q in pairs["held-out"])


def test_real_pictures_are_right_and_shuffled_ones_wrong(data: EmojiData, references: References) -> None:
    """Training pictures themselves, asked for by their own names, then by one another's."""
    rows = [row for row in data.train if row["style"] == "flat emoji"]
    features = evaluation_data.features_of(Colours(), [data.path(row) for row in rows])
    asked = [
        Question(f"{row['text']}, {row['style']}", row["concept"], row["style"], row["common"], k)
        for k, row in enumerate(rows)
    ]
    assert pair_scores(features, asked, references) == {
        "pictures": len(rows),
        "top-1": 1.0,
        "top-5": 1.0,
        "style": 1.0,
    }
    found = neighbours(features, references)
    assert [path for path, _, _ in found] == [data.path(row) for row in rows]
    assert all(cosine == pytest.approx(1) for _, _, cosine in found)

    right = concept_scores(features, asked, references, seed=0)
    wrong = concept_scores(features, asked[1:] + asked[:1], references, seed=0)
    assert right["top-1"] == right["common"]["top-1"] == right["others"]["top-1"] == 1.0
    assert wrong["top-1"] == 0.0
    assert right["common"]["pictures"] == sum(row["common"] for row in rows)
    assert concept_scores(1 - features, asked, references, seed=0)["frechet"] > 2 * right["frechet"]


def test_the_autoencoders_figures(data: EmojiData) -> None:
    """An autoencoder that halves contrasts about grey is wrong by (x - ½) / 2."""

    class Halved:
        def encode(self, images: Tensor) -> Any:
            return type("Gaussian", (), {"mode": lambda self: images})()

        def decode(self, z: Tensor) -> Tensor:
            return z / 2

    model = ldm_core.model.LatentDiffusion(None, None, None, Halved(), None, TINY["sd1"])  # type: ignore
    scores = autoencoder_scores(model, data)
    images = evaluation_data.load_pictures([data.path(row) for row in data.held_out], 32).double()
    expected = -10 * torch.log10(((images - 0.5) / 2).square().mean(dim=(1, 2, 3)))
    assert scores["psnr"] == pytest.approx(float(expected.mean()), abs=1e-4)
    all_at_once = -10 * torch.log10(((images - 0.5) / 2).square().mean())
    assert scores["psnr of mean error"] == pytest.approx(float(all_at_once), abs=1e-4)
    assert (scores["pictures"], scores["size"]) == (4, 32)
    assert 0 < scores["ssim"] < 1


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    ldm_core.checkpoint.save(random_model(TINY["sd1"]), path)
    return path


@pytest.mark.slow  # a whole evaluation
def test_the_whole_script(
    checkpoint: Path,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out, evaluator = tmp_path / "out", tmp_path / "evaluator"
    evaluator.write_bytes(b"stands for its weights")
    monkeypatch.setattr(script, "load_evaluator", lambda path: Colours())
    monkeypatch.setattr(evaluation_pictures, "PROMPTS", ("concept 1", "concept 2"))
    quick = ["--concepts", "3", "--pairs", "2", "--steps", "1", "--guidance", "1", "3"]
    command = [str(checkpoint), str(folder), str(evaluator), str(out), *quick]
    script.main(command)
    report = json.loads((out / "evaluation.json").read_text())
    assert report["name"] == "tiny"
    assert set(report["concepts"]) == {"1", "3"}
    assert report["concepts"]["1"]["pictures"] == 3
    assert report["pairs"]["seen"]["pictures"] == report["pairs"]["held-out"]["pictures"] == 2
    assert report["real"]["top-1"] == 1.0
    assert report["training"] == {"pictures": 32, "concepts": 12}
    samples = sorted((out / "samples").rglob("*.png"))
    assert len(samples) == 2 * 3 + 2 * 2
    for name in (
        *("prompts.png", "quiz.png", "strip.png", "interpolation.png", "guidance-steps.png"),
        *("neighbours-concepts-1.png", "neighbours-seen-1.png", "neighbours-held-out-1.png"),
    ):
        assert name in report["pictures"]
        with Image.open(out / name) as picture:
            assert np.asarray(picture).std() > 5
    page = (out / "evaluation.md").read_text()
    assert page in capsys.readouterr().out
    assert re.search(r"\| guidance 3: top-5 \| \d+\.\d % \|", page)

    # Killed in the middle, it goes on: only what is not there is drawn, and all is as it was.
    before = {path: path.read_bytes() for path in samples}
    samples[0].unlink()
    (out / "evaluation.json").unlink()
    kept = [*samples[1:], out / "references.safetensors", out / "prompts.png"]
    times = {path: path.stat().st_mtime_ns for path in kept}
    script.main([*command, "--beside"])
    assert {path: path.read_bytes() for path in samples} == before
    assert {path: path.stat().st_mtime_ns for path in kept} == times
    again = json.loads((out / "evaluation.json").read_text())
    assert again == report

    # Another model beside it; and no mixing of two in one folder.
    with pytest.raises(SystemExit, match="holds an evaluation of other settings"):
        script.main([*command, "--seed", "5"])
    both = markdown([report, report | {"name": "other", "pairs": {}}])
    assert "|  | tiny | other |" in both
    assert re.search(r"\| held-out pairs at its best guidance: style \| \d+\.\d % \| – \|", both)


def test_a_quiz_has_every_picture_under_another_number_and_its_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: dict[str, Any] = {}
    monkeypatch.setattr(
        evaluation_pictures, "make_grid", lambda rows, labels: shown.update(rows=rows, labels=labels)
    )
    prompts = evaluation_pictures.PROMPTS
    evaluation_pictures.quiz_sheet(list(prompts), tmp_path / "quiz.txt", seed=0)
    cells = [cell for row in shown["rows"] for cell in row]
    assert sorted(cells) == sorted(prompts)
    assert sum(cell == prompt for cell, prompt in zip(cells, prompts)) < 8
    numbers = [number for row in shown["labels"] for number in row]
    assert numbers == [str(k) for k in range(1, 65)]
    answers = (tmp_path / "quiz.txt").read_text().splitlines()
    assert answers == [f"{number} {cell}" for number, cell in zip(numbers, cells)]


def test_a_picture_does_not_depend_on_its_batch(data: EmojiData, tmp_path: Path) -> None:
    model = random_model(TINY["sd1"])
    questions = choose_concepts(data, 3, 0)
    options = {"steps": 1, "guidance": 2.0}
    together = script.draw(model, questions, tmp_path / "a", batch_size=3, **options)
    alone = script.draw(model, questions, tmp_path / "b", batch_size=1, **options)
    for a, b in zip(together, alone):
        pixels = [np.asarray(Image.open(path)).astype(int) for path in (a, b)]
        assert np.abs(pixels[0] - pixels[1]).max() <= 1


def test_what_is_wrong_is_said(tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match=r"metadata.jsonl is not there: make the data with prepare\.py"):
        script.main(["bundled", str(tmp_path), "x", str(tmp_path / "out")])
    with pytest.raises(SystemExit, match=r"error: .*nothing"):
        script.main([str(tmp_path / "nothing"), str(folder), "x", str(tmp_path / "out")])
    with pytest.raises(SystemExit):
        script.main(["bundled", str(folder), "x", str(tmp_path / "out"), "--steps", "0"])
    assert "--steps must be positive, not 0" in capsys.readouterr().err
