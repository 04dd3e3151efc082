"""Which picture of which set shows what: the sets' names aligned by Unicode's code points.

The sets name the same emoji differently ("hugging-face", "smiling-face-with-open-hands"), so what they mean
is told by code points; two of the five packages have none, and borrow them by name from the other three. The
concept's own name is CLDR's. Flags, skin tones, number keys and the letters that flags are made of are left
out.

Iconify's JSON: https://iconify.design/docs/types/iconify-json.html
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

SKIN_TONES = {"1f3fb", "1f3fc", "1f3fd", "1f3fe", "1f3ff"}
KEYCAP, EMOJI_STYLE = "20e3", "fe0f"
LEFT_OUT = {"component", "flags"}
LAST = 1_000_000  # in the order of concepts, for those that CLDR does not list yet
# What people ask for first: faces, animals, food, activities and common objects.
COMMON_GROUPS = {"smileys-emotion", "animals-nature", "food-drink", "activities", "objects"}
COMMON_SUBGROUPS = {"transport-ground", "transport-water", "transport-air", "sky-weather"}


@dataclass(frozen=True)
class Icon:
    """One picture of one set.

    order: of the concept in CLDR's list. names: what else the sets call it. keywords: CLDR's. svg: a whole
    document.
    """

    style: str
    concept: str
    order: int
    group: str
    common: bool
    names: tuple[str, ...]
    keywords: tuple[str, ...]
    svg: str


@dataclass(frozen=True)
class _Meaning:
    concept: str
    order: int
    group: str
    common: bool
    keywords: tuple[str, ...]


def plain(codepoints: str) -> str:
    """Code points as hexadecimal joined by hyphens, without the selector that asks for colour."""
    return "-".join(point for point in codepoints.lower().split("-") if point != EMOJI_STYLE)


def slug(name: str) -> str:
    """A name in lower-case ASCII words joined by hyphens: "Piñata" is "pinata", "man: beard" "man-beard"."""
    letters = unicodedata.normalize("NFKD", name.lower().replace("’", "").replace("'", ""))
    return re.sub(r"[^a-z0-9]+", "-", letters.encode("ascii", "ignore").decode()).strip("-")


def svg(icon: Mapping[str, Any], icons: Mapping[str, Any]) -> str:
    """The SVG of an icon, in a square of its longer side so that nothing is cut or stretched.

    A size that the icon does not give is the set's, or 16, as Iconify has it.
    """
    left, top, width, height = (
        float(icon.get(key, icons.get(key, default)))
        for key, default in (("left", 0), ("top", 0), ("width", 16), ("height", 16))
    )
    side = max(width, height)
    box = (left - (side - width) / 2, top - (side - height) / 2, side, side)
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{" ".join(f"{number:g}" for number in box)}">{icon["body"]}</svg>'
    )


def align(sets: Sequence[tuple[str, Any, Any]], cldr: Any, messages: Any) -> list[Icon]:
    """Every picture that is to be learnt, by style and concept.

    sets: (style, icons.json, chars.json) of each. cldr, messages: data.json and messages.json of
    emojibase-data in English. What is drawn twice for one concept in one set is taken once, under the name
    that comes first. Icons that iconify hides, since the set has dropped or renamed them, are left out.
    """
    meanings, leave_out = _meanings(cldr, messages)
    points = _points_by_name(sets, meanings)
    names: dict[str, set[str]] = {}
    for name, point in points.items():
        names.setdefault(point, set()).add(name.replace("-", " "))
    found: dict[tuple[str, str], Icon] = {}
    for style, icons, _ in sets:
        for name in sorted(icons["icons"]):
            icon, point = icons["icons"][name], points.get(name, "")
            if icon.get("hidden") or not point or point in leave_out or _is_left_out(point):
                continue
            meaning = meanings.get(point, _Meaning(name, LAST, "new", False, ()))
            called = sorted(names[point] - {meaning.concept.replace("-", " ")})
            found.setdefault(
                (style, meaning.concept),
                Icon(
                    style,
                    meaning.concept,
                    meaning.order,
                    meaning.group,
                    meaning.common,
                    tuple(called),
                    meaning.keywords,
                    svg(icon, icons),
                ),
            )
    return [found[key] for key in sorted(found)]


def _meanings(cldr: Any, messages: Any) -> tuple[dict[str, _Meaning], set[str]]:
    """{code points: meaning}, and the code points of what is left out."""
    groups = {group["order"]: group["key"] for group in messages["groups"]}
    subgroups = {group["order"]: group["key"] for group in messages["subgroups"]}
    meanings, leave_out = {}, set()
    for entry in cldr:
        point = plain(entry["hexcode"])
        group = groups.get(entry.get("group"), "none")
        subgroup = subgroups.get(entry.get("subgroup"), "none")
        if group in LEFT_OUT or group == "none":
            leave_out.add(point)
            continue
        common = group in COMMON_GROUPS or subgroup in COMMON_SUBGROUPS
        keywords = tuple(entry.get("tags", ()))
        meanings[point] = _Meaning(slug(entry["label"]), entry.get("order", LAST), group, common, keywords)
    return meanings, leave_out


def _is_left_out(codepoints: str) -> bool:
    parts = codepoints.split("-")
    private = any(0xE000 <= int(part, 16) <= 0xF8FF or int(part, 16) >= 0xF0000 for part in parts)
    return private or KEYCAP in parts or any(part in SKIN_TONES for part in parts)


def _points_by_name(sets: Sequence[tuple[str, Any, Any]], meanings: Mapping[str, _Meaning]) -> dict[str, str]:
    """{name: code points}, from the sets that know them, then CLDR's names, then the sets' other names."""
    points: dict[str, str] = {}
    for _, _, chars in sets:
        for codepoints, name in sorted(chars.items()):
            points.setdefault(name, plain(codepoints))
    for point, meaning in meanings.items():
        points.setdefault(meaning.concept, point)
    for _, icons, _ in sets:
        for name, alias in sorted(icons.get("aliases", {}).items()):
            if alias["parent"] in points and set(alias) == {
                "parent"
            }:  # not another picture, as a mirrored one
                points.setdefault(name, points[alias["parent"]])
    return points
