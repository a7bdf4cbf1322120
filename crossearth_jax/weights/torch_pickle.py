"""An unpickler that never imports, calls or creates anything a file names.

A pickle is a program for a stack machine. This one is the standard library's, in its Python version
(`pickle._Unpickler`), because the compiled one cannot keep our promises: it hashes every key (nested tuples overflow
the C stack, chosen numbers take hours), lets a program set the attributes of finished objects, and allocates a memo
for the largest index that a file names. Here:

- only the instructions of `_INSTRUCTIONS` are known; those that merely push, copy or group values are the library's,
  those that touch an object are ours and check what it is;
- a global is a name, not an object, and "calling" it means looking the name up in `_REBUILD`;
- objects of a training log become placeholders that hold nothing; every other name is refused;
- work and memory are bounded by the file: at most `OPERATIONS` instructions, sizes are checked before anything is read,
  and copies are counted against the length of the pickle.
"""

from __future__ import annotations

import dataclasses
import pickle
import pickletools
import re
from collections.abc import Callable, Mapping
from typing import Any

from crossearth_jax.weights.torch_types import DTYPES, STORAGE_DTYPES, FormatError, Storage, Tensor, tensor

PICKLE_BYTES = 128 * 2**20  # a training log of 30,000 steps takes about 25 MB
OPERATIONS = 2_000_000  # a CrossEarth checkpoint with optimizer state takes about 100,000
NAME_LENGTH = 256  # of a module, and of a name in it


@dataclasses.dataclass(frozen=True, slots=True)
class Symbol:
    """A global whose meaning the reader knows; only its name is kept."""

    name: str


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Placeholder:
    """Stands for an object that is not rebuilt. It holds a name and does nothing."""

    name: str
    is_class: bool = False


class _Memo(dict[int, Any]):
    """Values to be recalled. A dictionary costs what it holds, whatever the indices are."""

    def __missing__(self, index: int) -> Any:
        raise FormatError("its object description recalls a value that it never stored")


class TensorUnpickler(pickle._Unpickler):
    """Reads the pickles in `data` one after another, from `position` on, never past `end`.

    `load_storage` gives the storage that a persistent identity means. After each `load`, `position` is the first byte
    behind the pickle, and `tensors` holds all tensors described so far, part of a result or not.
    """

    stack: list[Any]

    def __init__(self, data: Any, position: int, end: int, load_storage: Callable[[Any], Storage]):
        super().__init__(self, encoding="latin1")
        self.data = data
        self.position = position
        self.end = min(end, position + PICKLE_BYTES)
        self.load_storage = load_storage
        self.allowance = self.end - position  # elements that may be copied: honest files copy none twice
        self.tensors: list[Tensor] = []

    def load(self) -> Any:
        """Give the object that the next pickle describes.

        Raises:
          FormatError: the pickle is broken, too large, or asks for anything but plain data.
        """
        self.memo, self.stack, self.metastack = _Memo(), [], []
        self.append = self.stack.append
        try:
            for _ in range(OPERATIONS):
                code = self.read(1)
                if code == pickle.STOP:
                    return self.stack.pop()
                if code not in _INSTRUCTIONS:
                    named = (known.name for known in pickletools.opcodes if known.code == code.decode("latin1"))
                    name = next(named, f"0x{code.hex()}")
                    raise FormatError(f"its object description uses the instruction {name}, which no weights need")
                _INSTRUCTIONS[code](self)
        except IndexError:
            raise FormatError("its object description takes more values than it gave") from None
        except UnicodeDecodeError:
            raise FormatError("its text is not UTF-8") from None
        except pickle.UnpicklingError:  # a size above what the machine can address
            raise FormatError("its object description is cut off or too large") from None
        raise FormatError(f"its object description takes more than {OPERATIONS:,} instructions")

    def read(self, count: int) -> bytes:
        """Take exactly `count` bytes."""
        stop = self.position + count
        if stop > self.end:
            raise FormatError("its object description is cut off or too large")
        taken = self.data[self.position : stop]
        self.position = stop
        return taken

    def readline(self) -> bytes:
        """Take a line, which can only be part of a global's name."""
        stop = self.data.find(b"\n", self.position, min(self.end, self.position + NAME_LENGTH))
        if stop < 0:
            raise FormatError("its object description names a global without an end")
        return self.read(stop + 1 - self.position)

    def pop_mark(self) -> list[Any]:
        """Take everything above the last mark."""
        if not self.metastack:
            raise FormatError("its object description ends a group that it never began")
        return super().pop_mark()  # pyright: ignore[reportAttributeAccessIssue]: only the Python version has it

    def find_class(self, module: str, name: str) -> Symbol | Placeholder:
        """Give what the global `module.name` stands for; nothing is imported.

        Raises:
          FormatError: it is none of torch's tensors, a plain container or an object of a training log.
        """
        full = f"{_RENAMED.get(module, module)}.{name}"
        if full in _REBUILD or full in _NAMES:
            return Symbol(full)
        if _INERT.fullmatch(full):
            return Placeholder(full, is_class=True)
        raise FormatError(
            f"it refers to {f'{module}.{name}'!r}, which is neither a tensor nor a plain container; "
            "nothing was run; expected a file of weights"
        )

    def persistent_load(self, pid: Any) -> Storage:
        """Give the storage that `pid` means."""
        return self.load_storage(pid)

    def copying(self, count: int) -> None:
        """Count a copy of `count` elements; together they may not exceed the length of the pickle."""
        self.allowance -= count
        if self.allowance < 0:
            raise FormatError("its object description copies more than it holds")


