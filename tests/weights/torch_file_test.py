"""Files of torch compared with what torch reads from them; damaged and malicious files give one clear error."""

import pickle
import struct
import tracemalloc
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from crossearth_jax.config import UserError
from crossearth_jax.weights import torch_zip
from crossearth_jax.weights.torch_file import read_torch
from crossearth_jax.weights.torch_pickle import Placeholder, Symbol

FIXTURES = Path(__file__).parent / "fixtures"


@pytest.fixture(scope="module")
def expected():
    with np.load(FIXTURES / "expected.npz") as file:
        return dict(file)


def arrays(path):
    file = read_torch(path)
    return {name: file.array(value) for name, value in file.content.items()}


@pytest.mark.parametrize("name", ["zip", "legacy", "protocol3", "protocol4", "protocol5"])
def test_tensors_of_every_type_and_layout(name, expected):
    found = arrays(FIXTURES / f"tensors_{name}.pth")
    for key, array in found.items():
        np.testing.assert_array_equal(array.astype(expected[key].dtype), expected[key], err_msg=key)
        assert not array.flags.writeable or array.size == 0 or array.dtype == bool
    assert found["bfloat16"].dtype == ml_dtypes.bfloat16
    for key in ("float64", "float16", "int64", "int32", "int16", "int8", "uint8"):
        assert found[key].dtype == key
    assert found["flags"].dtype == bool


def test_types_without_a_storage_class(expected):
    for key, array in arrays(FIXTURES / "untyped_zip.pth").items():
        assert array.dtype == np.dtype(getattr(ml_dtypes, key, key))
        np.testing.assert_array_equal(array.astype(expected[key].dtype), expected[key], err_msg=key)


def test_views_share_the_mapped_storage():
    found = arrays(FIXTURES / "tensors_zip.pth")
    assert np.shares_memory(found["plain"], found["transposed"])
    assert np.shares_memory(found["plain"], found["row"])


@pytest.mark.parametrize("name", ["zip", "legacy"])
def test_plain_containers(name):
    content = read_torch(FIXTURES / f"containers_{name}.pth").content
    assert content["ordered"] == {"a": 1, "b": 2} and content["counted"] == {"a": 2, "b": 1}
    assert content["default"] == {"x": [1]} and content["queue"] == [1, 2]
    assert content["set"] == {1, 2} and content["frozen"] == frozenset("ab")
    assert content["list"] == [1, -2, 3.5, None, True, 2**40, -(2**70)]
    assert content["tuple"] == ((), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4))
    assert content["text"] == "Küste" and content["bytes"] == b"\x00\xff" and content["shape"] == (2, 3)
    assert isinstance(content["device"], Placeholder) and content["dtype"] == Symbol("torch.float16")


@pytest.mark.parametrize("name", ["zip", "legacy"])
def test_training_checkpoint_keeps_weights_and_leaves_log_objects_inert(name, expected):
    file = read_torch(FIXTURES / f"checkpoint_{name}.pth")
    for key in ("weight", "bias"):
        np.testing.assert_array_equal(file.array(file.content["state_dict"][key]), expected[f"checkpoint.{key}"])
    assert file.content["meta"]["dataset_meta"] == {"classes": ("sea", "land")}
    assert file.content["meta"]["iter"] == 30000
    log = file.content["message_hub"]["log_scalars"]["loss"]
    assert isinstance(log, Placeholder) and log.name == "mmengine.logging.history_buffer.HistoryBuffer"
    assert file.array(file.content["optimizer"]["state"][0]["exp_avg"]).shape == (2, 3)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer"),
        (b"\n<!DOCTYPE html><html>", "web page"),
        (pickle.dumps({"a": 1}), "plain pickle"),
        (struct.pack("<Q", 100) + b'{"a": ', "truncated or damaged safetensors file"),
        (b"GIF89a...", "begins with b'GIF89a"),
        (b"PK\x03\x04" + b"\0" * 100, "its end is missing"),
    ],
)
def test_files_that_are_something_else(tmp_path, content, message):
    path = tmp_path / "x.pth"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        read_torch(path)
    assert str(path) in str(error.value) and "expected" in str(error.value) and "\n" not in str(error.value)


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        read_torch(tmp_path / "no.pth")
    with pytest.raises(UserError, match="is not a file"):
        read_torch(tmp_path)


