"""Reads the directory of a ZIP archive: the members and the positions of their bytes in the file.

Supports the part of the format (PKWARE's APPNOTE.TXT, sections 4.3 and 4.5.3) that `torch.save` and common
archivers use: one disk, no encryption, stored or deflated members, and the 64-bit fields of large files. In
contrast to Python's `zipfile`, it gives the positions that mapping a tensor needs, and rejects duplicate and
overlapping members.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace

from ldm_core.checkpoint.file_bytes import FileBytes
from ldm_core.errors import CheckpointError

MAX_MEMBERS = 200_000
MAX_DIRECTORY = 2**25
BLOCK = 2**22  # bytes read at a time
MAX_INFLATION = 8  # maximum size of compressed tensors, in file sizes; weights hardly compress
MIN_INFLATED = 2**26  # bytes that are always allowed

_END = struct.Struct("<4s4H2LH")
_END64_LOCATOR = struct.Struct("<4sLQL")
_END64 = struct.Struct("<4sQ2H2L4Q")
_ENTRY = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")
_STORED, _DEFLATED = 0, 8


@dataclass(frozen=True)
class Member:
    """A file in the archive. Offsets and sizes are in bytes."""

    name: str
    raw_name: bytes
    method: int
    encrypted: bool
    crc: int
    compressed_size: int
    size: int
    header: int  # offset of the local header
    end: int  # offset of the next member or of the directory

    @property
    def is_stored(self) -> bool:
        return self.method == _STORED


def read_directory(file: FileBytes) -> dict[str, Member]:
    """The archive's members by name, in the order of the directory. Raises CheckpointError."""
    count, size, start = _find_directory(file)
    if count > MAX_MEMBERS or size > MAX_DIRECTORY:
        raise CheckpointError(
            f"the zip directory has {count:,} members in {size:,} bytes, which exceeds the limits"
        )
    directory = file.read(start, size)
    members: dict[str, Member] = {}
    position = 0
    try:
        for _ in range(count):
            member, position = _read_entry(directory, position)
            if member.name in members:
                raise CheckpointError(f"the zip directory lists {member.name!a} twice")
            members[member.name] = member
    except struct.error as error:
        raise CheckpointError("the zip directory is damaged") from error
    return _with_ends(members, start)


def most_inflated(file: FileBytes) -> int:
    """The limit for the sum of the decompressed sizes of the archive's tensors, in bytes."""
    return max(MIN_INFLATED, MAX_INFLATION * file.size)


def data_offset(file: FileBytes, member: Member) -> int:
    """The offset of a member's data. Raises CheckpointError if its local header contradicts the directory."""
    header = file.read(member.header, _LOCAL.size)
    magic, *_, name_length, extra_length = _LOCAL.unpack(header)
    name_start = member.header + _LOCAL.size
    if magic != b"PK\3\4" or file.read(name_start, name_length) != member.raw_name:
        raise CheckpointError(f"the zip directory contradicts the header of the member {member.name!a}")
    offset: int = name_start + name_length + extra_length
    if offset + member.compressed_size > member.end:
        raise CheckpointError(f"the zip member {member.name!a} overlaps the next member")
    if member.encrypted or member.method not in (_STORED, _DEFLATED):
        raise CheckpointError(
            f"the zip member {member.name!a} is encrypted or uses an unsupported compression"
        )
    if member.is_stored and member.size != member.compressed_size:
        raise CheckpointError(f"the zip member {member.name!a} has two different sizes")
    return offset


def read_member(file: FileBytes, member: Member, limit: int) -> bytearray:
    """A member's decompressed data. Raises CheckpointError for more than `limit` bytes or damaged data."""
    offset = data_offset(file, member)
    if member.size > limit:
        raise CheckpointError(
            f"expected at most {limit:,} bytes in the zip member {member.name!a}, got {member.size:,}"
        )
    data = bytearray()
    try:
        for block in _blocks(file, member, offset):
            data += block
            if len(data) > member.size:
                break
    except zlib.error as error:
        raise CheckpointError(f"the zip member {member.name!a} is damaged ({error})") from error
    if len(data) != member.size or not _agrees(member, zlib.crc32(data)):
        wrong = "checksum" if member.is_stored else "size or checksum"
        raise CheckpointError(f"the zip member {member.name!a} is damaged: wrong {wrong}")
    return data


def is_intact(file: FileBytes, member: Member) -> bool:
    """Whether a member's data have the stated size and checksum. Raises CheckpointError."""
    crc = size = 0
    try:
        for block in _blocks(file, member, data_offset(file, member)):
            crc, size = zlib.crc32(block, crc), size + len(block)
            if size > member.size:
                return False
    except zlib.error:
        return False
    return size == member.size and _agrees(member, crc)


