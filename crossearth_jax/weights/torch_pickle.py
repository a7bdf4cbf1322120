"""An unpickler that never imports, calls or creates anything that a file names.

A pickle is a program for a stack machine. The machine used here is the Python version of the standard library's
(`pickle._Unpickler`). The compiled version is not safe enough: it hashes every key (nested tuples overflow the C stack,
and chosen numbers take hours), lets a program set the attributes of finished objects, and allocates a memo for the
largest index in a file. Here:

- Only the instructions of `_INSTRUCTIONS` are allowed. Those that only push, copy or group values are the library's.
  Those that change an object are our own and check its type.
- A global is only a name. "Calling" it means looking up the name in `_REBUILD`.
- Objects of a training log become empty placeholders. Every other name is refused.
- Time and memory are limited: at most `OPERATIONS` instructions are run, sizes are checked before anything is read, and
  the number of copied elements is limited by the length of the pickle.
"""

from __future__ import annotations

import dataclasses
import pickle
import pickletools
import re
from collections.abc import Callable, Mapping
from typing import Any

from crossearth_jax.weights.torch_types import DTYPES, STORAGE_DTYPES, FormatError, Storage, Tensor, tensor

PICKLE_BYTES = 128 * 2**20  # limit of a pickle; a training log of 30,000 steps takes about 25 MB
OPERATIONS = 2_000_000  # limit of instructions; a CrossEarth checkpoint with optimizer state takes about 100,000
NAME_LENGTH = 256  # limit of the name of a module, and of a name in it


@dataclasses.dataclass(frozen=True, slots=True)
class Symbol:
    """The name of a global that may occur in a weights file."""

    name: str


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Placeholder:
    """Placeholder for an object that is not rebuilt; it holds only a name."""

    name: str
    is_class: bool = False


class _Memo(dict[int, Any]):
    """Stored values by index. A dictionary, so that its memory does not depend on the largest index."""

    def __missing__(self, index: int) -> Any:
        raise FormatError("its object description reads a value that it never stored")


class TensorUnpickler(pickle._Unpickler):
    """Reader of consecutive pickles in `data` from `position` to at most `end`.

    `load_storage` returns the storage for a persistent identity. After each `load`, `position` is the first byte after
    the pickle, and `tensors` contains all tensors described so far, whether they are part of a result or not.
    """

    stack: list[Any]

    def __init__(self, data: Any, position: int, end: int, load_storage: Callable[[Any], Storage]):
        super().__init__(self, encoding="latin1")
        self.data = data
        self.position = position
        self.end = min(end, position + PICKLE_BYTES)
        self.load_storage = load_storage
        self.allowance = self.end - position  # number of elements that may be copied; valid files copy none twice
        self.tensors: list[Tensor] = []

    def load(self) -> Any:
        """Return the object that the next pickle describes.

        Raises:
          FormatError: the pickle is damaged or too large, or contains anything other than tensors and plain data.
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
                    raise FormatError(f"its object description uses the instruction {name}, which weights do not need")
                _INSTRUCTIONS[code](self)
        except IndexError:
            raise FormatError("its object description uses more values than it holds") from None
        except UnicodeDecodeError:
            raise FormatError("its text is not UTF-8") from None
        except pickle.UnpicklingError:  # a size above the address space of this machine
            raise FormatError("its object description is truncated or too large") from None
        raise FormatError(f"its object description has more than {OPERATIONS:,} instructions")

    def read(self, count: int) -> bytes:
        """Read exactly `count` bytes."""
        stop = self.position + count
        if stop > self.end:
            raise FormatError("its object description is truncated or too large")
        taken = self.data[self.position : stop]
        self.position = stop
        return taken

    def readline(self) -> bytes:
        """Read a line, which can only be part of a global's name."""
        stop = self.data.find(b"\n", self.position, min(self.end, self.position + NAME_LENGTH))
        if stop < 0:
            raise FormatError("its object description names a global without an end")
        return self.read(stop + 1 - self.position)

    def pop_mark(self) -> list[Any]:
        """Remove all values above the last mark from the stack and return them."""
        if not self.metastack:
            raise FormatError("its object description ends a group that it never began")
        return super().pop_mark()  # pyright: ignore[reportAttributeAccessIssue]: only the Python version has it

    def find_class(self, module: str, name: str) -> Symbol | Placeholder:
        """Return what the global `module.name` stands for; nothing is imported.

        Raises:
          FormatError: it belongs neither to torch's tensors nor to plain containers nor to a training log.
        """
        full = f"{_RENAMED.get(module, module)}.{name}"
        if full in _REBUILD or full in _NAMES:
            return Symbol(full)
        if _INERT.fullmatch(full):
            return Placeholder(full, is_class=True)
        raise FormatError(
            f"it refers to {f'{module}.{name}'!r}, which is neither a tensor nor a plain container; "
            "nothing was run; expected a weights file"
        )

    def persistent_load(self, pid: Any) -> Storage:
        """Return the storage for the persistent identity `pid`."""
        return self.load_storage(pid)

    def copying(self, count: int) -> None:
        """Count a copy of `count` elements; all copies together may not exceed the length of the pickle."""
        self.allowance -= count
        if self.allowance < 0:
            raise FormatError("its object description copies more than it holds")


