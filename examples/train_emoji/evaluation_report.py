"""An evaluation as a page of Markdown: one column of figures a model, so that models stand side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Report = dict[str, Any]


def markdown(reports: Sequence[Report]) -> str:
    """The page. reports: what `evaluate.py` writes as JSON, the first one being the page's own."""
    own = reports[0]
    settings = own["settings"]
    lines = [
        f"# Evaluation of {own['name']}",
        "",
        f"{settings['concepts']} concepts among {settings['among']}, {settings['steps']} steps of DDIM, seed "
        f"{settings['seed']}. A picture is right where its nearest training picture shows what was asked "
        f"for, among {own['training']['pictures']:,} pictures of {own['training']['concepts']:,} concepts, "
        "in the features of a network that had no part in training the model.",
        "",
        _row(["", *(report["name"] for report in reports)]),
        _row(["---", *["---"] * len(reports)]),
    ]
    for title, place in _figures(reports):
        lines.append(_row([title, *(_shown(_find(report, place), place[-1]) for report in reports)]))
    lines += [
        "",
        "The style is right where the nearest training picture has it. The Fréchet distance is to training "
        "pictures of the same concepts and is comparable for the same number of pictures only; so is that of "
        "real ones. The cosine is the median over pictures of that to the nearest training picture.",
        "",
    ]
    for name in own["pictures"]:
        lines += [f"![{name.removesuffix('.png')}]({name})", ""]
    return "\n".join(lines)


def _figures(reports: Sequence[Report]) -> list[tuple[str, tuple[str, ...]]]:
    """(what it is, where it stands in a report), in the page's order."""
    own = reports[0]
    size = f"{own['autoencoder']['pictures']} held-out pictures"
    figures: list[tuple[str, tuple[str, ...]]] = [
        ("pixels of a side", ("autoencoder", "size")),
        (f"autoencoder, {size}: PSNR, dB", ("autoencoder", "psnr")),
        (f"autoencoder, {size}: PSNR of the mean error, dB", ("autoencoder", "psnr of mean error")),
        (f"autoencoder, {size}: SSIM", ("autoencoder", "ssim")),
        ("real held-out pictures: top-1", ("real", "top-1")),
        ("real held-out pictures: top-5", ("real", "top-5")),
        ("real pictures: Fréchet distance", ("real", "frechet")),
    ]
    scales = list(dict.fromkeys(scale for report in reports for scale in report["concepts"]))
    for scale in sorted(scales, key=float):
        for title, place in (
            ("top-1", ("top-1",)),
            ("top-5", ("top-5",)),
            ("top-1, common concepts", ("common", "top-1")),
            ("top-1, other concepts", ("others", "top-1")),
            ("Fréchet distance", ("frechet",)),
            ("cosine to the nearest", ("nearest cosine",)),
        ):
            figures.append((f"guidance {scale}: {title}", ("concepts", scale, *place)))
    figures.append(("best guidance", ("best guidance",)))
    for split in ("seen", "held-out"):
        for title in ("top-1", "top-5", "style"):
            figures.append((f"{split} pairs at its best guidance: {title}", ("pairs", split, title)))
    return figures


def _find(report: Any, place: Sequence[str]) -> Any:
    for name in place:
        report = report.get(name) if isinstance(report, dict) else None
    return report


def _shown(value: Any, kind: str) -> str:
    if value is None:
        return "–"
    if kind in ("top-1", "top-5", "style"):
        return f"{100 * value:.1f} %"
    if isinstance(value, float):
        return f"{value:.2f}" if kind.startswith("psnr") else f"{value:.4g}"
    return str(value)


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