def _agrees(member: Member, crc: int) -> bool:
    # With torch.serialization.set_crc32_options(False), torch.save writes 0 for every checksum.
    return crc == member.crc or (member.is_stored and member.crc == 0)


def _blocks(file: FileBytes, member: Member, offset: int) -> Iterator[bytes]:
    """A member's decompressed data in blocks. `offset`: where its data begin in the file."""
    inflater = None if member.is_stored else zlib.decompressobj(-zlib.MAX_WBITS)
    for start in range(0, member.compressed_size, BLOCK):
        raw = file.read(offset + start, min(BLOCK, member.compressed_size - start))
        if inflater is None:
            yield raw
            continue
        while raw:
            yield inflater.decompress(raw, BLOCK)
            raw = inflater.unconsumed_tail
    if inflater is not None:
        yield inflater.flush()


def _find_directory(file: FileBytes) -> tuple[int, int, int]:
    """(number of members, size, offset) of the directory, from the record at the file's end."""
    tail_start = max(0, file.size - _END.size - 0xFFFF)
    tail = file.read(tail_start, file.size - tail_start)
    at = tail.rfind(b"PK\5\6", 0, max(0, len(tail) - _END.size + 4))
    if at < 0:
        raise CheckpointError("the zip archive is truncated: the directory at its end is missing")
    _, disk, first_disk, here, count, size, start, _ = _END.unpack_from(tail, at)
    end = tail_start + at
    if disk != first_disk or here != count:
        raise CheckpointError("the zip archive is one part of a multi-part archive")
    locator_at = end - _END64_LOCATOR.size
    if (count == 0xFFFF or size == 0xFFFFFFFF or start == 0xFFFFFFFF) and locator_at >= 0:
        magic, _, end64, _ = _END64_LOCATOR.unpack(file.read(locator_at, _END64_LOCATOR.size))
        if magic == b"PK\6\7":
            record = _END64.unpack(file.read(end64, _END64.size))
            if record[0] != b"PK\6\6":
                raise CheckpointError("the zip archive's 64-bit directory is damaged")
            count, size, start, end = record[7], record[8], record[9], end64
    if start + size > end:
        raise CheckpointError("the zip archive is truncated or damaged: its directory is outside of the file")
    return count, size, start


def _read_entry(directory: bytes, position: int) -> tuple[Member, int]:
    fields = _ENTRY.unpack_from(directory, position)
    magic, _, _, flags, method, _, _, crc, compressed_size, size = fields[:10]
    name_length, extra_length, comment_length, _, _, _, header = fields[10:]
    name_start = position + _ENTRY.size
    extra_start = name_start + name_length
    raw_name = directory[name_start:extra_start]
    extra = directory[extra_start : extra_start + extra_length]
    if magic != b"PK\1\2" or len(raw_name) != name_length or len(extra) != extra_length:
        raise CheckpointError("the zip directory is damaged")
    size, compressed_size, header = _wide_fields(extra, [size, compressed_size, header])
    try:
        name = raw_name.decode("utf-8")
    except UnicodeDecodeError:
        name = raw_name.decode("cp437")
    member = Member(name, raw_name, method, bool(flags & 1), crc, compressed_size, size, header, end=0)
    return member, extra_start + extra_length + comment_length


def _wide_fields(extra: bytes, values: list[int]) -> list[int]:
    """The values, with those of 0xFFFFFFFF replaced by the 64-bit values in extra field 1."""
    position = 0
    while position + 4 <= len(extra):
        kind, length = struct.unpack_from("<HH", extra, position)
        position += 4
        if kind == 1:
            wide = iter(struct.unpack_from(f"<{length // 8}Q", extra, position))
            return [next(wide, value) if value == 0xFFFFFFFF else value for value in values]
        position += length
    return values


def _with_ends(members: dict[str, Member], directory_start: int) -> dict[str, Member]:
    """The members with their `end` set. Raises CheckpointError for overlapping members."""
    ordered = sorted(members.values(), key=lambda member: member.header, reverse=True)
    ends: dict[str, int] = {}
    end = directory_start
    for member in ordered:
        if member.header + _LOCAL.size + len(member.raw_name) + member.compressed_size > end:
            raise CheckpointError(f"the zip member {member.name!a} overlaps the next member")
        ends[member.name] = end
        end = member.header
    return {name: replace(member, end=ends[name]) for name, member in members.items()}