# --- instructions that change an object -------------------------------------------------------------------


def _key(value: Any) -> Any:
    """Return `value` if it may be a key of a dictionary or an element of a set.

    Other values are refused, because a malicious file can make their lookup slow (large equal texts, numbers with equal
    hashes) or overflow the C stack (nested tuples).
    """
    text = isinstance(value, str | bytes) and len(value) < 4096
    number = type(value) is int and abs(value) < 2**31
    if text or number or value is None or isinstance(value, bool | Symbol | Placeholder):
        return value
    raise FormatError("it has a dictionary key or set element that is neither short text nor a small number")


def _stack_global(machine: TensorUnpickler) -> None:
    name, module = machine.stack.pop(), machine.stack.pop()
    if not isinstance(module, str) or not isinstance(name, str):
        raise FormatError("its object description names a global with something that is not text")
    # Shortened, because otherwise every instruction could copy a long text that is stored only once.
    machine.append(machine.find_class(module[:NAME_LENGTH], name[:NAME_LENGTH]))


def _target[T: (list, set, dict)](machine: TensorUnpickler, kind: type[T], action: str) -> T:
    """Return the container on top of the stack, or a temporary one for a placeholder, so that its items are dropped."""
    target = machine.stack[-1]
    if isinstance(target, kind):
        return target
    if not isinstance(target, Placeholder):
        raise FormatError(f"its object description {action}")
    return kind()


def _extend(machine: TensorUnpickler, items: list[Any]) -> None:
    _target(machine, list, "appends to something that is not a list").extend(items)


def _add(machine: TensorUnpickler) -> None:
    items = map(_key, machine.pop_mark())
    _target(machine, set, "adds to something that is not a set").update(items)


def _set_items(machine: TensorUnpickler, items: list[Any]) -> None:
    if len(items) % 2:
        raise FormatError("its object description has a dictionary key without a value")
    pairs = zip(map(_key, items[::2]), items[1::2], strict=True)
    _target(machine, dict, "sets items of something that is not a dictionary").update(pairs)


def _dictionary(machine: TensorUnpickler) -> None:
    items = machine.pop_mark()
    machine.append({})
    _set_items(machine, items)


def _set_state(machine: TensorUnpickler) -> None:
    # The state of an object, such as `_metadata` of a state dict or the fields of a log object, is dropped.
    machine.stack.pop()
    _target(machine, dict, "sets the state of something that has no state")


def _new(machine: TensorUnpickler, arguments: int) -> None:
    del machine.stack[-arguments:]
    if not isinstance(machine.stack[-1], Placeholder):
        raise FormatError("it creates an object of something that is not a class of a training log")
    machine.stack[-1] = Placeholder(machine.stack[-1].name)


def _reduce(machine: TensorUnpickler) -> None:
    args, function = machine.stack.pop(), machine.stack.pop()
    machine.append(_call(machine, function, args))


# Instructions of protocols 2 to 5 that weights files use. Protocol numbers and frames are skipped.
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
    # Read as bytes: the library's own function allocates the array before the size is checked.
    pickle.BYTEARRAY8: pickle._Unpickler.dispatch[pickle.BINBYTES8[0]],
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


# --- meaning of names -------------------------------------------------------------------------------------


def _named(value: Any) -> str:
    return repr(value.name) if isinstance(value, Symbol | Placeholder) else f"a {type(value).__name__}"


def _call(machine: TensorUnpickler, function: Any, args: Any) -> Any:
    """Return what `function(*args)` stands for, where `function` is a name."""
    if not isinstance(args, tuple):
        raise FormatError("its object description calls something without a tuple of arguments")
    if isinstance(function, Placeholder):
        return Placeholder(function.name)
    rebuild = _REBUILD.get(function.name) if isinstance(function, Symbol) else None
    if rebuild is None:
        raise FormatError(f"it calls {_named(function)}; nothing was run; expected a weights file")
    return rebuild(machine, args)


