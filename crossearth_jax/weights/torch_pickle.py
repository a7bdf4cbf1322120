"""Interpreter of the pickle language that never imports, calls or creates anything a file names.

A pickle is a program for a stack machine. The standard one may call any function on the machine it runs on;
this one knows only the instructions that describe plain data. A global is a name, not an object, and "calling"
it means looking the name up in `_REDUCERS`. Work and memory are bounded by the length of the pickle: at most
`OPERATIONS` instructions, sizes are checked before anything is read, and copies are paid for.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from typing import Any

from crossearth_jax.weights.torch_objects import Ledger, call, fill, key, resolve
from crossearth_jax.weights.torch_types import FormatError, Placeholder, Storage

PICKLE_BYTES = 128 * 2**20  # a training log of 30,000 steps takes about 25 MB
OPERATIONS = 2_000_000  # a CrossEarth checkpoint with optimizer state takes about 100,000

LoadStorage = Callable[[Any], Storage]


class Interpreter:
    """Runs one pickle in `data` from `position` on, never past `end`."""

    def __init__(self, data: Any, position: int, end: int, load_storage: LoadStorage):
        self.data = data
        self.position = position
        self.end = min(end, position + PICKLE_BYTES)
        self.load_storage = load_storage
        self.ledger = Ledger(allowance=self.end - position)
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def run(self) -> Any:
        """The object that the pickle describes; `position` is then the first byte after it.

        Raises:
          FormatError: the pickle is broken, too large, or asks for anything but plain data.
        """
        for _ in range(OPERATIONS):
            code = self.take(1)
            if code == b".":
                return self.pop()
            action = _ACTIONS.get(code)
            if action is None:
                name = _REFUSED.get(code, f"0x{code.hex()}")
                raise FormatError(f"its object description uses the instruction {name}, which no weights need")
            action(self)
        raise FormatError(f"its object description takes more than {OPERATIONS:,} instructions")

    def take(self, count: int) -> bytes:
        """The next `count` bytes."""
        stop = self.position + count
        if stop > self.end:
            raise FormatError("its object description is cut off or too large")
        taken = self.data[self.position : stop]
        self.position = stop
        return taken

    def number(self, layout: str) -> int:
        """The next little-endian number of the given `struct` layout."""
        return struct.unpack("<" + layout, self.take(struct.calcsize(layout)))[0]

    def line(self) -> str:
        """The next line of text, as globals are written."""
        stop = self.data.find(b"\n", self.position, min(self.end, self.position + 256))
        if stop < 0:
            raise FormatError("its object description names a global without an end")
        return _text(self.take(stop + 1 - self.position)[:-1])

    def push(self, value: Any) -> None:
        """Puts `value` on the stack."""
        self.stack.append(value)

    def pop(self) -> Any:
        """Takes the top of the stack, which must lie above the last mark."""
        self._expect(1)
        return self.stack.pop()

    def top(self) -> Any:
        """The top of the stack."""
        self._expect(1)
        return self.stack[-1]

    def pop_group(self) -> list[Any]:
        """Takes everything above the last mark."""
        if not self.marks:
            raise FormatError("its object description ends a group that it never began")
        mark = self.marks.pop()
        items = self.stack[mark:]
        del self.stack[mark:]
        return items

    def _expect(self, count: int) -> None:
        if len(self.stack) - (self.marks[-1] if self.marks else 0) < count:
            raise FormatError("its object description takes more values than it gave")


def _text(raw: bytes) -> str:
    try:
        return raw.decode("utf-8", "surrogatepass")  # lone surrogates are legal in Python, and harmless here
    except UnicodeDecodeError:
        raise FormatError("its text is not UTF-8") from None


def _skip(machine: Interpreter, count: int) -> None:
    machine.take(count)


def _discard(machine: Interpreter) -> None:
    machine.pop()


def _discard_group(machine: Interpreter) -> None:
    machine.pop_group()


def _put(machine: Interpreter, index: int) -> None:
    machine.memo[index] = machine.top()


def _get(machine: Interpreter, index: int) -> None:
    if index not in machine.memo:
        raise FormatError("its object description recalls a value that it never stored")
    machine.push(machine.memo[index])


def _tuple(machine: Interpreter, count: int) -> None:
    machine.push(tuple(machine.pop() for _ in range(count))[::-1])


def _append(machine: Interpreter, items: list[Any]) -> None:
    target = machine.top()
    if isinstance(target, list):
        target.extend(items)
    elif not isinstance(target, Placeholder):
        raise FormatError("its object description appends to something that is no list")


def _add(machine: Interpreter, items: list[Any]) -> None:
    target = machine.top()
    if isinstance(target, set):
        target.update(map(key, items))
    elif not isinstance(target, Placeholder):
        raise FormatError("its object description adds to something that is no set")


def _set_items(machine: Interpreter, items: list[Any]) -> None:
    target = machine.top()
    if isinstance(target, dict):
        fill(target, items)
    elif not isinstance(target, Placeholder):
        raise FormatError("its object description sets items of something that is no dictionary")


def _pair(machine: Interpreter) -> list[Any]:
    value = machine.pop()
    return [machine.pop(), value]


def _long(machine: Interpreter) -> None:
    machine.push(int.from_bytes(machine.take(machine.number("B")), "little", signed=True))


def _global(machine: Interpreter) -> None:
    module = machine.line()
    machine.push(resolve(module, machine.line()))


def _stack_global(machine: Interpreter) -> None:
    module, name = _pair(machine)
    if not isinstance(module, str) or not isinstance(name, str):
        raise FormatError("its object description names a global with something that is no text")
    machine.push(resolve(module[:256], name[:256]))


def _persistent(machine: Interpreter) -> None:
    machine.push(machine.load_storage(machine.pop()))


def _build(machine: Interpreter) -> None:
    # State set on top of an object: `_metadata` of a state dict, the fields of a log object. None of it is kept.
    machine.pop()
    if not isinstance(machine.top(), dict | Placeholder):
        raise FormatError("its object description sets the state of something that has none")


def _reduce(machine: Interpreter) -> None:
    args = machine.pop()
    machine.push(call(machine.ledger, machine.pop(), args))


def _new(machine: Interpreter) -> None:
    machine.pop()  # the arguments
    if not isinstance(machine.top(), Placeholder):
        raise FormatError("it makes an object of something that is no class of a training log")
    machine.push(Placeholder(machine.pop().name))


def _new_with_keywords(machine: Interpreter) -> None:
    machine.pop()
    _new(machine)


# Protocols 2 to 5, without what only other programs need (see `_REFUSED`).
_ACTIONS: Mapping[bytes, Callable[[Interpreter], None]] = {
    b"\x80": lambda m: _skip(m, 1),  # protocol
    b"\x95": lambda m: _skip(m, 8),  # frame
    b"(": lambda m: m.marks.append(len(m.stack)),
    b"0": lambda m: _discard(m),
    b"1": lambda m: _discard_group(m),
    b"2": lambda m: m.push(m.top()),
    b"N": lambda m: m.push(None),
    b"\x88": lambda m: m.push(True),
    b"\x89": lambda m: m.push(False),
    b"J": lambda m: m.push(m.number("i")),
    b"K": lambda m: m.push(m.number("B")),
    b"M": lambda m: m.push(m.number("H")),
    b"\x8a": _long,
    b"G": lambda m: m.push(struct.unpack(">d", m.take(8))[0]),
    b"U": lambda m: m.push(m.take(m.number("B")).decode("latin1")),
    b"T": lambda m: m.push(m.take(m.number("I")).decode("latin1")),
    b"\x8c": lambda m: m.push(_text(m.take(m.number("B")))),
    b"X": lambda m: m.push(_text(m.take(m.number("I")))),
    b"\x8d": lambda m: m.push(_text(m.take(m.number("Q")))),
    b"C": lambda m: m.push(m.take(m.number("B"))),
    b"B": lambda m: m.push(m.take(m.number("I"))),
    b"\x8e": lambda m: m.push(m.take(m.number("Q"))),
    b"\x96": lambda m: m.push(m.take(m.number("Q"))),
    b")": lambda m: m.push(()),
    b"]": lambda m: m.push([]),
    b"}": lambda m: m.push({}),
    b"\x8f": lambda m: m.push(set()),
    b"\x85": lambda m: _tuple(m, 1),
    b"\x86": lambda m: _tuple(m, 2),
    b"\x87": lambda m: _tuple(m, 3),
    b"t": lambda m: m.push(tuple(m.pop_group())),
    b"l": lambda m: m.push(m.pop_group()),
    b"d": lambda m: m.push(fill({}, m.pop_group())),
    b"\x91": lambda m: m.push(frozenset(map(key, m.pop_group()))),
    b"a": lambda m: _append(m, [m.pop()]),
    b"e": lambda m: _append(m, m.pop_group()),
    b"s": lambda m: _set_items(m, _pair(m)),
    b"u": lambda m: _set_items(m, m.pop_group()),
    b"\x90": lambda m: _add(m, m.pop_group()),
    b"q": lambda m: _put(m, m.number("B")),
    b"r": lambda m: _put(m, m.number("I")),
    b"\x94": lambda m: _put(m, len(m.memo)),
    b"h": lambda m: _get(m, m.number("B")),
    b"j": lambda m: _get(m, m.number("I")),
    b"c": _global,
    b"\x93": _stack_global,
    b"R": _reduce,
    b"\x81": _new,
    b"\x92": _new_with_keywords,
    b"b": _build,
    b"Q": _persistent,
}

_REFUSED: Mapping[bytes, str] = {
    b"i": "INST",
    b"o": "OBJ",
    b"P": "PERSID",
    b"\x82": "EXT1",
    b"\x83": "EXT2",
    b"\x84": "EXT4",
    b"\x8b": "LONG4",
    b"\x97": "NEXT_BUFFER",
    b"\x98": "READONLY_BUFFER",
    b"I": "INT",
    b"L": "LONG",
    b"F": "FLOAT",
    b"S": "STRING",
    b"V": "UNICODE",
    b"p": "PUT",
    b"g": "GET",
}
