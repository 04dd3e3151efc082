"""Emoji artwork as a data set: fetch five sets, render them on white, and write pictures with captions.

    pip install resvg-py==0.5.0
    python examples/train_emoji/prepare.py emoji-data --size 128

    metadata.jsonl      a row for each picture: file_name, text (the concept's name), style, concept, names,
                        keywords, group, common, split
    train/, held-out/   the pictures as <style>/<concept>.png, and the split's own metadata.jsonl
    packages/           what was fetched; with it there, no network is needed
    dataset.json        the settings and counts

Each of the three folders with a `metadata.jsonl` is in the imagefolder convention. Train on `train`.
A run that was stopped goes on where it was, and two runs give the same bytes.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from emoji_concepts import Icon, align
from emoji_sets import CLDR, SETS, fetch, read_json, write_whole
from PIL import Image
from tqdm import tqdm

from ldm_core.images import open_picture

RENDERED = ".rendered"  # what is drawn already; hidden from readers of image folders
HELD_OUT = 0.05  # of the pictures whose concept also has another style
THUMBNAIL = 32  # pixels a side, for comparing
SAME = 1.0  # levels of 255 that two drawings of one picture differ by at most, as a root mean square


def render(svg: str, size: int) -> Image.Image:
    """An SVG on white, as RGB of size × size pixels. Raises ValueError for what is no SVG."""
    import resvg_py

    # No fonts: the artwork has none, and which ones there are depends on the machine.
    png = resvg_py.svg_to_bytes(
        svg_string=svg, width=size, height=size, background="#ffffff", skip_system_fonts=True
    )
    return open_picture(bytes(png)).convert("RGB")


def without_twins(icons: Sequence[Icon], thumbnails: np.ndarray) -> list[int]:
    """The places of the icons that are not the same drawing as one of their style that CLDR lists before.

    Sets draw one picture for "detective" and "man detective", say. In two concepts it would be right and
    wrong at once, and in training while it is held out. thumbnails: (N, pixels), of values in 0..255.
    """
    kept: list[int] = []
    for style in sorted({icon.style for icon in icons}):
        places = [i for i, icon in enumerate(icons) if icon.style == style]
        places.sort(key=lambda i: (icons[i].order, icons[i].concept))
        values = thumbnails[places].astype(np.float64)
        squares = (values**2).sum(axis=1)
        distances = np.sqrt(
            np.maximum(squares[:, None] + squares[None] - 2 * values @ values.T, 0) / values.shape[1]
        )
        first = [not (distances[k, :k] < SAME).any() for k in range(len(places))]
        kept += [place for place, is_first in zip(places, first) if is_first]
    return sorted(kept)


def held_out(pairs: Iterable[tuple[str, str]], share: float = HELD_OUT) -> set[tuple[str, str]]:
    """The (concept, style) pairs that are kept from training, by a hash of their names alone.

    A concept keeps at least one style in training, so that its others can be asked for.
    """
    styles: dict[str, list[tuple[float, str]]] = {}
    for concept, style in pairs:
        digest = hashlib.sha256(f"{concept}, {style}".encode()).digest()
        styles.setdefault(concept, []).append((int.from_bytes(digest[:8], "big") / 2**64, style))
    return {
        (concept, style)
        for concept, draws in styles.items()
        for draw, style in sorted(draws)[:-1]
        if draw < share
    }


def read_sets(packages: Path) -> list[Icon]:
    """The icons of all sets, fetched unless they are there."""
    sets = []
    for emoji_set in SETS:
        archive = fetch(emoji_set.package, packages)
        sets.append((emoji_set.style, read_json(archive, "icons.json"), read_json(archive, "chars.json")))
    cldr = fetch(CLDR, packages)
    return align(sets, read_json(cldr, "en/data.json"), read_json(cldr, "en/messages.json"))


def place_of(icon: Icon) -> str:
    return f"{icon.style.replace(' ', '-')}/{icon.concept}.png"


def row_of(icon: Icon, split: str) -> dict[str, Any]:
    """A picture's row of `metadata.jsonl`, at the top of the data set."""
    return {
        "file_name": f"{split}/{place_of(icon)}",
        "text": icon.concept.replace("-", " "),
        "style": icon.style,
        "concept": icon.concept,
        "names": list(icon.names),
        "keywords": list(icon.keywords),
        "group": icon.group,
        "common": icon.common,
        "split": split,
    }