def _tensor(machine: TensorUnpickler, args: tuple[Any, ...]) -> Tensor:
    """Handle `_rebuild_tensor` and `_rebuild_tensor_v2`: storage, offset, shape, strides, and ignored flags."""
    if not 4 <= len(args) <= 7:
        raise FormatError(f"it builds a tensor from {len(args)} arguments, expected 4 to 7")
    machine.tensors.append(tensor(*args[:4]))
    return machine.tensors[-1]


def _typed_tensor(machine: TensorUnpickler, args: tuple[Any, ...]) -> Tensor:
    """Handle `_rebuild_tensor_v3`: an untyped storage and, as seventh argument, the element type."""
    dtype = DTYPES.get(getattr(args[6], "name", "")) if len(args) in (7, 8) else None
    if dtype is None or not isinstance(args[0], Storage):
        raise FormatError("it builds a tensor of an unknown element type")
    return _tensor(machine, (args[0].retyped(dtype), *args[1:4]))


def _parameter(machine: TensorUnpickler, args: tuple[Any, ...]) -> Tensor:
    if not args or not isinstance(args[0], Tensor):
        raise FormatError("it builds a parameter from something that is not a tensor")
    return args[0]


def _subclassed(machine: TensorUnpickler, args: tuple[Any, ...]) -> Tensor:
    """Handle `_rebuild_from_type_v2`: a rebuild function, a tensor class, the function's arguments, attributes."""
    function = args[0] if args else None
    if len(args) != 4 or not isinstance(function, Symbol) or not function.name.startswith("torch._utils."):
        raise FormatError(f"it builds a tensor by calling {_named(function)}")
    return _call(machine, function, args[2])


def _getattr(machine: TensorUnpickler, args: tuple[Any, ...]) -> Placeholder:
    """Handle `getattr(HistoryBuffer, "min")`, which occurs in training logs: return a placeholder."""
    target, name = args if len(args) == 2 else (None, None)
    if not isinstance(target, Placeholder) or not target.is_class or not isinstance(name, str):
        raise FormatError(f"it calls 'getattr' on {_named(target)}; nothing was run; expected a weights file")
    return Placeholder(f"{target.name}.{name[:NAME_LENGTH]}")


def _encode(machine: TensorUnpickler, args: tuple[Any, ...]) -> bytes:
    """Handle bytes in protocol 2, which are stored as text and encoded to bytes."""
    if len(args) != 2 or not isinstance(args[0], str) or args[1] not in ("latin1", "latin-1"):
        raise FormatError("it calls '_codecs.encode' with something other than bytes stored as text")
    machine.copying(len(args[0]))
    try:
        return args[0].encode("latin1")
    except UnicodeEncodeError:
        raise FormatError("its bytes, stored as text, contain characters that are not bytes") from None


def _items(machine: TensorUnpickler, args: tuple[Any, ...]) -> list[Any]:
    """Return the items of the only argument of a container's constructor; [] without an argument."""
    if not args:
        return []
    if not isinstance(args[0], list | tuple | set | frozenset):
        raise FormatError(f"it creates a container from {_named(args[0])}")
    machine.copying(len(args[0]))
    return list(args[0])


def _dict(machine: TensorUnpickler, args: tuple[Any, ...]) -> dict[Any, Any]:
    if args and isinstance(args[0], dict):
        machine.copying(len(args[0]))
        return dict(args[0])
    pairs = _items(machine, args)
    if not all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in pairs):
        raise FormatError("it creates a dictionary from something that is not a list of pairs")
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
    "collections.defaultdict": lambda machine, args: {},  # later instructions set its items; the factory is dropped
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

# Names that may occur in a file but may not be called.
_NAMES = {
    *(f"torch.{name}" for name in STORAGE_DTYPES),
    *DTYPES,
    *("torch.strided", "torch.Tensor", "torch.nn.parameter.Parameter"),
    *("builtins.int", "builtins.float", "builtins.bool", "builtins.str"),
}

# Names of objects in training logs. They become placeholders and are never imported.
_INERT = re.compile(
    r"(mmengine|mmcv|mmseg|mmdet)(\.\w+)+"
    r"|numpy\.(dtype|ndarray|bool_?|(u?int|float|complex)\d+|str_|bytes_)"
    r"|numpy\.dtypes\.\w+DType"
    r"|numpy\._?core\.multiarray\.(_reconstruct|scalar)"
    r"|numpy\._?core\.numeric\._frombuffer"
)
