"""Reading archives without unpacking: zips in zips, damage, and names that lead outside the archive."""

import os
import stat
import zipfile

import pytest
from crossearth_data import archives  # pyright: ignore[reportMissingImports]
from crossearth_data.archives import list_members, unreadable_archives  # pyright: ignore[reportMissingImports]
from miniatures import pictures

from crossearth_jax.config import UserError

CONTENT = bytes(range(256)) * 40


def contents(folder):
    return {member.path: member.read() for member in list_members(folder)}


def test_loose_files_and_zips_in_zips(tmp_path):
    pictures.write_files(tmp_path, {"b/1.png": b"one", "a.png": b"a", ".DS_Store": b"", "b/._1.png": b""})
    pictures.write_zip(tmp_path / "inner.zip", {"x/2.png": CONTENT, "3.png": b"three", "__MACOSX/x/._2.png": b""})
    inner = (tmp_path / "inner.zip").read_bytes()
    pictures.write_zip(tmp_path / "mid.ZIP", {"pad.txt": b"p" * 999, "inner.zip": inner}, stored=True)
    pictures.write_zip(tmp_path / "o/outer.zip", {"d/mid.zip": (tmp_path / "mid.ZIP").read_bytes()}, stored=True)
    assert contents(tmp_path) == {
        "a.png": b"a",
        "b/1.png": b"one",
        "inner.zip/3.png": b"three",
        "inner.zip/x/2.png": CONTENT,
        "mid.ZIP/inner.zip/3.png": b"three",
        "mid.ZIP/inner.zip/x/2.png": CONTENT,
        "mid.ZIP/pad.txt": b"p" * 999,
        "o/outer.zip/d/mid.zip/inner.zip/3.png": b"three",
        "o/outer.zip/d/mid.zip/inner.zip/x/2.png": CONTENT,
        "o/outer.zip/d/mid.zip/pad.txt": b"p" * 999,
    }


def test_a_link_to_the_folder_itself_ends(tmp_path):
    pictures.write_files(tmp_path, {"a/1.png": b"one"})
    (tmp_path / "a/loop").symlink_to(tmp_path)
    assert [member.path for member in list_members(tmp_path)] == ["a/1.png"]


@pytest.mark.parametrize(
    "name", ["../out.png", "a/../../out.png", "/etc/out.png", "C:/out.png", "a\\..\\out.png", "\\x.png"]
)
def test_names_that_leave_the_folder_are_refused(tmp_path, name):
    pictures.write_zip(tmp_path / "bad.zip", {"fine.png": b"", name: b""})
    with pytest.raises(UserError, match=r"bad\.zip has a member named .*outside its folder; do not use this archive"):
        list_members(tmp_path)


def test_links_and_encrypted_members_are_refused(tmp_path):
    link = zipfile.ZipInfo("link.png")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "link.zip", "w") as archive:
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(UserError, match=r"link\.zip/link\.png is a symbolic link"):
        list_members(tmp_path)
    (tmp_path / "link.zip").unlink()
    pictures.write_zip(tmp_path / "locked.zip", {"1.png": b"one"}, stored=True)
    data = bytearray((tmp_path / "locked.zip").read_bytes())
    data[data.index(b"PK\x01\x02") + 8] |= 1  # the flag of encryption in the central directory
    (tmp_path / "locked.zip").write_bytes(data)
    with pytest.raises(UserError, match=r"locked\.zip/1\.png is encrypted; unpack .* with its password"):
        list_members(tmp_path)


def test_damage_is_named(tmp_path):
    pictures.write_zip(tmp_path / "a.zip", {"1.png": CONTENT, "2.png": b"two"}, stored=True)
    data = bytearray((tmp_path / "a.zip").read_bytes())
    data[200] ^= 1
    (tmp_path / "a.zip").write_bytes(data)
    first, second = list_members(tmp_path)
    with pytest.raises(UserError, match=r"a\.zip/1\.png cannot be read \(Bad CRC-32.*download it again"):
        first.read()
    assert second.read() == b"two"
    archives._open_zip.cache_clear()
    os.truncate(tmp_path / "a.zip", 3000)
    with pytest.raises(UserError, match=r"a\.zip is not a complete zip archive"):
        list_members(tmp_path)


