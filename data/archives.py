"""Read the files of a dataset as they were downloaded: loose, in zips, or in zips inside zips, without unpacking.

Archives come from untrusted sources. A member is refused if its name leads out of the archive, if it is encrypted or
if it exceeds a size limit; checksums are verified when members are read.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import os
import re
import stat
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast

from crossearth_jax.config import UserError

MAX_BYTES = 2**30  # limit for one file; the largest image of the benchmark has about 0.1 GB
MAX_MEMBERS = 2_000_000  # limit for one archive
OTHER_ARCHIVES = (".rar", ".7z", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".001", ".z01")
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)  # supported compression
_DEFLATE64 = 9
_JUNK = re.compile(r"(^|/)(__MACOSX/|\._|\.DS_Store$|Thumbs\.db$)")


@dataclasses.dataclass(frozen=True)
class Member:
    """One file of a dataset: a loose file or a member of an archive."""

    path: str  # relative to the dataset's folder, with archives as folders: "Train.zip/Train/Urban/…/1.png"
    file: str  # path on disk of the loose file or of the outermost archive
    inside: tuple[str, ...]  # names in the zip and in the zips inside it; () for a loose file
    size: int  # bytes
    crc: int | None = None  # CRC-32 of the content according to the archive; None for a loose file

    def read(self) -> bytes:
        """Return the whole content.

        Raises:
          UserError: the file is damaged, too large or missing.
        """
        if self.size > MAX_BYTES:
            raise UserError(
                f"{self.path} has {self.size} bytes, at most {MAX_BYTES} are read; it is not a benchmark image"
            )
        try:
            if not self.inside:
                return Path(self.file).read_bytes()
            return _open_zip(self.file, self.inside[:-1]).read(self.inside[-1])
        except (OSError, EOFError, KeyError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
            raise UserError(f"{self.path} cannot be read ({error}); download it again") from None

    def same_content(self, other: Member) -> bool:
        """Return whether both files have the same size and CRC-32.

        Raises:
          UserError: one of the files cannot be read.
        """
        return self.size == other.size and self._checksum() == other._checksum()

    def _checksum(self) -> int:
        return zlib.crc32(self.read()) if self.crc is None else self.crc


def list_members(directory: Path) -> list[Member]:
    """Return every file in `directory`, its subfolders, zips and zips inside zips, sorted by path.

    Raises:
      UserError: the folder does not exist, or an archive is damaged or unsafe.
    """
    if not directory.is_dir():
        raise UserError(f"{directory} is not a folder; pass the folder that contains the archives as --manual_dir")
    members = [member for path in _loose_files(directory) for member in _members_of(path, directory)]
    return sorted((member for member in members if not _JUNK.search(member.path)), key=lambda member: member.path)


def unreadable_archives(members: list[Member]) -> list[str]:
    """Return the paths of the archives among `members` in formats that are not read."""
    return [member.path for member in members if member.path.lower().endswith(OTHER_ARCHIVES)]


def _loose_files(directory: Path) -> Iterator[Path]:
    seen = set[str]()  # against endless recursion through a link to a parent folder
    for parent, folders, files in os.walk(directory, followlinks=True):
        real = os.path.realpath(parent)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        yield from (Path(parent, name) for name in files)


def _members_of(path: Path, directory: Path) -> Iterator[Member]:
    name, size = path.relative_to(directory).as_posix(), path.stat().st_size
    if path.suffix.lower() == ".zip" and not _JUNK.search(name):
        if any(path.with_suffix(end).exists() for end in (".z01", ".Z01")):
            raise UserError(
                f"{name} is the last part of an archive in several parts; join them with"
                f" 'zip -s 0 {path.name} --out whole.zip' or unpack them, and move the parts to another folder"
            )
        yield from _zip_members(name, str(path), ())
    else:
        yield Member(name, str(path), (), size)


def _zip_members(path: str, file: str, inside: tuple[str, ...]) -> Iterator[Member]:
    try:
        entries = _open_zip(file, inside).infolist()
    except (OSError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is not a complete zip archive ({error}); download it again") from None
    if len(entries) > MAX_MEMBERS:
        raise UserError(f"{path} has {len(entries)} members, at most {MAX_MEMBERS} are read")
    seen = dict[str, zipfile.ZipInfo]()
    for entry in entries:
        _refuse_unsafe(entry, path)
        inner = entry.filename.replace("\\", "/")  # some packers on Windows write backslashes
        if inner.endswith("/") or _JUNK.search(inner):
            continue
        name, first = f"{path}/{inner}", seen.setdefault(inner, entry)
        if first is not entry and (first.file_size, first.CRC) != (entry.file_size, entry.CRC):
            raise UserError(f"{path} contains two different files named {inner}; unpack it and keep the right one")
        if first is not entry:
            continue
        if entry.compress_type not in METHODS:
            method = "Deflate64, as Windows does above 2 GB" if entry.compress_type == _DEFLATE64 else "a rare method"
            raise UserError(
                f"{name} is compressed by {method} (method {entry.compress_type} of the zip format), which is not"
                f" read; unpack {path}, e.g. with '7z x', and remove it"
            )
        if not inner.lower().endswith(".zip"):
            yield Member(name, file, (*inside, entry.filename), entry.file_size, entry.CRC)
        elif entry.compress_type != zipfile.ZIP_STORED:
            raise UserError(f"{name} is compressed inside another zip; unpack {path} once (its zips may stay packed)")
        else:
            yield from _zip_members(name, file, (*inside, entry.filename))


def _refuse_unsafe(entry: zipfile.ZipInfo, archive: str) -> None:
    name = entry.orig_filename  # `entry.filename` is silently cut at a NUL
    outside = name.startswith("/") or re.match(r"[A-Za-z]:", name) or ".." in re.split(r"[/\\]", name)
    if outside or "\0" in name or name.startswith("\\"):
        raise UserError(
            f"{archive} has a member named {name!r}, which leads outside its folder; do not use this archive"
        )
    if stat.S_ISLNK(entry.external_attr >> 16):
        raise UserError(f"{archive}/{name} is a symbolic link, expected a file; do not use this archive")
    if entry.flag_bits & 1:
        raise UserError(f"{archive}/{name} is encrypted; unpack {archive} with its password first")


@functools.lru_cache(maxsize=32)  # reading the central directory of a zip with 20,000 members takes a second
def _open_zip(file: str, inside: tuple[str, ...]) -> zipfile.ZipFile:
    if not inside:
        return zipfile.ZipFile(file)
    outer = _open_zip(file, inside[:-1])
    return zipfile.ZipFile(cast(BinaryIO, io.BufferedReader(_Stored(outer, outer.getinfo(inside[-1])))))


class _Stored(io.RawIOBase):
    """An uncompressed zip member as a seekable file, without copying it."""

    def __init__(self, archive: zipfile.ZipFile, entry: zipfile.ZipInfo):
        self._file = cast(BinaryIO, archive.fp)
        self._file.seek(entry.header_offset + 26)  # position of the lengths of name and extra field (2 bytes each)
        lengths = self._file.read(4)
        if len(lengths) < 4:
            raise zipfile.BadZipFile(f"no local header of {entry.filename}")
        fixed_part = 30
        self._start = (
            entry.header_offset + fixed_part + sum(int.from_bytes(lengths[i : i + 2], "little") for i in (0, 2))
        )
        self._length, self._position = entry.file_size, 0

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move to `offset`, counted from the start, the current position or the end; return the new position."""
        origin = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._length}[whence]
        if origin + offset < 0:
            raise OSError("position before the start")
        self._position = origin + offset
        return self._position

    def readinto(self, buffer) -> int:
        """Read the next bytes of the member into `buffer`; return their number."""
        self._file.seek(self._start + self._position)
        data = self._file.read(max(min(len(buffer), self._length - self._position), 0))
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)