# --- instructions that touch an object --------------------------------------------------------------------


def _key(value: Any) -> Any:
    """Give `value`, if it may be a key of a dictionary or an element of a set.

    Others are refused because looking them up can be made slow (large equal texts, numbers that collide) or
    overflow the C stack (nested tuples).
    """
    text = isinstance(value, str | bytes) and len(value) < 4096
    number = type(value) is int and abs(value) < 2**31
    if text or number or value is None or isinstance(value, bool | Symbol | Placeholder):
        return value
    raise FormatError("it has a dictionary key or set element that is neither short text nor a small number")


def _stack_global(machine: TensorUnpickler) -> None:
    name, module = machine.stack.pop(), machine.stack.pop()
    if not isinstance(module, str) or not isinstance(name, str):
        raise FormatError("its object description names a global with something that is no text")
    # Cut, because a long text that is stored once could otherwise be copied by every instruction.
    machine.append(machine.find_class(module[:NAME_LENGTH], name[:NAME_LENGTH]))


def _target[T: (list, set, dict)](machine: TensorUnpickler, kind: type[T], action: str) -> T:
    """Give the container on top of the stack; one to be thrown away where that is an object of a training log."""
    target = machine.stack[-1]
    if isinstance(target, kind):
        return target
    if not isinstance(target, Placeholder):
        raise FormatError(f"its object description {action}")
    return kind()


def _extend(machine: TensorUnpickler, items: list[Any]) -> None:
    _target(machine, list, "appends to something that is no list").extend(items)


def _add(machine: TensorUnpickler) -> None:
    items = map(_key, machine.pop_mark())
    _target(machine, set, "adds to something that is no set").update(items)


def _set_items(machine: TensorUnpickler, items: list[Any]) -> None:
    if len(items) % 2:
        raise FormatError("its object description has a dictionary key without a value")
    pairs = zip(map(_key, items[::2]), items[1::2], strict=True)
    _target(machine, dict, "sets items of something that is no dictionary").update(pairs)


def _dictionary(machine: TensorUnpickler) -> None:
    items = machine.pop_mark()
    machine.append({})
    _set_items(machine, items)


def _set_state(machine: TensorUnpickler) -> None:
    # State set on top of an object: `_metadata` of a state dict, the fields of a log object. None of it is kept.
    machine.stack.pop()
    _target(machine, dict, "sets the state of something that has none")


def _new(machine: TensorUnpickler, arguments: int) -> None:
    del machine.stack[-arguments:]
    if not isinstance(machine.stack[-1], Placeholder):
        raise FormatError("it makes an object of something that is no class of a training log")
    machine.stack[-1] = Placeholder(machine.stack[-1].name)


def _reduce(machine: TensorUnpickler) -> None:
    args, function = machine.stack.pop(), machine.stack.pop()
    machine.append(_call(machine, function, args))