def test_sizes_are_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "MAX_BYTES", 1000)
    pictures.write_zip(tmp_path / "bomb.zip", {"1.png": bytes(1_000_000)})
    (member,) = list_members(tmp_path)
    with pytest.raises(UserError, match=r"bomb\.zip/1\.png has 1000000 bytes, at most 1000 are read"):
        member.read()
    monkeypatch.setattr(archives, "MAX_MEMBERS", 0)
    with pytest.raises(UserError, match=r"bomb\.zip has 1 members, at most 0"):
        list_members(tmp_path)


def test_names_with_backslashes(tmp_path):
    """Some Windows programs write backslashes: they separate folders, and entries of folders are left out."""
    names = {"top\\a.tif": CONTENT, "top\\": b"", "__MACOSX\\._a.tif": b"", "top/.DS_Store": b"", "gts/a.tif": b"b"}
    pictures.write_zip(tmp_path / "a.zip", names)
    assert contents(tmp_path) == {"a.zip/top/a.tif": CONTENT, "a.zip/gts/a.tif": b"b"}


def with_method(path, method):
    """Set the compression method in both headers of the only member to `method`."""
    data = bytearray(path.read_bytes())
    local, central = data.index(b"PK\x03\x04") + 8, data.index(b"PK\x01\x02") + 10
    for place in (local, central):
        data[place : place + 2] = method.to_bytes(2, "little")
    path.write_bytes(data)


@pytest.mark.parametrize(("method", "name"), [(9, "Deflate64, as Windows does above 2 GB"), (98, "a rare method")])
def test_methods_of_compression_that_are_not_read_are_named(tmp_path, method, name):
    pictures.write_zip(tmp_path / "big.zip", {"1.png": CONTENT})
    with_method(tmp_path / "big.zip", method)
    expected = rf"big\.zip/1\.png is compressed by {name} \(method {method} .*; unpack big\.zip, e\.g\. with '7z x'"
    with pytest.raises(UserError, match=expected):
        list_members(tmp_path)


def test_a_part_of_an_archive_is_named(tmp_path):
    pictures.write_zip(tmp_path / "a.zip", {"1.png": CONTENT})
    (tmp_path / "a.z01").write_bytes(b"PK")
    with pytest.raises(UserError, match=r"a\.zip is the last part of an archive in several parts; join them with"):
        list_members(tmp_path)


@pytest.mark.filterwarnings("ignore:Duplicate name")  # what zipfile says when it writes one
def test_two_members_of_one_name(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("1.png", b"one")
        archive.writestr("1.png", b"one")
    assert contents(tmp_path) == {"a.zip/1.png": b"one"}
    with zipfile.ZipFile(tmp_path / "a.zip", "a") as archive:
        archive.writestr("1.png", b"two")
    archives._open_zip.cache_clear()
    with pytest.raises(UserError, match=r"a\.zip contains two different files named 1\.png; unpack it and keep the"):
        list_members(tmp_path)


def test_content_is_compared(tmp_path):
    pictures.write_files(tmp_path, {"1": b"one", "2": b"two", "3": b"three", "4": b"one"})
    pictures.write_zip(tmp_path / "a.zip", {"1": b"one"})
    one, two, three, again, packed = list_members(tmp_path)
    assert [one.same_content(other) for other in (two, three, again, packed)] == [False, False, True, True]


def test_what_cannot_be_read_in_place_is_explained(tmp_path):
    pictures.write_zip(tmp_path / "inner.zip", {"1.png": b"one"})
    pictures.write_zip(tmp_path / "outer.zip", {"inner.zip": (tmp_path / "inner.zip").read_bytes()})
    with pytest.raises(
        UserError, match=r"outer\.zip/inner\.zip is compressed inside another zip; unpack outer\.zip once"
    ):
        list_members(tmp_path)
    (tmp_path / "outer.zip").unlink()
    pictures.write_files(tmp_path, {"set.rar": b"", "more.tar.gz": b""})
    assert unreadable_archives(list_members(tmp_path)) == ["more.tar.gz", "set.rar"]
    with pytest.raises(UserError, match="is not a folder"):
        list_members(tmp_path / "nowhere")
