"""Directory of a zip archive that is mapped, not unpacked.

torch stores its members without compression, so each is a range of the file. Nothing else of zip is needed, and
what could surprise is refused: members that overlap, names that leave the folder. Nothing is ever decompressed.
"""

from __future__ import annotations

import dataclasses
import struct
from typing import Any

from crossearth_jax.weights.torch_types import FormatError

MEMBERS = 200_000  # a full training checkpoint of CrossEarth holds about 1,500

_END = struct.Struct("<4s4H2IH")
_END64_PLACE = struct.Struct("<4sIQI")
_END64 = struct.Struct("<4sQ2H2I4Q")
_ENTRY = struct.Struct("<4s6H3I5H2I")
_LOCAL = struct.Struct("<4s5H3I2H")


@dataclasses.dataclass(frozen=True, slots=True)
class Member:
    """A range of the file."""

    begin: int
    size: int
    plain: bool = True  # neither compressed nor encrypted


def members(data: Any) -> dict[str, Member]:
    """The members of the archive `data` (the whole mapped file) by name.

    Raises:
      FormatError: the archive is cut off, damaged, or holds what torch never writes.
    """
    count, size, directory = _directory(data)
    found: dict[str, Member] = {}
    position = directory
    for _ in range(count):
        name, member, position = _entry(data, position, directory + size)
        if name in found:
            raise FormatError(f"its member {name!r} is there twice")
        found[name] = member
    _refuse_overlaps(found, directory)
    return found


def _directory(data: Any) -> tuple[int, int, int]:
    """Number of entries, size and place of the central directory."""
    place = data.rfind(b"PK\x05\x06", max(0, len(data) - _END.size - 0xFFFF))
    if place < 0 or place + _END.size > len(data):
        raise FormatError("its end is missing: it is cut off; expected a complete download")
    _, _, _, _, count, size, begin, _ = _END.unpack_from(data, place)
    end = place
    if 0xFFFF == count or 0xFFFFFFFF in (size, begin):
        end, count, size, begin = _directory64(data, place)
    if begin + size > end or count > MEMBERS or count * _ENTRY.size > size:
        raise FormatError(f"its directory is damaged ({count} members in {size} bytes)")
    return count, size, begin


def _directory64(data: Any, place: int) -> tuple[int, int, int, int]:
    """The same from the record that archives above 4 GB carry, and that record's place."""
    if place < _END64_PLACE.size:
        raise FormatError("its directory is damaged")
    magic, _, end, _ = _END64_PLACE.unpack_from(data, place - _END64_PLACE.size)
    if magic != b"PK\x06\x07" or end + _END64.size > place:
        raise FormatError("its directory is damaged")
    magic, _, _, _, _, _, _, count, size, begin = _END64.unpack_from(data, end)
    if magic != b"PK\x06\x06":
        raise FormatError("its directory is damaged")
    return end, count, size, begin


def _entry(data: Any, position: int, end: int) -> tuple[str, Member, int]:
    """One entry of the directory and the place of the next."""
    if position + _ENTRY.size > end:
        raise FormatError("its directory is cut off")
    entry = _ENTRY.unpack_from(data, position)
    magic, _, _, flags, method, _, _, _, packed, size, name_size, extra_size, note_size, *_, begin = entry
    name_begin = position + _ENTRY.size
    extra_begin = name_begin + name_size
    after = extra_begin + extra_size + note_size
    if magic != b"PK\x01\x02" or after > end:
        raise FormatError("its directory is damaged")
    name = _name(data[name_begin:extra_begin])
    size, packed, begin = _wide(data[extra_begin : extra_begin + extra_size], [size, packed, begin])
    member = _locate(data, data[name_begin:extra_begin], name, begin, packed)
    plain = method == 0 and not flags & 1 and packed == size
    return name, dataclasses.replace(member, plain=plain), after


def _name(raw: bytes) -> str:
    name = raw.decode("utf-8", "replace")
    if name.startswith("/") or "\\" in name or ":" in name or ".." in name.split("/"):
        raise FormatError(f"its member {name[:80]!r} points outside the archive")
    return name


def _wide(extra: bytes, values: list[int]) -> list[int]:
    """Replaces what did not fit 32 bits by the entry's 64-bit fields, which follow in the same order."""
    position = 0
    while 0xFFFFFFFF in values and position + 4 <= len(extra):
        kind, size = struct.unpack_from("<2H", extra, position)
        field = extra[position + 4 : position + 4 + size]
        if kind == 1 and len(field) >= 8 * values.count(0xFFFFFFFF):
            wide = iter(struct.unpack(f"<{len(field) // 8}Q", field[: len(field) // 8 * 8]))
            return [next(wide) if value == 0xFFFFFFFF else value for value in values]
        position += 4 + size
    return values


def _locate(data: Any, raw_name: bytes, name: str, begin: int, size: int) -> Member:
    """Where the bytes of a member are: behind its local header, whose length the directory does not tell."""
    if begin + _LOCAL.size > len(data):
        raise FormatError(f"its member {name!r} lies outside the file")
    magic, *_, name_size, extra_size = _LOCAL.unpack_from(data, begin)
    name_begin = begin + _LOCAL.size
    first = name_begin + name_size + extra_size
    if magic != b"PK\x03\x04" or data[name_begin : name_begin + name_size] != raw_name:
        raise FormatError(f"its member {name!r} is not where the directory says")
    if first + size > len(data):
        raise FormatError(f"its member {name!r} claims {size} bytes, more than the file holds")
    return Member(first, size)


def _refuse_overlaps(found: dict[str, Member], directory: int) -> None:
    end = 0
    for name, member in sorted(found.items(), key=lambda item: item[1].begin):
        if member.begin < end or member.begin + member.size > directory:
            raise FormatError(f"its member {name!r} overlaps another")
        end = member.begin + member.size