def draw(icons: Sequence[Icon], folder: Path, size: int) -> np.ndarray:
    """Draw what is not there yet as <style>/<concept>.png; returns thumbnails of all, (N, pixels)."""
    thumbnails = np.empty((len(icons), THUMBNAIL * THUMBNAIL * 3), np.uint8)
    for i, icon in enumerate(tqdm(icons, unit="picture", mininterval=1)):
        path = folder / place_of(icon)
        if not path.exists():
            try:
                picture = render(icon.svg, size)
            except ValueError as error:
                raise ValueError(f"{icon.concept} of {icon.style} cannot be rendered: {error}") from error
            file = io.BytesIO()
            picture.save(file, "PNG")
            write_whole(path, file.getvalue())
        small = open_picture(path).resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX)
        thumbnails[i] = np.asarray(small).reshape(-1)
    return thumbnails


def copy(source: Path, target: Path) -> None:
    """Copy a file, unless it is there: caches look at when a file changed."""
    contents = source.read_bytes()
    if not target.exists() or target.read_bytes() != contents:
        write_whole(target, contents)


def check_settings(out: Path, settings: dict[str, Any]) -> None:
    """Raises ValueError where `out` holds a data set of other settings; else writes them down."""
    path = out / "dataset.json"
    if path.exists():
        earlier = json.loads(path.read_text(encoding="utf-8"))["settings"]
        if earlier != settings:
            raise ValueError(f"{out} was prepared with {earlier}, not {settings}: name another folder")
    else:
        write_json(path, {"settings": settings})


def write_json(path: Path, value: Any) -> None:
    write_whole(path, (json.dumps(value, indent=2) + "\n").encode())


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    write_whole(path, "".join(json.dumps(row) + "\n" for row in rows).encode())


def prepare(out: Path, size: int, packages: Path, limit: int | None = None) -> dict[str, Any]:
    """Make the data set in `out`, and return what `dataset.json` says. limit: only so many concepts."""
    if size < 8:
        raise ValueError(f"size must be at least 8 pixels, not {size}")
    settings = {
        "size": size,
        "concepts": limit,
        "packages": [f"{s.package.name}@{s.package.version}" for s in SETS] + [f"{CLDR.name}@{CLDR.version}"],
        "resvg-py": version("resvg-py"),
        "pillow": version("pillow"),
    }
    check_settings(out, settings)
    icons = read_sets(packages)
    if limit is not None:
        some = set(sorted({icon.concept for icon in icons})[:limit])
        icons = [icon for icon in icons if icon.concept in some]
    thumbnails = draw(icons, out / RENDERED, size)
    kept = [icons[i] for i in without_twins(icons, thumbnails)]
    away = held_out((icon.concept, icon.style) for icon in kept)
    rows = []
    for icon in kept:
        row = row_of(icon, "held-out" if (icon.concept, icon.style) in away else "train")
        copy(out / RENDERED / place_of(icon), out / row["file_name"])
        rows.append(row)
    write_rows(out / "metadata.jsonl", rows)
    for split in ("train", "held-out"):
        own = [row for row in rows if row["split"] == split]
        names = [row["file_name"].removeprefix(f"{split}/") for row in own]
        write_rows(out / split / "metadata.jsonl", [row | {"file_name": n} for row, n in zip(own, names)])
    summary = {"settings": settings, "counts": counts(rows), "twins left out": len(icons) - len(kept)}
    write_json(out / "dataset.json", summary)
    return summary


def counts(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """How many pictures and concepts there are."""
    return {
        "pictures": len(rows),
        "concepts": len({row["concept"] for row in rows}),
        "common pictures": sum(row["common"] for row in rows),
        "common concepts": len({row["concept"] for row in rows if row["common"]}),
        "held-out pictures": sum(row["split"] == "held-out" for row in rows),
        "by style": dict(sorted(Counter(row["style"] for row in rows).items())),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, help="the folder to make")
    parser.add_argument("--size", type=int, default=128, help="pixels of a side")
    parser.add_argument("--packages", type=Path, help="where the packages are kept; by default OUT/packages")
    parser.add_argument("--limit", type=int, help="only so many concepts, to try it")
    args = parser.parse_args(arguments)
    try:
        summary = prepare(args.out, args.size, args.packages or args.out / "packages", args.limit)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    print(json.dumps(summary, indent=2))


if __name__ == "__main__":
    main()
