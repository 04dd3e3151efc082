"""The emoji data set: packages that are what they claim, concepts, captions, the split, and equal bytes."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import sys
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

FOLDER = Path(__file__).parents[2] / "examples" / "train_emoji"
sys.path.append(str(FOLDER))

import emoji_sets  # noqa: E402
import prepare  # noqa: E402
from emoji_captions import all_captions, captions  # noqa: E402
from emoji_concepts import align, plain, slug, svg  # noqa: E402

pytestmark = pytest.mark.filterwarnings("error")

GROUPS = {"groups": [{"key": "animals-nature", "order": 3}, {"key": "flags", "order": 9}], "subgroups": []}


def entry(label: str, hexcode: str, order: int, group: int | None = 3, tags: tuple[str, ...] = ()) -> Any:
    known = {} if group is None else {"group": group, "subgroup": 0, "order": order}
    return {"label": label, "hexcode": hexcode, "tags": list(tags), **known}


CLDR = [
    entry("cat face", "1F431", 2, tags=("cat", "pet")),
    entry("grinning cat", "1F63A", 1),
    entry("red heart", "2764-FE0F", 3),
    entry("chequered flag", "1F3C1", 4, group=9),
    entry("regional indicator A", "1F1E6", 5, group=None),
]


def square(colour: str, **more: Any) -> dict[str, Any]:
    return {"body": f'<rect x="2" y="2" width="6" height="6" fill="{colour}"/>', **more}


def icon_set(icons: dict[str, Any], aliases: dict[str, Any] | None = None) -> dict[str, Any]:
    return {"icons": icons, "aliases": aliases or {}, "width": 10, "height": 10}


# The first set has code points, the second borrows them by its names and an alias of the first.
FIRST = icon_set(
    {
        "cat-face": square("red"),
        "grinning-cat": square("red"),  # the same drawing
        "red-heart": square("blue"),
        "old": square("green", hidden=True),
        "cat-face-dark-skin-tone": square("brown"),
        "keycap-1": square("grey"),
        "chequered-flag": square("black"),
        "letter-a": square("black"),
        "private": square("black"),
        "comet": square("cyan"),
    },
    {"kitty": {"parent": "cat-face"}, "mirrored": {"parent": "red-heart", "hFlip": True}},
)
CHARS = {
    "1f431": "cat-face",
    "1f63a": "grinning-cat",
    "2764": "red-heart",
    "1f431-1f3ff": "cat-face-dark-skin-tone",
    "31-20e3": "keycap-1",
    "1f3c1": "chequered-flag",
    "1f1e6": "letter-a",
    "e50a": "private",
    "1fa8b": "comet",
    "1f999": "old",
}
SECOND = icon_set({"kitty": square("pink"), "mirrored": square("blue"), "red-heart": square("navy")})


def test_concepts_are_told_by_code_points() -> None:
    icons = align([("noto emoji", FIRST, CHARS), ("blob emoji", SECOND, {})], CLDR, GROUPS)
    assert [(icon.style, icon.concept) for icon in icons] == [
        ("blob emoji", "cat-face"),
        ("blob emoji", "red-heart"),
        ("noto emoji", "cat-face"),
        ("noto emoji", "comet"),
        ("noto emoji", "grinning-cat"),
        ("noto emoji", "red-heart"),
    ]
    cat, comet = icons[2], icons[3]
    assert cat.names == ("kitty",)
    assert cat.keywords == ("cat", "pet")
    assert (cat.group, cat.common, cat.order) == ("animals-nature", True, 2)
    assert (comet.group, comet.common, comet.names) == ("new", False, ())


@given(st.text(max_size=30))
def test_a_slug_is_a_file_name(name: str) -> None:
    assert set(slug(name)) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")
    assert slug(slug(name)) == slug(name)


def test_names_and_code_points() -> None:
    assert slug("Piñata") == "pinata"
    assert slug("woman’s hat: “big” (red)") == "womans-hat-big-red"
    assert plain("2764-FE0F-200D-1F525") == "2764-200d-1f525"


def test_pictures_are_on_white_and_whole() -> None:
    """A wide icon, whose size is its own, is centred in a square and neither cut nor stretched."""
    pytest.importorskip("resvg_py")
    wide = {"body": '<rect width="20" height="10" fill="#f00"/>', "width": 20}
    pixels = np.asarray(prepare.render(svg(wide, {"height": 10, "width": 10}), 40))
    assert pixels.shape == (40, 40, 3)
    assert (pixels[10:30] == (255, 0, 0)).all()
    assert (pixels[:10] == 255).all()
    assert (pixels[30:] == 255).all()
    moved = {"body": '<rect x="5" y="5" width="10" height="10" fill="#00f"/>', "left": 5, "top": 5}
    assert (np.asarray(prepare.render(svg(moved, {"height": 10, "width": 10}), 16)) == (0, 0, 255)).all()
    with pytest.raises(ValueError):
        prepare.render("<svg", 16)


# --- captions ---

RECORD = {"text": "red apple", "style": "noto emoji", "names": ["apple"], "keywords": ["fruit", "red apple"]}


def test_captions_in_their_shares() -> None:
    choices = all_captions(RECORD)
    counts = Counter(caption.removesuffix(", noto emoji") for caption in choices)
    assert {word: count / len(choices) for word, count in counts.items()} == {
        "red apple": 0.75,
        "apple": 0.125,
        "fruit": 0.125,
    }
    assert sum(caption.endswith(", noto emoji") for caption in choices) / len(choices) == 0.6
    assert set(all_captions(RECORD | {"names": [], "keywords": []})) == {"red apple", "red apple, noto emoji"}


def test_a_caption_is_drawn_from_them_all() -> None:
    generator = torch.Generator().manual_seed(0)
    drawn = Counter(captions(RECORD, generator) for _ in range(4000))
    expected = Counter(all_captions(RECORD))
    assert set(drawn) == set(expected)
    for caption, count in expected.items():
        share = count / len(all_captions(RECORD))
        assert abs(drawn[caption] / 4000 - share) < 5 * (share * (1 - share) / 4000) ** 0.5
    again = [captions(RECORD, torch.Generator().manual_seed(seed)) for seed in (3, 3)]
    assert again[0] == again[1]


# --- the split ---


def test_the_split_is_by_concept_and_style() -> None:
    pairs = [(f"concept {i}", style) for i in range(2000) for style in "abcd"[: 1 + i % 4]]
    away = prepare.held_out(pairs)
    assert away == prepare.held_out(reversed(pairs))
    eligible = sum(i % 4 > 0 for i in range(2000) for _ in "abcd"[: 1 + i % 4])
    assert abs(len(away) / eligible - prepare.HELD_OUT) < 0.01
    seen = {concept for concept, style in pairs if (concept, style) not in away}
    assert seen == {concept for concept, _ in pairs}, "each is there in another style"
    assert prepare.held_out(pairs[:4000]) <= away, "what comes later changes nothing"
    everything = prepare.held_out([("x", "a"), ("x", "b"), ("x", "c"), ("y", "a")], share=1.0)
    assert len(everything) == 2
    assert ("y", "a") not in everything


# --- packages ---


def archive_of(files: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, value in files.items():
            data = json.dumps(value).encode()
            info = tarfile.TarInfo(f"package/{name}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def package_of(name: str, archive: bytes, folder: Path) -> emoji_sets.Package:
    integrity = base64.b64encode(hashlib.sha512(archive).digest()).decode()
    package = emoji_sets.Package(name, "1.0.0", integrity)
    folder.mkdir(exist_ok=True)
    (folder / package.file_name).write_bytes(archive)
    return package


def test_a_package_is_what_was_written_down(tmp_path: Path) -> None:
    package = package_of("a", archive_of({"icons.json": [1]}), tmp_path)
    archive = emoji_sets.fetch(package, tmp_path)
    assert emoji_sets.read_json(archive, "icons.json") == [1]
    with pytest.raises(ValueError, match=r"expected chars.json in the package, which has"):
        emoji_sets.read_json(archive, "chars.json")
    (tmp_path / package.file_name).write_bytes(archive + b"x")
    with pytest.raises(ValueError, match=r"is not a 1\.0\.0: expected sha512-"):
        emoji_sets.fetch(package, tmp_path)


def test_a_link_in_an_archive_is_not_followed() -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        info = tarfile.TarInfo("package/icons.json")
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(info)
    with pytest.raises(ValueError, match="to be a plain file"):
        emoji_sets.read_json(buffer.getvalue(), "icons.json")


def test_without_a_network_it_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise OSError("no route to host")

    monkeypatch.setattr(emoji_sets.urllib.request, "urlopen", refuse)
    with pytest.raises(ConnectionError, match=r"no route to host.*npm pack emojibase-data@17.0.0"):
        emoji_sets.fetch(emoji_sets.CLDR, tmp_path)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(SystemExit, match="error: cannot fetch"):
        prepare.main([str(tmp_path / "out")])


def test_every_set_is_attributed() -> None:
    text = (FOLDER / "ATTRIBUTION.md").read_text(encoding="utf-8")
    for emoji_set in emoji_sets.SETS:
        (line,) = [line for line in text.splitlines() if line.startswith(f"| {emoji_set.style} |")]
        package = emoji_set.package
        for fact in (package.name, package.version, emoji_set.author, emoji_set.licence, emoji_set.source):
            assert fact in line
    assert emoji_sets.CLDR.version in text


# --- the whole ---


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    pytest.importorskip("resvg_py")
    folder = tmp_path / "packages"
    sets = []
    for emoji_set, icons, chars in zip(emoji_sets.SETS, (FIRST, SECOND), (CHARS, {})):
        archive = archive_of({"icons.json": icons, "chars.json": chars})
        package = package_of(emoji_set.package.name, archive, folder)
        sets.append(emoji_sets.EmojiSet(emoji_set.style, "", "", "", "", package))
    cldr = archive_of({"en/data.json": CLDR, "en/messages.json": GROUPS})
    monkeypatch.setattr(prepare, "SETS", tuple(sets))
    monkeypatch.setattr(prepare, "CLDR", package_of("cldr", cldr, folder))
    monkeypatch.setattr(prepare, "held_out", lambda pairs: {("red-heart", "blob emoji")} & set(pairs))
    return folder


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_data_set_from_packages(packages: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    prepare.main([str(out), "--size", "32", "--packages", str(packages)])
    rows = rows_of(out / "metadata.jsonl")
    assert [(row["file_name"], row["split"]) for row in rows] == [
        ("train/blob-emoji/cat-face.png", "train"),
        ("held-out/blob-emoji/red-heart.png", "held-out"),
        ("train/noto-emoji/comet.png", "train"),
        ("train/noto-emoji/grinning-cat.png", "train"),  # before its twin, the cat face, in CLDR's list
        ("train/noto-emoji/red-heart.png", "train"),
    ]
    assert rows[3]["text"] == "grinning cat"
    for folder, count in ((out, 5), (out / "train", 4), (out / "held-out", 1)):
        own = rows_of(folder / "metadata.jsonl")
        assert len(own) == count
        for row in own:
            with Image.open(folder / row["file_name"]) as picture:
                assert (picture.size, picture.mode) == ((32, 32), "RGB")
    summary = json.loads((out / "dataset.json").read_text(encoding="utf-8"))
    assert summary["counts"]["pictures"] == 5
    assert summary["counts"]["concepts"] == 4
    assert summary["twins left out"] == 1

    # Stopped somewhere, it goes on; and all is as if it had not been.
    whole = bytes_of(out)
    comet = "noto-emoji/comet.png"
    for name in ("metadata.jsonl", "train/metadata.jsonl", f".rendered/{comet}", f"train/{comet}"):
        (out / name).unlink()
    (out / f"train/{comet}.partial").write_bytes(b"half")
    prepare.main([str(out), "--size", "32", "--packages", str(packages)])
    assert bytes_of(out) == whole
    prepare.main([str(tmp_path / "other"), "--size", "32", "--packages", str(packages)])
    assert bytes_of(tmp_path / "other") == whole

    with pytest.raises(SystemExit, match=r"was prepared with .*name another folder"):
        prepare.main([str(out), "--size", "16", "--packages", str(packages)])
    assert bytes_of(out) == whole
