"""Fixtures: torch files with any content, including content that torch never writes."""

import zipfile

import pytest

STORAGE = b"(X\x07\x00\x00\x00storagectorch\n%s\nX\x01\x00\x00\x00%sX\x03\x00\x00\x00cpuJ%stQ"


@pytest.fixture
def save(tmp_path):
    """Write a zip archive with a pickle and storages, and return its path."""

    def write(pickle, storages=(b"\0" * 16,), *, name="file.pth", compression=zipfile.ZIP_STORED, **members):
        path = tmp_path / name
        with zipfile.ZipFile(path, "w", compression) as archive:
            archive.writestr("archive/data.pkl", pickle)
            for key, data in enumerate(storages):
                archive.writestr(f"archive/data/{key}", data)
            for member, data in members.items():
                archive.writestr(f"archive/{member}", data)
        return path

    return write


@pytest.fixture
def tensor_pickle():
    """Return the pickle of one float tensor over storage 0, with any claims about it."""

    def program(count=4, offset=0, shape=(4,), strides=(1,), storage=b"FloatStorage", key=b"0"):
        claim = STORAGE % (storage, key, count.to_bytes(4, "little", signed=True))
        numbers = b"".join(map(_number, (offset,))) + _tuple(shape) + _tuple(strides)
        rebuild = b"ctorch._utils\n_rebuild_tensor_v2\n"
        return b"\x80\x02}X\x01\x00\x00\x00a" + rebuild + b"(" + claim + numbers + b"\x89Nt" + b"Rs."

    return program


def _number(value):
    raw = value.to_bytes(9, "little", signed=True)
    return b"\x8a\x09" + raw


def _tuple(values):
    return b"(" + b"".join(map(_number, values)) + b"t"