# Protocols 2 to 5 without what only other programs need. Protocol numbers and frames mean nothing here.
_INSTRUCTIONS: Mapping[bytes, Callable[[Any], Any]] = {
    code: pickle._Unpickler.dispatch[code[0]]
    for code in (
        *(pickle.MARK, pickle.POP, pickle.POP_MARK, pickle.DUP, pickle.NONE, pickle.NEWTRUE, pickle.NEWFALSE),
        *(pickle.BININT, pickle.BININT1, pickle.BININT2, pickle.LONG1, pickle.BINFLOAT),
        *(pickle.SHORT_BINSTRING, pickle.BINSTRING, pickle.SHORT_BINUNICODE, pickle.BINUNICODE, pickle.BINUNICODE8),
        *(pickle.SHORT_BINBYTES, pickle.BINBYTES, pickle.BINBYTES8),
        *(pickle.EMPTY_TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3, pickle.TUPLE),
        *(pickle.EMPTY_LIST, pickle.LIST, pickle.EMPTY_DICT, pickle.EMPTY_SET),
        *(pickle.BINPUT, pickle.LONG_BINPUT, pickle.MEMOIZE, pickle.BINGET, pickle.LONG_BINGET),
        *(pickle.GLOBAL, pickle.BINPERSID),
    )
} | {
    pickle.PROTO: lambda machine: machine.read(1),
    pickle.FRAME: lambda machine: machine.read(8),
    pickle.BYTEARRAY8: pickle._Unpickler.dispatch[pickle.BINBYTES8[0]],  # the library allocates before it reads
    pickle.APPEND: lambda machine: _extend(machine, [machine.stack.pop()]),
    pickle.APPENDS: lambda machine: _extend(machine, machine.pop_mark()),
    pickle.ADDITEMS: _add,
    pickle.FROZENSET: lambda machine: machine.append(frozenset(map(_key, machine.pop_mark()))),
    pickle.SETITEM: lambda machine: _set_items(machine, [machine.stack.pop(), machine.stack.pop()][::-1]),
    pickle.SETITEMS: lambda machine: _set_items(machine, machine.pop_mark()),
    pickle.DICT: _dictionary,
    pickle.STACK_GLOBAL: _stack_global,
    pickle.REDUCE: _reduce,
    pickle.NEWOBJ: lambda machine: _new(machine, 1),
    pickle.NEWOBJ_EX: lambda machine: _new(machine, 2),
    pickle.BUILD: _set_state,
}


# --- what names stand for ---------------------------------------------------------------------------------


def _named(value: Any) -> str:
    return repr(value.name) if isinstance(value, Symbol | Placeholder) else f"a {type(value).__name__}"


def _call(machine: TensorUnpickler, function: Any, args: Any) -> Any:
    """Give what `function(*args)` stands for, where `function` is a name."""
    if not isinstance(args, tuple):
        raise FormatError("its object description calls something without a list of arguments")
    if isinstance(function, Placeholder):
        return Placeholder(function.name)
    rebuild = _REBUILD.get(function.name) if isinstance(function, Symbol) else None
    if rebuild is None:
        raise FormatError(f"it calls {_named(function)}; nothing was run; expected a file of weights")
    return rebuild(machine, args)


def _tensor(machine: TensorUnpickler, args: tuple[Any, ...]) -> Tensor:
    """`_rebuild_tensor` and `_v2`: storage, offset, shape, strides, and flags without a meaning here."""
    if not 4 <= len(args) <= 7:
        raise FormatError(f"it builds a tensor from {len(args)} arguments, expected 4 to 7")
    machine.tensors.append(tensor(*args[:4]))
    return machine.tensors[-1]


def _typed_tensor(machine: TensorUnpickler, args: tuple[Any, ...]) -> Tensor:
    """`_rebuild_tensor_v3`: an untyped storage and, as seventh argument, the element type."""
    dtype = DTYPES.get(getattr(args[6], "name", "")) if len(args) in (7, 8) else None
    if dtype is None or not isinstance(args[0], Storage):
        raise FormatError("it builds a tensor of an unknown element type")
    return _tensor(machine, (args[0].retyped(dtype), *args[1:4]))


def _parameter(machine: TensorUnpickler, args: tuple[Any, ...]) -> Tensor:
    if not args or not isinstance(args[0], Tensor):
        raise FormatError("it builds a parameter from something that is no tensor")
    return args[0]