def test_programs_are_refused_by_kind():
    with pytest.raises(UserError, match="TorchScript"):
        read_torch(FIXTURES / "torchscript.pth")
    with pytest.raises(UserError, match=r"torch\.nn\.modules\.linear\.Linear"):
        read_torch(FIXTURES / "module.pth")


@pytest.mark.parametrize("name", ["tensors_zip", "tensors_legacy", "checkpoint_legacy"])
def test_truncated_anywhere(tmp_path, name):
    whole = (FIXTURES / f"{name}.pth").read_bytes()
    path = tmp_path / "cut.pth"
    for size in range(1, len(whole), 131):
        path.write_bytes(whole[:size])
        with pytest.raises(UserError):
            read_torch(path)


@pytest.mark.parametrize("name", ["containers_zip", "tensors_legacy", "checkpoint_legacy", "untyped_zip"])
def test_any_flipped_byte_gives_tensors_or_one_error(tmp_path, name):
    whole = (FIXTURES / f"{name}.pth").read_bytes()
    random = np.random.default_rng(0)
    path = tmp_path / "damaged.pth"
    for _ in range(40):
        damaged = bytearray(whole)
        damaged[random.integers(len(whole))] = random.integers(256)
        path.write_bytes(damaged)
        try:
            file = read_torch(path)
        except UserError as error:
            assert "\n" not in str(error)
            continue
        for value in file.content.values() if isinstance(file.content, dict) else ():
            if hasattr(value, "storage"):
                file.array(value).astype(np.float64).sum()


# --- false claims about tensors ---------------------------------------------------------------------------


def test_honest_claim_is_read(save, tensor_pickle):
    data = np.arange(4, dtype=np.float32)
    np.testing.assert_array_equal(arrays(save(tensor_pickle(), [data.tobytes()]))["a"], data)


@pytest.mark.parametrize(
    ("claim", "message"),
    [
        ({"count": 5}, "claims 20 bytes, the file holds 16"),
        ({"count": 3}, "claims 12 bytes, the file holds 16"),
        ({"count": 2**31 - 1}, "claims 8589934588 bytes"),
        ({"count": -4}, "unknown way"),
        ({"key": b"7"}, "the file holds none"),
        ({"storage": b"QInt8Storage"}, "torch.QInt8Storage"),
        ({"shape": (5,)}, "reaches element 5 of a storage that holds 4"),
        ({"shape": (2, 2), "strides": (3, 1)}, "reaches element 5"),
        ({"offset": 1}, "reaches element 5"),
        ({"offset": -1}, "not whole numbers"),
        ({"strides": (-1,)}, "not whole numbers"),
        ({"shape": (-4,)}, "not whole numbers"),
        ({"shape": (4, 1)}, "not whole numbers"),
        ({"shape": (2**60,), "strides": (2**60,)}, "not whole numbers"),
        ({"shape": (2**40,)}, "reaches element"),
        ({"shape": (2**30, 2**30), "strides": (0, 0)}, "tensors claim"),
        ({"shape": (2**47,) * 32, "strides": (0,) * 32}, "tensors claim"),
        ({"shape": (1,) * 33, "strides": (0,) * 33}, "not whole numbers"),
    ],
)
def test_false_claims_about_tensors(save, tensor_pickle, claim, message):
    with pytest.raises(UserError, match=message):
        read_torch(save(tensor_pickle(**claim)))


