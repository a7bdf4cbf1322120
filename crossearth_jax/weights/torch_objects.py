"""What the names in a torch file stand for, and what "calling" them means.

No name is ever imported. The few that describe tensors and plain containers are rebuilt by the functions of
`_REDUCERS`; objects of a training log become placeholders that hold nothing; every other name is refused.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

from crossearth_jax.weights.torch_types import (
    DTYPES,
    STORAGE_DTYPES,
    FormatError,
    Placeholder,
    Storage,
    Symbol,
    Tensor,
    tensor,
)

# Objects of a training log. They are read over, never imported; weights cannot hide in them.
_INERT = re.compile(
    r"(mmengine|mmcv|mmseg|mmdet)(\.\w+)+"
    r"|numpy\.(dtype|ndarray|bool_?|(u?int|float|complex)\d+|str_|bytes_)"
    r"|numpy\.dtypes\.\w+DType"
    r"|numpy\._?core\.multiarray\.(_reconstruct|scalar)"
    r"|numpy\._?core\.numeric\._frombuffer"
)


@dataclasses.dataclass
class Ledger:
    """What a pickle has described so far."""

    allowance: int  # elements that may be copied: honest files copy none twice
    tensors: list[Tensor] = dataclasses.field(default_factory=list)  # all of them, in the tree or not

    def pay(self, count: int) -> None:
        """Accounts for a copy of `count` elements."""
        self.allowance -= count
        if self.allowance < 0:
            raise FormatError("its object description copies more than it holds")


_RENAMED = {"__builtin__": "builtins", "torch.cuda": "torch", "torch.storage": "torch"}
_CONTAINERS = {
    f"builtins.{name}"
    for name in ("set", "frozenset", "list", "dict", "tuple", "bytes", "int", "float", "bool", "str", "getattr")
}
_CONTAINERS |= {f"collections.{name}" for name in ("OrderedDict", "defaultdict", "deque", "Counter")}
_REBUILDERS = {
    f"torch._utils.{name}"
    for name in (
        "_rebuild_tensor",
        "_rebuild_tensor_v2",
        "_rebuild_tensor_v3",
        "_rebuild_parameter",
        "_rebuild_parameter_with_state",
    )
}
_KNOWN = (
    _CONTAINERS
    | _REBUILDERS
    | {f"torch.{name}" for name in STORAGE_DTYPES}
    | set(DTYPES)
    | {"torch.Size", "torch.device", "torch.strided", "torch.Tensor", "torch.nn.parameter.Parameter"}
    | {"torch._tensor._rebuild_from_type_v2", "_codecs.encode"}
)


def resolve(module: str, name: str) -> Symbol | Placeholder:
    """What the global `module.name` stands for.

    Raises:
      FormatError: it is none of torch's tensors, a plain container or an object of a training log.
    """
    full = f"{_RENAMED.get(module, module)}.{name}"
    if full in _KNOWN:
        return Symbol(full)
    if _INERT.fullmatch(full):
        return Placeholder(full, is_class=True)
    raise FormatError(
        f"it refers to {f'{module}.{name}'!r}, which is neither a tensor nor a plain container; "
        "nothing was run; expected a file of weights"
    )


def _named(value: Any) -> str:
    return repr(value.name) if isinstance(value, Symbol | Placeholder) else f"a {type(value).__name__}"


def key(value: Any) -> Any:
    """`value`, if it may be a key of a dictionary or an element of a set.

    Others are refused because looking them up can be made slow (large equal texts, numbers that collide) or
    overflow the C stack (nested tuples).
    """
    text = isinstance(value, str | bytes) and len(value) < 4096
    number = type(value) is int and abs(value) < 2**31
    if text or number or value is None or isinstance(value, bool | Symbol | Placeholder):
        return value
    raise FormatError("it has a dictionary key or set element that is neither short text nor a small number")


def fill(target: dict[Any, Any], items: list[Any]) -> dict[Any, Any]:
    """`target` with `items`, which are keys and values in turn."""
    if len(items) % 2:
        raise FormatError("its object description has a dictionary key without a value")
    for name, value in zip(items[::2], items[1::2], strict=True):
        target[key(name)] = value
    return target


def call(ledger: Ledger, function: Any, args: Any) -> Any:
    """What `function(*args)` stands for, where `function` is a name.

    Raises:
      FormatError: the name is not one that may be called, or not with these arguments.
    """
    if not isinstance(args, tuple):
        raise FormatError("its object description calls something without a list of arguments")
    if isinstance(function, Placeholder):
        return Placeholder(function.name)
    reducer = _REDUCERS.get(function.name) if isinstance(function, Symbol) else None
    if reducer is None:
        raise FormatError(f"it calls {_named(function)}; nothing was run; expected a file of weights")
    return reducer(ledger, args)


def _tensor(ledger: Ledger, args: tuple[Any, ...]) -> Tensor:
    """`_rebuild_tensor` and `_v2`: storage, offset, shape, strides, and flags without a meaning here."""
    if not 4 <= len(args) <= 7:
        raise FormatError(f"it builds a tensor from {len(args)} arguments, expected 4 to 7")
    built = tensor(*args[:4])
    ledger.tensors.append(built)
    return built


def _typed_tensor(ledger: Ledger, args: tuple[Any, ...]) -> Tensor:
    """`_rebuild_tensor_v3`: an untyped storage and, as seventh argument, the element type."""
    dtype = DTYPES.get(getattr(args[6], "name", "")) if len(args) in (7, 8) else None
    if dtype is None or not isinstance(args[0], Storage):
        raise FormatError("it builds a tensor of an unknown element type")
    return _tensor(ledger, (args[0].retyped(dtype), *args[1:4]))


def _parameter(ledger: Ledger, args: tuple[Any, ...]) -> Tensor:
    if not args or not isinstance(args[0], Tensor):
        raise FormatError("it builds a parameter from something that is no tensor")
    return args[0]


def _subclassed(ledger: Ledger, args: tuple[Any, ...]) -> Tensor:
    """`_rebuild_from_type_v2`: a rebuild function, a tensor class, the function's arguments, attributes."""
    function = args[0] if args else None
    if len(args) != 4 or not isinstance(function, Symbol) or not function.name.startswith("torch._utils."):
        raise FormatError(f"it builds a tensor by calling {_named(function)}")
    return call(ledger, function, args[2])


