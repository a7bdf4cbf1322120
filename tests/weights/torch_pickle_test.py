"""Malicious pickles: nothing that they name is run, and each gives one error within a short time."""

import os
import pickle
import re
import tracemalloc

import pytest

from crossearth_jax.config import UserError
from crossearth_jax.weights import torch_pickle
from crossearth_jax.weights.torch_file import read_torch
from crossearth_jax.weights.torch_pickle import Placeholder


class Call:
    """An object whose pickle is a call of `function`."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize(
    ("function", "name"),
    [
        (os.system, "(posix|nt).system"),
        (eval, r"(__builtin__|builtins)\.eval"),
        (exec, r"(__builtin__|builtins)\.exec"),
        (__import__, r"(__builtin__|builtins)\.__import__"),
        (open, r"_?io\.open"),
        (pickle.loads, r"_?pickle\.loads"),
        (re.compile, r"re\.compile"),
    ],
)
def test_calls_are_refused_by_name(save, tmp_path, protocol, function, name):
    marker = tmp_path / "ran"
    program = pickle.dumps({"state_dict": {}, "x": Call(function, f"touch {marker}")}, protocol)
    with pytest.raises(UserError, match=name):
        read_torch(save(program))
    assert not marker.exists()


INERT = b"cmmengine.logging.history_buffer\nHistoryBuffer\n"


def test_getattr_of_an_inert_class_is_inert(save):
    program = b"\x80\x02c__builtin__\ngetattr\n" + INERT + b"X\x03\x00\x00\x00min\x86R."
    found = read_torch(save(program)).content
    assert found == found and isinstance(found, Placeholder)
    assert found.name == "mmengine.logging.history_buffer.HistoryBuffer.min"


def getattr_of(target, name=b"X\x0b\x00\x00\x00__globals__"):
    return b"c__builtin__\ngetattr\n" + target + name + b"\x86R"


@pytest.mark.parametrize(
    "program",
    [
        getattr_of(getattr_of(INERT)),  # a chain
        getattr_of(INERT + b")R"),  # of an object, not of the class
        getattr_of(b"ccollections\nOrderedDict\n"),
        getattr_of(b"c__builtin__\ngetattr\n"),
        getattr_of(b"ctorch\nfloat32\n"),
        getattr_of(b"X\x01\x00\x00\x00a"),
        getattr_of(b"}"),
        getattr_of(INERT, b"K\x01"),
        b"c__builtin__\ngetattr\n" + INERT + b"\x85R",
    ],
)
def test_getattr_elsewhere_is_refused(save, program):
    with pytest.raises(UserError, match="getattr"):
        read_torch(save(b"\x80\x02" + program + b"."))


def test_what_is_done_to_an_inert_object_has_no_effect(save):
    program = b"\x80\x02" + INERT + b")\x81" + b"X\x01\x00\x00\x00a" + b"a" + b"K\x01K\x02s" + b"}b."
    found = read_torch(save(program)).content
    assert isinstance(found, Placeholder) and found.name.endswith("HistoryBuffer")


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (b"(cos\nsystem\nX\x01\x00\x00\x00ao.", "os.system"),
        (b"(X\x01\x00\x00\x00aios\nsystem\n.", "INST"),
        (b"(" + INERT + b"o.", "OBJ"),
        (b"\x82\x01.", "EXT1"),
        (b"\x83\x01\x00.", "EXT2"),
        (b"\x84\x01\x00\x00\x00.", "EXT4"),
        (b"Pstorage\n.", "PERSID"),
        (b"\x97.", "NEXT_BUFFER"),
        (b"I1\n.", "INT"),
        (b"S'a'\n.", "STRING"),
        (b"\xff.", "0xff"),
        (b"cposix\nsystem\n.", "posix.system"),
        (b"X\x02\x00\x00\x00osX\x06\x00\x00\x00system\x93.", "os.system"),
        (b"K\x01K\x02\x93.", "not text"),
        (b"cnumpy.testing\nrunstring\n.", "numpy.testing.runstring"),
        (b"cnumpy\nload\n.", "numpy.load"),
        (b"ctorch\nload\n.", "torch.load"),
        (b"ctorch.storage\n_load_from_bytes\n.", "torch.storage._load_from_bytes"),
        (b"ctorch.hub\nload\n.", "torch.hub.load"),
        (b"cmmengine\n..\n.", "mmengine"),
        (b"cfunctools\npartial\n.", "functools.partial"),
        (b"ctorch\nFloatStorage\n)R.", "FloatStorage"),
        (b"ctorch\nTensor\n)\x81.", "not a class of a training log"),
        (b"K\x01)R.", "a int"),
        (INERT + b"K\x01R.", "without a tuple of arguments"),
        (b"ctorch._tensor\n_rebuild_from_type_v2\n(" + b"c__builtin__\ngetattr\nN)Nt" + b"R.", "builtins.getattr"),
        (b"ctorch._utils\n_rebuild_parameter\nK\x01\x85R.", "not a tensor"),
        (b"ctorch._utils\n_rebuild_tensor_v2\n(NK\x00))tR.", "not a storage"),
        (b"ctorch._utils\n_rebuild_tensor_v2\n)R.", "0 arguments"),
        (b"ctorch._utils\n_rebuild_tensor_v3\n(NK\x00))\x89NNtR.", "unknown element type"),
        (b"c_codecs\nencode\nX\x01\x00\x00\x00aX\x05\x00\x00\x00rot13\x86R.", "_codecs.encode"),
        (b"c_codecs\nencode\nX\x02\x00\x00\x00\xc4\x80X\x06\x00\x00\x00latin1\x86R.", "not bytes"),
        (b"c__builtin__\nset\n](K\x01\x85e\x85R.", "set element"),
        (b"Q.", "uses more values"),
        (b"NQ.", "unknown way"),
        (b"(X\x06\x00\x00\x00moduleNNtQ.", "pickled module"),
        (b"NN\x86Q.", "unknown way"),
        (b".", "uses more values"),
        (b"(0.", "uses more values"),
        (b"N(\x85.", "uses more values"),
        (b"t.", "never began"),
        (b"h\x05.", "never stored"),
        (b"j\xff\xff\xff\xff.", "never stored"),
        (b"Na.", "uses more values"),
        (b"NNa.", "not a list"),
        (b"NNNs.", "not a dictionary"),
        (b"N(N\x90.", "not a set"),
        (b"}(Nu.", "key without a value"),
        (b"}]Ns.", "dictionary key"),
        (b"K\x01Nb.", "state of something"),
        (b"\x80\x02", "truncated"),
        (b"cos", "global without an end"),
        (b"c" + b"a" * 300 + b"\nb\n.", "global without an end"),
        (b"X\xff\xff\xff\xff.", "truncated or too large"),
        (b"\x8e\xff\xff\xff\xff\xff\xff\xff\x7f.", "truncated or too large"),
        (b"\x8d\xff\xff\xff\xff\xff\xff\xff\xff.", "truncated or too large"),
        (b"\x96\x00\x00\x00\x00\x00\x00\x00\x10.", "truncated or too large"),
        (b"\x8b\xff\xff\xff\x7f.", "LONG4"),
    ],
)
def test_other_programs_end_in_one_clear_error(save, program, message):
    with pytest.raises(UserError, match=message) as error:
        read_torch(save(b"\x80\x02" + program))
    assert "file.pth" in str(error.value) and "\n" not in str(error.value)


def test_a_checked_tensor_cannot_be_changed(save, tensor_pickle):
    """A pickle could otherwise set fields of a checked tensor that point outside its storage."""
    built = tensor_pickle().removesuffix(b"s.")
    with pytest.raises(UserError, match="state of something"):
        read_torch(save(built + b"](NJ\xff\xff\xff\x7f))ebs."))


def test_names_cannot_write_to_the_terminal(save):
    name = "os\x1b[2J"
    program = b"\x80\x02X\x06\x00\x00\x00" + name.encode() + b"X\x06\x00\x00\x00system\x93."
    with pytest.raises(UserError) as error:
        read_torch(save(program))
    assert "\x1b" not in str(error.value)


def test_too_many_instructions(save, monkeypatch):
    monkeypatch.setattr(torch_pickle, "OPERATIONS", 1000)
    with pytest.raises(UserError, match="more than 1,000 instructions"):
        read_torch(save(b"\x80\x02" + b"N0" * 501 + b"N."))


def test_too_large(save, monkeypatch):
    monkeypatch.setattr(torch_pickle, "PICKLE_BYTES", 1000)
    with pytest.raises(UserError, match="too large"):
        read_torch(save(b"\x80\x02X\x00\x04\x00\x00" + b"a" * 1024 + b"."))


@pytest.mark.parametrize(
    "copy",
    [
        b"c__builtin__\nlist\nh\x00\x85R0",
        b"c__builtin__\nset\nh\x00\x85R0",
        b"ccollections\ndeque\nh\x00\x85R0",
        b"c_codecs\nencode\nh\x01X\x06\x00\x00\x00latin1\x86R0",
    ],
)
def test_copies_cannot_grow_beyond_the_pickle(save, copy):
    """A copy of a stored list or text takes few instructions; 200 copies would need 100 times the size of the file."""
    program = b"\x80\x02](" + b"K\x01" * 200 + b"eq\x00X\x00\x10\x00\x00" + b"a" * 4096 + b"q\x01" + copy * 200 + b"."
    tracemalloc.start()
    with pytest.raises(UserError, match="copies more than it holds"):
        read_torch(save(program))
    assert tracemalloc.get_traced_memory()[1] < 2**22
    tracemalloc.stop()


def test_memo_indices_cost_what_they_hold(save):
    program = b"\x80\x02" + b"Nr\xff\xff\xff\x7fr\xff\xff\xff\xff."
    tracemalloc.start()
    assert read_torch(save(program)).content is None
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


@pytest.mark.parametrize("nested", [b"]" * 5_000 + b"a" * 4_999, b"N" + b"\x85" * 5_000, b"N" + b"\x85q\x00" * 5_000])
def test_deep_nesting_is_read_and_freed(save, nested):
    """Reading and freeing do not recurse, so content that is nested 5,000 deep is no problem."""
    depth, inner = 0, read_torch(save(b"\x80\x02" + nested + b".")).content
    while inner:
        depth, inner = depth + 1, inner[0]
    assert depth == pytest.approx(5_000, abs=1)


def test_deep_keys_are_refused(save):
    """The hash of a deeply nested tuple would overflow the C stack."""
    with pytest.raises(UserError, match="dictionary key"):
        read_torch(save(b"\x80\x02}N" + b"\x85" * 5_000 + b"Ns."))


@pytest.mark.parametrize("key", [b"\x8a\x09" + b"\xff" * 8 + b"\x00", b"G" + b"\x7f\xf8" + b"\0" * 6, b"N\x85"])
def test_keys_that_could_be_made_to_collide_are_refused(save, key):
    with pytest.raises(UserError, match="dictionary key"):
        read_torch(save(b"\x80\x02}" + key + b"Ns."))


def test_a_list_that_holds_itself(save):
    found = read_torch(save(b"\x80\x02]q\x00h\x00a.")).content
    assert found[0] is found
