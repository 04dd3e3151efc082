"""A dataset of images and captions in tar files, in the layout of the webdataset library.

The members `0001.jpg` and `0001.txt` of a tar file are the sample with the key `0001`; the caption may also
be the "text" or "caption" of a `0001.json`. webdataset streams its shards; here the headers are read once,
and samples are then accessed at random, so that the data can be shuffled globally and training can resume at
any sample.
"""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ldm_core.images import ENDINGS
from ldm_core.support.json_text import parse_json
from ldm_core.support.printable import printable, shown, shown_error
from ldm_core.support.regular_file import open_regular
from ldm_core.support.warn import warn
from ldm_core.training.dataset import (
    BadSample,
    Sample,
    clean_captions,
    decode_picture,
    files_fingerprint,
)

CAPTIONS = (".txt", ".json")

# In bytes. Larger entries are not read.
MAX_HEADER = 2**20
MAX_CAPTION = 2**20
MAX_PICTURE = 2**28


@dataclass(frozen=True)
class _Member:
    """The position of a file in its shard."""

    name: str
    offset: int
    size: int


@dataclass(frozen=True)
class _Entry:
    shard: Path
    picture: _Member
    caption: _Member | None


class TarShards:
    """The images in tar files, in file order, as squares of `size` pixels.

    captions: whether to read captions; if False, "text" is empty and all images are used.

    A damaged or truncated shard is used up to the damage, and sparse files are skipped, both with a warning.
    Captions of more than 1 MiB and images of more than 256 MiB raise `BadSample`. Raises ValueError for a
    file that is not an uncompressed tar file (compressed ones have no random access), and if there are no
    samples.
    """

    def __init__(self, shards: Sequence[str | Path], size: int, *, captions: bool = True) -> None:
        self.size, self.captions = size, captions
        self.shards = [Path(shard) for shard in shards]
        self._entries = [entry for shard in self.shards for entry in _index(shard)]
        if not self._entries:
            raise ValueError(f"no images in {len(self.shards)} shards ({', '.join(ENDINGS)})")
        if captions:
            bare = [entry.picture.name for entry in self._entries if entry.caption is None]
            self._entries = [entry for entry in self._entries if entry.caption is not None]
            if not self._entries:
                raise ValueError(f"none of {len(bare)} images has a caption in a .txt or .json file")
            if bare:
                warn(f"skipped {len(bare)} images without a caption, for example {bare[0]}")

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, index: int) -> Sample:
        entry = self._entries[index]
        name = f"{entry.shard.name}/{entry.picture.name}"
        image = decode_picture(_bytes(entry.shard, entry.picture, MAX_PICTURE), name, self.size)
        return {"image": image, "text": self.text(index)}

    def text(self, index: int) -> tuple[str, ...]:
        """The captions of one image, without reading the image."""
        entry = self._entries[index]
        if not self.captions or entry.caption is None:
            return ()
        name = f"{entry.shard.name}/{entry.picture.name}"
        return _texts(_bytes(entry.shard, entry.caption, MAX_CAPTION), entry.caption.name, name)

    @property
    def fingerprint(self) -> str:
        """A hash of the shards and the settings."""
        return files_fingerprint((self.size, self.captions), ((path.name, path) for path in self.shards))


class _Headers(io.BufferedReader):
    """Raises ValueError for a header larger than MAX_HEADER before memory is allocated."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or not 0 <= size <= MAX_HEADER:
            raise ValueError(f"a header of {size} bytes is larger than {MAX_HEADER:,}")
        return super().read(size)


def _index(shard: Path) -> list[_Entry]:
    """The samples of a shard. As in webdataset, a key is the path up to the first dot of the file name."""
    parts: dict[str, dict[str, _Member]] = {}
    sparse: list[str] = []
    try:
        with _Headers(open_regular(shard).detach()) as file, tarfile.open(fileobj=file, mode="r:") as archive:
            try:
                for member in _forwards(archive):
                    name = printable(member.name)
                    if member.issparse():  # its bytes are not contiguous in the shard
                        sparse.append(name)
                    elif member.isreg() and not member.name.startswith("__"):
                        folder, last = os.path.split(member.name)
                        stem, dot, ending = last.partition(".")
                        place = _Member(name, member.offset_data, member.size)
                        parts.setdefault(os.path.join(folder, stem), {})[(dot + ending).lower()] = place
                _require_end(shard, archive.offset)
            except Exception as error:  # tarfile raises various errors for invalid headers
                reason = shown_error(error)
                warn(f"{shard}: damaged or truncated after {len(parts)} samples ({reason})")
    except Exception as error:
        raise ValueError(
            f"{shard}: cannot be read as an uncompressed tar file ({shown_error(error)})"
        ) from error
    if sparse:
        warn(f"{shard}: skipped {len(sparse)} sparse files, for example {sparse[0]}")
    entries = []
    for members in parts.values():
        picture = next((members[ending] for ending in ENDINGS if ending in members), None)
        if picture is not None:
            caption = next((members[ending] for ending in CAPTIONS if ending in members), None)
            entries.append(_Entry(shard, picture, caption))
    return entries


def _forwards(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """The members in order. Raises ValueError for a size that leads back to earlier members."""
    for member in archive:
        if member.size < 0 or archive.offset < member.offset_data:
            raise ValueError(f"{shown(member.name)} has a size of {member.size}")
        yield member


def _require_end(shard: Path, offset: int) -> None:
    """Raises ValueError unless the block of zeros that ends an archive is at `offset`.

    tarfile treats an unreadable header, unless it is the first, as the end of the archive.
    """
    with open_regular(shard) as file:
        file.seek(offset)
        block = file.read(tarfile.BLOCKSIZE)
    if block != bytes(tarfile.BLOCKSIZE):
        raise ValueError(f"expected a header or the end of the archive at byte {offset:,}")


def _bytes(shard: Path, member: _Member, limit: int) -> bytes:
    if member.size > limit:
        raise BadSample(f"{shard.name}/{member.name}: {member.size:,} bytes are more than {limit:,}")
    try:
        with open_regular(shard) as file:
            file.seek(member.offset)
            data = file.read(member.size)
    except OSError as error:
        raise BadSample(f"{shard}: {error}") from error
    if len(data) < member.size:
        raise BadSample(f"{shard.name}/{member.name}: the shard is truncated")
    return data


def _texts(data: bytes, ending: str, name: str) -> tuple[str, ...]:
    try:
        text: Any = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadSample(f"{name}: the caption is not UTF-8 ({error})") from error
    if ending.lower().endswith(".json"):
        values = parse_json(text, f"{name}: its .json", BadSample)
        text = values.get("text", values.get("caption")) if isinstance(values, dict) else None
    texts = text if isinstance(text, list) else [text]
    if not all(isinstance(one, str) for one in texts) or not any(one.strip() for one in texts):
        raise BadSample(f"{name}: no caption")
    return clean_captions(texts)
