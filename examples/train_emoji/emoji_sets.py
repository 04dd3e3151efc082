"""The five sets of emoji artwork and CLDR's words for them: where they come from, and under which licence.

Each is a package of the npm registry in one exact version. The registry's own SHA-512 of it is written down
here, so that what is trained on tomorrow is what was trained on today, byte by byte.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import tarfile
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LARGEST_FILE = 256 * 2**20  # bytes of one file of a package; the largest is 104 MB


@dataclass(frozen=True)
class Package:
    """A package of the npm registry. integrity: base64 of its SHA-512, as `npm view … dist.integrity`."""

    name: str
    version: str
    integrity: str

    @property
    def file_name(self) -> str:
        return f"{self.name.split('/')[-1]}-{self.version}.tgz"

    @property
    def url(self) -> str:
        return f"https://registry.npmjs.org/{self.name}/-/{self.file_name}"


@dataclass(frozen=True)
class EmojiSet:
    """Artwork of one style. style: the words that ask for it in a prompt."""

    style: str
    title: str
    author: str
    licence: str
    source: str
    package: Package

    @property
    def folder(self) -> str:
        return self.style.replace(" ", "-")


NOTO_SOURCE = "https://github.com/googlefonts/noto-emoji"
FLUENT_SOURCE = "https://github.com/microsoft/fluentui-emoji"

SETS = (
    EmojiSet(
        "noto emoji",
        "Noto Emoji",
        "Google Inc",
        "Apache-2.0",
        NOTO_SOURCE,
        Package(
            "@iconify-json/noto",
            "1.2.9",
            "DQiuXENbun41ch+XPSV55H9FaWKpHTyz46YIKtSaKYD4fIDDzL1tR6H4np/T38jfrTAeI3rcKF0mqHYeZVAuaw==",
        ),
    ),
    EmojiSet(
        "blob emoji",
        "Noto Emoji, version 1",
        "Google Inc",
        "Apache-2.0",
        NOTO_SOURCE,
        Package(
            "@iconify-json/noto-v1",
            "1.2.5",
            "/DsVMius69Q0fRS53z7QK1TROSuar606jiIx+laXtdsYGMXpf6LtHBx6CGfoo3UHHb/XpBsw+1L1x3eyPqMuVA==",
        ),
    ),
    EmojiSet(
        "flat emoji",
        "Fluent Emoji Flat",
        "Microsoft Corporation",
        "MIT",
        FLUENT_SOURCE,
        Package(
            "@iconify-json/fluent-emoji-flat",
            "1.2.6",
            "RY47RgPb47fYUiyrA64sIOL0+UU02s29sXpNBbIQRBUlPlfNFTKUmZDERGuxDs/7yNGWqQYvuaSYM1M4fRXlUw==",
        ),
    ),
    EmojiSet(
        "fluent emoji",
        "Fluent Emoji",
        "Microsoft Corporation",
        "MIT",
        FLUENT_SOURCE,
        Package(
            "@iconify-json/fluent-emoji",
            "1.2.7",
            "D8G6bKAyIsyxP1rzZtIWr/gg/fO4Rg1+DyCWlfqKK4h8W+4Em/Y0P6QYgJUQTlUcagzJvSyg+9OBv4hz4Hc/QA==",
        ),
    ),
    EmojiSet(
        "twemoji",
        "Twemoji",
        "Twitter, Inc and other contributors",
        "CC BY 4.0",
        "https://github.com/jdecked/twemoji",
        Package(
            "@iconify-json/twemoji",
            "1.2.5",
            "uKpuIEV0v6K5BW3Mjdyl+XKFVAbbcPxAgifKvEMtZoUZB5+YiY5zaMm2uNNCxyXzAWU9yNLlj41WU6/mvgALsw==",
        ),
    ),
)

CLDR = Package(
    "emojibase-data",
    "17.0.0",
    "Yvgb5AWoHViHV/gq1qr5ZAarcBip+B27/ZLRsUJkbgAEaLlZ/fof9g882LTpmEpyhBNEC0m2SEmItljHsTygjA==",
)


def fetch(package: Package, folder: Path, timeout: float = 60) -> bytes:
    """The package's archive: from `folder` if it is there already, else from the registry into it.

    Raises ValueError for an archive of other contents than expected, whichever it came from, and
    ConnectionError, saying what to do by hand, where the registry cannot be reached.
    """
    path = folder / package.file_name
    if path.exists():
        return _verified(package, path.read_bytes(), str(path))
    try:
        with urllib.request.urlopen(package.url, timeout=timeout) as answer:
            archive = answer.read()
    except (urllib.error.URLError, OSError) as error:
        raise ConnectionError(
            f"cannot fetch {package.url} ({error}); without a network, put that file "
            f"(npm pack {package.name}@{package.version} gives it, too) at {path}"
        ) from error
    _verified(package, archive, package.url)
    write_whole(path, archive)
    return archive


def _verified(package: Package, archive: bytes, origin: str) -> bytes:
    found = base64.b64encode(hashlib.sha512(archive).digest()).decode()
    if found != package.integrity:
        raise ValueError(
            f"{origin} is not {package.name} {package.version}: expected sha512-{package.integrity}, "
            f"got sha512-{found} ({len(archive):,} bytes)"
        )
    return archive


def read_json(archive: bytes, name: str) -> Any:
    """A JSON file of a package, read in memory: nothing of an archive is ever written to the disk."""
    with tarfile.open(fileobj=io.BytesIO(archive), mode="r:gz") as tar:
        try:
            member = tar.getmember(f"package/{name}")
        except KeyError:
            raise ValueError(f"expected {name} in the package, which has {tar.getnames()[:8]} …") from None
        if not member.isfile() or member.size > LARGEST_FILE:
            raise ValueError(f"expected {name} to be a plain file of at most {LARGEST_FILE:,} bytes")
        file = tar.extractfile(member)
        assert file is not None
        return json.load(file)


def write_whole(path: Path, contents: bytes) -> None:
    """Write a file so that it is there whole or not at all, whenever the process is killed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(contents)
    partial.replace(path)