def _getattr(ledger: Ledger, args: tuple[Any, ...]) -> Placeholder:
    """Logs hold `getattr(HistoryBuffer, "min")`: a name inside an inert class is an inert name."""
    target, name = args if len(args) == 2 else (None, None)
    if not isinstance(target, Placeholder) or not target.is_class or not isinstance(name, str):
        raise FormatError(f"it calls 'getattr' on {_named(target)}; nothing was run; expected a file of weights")
    return Placeholder(f"{target.name}.{name[:256]}")


def _encode(ledger: Ledger, args: tuple[Any, ...]) -> bytes:
    """Bytes in protocol 2: text that is encoded back."""
    if len(args) != 2 or not isinstance(args[0], str) or args[1] not in ("latin1", "latin-1"):
        raise FormatError("it calls '_codecs.encode' on something that is no bytes")
    ledger.pay(len(args[0]))
    try:
        return args[0].encode("latin1")
    except UnicodeEncodeError:
        raise FormatError("its bytes are not bytes") from None


def _items(ledger: Ledger, args: tuple[Any, ...]) -> list[Any]:
    """The one list-like argument of a container's constructor, or nothing."""
    if not args:
        return []
    if not isinstance(args[0], list | tuple | set | frozenset):
        raise FormatError(f"it makes a container from {_named(args[0])}")
    ledger.pay(len(args[0]))
    return list(args[0])


def _dict(ledger: Ledger, args: tuple[Any, ...]) -> dict[Any, Any]:
    if args and isinstance(args[0], dict):
        ledger.pay(len(args[0]))
        return dict(args[0])
    pairs = _items(ledger, args)
    if not all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in pairs):
        raise FormatError("it makes a dictionary from something that is no list of pairs")
    return fill({}, [item for pair in pairs for item in pair])


_REDUCERS: Mapping[str, Callable[[Ledger, tuple[Any, ...]], Any]] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _typed_tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch._tensor._rebuild_from_type_v2": _subclassed,
    "torch.Size": lambda ledger, args: tuple(_items(ledger, args)),
    "torch.device": lambda ledger, args: Placeholder("torch.device"),
    "collections.OrderedDict": _dict,
    "collections.Counter": _dict,
    "collections.defaultdict": lambda ledger, args: {},  # its items follow; the factory is dropped
    "collections.deque": _items,
    "builtins.dict": _dict,
    "builtins.list": _items,
    "builtins.tuple": lambda ledger, args: tuple(_items(ledger, args)),
    "builtins.set": lambda ledger, args: set(map(key, _items(ledger, args))),
    "builtins.frozenset": lambda ledger, args: frozenset(map(key, _items(ledger, args))),
    "builtins.bytes": lambda ledger, args: b"" if not args else _encode(ledger, args),
    "builtins.getattr": _getattr,
    "_codecs.encode": _encode,
}
