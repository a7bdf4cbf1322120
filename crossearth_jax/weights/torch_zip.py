"""Where the members of a torch archive lie in the mapped file.

The directory is read by `zipfile`; nothing is ever unpacked, because torch stores its members without compression.
Three things are our own. The place of a member's bytes, which `zipfile` does not tell. A limit on the size of the
directory, which `zipfile` reads whole, however large it claims to be. And stricter checks, where `zipfile` accepts what
torch never writes: members that overlap or are there twice, names that leave the folder, bytes before the archive.
"""

from __future__ import annotations

import dataclasses
import mmap
import struct
import zipfile

from crossearth_jax.weights.torch_types import FormatError

DIRECTORY_BYTES = 2**24  # about 100,000 members; a full training checkpoint of CrossEarth holds about 1,500

_LOCAL = struct.Struct("<4s22x2H")  # mark, lengths of the name and of the extra field in front of a member
_END = struct.Struct("<4s6xH10x")  # mark and number of members, at the end of the archive


@dataclasses.dataclass(frozen=True, slots=True)
class Member:
    """A range of the file."""

    begin: int
    size: int
    plain: bool  # neither compressed nor encrypted


class _Directory:
    """The mapped file as `zipfile` reads it: the directory, but never more than `DIRECTORY_BYTES` at once."""

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
    """Find the members of the archive that fills `buffer`, by name.

    Raises:
      FormatError: the archive is cut off, damaged, or holds what torch never writes.
    """
    end = buffer.rfind(b"PK\x05\x06", max(0, len(buffer) - _END.size - 0xFFFF))
    if end < 0 or end + _END.size > len(buffer):
        raise FormatError("its end is missing: it is cut off; expected a complete download")
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
            raise FormatError(f"its member {name[:80]!r} is there twice")
        found[name] = member = _locate(buffer, entry)
        if member.begin < previous_end or member.begin + member.size > directory:
            raise FormatError(f"its member {name[:80]!r} overlaps another")
        previous_end = member.begin + member.size
    return found


def _locate(buffer: mmap.mmap, entry: zipfile.ZipInfo) -> Member:
    """Find the bytes of a member: they follow its own header, whose length the directory does not tell."""
    name = entry.orig_filename.encode("utf-8" if entry.flag_bits & 0x800 else "cp437")
    name_begin = entry.header_offset + _LOCAL.size
    if name_begin > len(buffer):
        raise FormatError(f"its member {entry.filename[:80]!r} lies outside the file")
    mark, name_size, extra_size = _LOCAL.unpack_from(buffer, entry.header_offset)
    if mark != b"PK\x03\x04" or buffer[name_begin : name_begin + name_size] != name:
        raise FormatError(f"its member {entry.filename[:80]!r} is not where the directory says")
    begin, size = name_begin + name_size + extra_size, entry.compress_size
    if begin + size > len(buffer):
        raise FormatError(f"its member {entry.filename[:80]!r} claims {size} bytes, more than the file holds")
    plain = entry.compress_type == zipfile.ZIP_STORED and not entry.flag_bits & 1 and entry.file_size == size
    return Member(begin, size, plain)