def _subclassed(machine: TensorUnpickler, args: tuple[Any, ...]) -> Tensor:
    """`_rebuild_from_type_v2`: a rebuild function, a tensor class, the function's arguments, attributes."""
    function = args[0] if args else None
    if len(args) != 4 or not isinstance(function, Symbol) or not function.name.startswith("torch._utils."):
        raise FormatError(f"it builds a tensor by calling {_named(function)}")
    return _call(machine, function, args[2])


def _getattr(machine: TensorUnpickler, args: tuple[Any, ...]) -> Placeholder:
    """Logs hold `getattr(HistoryBuffer, "min")`: a name inside an inert class is an inert name."""
    target, name = args if len(args) == 2 else (None, None)
    if not isinstance(target, Placeholder) or not target.is_class or not isinstance(name, str):
        raise FormatError(f"it calls 'getattr' on {_named(target)}; nothing was run; expected a file of weights")
    return Placeholder(f"{target.name}.{name[:NAME_LENGTH]}")


def _encode(machine: TensorUnpickler, args: tuple[Any, ...]) -> bytes:
    """Bytes in protocol 2: text that is encoded back."""
    if len(args) != 2 or not isinstance(args[0], str) or args[1] not in ("latin1", "latin-1"):
        raise FormatError("it calls '_codecs.encode' on something that is no bytes")
    machine.copying(len(args[0]))
    try:
        return args[0].encode("latin1")
    except UnicodeEncodeError:
        raise FormatError("its bytes are not bytes") from None


def _items(machine: TensorUnpickler, args: tuple[Any, ...]) -> list[Any]:
    """The one list-like argument of a container's constructor, or nothing."""
    if not args:
        return []
    if not isinstance(args[0], list | tuple | set | frozenset):
        raise FormatError(f"it makes a container from {_named(args[0])}")
    machine.copying(len(args[0]))
    return list(args[0])


def _dict(machine: TensorUnpickler, args: tuple[Any, ...]) -> dict[Any, Any]:
    if args and isinstance(args[0], dict):
        machine.copying(len(args[0]))
        return dict(args[0])
    pairs = _items(machine, args)
    if not all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in pairs):
        raise FormatError("it makes a dictionary from something that is no list of pairs")
    return {_key(key): value for key, value in pairs}


_RENAMED = {"__builtin__": "builtins", "torch.cuda": "torch", "torch.storage": "torch"}

_REBUILD: Mapping[str, Callable[[TensorUnpickler, tuple[Any, ...]], Any]] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _typed_tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch._tensor._rebuild_from_type_v2": _subclassed,
    "torch.Size": lambda machine, args: tuple(_items(machine, args)),
    "torch.device": lambda machine, args: Placeholder("torch.device"),
    "collections.OrderedDict": _dict,
    "collections.Counter": _dict,
    "collections.defaultdict": lambda machine, args: {},  # its items follow; the factory is dropped
    "collections.deque": _items,
    "builtins.dict": _dict,
    "builtins.list": _items,
    "builtins.tuple": lambda machine, args: tuple(_items(machine, args)),
    "builtins.set": lambda machine, args: set(map(_key, _items(machine, args))),
    "builtins.frozenset": lambda machine, args: frozenset(map(_key, _items(machine, args))),
    "builtins.bytes": lambda machine, args: _encode(machine, args) if args else b"",
    "builtins.getattr": _getattr,
    "_codecs.encode": _encode,
}

# Names that may stand in a file but not be called.
_NAMES = {
    *(f"torch.{name}" for name in STORAGE_DTYPES),
    *DTYPES,
    *("torch.strided", "torch.Tensor", "torch.nn.parameter.Parameter"),
    *("builtins.int", "builtins.float", "builtins.bool", "builtins.str"),
}

# Objects of a training log. They are read over, never imported; weights cannot hide in them.
_INERT = re.compile(
    r"(mmengine|mmcv|mmseg|mmdet)(\.\w+)+"
    r"|numpy\.(dtype|ndarray|bool_?|(u?int|float|complex)\d+|str_|bytes_)"
    r"|numpy\.dtypes\.\w+DType"
    r"|numpy\._?core\.multiarray\.(_reconstruct|scalar)"
    r"|numpy\._?core\.numeric\._frombuffer"
)
