"""Writes the drawings of the eight steps: docs/idea/drawings/*.svg.

    python docs/idea/drawings.py

Each drawing is 720 units wide, with letters that can be read on a phone. Its colours are variables: on the
site those of the page, light or dark; in a file by itself the light ones.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from html import escape
from math import atan2, cos, sin
from pathlib import Path

FOLDER = Path(__file__).parent / "drawings"
FONTS = 'system-ui,-apple-system,"Segoe UI","DejaVu Sans",sans-serif'
STYLE = f"""
.drawing text {{ fill: var(--d-ink, #1d2733); font-family: {FONTS} }}
.drawing .small {{ fill: var(--d-faint, #5d6875) }}
.drawing .line {{ stroke: var(--d-line, #7c8794); fill: none }}
.drawing .head {{ fill: var(--d-line, #7c8794) }}
.drawing .paper {{ fill: var(--d-paper, #fbfaf6) }}
.drawing .blue {{ fill: var(--d-blue, #d3e4f4) }}
.drawing .orange {{ fill: var(--d-orange, #f8dcc8) }}
.drawing .green {{ fill: var(--d-green, #d5ebdc) }}
.drawing .grey {{ fill: var(--d-grey, #e7e9ec) }}
.drawing .face {{ fill: #f7c948 }}
.drawing .tiger {{ fill: #ee8f3c }}
.drawing .dark {{ fill: #40311d }}
.drawing .white {{ fill: #fff }}
"""


class Drawing:
    """The elements of one SVG, in the order in which they are drawn."""

    def __init__(self, height: int, width: int = 720) -> None:
        self.width, self.height = width, height
        self.parts: list[str] = []

    def text(
        self, x: float, y: float, words: str, size: int = 20, anchor: str = "middle", kind: str = ""
    ) -> None:
        named = f' class="{kind}"' if kind else ""
        place = f'x="{x:g}" y="{y:g}" font-size="{size}" text-anchor="{anchor}"'
        self.parts.append(f"<text {place}{named}>{escape(words)}</text>")

    def box(
        self, x: float, y: float, width: float, height: float, fill: str, lines: Sequence[str], size: int = 20
    ) -> None:
        """A box with lines of text in its middle; the first is large, the others are small."""
        self.rectangle(x, y, width, height, f'rx="10" class="{fill}"')
        step = size * 1.3
        first = y + height / 2 - step * (len(lines) - 1) / 2 + size * 0.35
        for i, line in enumerate(lines):
            self.text(
                x + width / 2, first + i * step, line, size if i == 0 else size - 3, kind="small" if i else ""
            )

    def arrow(self, x1: float, y1: float, x2: float, y2: float, width: float = 2.5) -> None:
        angle, size = atan2(y2 - y1, x2 - x1), 5 + 2.5 * width
        tips = [(x2 - size * cos(angle + turn), y2 - size * sin(angle + turn)) for turn in (0.45, -0.45)]
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in [(x2, y2), *tips])
        end = x2 - size * 0.7 * cos(angle), y2 - size * 0.7 * sin(angle)
        self.path(f"M{x1:g} {y1:g} L{end[0]:.1f} {end[1]:.1f}", width=width)
        self.parts.append(f'<polygon points="{points}" class="head"/>')

    def path(self, d: str, dashes: str = "", width: float = 2.5) -> None:
        dashed = f' stroke-dasharray="{dashes}"' if dashes else ""
        self.parts.append(f'<path d="{d}" class="line" stroke-width="{width:g}"{dashed}/>')

    def circle(self, x: float, y: float, r: float, kind: str) -> None:
        self.parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{r:.1f}" class="{kind}"/>')

    def rectangle(self, x: float, y: float, width: float, height: float, paint: str) -> None:
        self.parts.append(
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" {paint}/>'
        )

    def face(
        self, x: float, y: float, size: float, noise: float = 0.0, seed: int = 0, animal: str = ""
    ) -> None:
        """A face, or a cat's or tiger's, on white, with noise over it: 0 none, 1 nothing but noise."""
        r, cx, cy = size * 0.42, x + size / 2, y + size / 2
        self.rectangle(x, y, size, size, 'rx="4" class="white"')
        skin = "tiger" if animal == "tiger" else "face"
        if animal:
            r, cy = r * 0.85, cy + size * 0.06
            for side in (-1, 1):
                tip = f"{cx + side * r * 0.85:.1f},{cy - r * 1.3:.1f}"
                foot = f"{cx + side * r * 0.2:.1f},{cy - r * 0.9:.1f} {cx + side * r:.1f},{cy - r * 0.2:.1f}"
                self.parts.append(f'<polygon points="{tip} {foot}" class="{skin}"/>')
        if noise < 1:
            self.circle(cx, cy, r, skin)
            for side in (-1, 1):
                self.circle(cx + side * r * 0.36, cy - r * 0.2, r * 0.12, "dark")
            left, right, mouth, bend = cx - r * 0.5, cx + r * 0.5, cy + r * 0.22, r * 0.55
            smile = f"M{left:.1f} {mouth:.1f} A{bend:.1f} {bend:.1f} 0 0 0 {right:.1f} {mouth:.1f} Z"
            self.parts.append(f'<path d="{smile}" class="dark"/>')
        if animal == "tiger":
            for dx, length in ((-0.22, 0.3), (0, 0.42), (0.22, 0.3)):
                self.rectangle(cx + (dx - 0.05) * r, cy - r * 0.86, r * 0.1, r * length, 'class="dark"')
        if noise > 0:
            self.grain(x, y, size, 10, noise, seed)

    def grain(self, x: float, y: float, size: float, cells: int, opacity: float, seed: int) -> None:
        """Squares of random greys."""
        draw, cell = random.Random(seed), size / cells
        for level in range(5):
            places = [k for k in range(cells * cells) if draw.randrange(5) == level]
            grey = 40 + level * 45
            d = "".join(
                f"M{x + k % cells * cell:.1f} {y + k // cells * cell:.1f}h{cell:.1f}v{cell:.1f}h-{cell:.1f}z"
                for k in places
            )
            self.parts.append(f'<path d="{d}" fill="rgb({grey},{grey},{grey})" opacity="{opacity:g}"/>')

    def vector(self, x: float, y: float, width: float, height: float, cells: int, seed: int) -> None:
        """A column of coloured cells: a vector."""
        draw = random.Random(seed)
        for k in range(cells):
            hue, light = draw.choice((28, 205)), draw.randrange(45, 88)
            top, tall = y + k * height / cells, height / cells - 1
            self.rectangle(x, top, width, tall, f'fill="hsl({hue} 60% {light}%)"')

    def svg(self) -> str:
        head = f'<svg class="drawing" viewBox="0 0 {self.width} {self.height}" xmlns="http://www.w3.org/2000/svg">'
        paper = f'<rect width="{self.width}" height="{self.height}" rx="12" class="paper"/>'
        return "\n".join([head, f"<style>{STYLE}</style>", paper, *self.parts, "</svg>", ""])


def two_tasks() -> Drawing:
    d = Drawing(310)
    d.box(30, 45, 200, 64, "blue", ["“grinning cat”"])
    d.box(300, 35, 150, 84, "orange", ["the model"])
    d.face(520, 20, 115, animal="cat")
    d.arrow(238, 77, 292, 77)
    d.arrow(458, 77, 512, 77)
    d.text(650, 84, "new", 20, "start", "small")
    d.box(30, 185, 200, 50, "blue", ["“tiger face”"])
    d.face(40, 245, 50, animal="cat")
    d.text(100, 277, "and a picture", 20, "start", "small")
    d.box(300, 185, 150, 84, "orange", ["the model"])
    d.face(520, 170, 115, animal="tiger")
    d.arrow(238, 210, 292, 218)
    d.arrow(238, 270, 292, 242)
    d.arrow(458, 227, 512, 227)
    d.text(650, 234, "varied", 18, "start", "small")
    return d


def two_components() -> Drawing:
    d = Drawing(290)
    d.box(20, 60, 140, 60, "grey", ["“red apple”"])
    d.box(200, 40, 190, 100, "blue", ["understands", "the text"], 22)
    d.box(430, 40, 190, 100, "orange", ["makes", "the picture"], 22)
    d.face(645, 58, 64)
    d.arrow(163, 90, 196, 90)
    d.arrow(394, 90, 427, 90)
    d.arrow(624, 90, 642, 90)
    d.path("M410 98 V170", "4 4")
    d.text(410, 196, "numbers:", 20, "end")
    d.text(410, 222, "what should be seen", 20, "end", "small")
    d.grain(500, 185, 50, 8, 1, 5)
    d.arrow(525, 180, 525, 145)
    d.text(562, 205, "noise:", 20, "start")
    d.text(562, 231, "which picture", 20, "start", "small")
    return d


def words_to_vectors() -> Drawing:
    d = Drawing(370)
    tokens = [
        ("start", "49406"),
        ("gr", "709"),
        ("inning", "4415"),
        ("cat", "2368"),
        ("end", "49407"),
        ("end", "49407"),
    ]
    d.text(360, 42, "“grinning cat”", 24)
    d.arrow(360, 54, 360, 82)
    for i, (word, number) in enumerate(tokens):
        x = 30 + i * 102
        d.box(x, 90, 92, 68, "grey" if word in ("start", "end") else "blue", [word, number])
        d.arrow(x + 46, 162, x + 46, 190)
        d.vector(x + 28, 262, 36, 84, 7, i)
        d.arrow(x + 46, 232, x + 46, 258)
    d.text(648, 130, "… 77", 22, "start")
    d.box(30, 194, 602, 38, "orange", ["every token looks at those before it"])
    d.text(648, 310, "77", 22, "start")
    d.text(648, 334, "vectors", 17, "start", "small")
    return d


def creator_and_decoder() -> Drawing:
    d = Drawing(300)
    d.grain(30, 90, 80, 8, 1, 2)
    d.text(70, 200, "noise", 20)
    d.text(70, 226, "16 × 8 × 8", 18, kind="small")
    d.box(150, 80, 190, 100, "orange", ["information", "creator"], 22)
    d.path("M310 78 C330 20 160 20 180 70")
    d.arrow(178, 66, 181, 76)
    d.text(245, 26, "25 times", 20, kind="small")
    d.grain(380, 90, 80, 8, 0.45, 11)
    d.text(420, 200, "latent", 20)
    d.text(420, 226, "16 × 8 × 8", 18, kind="small")
    d.box(498, 80, 100, 100, "green", ["decoder"])
    d.face(630, 90, 80)
    d.text(712, 200, "picture", 20, "end")
    d.text(712, 226, "3 × 128 × 128", 18, "end", "small")
    d.arrow(114, 130, 146, 130)
    d.arrow(344, 130, 376, 130)
    d.arrow(464, 130, 494, 130)
    d.arrow(602, 130, 626, 130)
    d.text(245, 270, "slow: many calls, small numbers", 18, kind="small")
    d.text(560, 270, "fast: one call", 18, kind="small")
    return d


def three_networks() -> Drawing:
    d = Drawing(330)
    d.text(125, 42, "“red apple”", 22)
    d.arrow(125, 54, 125, 86)
    d.box(30, 90, 190, 90, "blue", ["CLIPText", "7.1 M weights"], 22)
    d.arrow(224, 135, 276, 135)
    d.text(250, 66, "77 vectors", 18, kind="small")
    d.path("M250 76 V128", "4 4")
    d.box(280, 90, 190, 90, "orange", ["U-Net", "16.3 M weights"], 22)
    d.box(280, 232, 190, 60, "grey", ["scheduler", "a formula"])
    d.arrow(425, 184, 425, 228)
    d.arrow(325, 228, 325, 184)
    d.text(437, 213, "noise?", 18, "start", "small")
    d.text(313, 213, "cleaner", 18, "end", "small")
    d.arrow(474, 135, 516, 135)
    d.box(520, 90, 180, 90, "green", ["decoder", "2.5 M weights"], 22)
    d.face(575, 220, 80)
    d.arrow(612, 184, 612, 214)
    return d


def forward_and_back() -> Drawing:
    d = Drawing(300)
    levels = [0, 0.35, 0.6, 0.85, 1]
    names = ["t = 0", "250", "500", "750", "1000"]
    for i, (noise, name) in enumerate(zip(levels, names)):
        x = 30 + i * 142
        d.face(x, 100, 92, noise, 7)
        d.text(x + 46, 222, name, 18, kind="small")
        if i < 4:
            d.arrow(x + 98, 128, x + 138, 128)
            d.arrow(x + 138, 164, x + 98, 164)
    d.text(360, 56, "add noise: known, needs no network  →", 22)
    d.text(360, 272, "←  remove noise: what the network learns", 22)
    return d


def latents_are_small() -> Drawing:
    d = Drawing(330)
    d.face(40, 40, 250)
    d.text(40, 316, "512 × 512 × 3 = 786,432 numbers", 18, "start", "small")
    side = 250 / 48**0.5
    d.grain(400, 165 - side / 2, side, 6, 0.8, 4)
    d.arrow(300, 145, 390, 145)
    d.text(345, 130, "encode", 18)
    d.arrow(390, 185, 300, 185)
    d.text(345, 215, "decode", 18)
    d.text(455, 150, "64 × 64 × 4", 22, "start")
    d.text(455, 180, "= 16,384 numbers", 20, "start", "small")
    d.text(455, 222, "a forty-eighth:", 20, "start")
    d.text(455, 248, "every step works here", 20, "start", "small")
    return d


def guidance() -> Drawing:
    d = Drawing(340)
    x, y = 120, 270
    plain, asked = (200.0, -20.0), (270.0, -110.0)
    scale = 2.4
    guided = tuple(u + scale * (c - u) for u, c in zip(plain, asked))
    for dx, dy in (plain, asked):
        d.arrow(x, y, x + dx, y + dy, 3)
    d.path(f"M{x + plain[0]:g} {y + plain[1]:g} L{x + guided[0]:g} {y + guided[1]:g}", "6 5")
    d.arrow(x, y, x + guided[0], y + guided[1], 5)
    d.circle(x, y, 7, "head")
    d.text(x - 14, y + 6, "noisy", 20, "end")
    d.text(x + plain[0] + 12, y + plain[1] + 8, "noise, without text", 20, "start", "small")
    d.text(x + asked[0] + 14, y + asked[1] + 14, "noise, with text", 20, "start", "small")
    d.text(x + guided[0] + 14, y + guided[1] + 4, "guided: further", 22, "start")
    d.text(x + guided[0] + 14, y + guided[1] + 30, "the same way", 22, "start")
    d.text(30, 46, "scale 0: without text", 20, "start", "small")
    d.text(30, 74, "scale 1: with text", 20, "start", "small")
    d.text(30, 102, "above 1: beyond", 20, "start", "small")
    return d


DRAWINGS: dict[str, Callable[[], Drawing]] = {
    "1-two-tasks": two_tasks,
    "2-two-components": two_components,
    "3-words-to-vectors": words_to_vectors,
    "4-creator-and-decoder": creator_and_decoder,
    "5-three-networks": three_networks,
    "6-forward-and-back": forward_and_back,
    "7-latents-are-small": latents_are_small,
    "8-guidance": guidance,
}


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for name, draw in DRAWINGS.items():
        (FOLDER / f"{name}.svg").write_text(draw().svg(), encoding="utf-8")


if __name__ == "__main__":
    main()