def test_many_views_of_one_storage_cannot_claim_more_than_the_file(save, tensor_pickle):
    one = tensor_pickle(count=2**20, shape=(2**20,))[2:-1]
    with pytest.raises(UserError, match="tensors claim"):
        read_torch(save(b"\x80\x02(" + one * 20 + b"t.", [bytes(2**22)]))


@pytest.mark.parametrize("order", [b"big", b"", b"pdp"])
def test_wrong_byte_order(save, tensor_pickle, order):
    with pytest.raises(UserError, match="big-endian"):
        read_torch(save(tensor_pickle(), byteorder=order))


def test_wrong_byte_order_of_the_legacy_format(tmp_path):
    whole = (FIXTURES / "tensors_legacy.pth").read_bytes()
    start = whole.index(b"little_endian")
    path = tmp_path / "big.pth"
    path.write_bytes(whole[:start] + whole[start:].replace(b"\x88", b"\x89", 1))
    with pytest.raises(UserError, match="big-endian"):
        read_torch(path)


def legacy(storages, keys, data):
    """Return a legacy file whose tensors use `storages`, which lists `keys` and ends with `data`."""
    claim = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x00%sX\x03\x00\x00\x00cpuK\x02%stQ"
    header = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.\x80\x02}X\r\x00\x00\x00little_endian\x88s."
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(%sK\x00K\x02\x85K\x01\x85\x89NtR"
    content = b"\x80\x02](" + b"".join(tensor % (claim % storage) for storage in storages) + b"e."
    return header + content + pickle.dumps(keys, protocol=2) + data


TWO = struct.pack("<q2f", 2, 5.0, 6.0)
BEHIND = struct.pack("<q3f", 3, 5.0, 6.0, 7.0)
PART = b"(X\x01\x00\x00\x00v%st"  # (key, first, size) of a view


def test_legacy_storages_are_found(tmp_path):
    path = tmp_path / "x.pth"
    path.write_bytes(legacy([(b"0", b"N"), (b"1", b"N")], ["1", "0"], struct.pack("<q2f", 2, 1.0, 2.0) + TWO))
    file = read_torch(path)
    assert [file.array(tensor).tolist() for tensor in file.content] == [[5.0, 6.0], [1.0, 2.0]]


@pytest.mark.parametrize(
    ("storages", "keys", "data", "message"),
    [
        ([(b"0", b"N")], ["0"], TWO[:-1], "truncated"),
        ([(b"0", b"N")], ["0"], TWO[:5], "truncated"),
        ([(b"0", b"N")], ["0"], BEHIND, "holds 3 elements, its tensors expect 2"),
        ([(b"0", b"N")], ["0"], struct.pack("<q2f", -2, 5, 6), "holds -2 elements"),
        ([(b"0", b"N")], ["0"], struct.pack("<q2f", 2**62, 5, 6), "its tensors expect 2"),
        ([(b"0", b"N")], ["1"], TWO, "list of storages"),
        ([(b"0", b"N")], [], TWO, "list of storages"),
        ([(b"0", b"N")], ["0", "0"], TWO + TWO, "contains one twice"),
        ([(b"0", b"N")], ["0", 0], TWO, "list of storages"),
        ([(b"0", b"N")], {"0": 1}, TWO, "list of storages"),
        ([(b"0", PART % b"K\x01K\x02")], ["0"], TWO, "reaches outside"),
        ([(b"0", PART % b"J\xff\xff\xff\xffK\x01")], ["0"], TWO, "reaches outside"),
        ([(b"0", PART % b"K\x01K\x01")], ["0"], TWO, "reaches element 2 of a storage that holds 1"),
        ([(b"0", PART % b"K\x01")], ["0"], TWO, "reaches outside"),
    ],
)
def test_hostile_legacy_storage_lists(tmp_path, storages, keys, data, message):
    path = tmp_path / "x.pth"
    path.write_bytes(legacy(storages, keys, data))
    with pytest.raises(UserError, match=message):
        read_torch(path)


def test_huge_legacy_claim_costs_nothing(tmp_path):
    whole = legacy([(b"0", b"N")], ["0"], TWO).replace(b"cpuK\x02", b"cpu\x8a\x06\x00\x00\x00\x00\x00\x10")
    path = tmp_path / "x.pth"
    path.write_bytes(whole)
    tracemalloc.start()
    with pytest.raises(UserError, match="which is impossible"):
        read_torch(path)
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


# --- archives ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["../../evil", "/etc/evil", "archive/../../evil", "archive\\..\\evil", "C:evil"])
def test_names_that_leave_the_archive(save, tensor_pickle, tmp_path, name):
    path = save(tensor_pickle())
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(name, b"x")
    with pytest.raises(UserError, match="points outside"):
        read_torch(path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["file.pth"]


def test_zip_bomb_is_not_unpacked(save, tensor_pickle):
    path = save(tensor_pickle(), [bytes(2**26)], compression=zipfile.ZIP_DEFLATED)
    tracemalloc.start()
    with pytest.raises(UserError, match="compressed"):
        read_torch(path)
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


def test_a_directory_is_never_read_beyond_its_limit(save, tensor_pickle, monkeypatch):
    path = save(tensor_pickle(), [b""] * 5000)
    monkeypatch.setattr(torch_zip, "DIRECTORY_BYTES", 2**16)
    tracemalloc.start()
    with pytest.raises(UserError, match="directory is damaged"):
        read_torch(path)
    assert tracemalloc.get_traced_memory()[1] < 2**17
    tracemalloc.stop()


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_duplicate_members(save, tensor_pickle):
    path = save(tensor_pickle())
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02N.")
    with pytest.raises(UserError, match=r"contains the member .* twice"):
        read_torch(path)


def test_other_archives(tmp_path):
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "weights inside")
    with pytest.raises(UserError, match="not one of torch"):
        read_torch(path)


def edited(path, old, new, count=1):
    whole = path.read_bytes()
    assert old in whole
    path.write_bytes(whole.replace(old, new, count))
    return path


def test_overlapping_members(save, tensor_pickle):
    path = save(tensor_pickle(), [bytes(16), bytes(16)])
    whole = bytearray(path.read_bytes())
    entries = [i for i in range(len(whole)) if whole[i : i + 4] == b"PK\x01\x02"]
    local = [i for i in range(len(whole)) if whole[i : i + 4] == b"PK\x03\x04"]
    # The first storage claims to reach into the second.
    for place in (entries[1] + 20, entries[1] + 24, local[1] + 18, local[1] + 22):
        whole[place : place + 4] = struct.pack("<I", 80)
    path.write_bytes(whole)
    with pytest.raises(UserError, match="overlaps"):
        read_torch(path)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        (10, 60000, "directory is damaged"),  # number of members
        (12, 2**31, "directory is damaged"),  # size of the directory
        (16, 2**31, "directory is damaged"),  # position of the directory
        (16, 0xFFFFFFFF, "directory is damaged"),  # announces a 64-bit record that does not exist
        (16, 0, "directory is damaged"),
    ],
)
def test_false_claims_of_the_archive(save, tensor_pickle, field, value, message):
    path = save(tensor_pickle())
    whole = bytearray(path.read_bytes())
    place = len(whole) - 22 + field
    whole[place : place + (2 if field == 10 else 4)] = value.to_bytes(2 if field == 10 else 4, "little")
    path.write_bytes(whole)
    with pytest.raises(UserError, match=message):
        read_torch(path)


@pytest.mark.parametrize(
    ("field", "message"), [(24, "compressed"), (20, "more than the file"), (42, "not where|outside")]
)
def test_false_claims_of_a_member(save, tensor_pickle, field, message):
    path = save(tensor_pickle())
    whole = bytearray(path.read_bytes())
    place = whole.rindex(b"PK\x01\x02") + field
    whole[place : place + 4] = struct.pack("<I", 2**31)
    path.write_bytes(whole)
    with pytest.raises(UserError, match=message):
        read_torch(path)
