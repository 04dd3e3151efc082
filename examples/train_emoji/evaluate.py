"""How good a text-to-emoji model is: the autoencoder, what is drawn of 500 concepts, and sheets of pictures.

    python examples/train_emoji/evaluate.py MODEL emoji-data evaluator.safetensors OUT
    python examples/train_emoji/evaluate.py bundled emoji-data evaluator.safetensors OUT-2 --beside OUT

MODEL is a checkpoint, or "bundled" for the model that comes with the package. DATA is what `prepare.py` made.
The evaluator is a CLIP that was trained apart and had no part in training the model.

OUT/evaluation.json and evaluation.md have the figures; the sheets are beside them, and OUT/samples has every
picture that was drawn. A run that was stopped goes on where it was. `--concepts 20 --steps 5` is for a quick
look. The bundled model may have been trained on what is held out here: its figures on that flatter it.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from emoji_sets import write_whole
from evaluation_data import (
    EmojiData,
    Evaluator,
    Question,
    batches,
    choose_concepts,
    choose_pairs,
    features_of,
    sha256_of,
)
from evaluation_pictures import draw_sheets, neighbour_sheets, save
from evaluation_report import markdown
from evaluation_scores import (
    References,
    autoencoder_scores,
    ceiling,
    concept_scores,
    neighbours,
    pair_scores,
)
from safetensors.torch import load_file, save_file
from tqdm import tqdm

import ldm_core

GUIDANCE = (1.0, 3.0, 5.0, 7.5)


@dataclass(frozen=True)
class Settings:
    """What is asked of a model. among: "all" concepts or the "common" ones. pairs: held out, and seen."""

    concepts: int = 500
    among: str = "all"
    pairs: int = 200
    steps: int = 25
    guidance: tuple[float, ...] = GUIDANCE
    seed: int = 0


def load_evaluator(path: str) -> Evaluator:
    """The network that looks at the pictures: anything with `encode_image` serves in its place."""
    return ldm_core.CLIP.load(path)


def draw(
    model: ldm_core.LatentDiffusion,
    questions: Sequence[Question],
    folder: Path,
    *,
    steps: int,
    guidance: float,
    batch_size: int,
) -> list[Path]:
    """Draw what is not there yet, a batch at a time; returns the pictures' files, as they were asked for."""
    sampler = ldm_core.Sampler(model)
    paths = [folder / question.file_name for question in questions]
    missing = [pair for pair in zip(questions, paths) if not pair[1].exists()]
    what = f"{folder.name} at guidance {guidance:g}"
    for batch in tqdm(list(batches(missing, batch_size)), desc=what, mininterval=1):
        pictures = sampler.txt2img(
            [question.prompt for question, _ in batch],
            seed=[question.seed for question, _ in batch],
            steps=steps,
            guidance_scale=guidance,
        )
        for picture, (_, path) in zip(pictures, batch):
            save(picture, path)
    return paths


def references_of(evaluator: Evaluator, data: EmojiData, out: Path) -> References:
    """The training pictures' features, kept in `out` once they are computed."""
    path = out / "references.safetensors"
    if not path.exists():
        features = features_of(evaluator, [data.path(row) for row in data.train])
        out.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(path.name + ".partial")
        save_file({"features": features}, partial)
        partial.replace(path)
    return References.of(data, load_file(path)["features"])


