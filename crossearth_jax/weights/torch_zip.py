"""Positions of the members of a torch archive in the mapped file.

`zipfile` reads the directory. Nothing is unpacked, because torch stores members without compression. This module adds
what `zipfile` does not have:

- the position of a member's bytes in the file;
- a limit of the directory's size, since `zipfile` reads a directory of any size at once;
- checks for what torch never writes: overlapping or duplicate members, names that point outside the archive, and bytes
  before the archive.
"""

from __future__ import annotations

import dataclasses
import mmap
import struct
import zipfile

from crossearth_jax.weights.torch_types import FormatError

DIRECTORY_BYTES = 2**24  # about 100,000 members; a full training checkpoint of CrossEarth has about 1,500

_LOCAL = struct.Struct("<4s22x2H")  # header of a member: signature, lengths of the name and of the extra field
_END = struct.Struct("<4s6xH10x")  # record at the end of the archive: signature, number of members


@dataclasses.dataclass(frozen=True, slots=True)
class Member:
    """The bytes of a member in the file."""

    begin: int  # position in the file
    size: int  # in bytes
    plain: bool  # neither compressed nor encrypted


class _Directory:
    """The mapped file as a file object for `zipfile`, which can read at most `DIRECTORY_BYTES` at once."""

    def __init__(self, buffer: mmap.mmap):
        self.buffer = buffer
        self.tell = buffer.tell

    def seek(self, offset: int, whence: int = 0, /) -> int:
        self.buffer.seek(offset, whence)  # pyright: ignore[reportArgumentType]: any of the three
        return self.buffer.tell()

    def read(self, size: int = -1, /) -> bytes:
        if size > DIRECTORY_BYTES:
            raise FormatError(f"its directory is damaged (it claims {size:,} bytes)")
        return self.buffer.read(size)


def members(buffer: mmap.mmap) -> dict[str, Member]:
    """Return the members of the archive in `buffer`, by name.

    Raises:
      FormatError: the archive is truncated or damaged, or contains something that torch never writes.
    """
    end = buffer.rfind(b"PK\x05\x06", max(0, len(buffer) - _END.size - 0xFFFF))
    if end < 0 or end + _END.size > len(buffer):
        raise FormatError("its end is missing, so it is truncated; expected a complete download")
    try:
        with zipfile.ZipFile(_Directory(buffer)) as archive:
            entries, directory = sorted(archive.infolist(), key=lambda entry: entry.header_offset), archive.start_dir
    except FormatError:
        raise
    except (zipfile.BadZipFile, NotImplementedError, OSError, ValueError) as error:
        raise FormatError(f"its directory is damaged ({error})") from None
    _, count = _END.unpack_from(buffer, end)
    if not entries or entries[0].header_offset != 0 or count not in (len(entries), 0xFFFF):
        raise FormatError(f"its directory is damaged ({count} members expected, {len(entries)} found)")
    found: dict[str, Member] = {}
    previous_end = 0
    for entry in entries:
        name = entry.filename
        if name.startswith("/") or "\\" in name or ":" in name or ".." in name.split("/"):
            raise FormatError(f"its member {name[:80]!r} points outside the archive")
        if name in found:
            raise FormatError(f"it contains the member {name[:80]!r} twice")
        found[name] = member = _locate(buffer, entry)
        if member.begin < previous_end or member.begin + member.size > directory:
            raise FormatError(f"its member {name[:80]!r} overlaps another")
        previous_end = member.begin + member.size
    return found


def _locate(buffer: mmap.mmap, entry: zipfile.ZipInfo) -> Member:
    """Find the bytes of a member. They follow its local header, whose length is not in the directory."""
    name = entry.orig_filename.encode("utf-8" if entry.flag_bits & 0x800 else "cp437")
    name_begin = entry.header_offset + _LOCAL.size
    if name_begin > len(buffer):
        raise FormatError(f"its member {entry.filename[:80]!r} lies outside the file")
    mark, name_size, extra_size = _LOCAL.unpack_from(buffer, entry.header_offset)
    if mark != b"PK\x03\x04" or buffer[name_begin : name_begin + name_size] != name:
        raise FormatError(f"its member {entry.filename[:80]!r} is not at the position given in the directory")
    begin, size = name_begin + name_size + extra_size, entry.compress_size
    if begin + size > len(buffer):
        raise FormatError(f"its member {entry.filename[:80]!r} claims {size} bytes, more than the file holds")
    plain = entry.compress_type == zipfile.ZIP_STORED and not entry.flag_bits & 1 and entry.file_size == size
    return Member(begin, size, plain)