def evaluate(
    model: ldm_core.LatentDiffusion,
    data: EmojiData,
    evaluator: Evaluator,
    out: Path,
    settings: Settings,
    *,
    name: str = "model",
    batch_size: int = 16,
) -> dict[str, Any]:
    """Measure a model, leave its pictures in `out`, and return the figures."""
    references = references_of(evaluator, data, out)
    questions = choose_concepts(data, settings.concepts, settings.seed, settings.among)
    report: dict[str, Any] = {
        "name": name,
        "settings": asdict(settings) | {"concepts": len(questions)},
        "training": {"pictures": len(data.train), "concepts": len(data.concepts)},
        "autoencoder": autoencoder_scores(model, data, batch_size=batch_size),
        "real": ceiling(evaluator, questions, references, settings.seed),
        "concepts": {},
        "pairs": {},
    }

    def drawn(asked: Sequence[Question], kind: str, guidance: float) -> list[Path]:
        folder = out / "samples" / f"guidance-{guidance:g}" / kind
        return draw(model, asked, folder, steps=settings.steps, guidance=guidance, batch_size=batch_size)

    for guidance in settings.guidance:
        features = features_of(evaluator, drawn(questions, "concepts", guidance))
        report["concepts"][f"{guidance:g}"] = concept_scores(features, questions, references, settings.seed)
    scores = report["concepts"]
    best = max(settings.guidance, key=lambda g: (scores[f"{g:g}"]["top-1"], scores[f"{g:g}"]["top-5"]))
    report["best guidance"] = best

    pairs = choose_pairs(data, settings.pairs, settings.seed)
    sheets = []
    for kind, asked in {"concepts": questions, **pairs}.items():
        paths = drawn(asked, kind, best)
        features = features_of(evaluator, paths)
        if kind in pairs:
            report["pairs"][kind] = pair_scores(features, asked, references)
        sheets += neighbour_sheets(out, f"neighbours-{kind}", asked, paths, neighbours(features, references))
    first = draw_sheets(
        model, out, steps=settings.steps, guidance=best, seed=settings.seed, batch_size=batch_size
    )
    report["pictures"] = [path.name for path in (*first, *sheets)]
    return report


def check_run(out: Path, facts: dict[str, Any]) -> None:
    """Raises ValueError where `out` holds another evaluation's pictures; else writes down whose they are."""
    path = out / "run.json"
    facts = json.loads(json.dumps(facts))
    if not path.exists():
        write_json(path, facts)
        return
    earlier = json.loads(path.read_text(encoding="utf-8"))
    differing = [name for name in facts if earlier.get(name) != facts[name]]
    if differing:
        raise ValueError(f"{out} holds an evaluation of other {', '.join(differing)}: name another folder")


def write_json(path: Path, value: Any) -> None:
    write_whole(path, (json.dumps(value, indent=2) + "\n").encode())


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help='a checkpoint, or "bundled"')
    parser.add_argument("data", type=Path)
    parser.add_argument("evaluator", help="a CLIP's checkpoint")
    parser.add_argument("out", type=Path)
    parser.add_argument("--name", help="the model's, in the tables; by default its file's")
    parser.add_argument("--concepts", type=int, default=Settings.concepts)
    parser.add_argument("--among", choices=["all", "common"], default=Settings.among)
    parser.add_argument("--pairs", type=int, default=Settings.pairs, help="of concept and style, held out")
    parser.add_argument("--steps", type=int, default=Settings.steps)
    parser.add_argument("--guidance", type=float, nargs="+", default=list(GUIDANCE))
    parser.add_argument("--seed", type=int, default=Settings.seed)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--device", default="cpu", help="where the model draws")
    parser.add_argument("--beside", type=Path, nargs="*", default=[], help="earlier OUTs, for the tables")
    args = parser.parse_args(arguments)
    for option in ("concepts", "pairs", "steps", "batch_size"):
        if getattr(args, option) < 1:
            parser.error(f"--{option.replace('_', '-')} must be positive, not {getattr(args, option)}")
    return args


def main(arguments: Sequence[str] | None = None) -> None:
    args = parse(arguments)
    settings = Settings(args.concepts, args.among, args.pairs, args.steps, tuple(args.guidance), args.seed)
    try:
        data = EmojiData.read(args.data)
        beside = [json.loads((out / "evaluation.json").read_text("utf-8")) for out in args.beside]
        file = ldm_core.loading.load.bundled_model() if args.model == "bundled" else Path(args.model)
        facts = {
            "model": sha256_of(file),
            "evaluator": sha256_of(Path(args.evaluator)),
            "data": data.fingerprint(),
            "settings": asdict(settings),
        }
        check_run(args.out, facts)
        model = ldm_core.load(file, device=args.device)
        evaluator = load_evaluator(args.evaluator)
        name = args.name or (args.model if args.model == "bundled" else file.stem)
        report = evaluate(model, data, evaluator, args.out, settings, name=name, batch_size=args.batch_size)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    write_json(args.out / "evaluation.json", report | {"files": facts})
    page = markdown([report, *beside])
    write_whole(args.out / "evaluation.md", page.encode())
    print(page)


if __name__ == "__main__":
    main()
