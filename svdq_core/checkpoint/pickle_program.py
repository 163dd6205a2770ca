"""The pickle inside a file of torch.save, followed without running anything it names.

A pickle is a program for a machine with a stack. Only the instructions that plain values, dictionaries, lists and
tensors need are known here; a call is noted, and carried out only for the handful of names below, none of which runs
code of the file. Tensors come out as where their values lie.
"""

import pickletools
from collections.abc import Callable
from dataclasses import dataclass

import torch

from ..errors import CheckpointError

MOST_BYTES = 8 << 20  # of the program; that of a model of 10 000 tensors has 3 MB
LARGEST_NUMBER = 1 << 62
MOST_DIMS = 64

_STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
_DTYPES = ("float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2", "int64", "int32", "int16")
_DTYPES += ("int8", "uint8", "bool", "uint16", "uint32", "uint64")


@dataclass(frozen=True)
class Named:
    """Something that the program names, or calls, and that is not looked up."""

    module: str
    name: str


@dataclass(frozen=True)
class Storage:
    """Values of one tensor or several: the record `key` of the file; dtype None where each tensor has its own."""

    key: str
    dtype: torch.dtype | None
    count: int


@dataclass(frozen=True)
class StoredTensor:
    """A tensor as the program describes it, in values of its dtype.

    Args:
        storage: where its values lie; offset: the first of them.
    """

    storage: Storage
    dtype: torch.dtype
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class _Mark:
    pass


def follow(program: bytes) -> object:
    """What the program makes: dictionaries, lists, tuples, texts, numbers, StoredTensor, and Named for all else.

    Raises:
        CheckpointError: it names something outside torch, or is no such program; without the file's name.
    """
    if len(program) > MOST_BYTES:
        raise CheckpointError(f"its table of tensors has {len(program)} bytes, more than any model's")
    stack: list = []
    memo: dict[int, object] = {}
    for opcode, argument, _ in pickletools.genops(program):
        name = opcode.name
        if name in _CONSTANTS:
            stack.append(_CONSTANTS[name]())
        elif name in _LITERALS:
            if isinstance(argument, int) and abs(argument) > LARGEST_NUMBER:
                raise CheckpointError("it holds a number that no file needs")
            stack.append(argument)
        elif name in ("BINPUT", "LONG_BINPUT", "MEMOIZE"):
            memo[len(memo) if argument is None else int(argument)] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[int(argument or 0)])
        elif name == "GLOBAL":
            stack.append(_named(*str(argument).split(" ", 1)))
        elif name == "STOP":
            return stack.pop()
        elif name not in ("PROTO", "FRAME"):
            if name not in _STEPS:
                raise CheckpointError(f"its program has the instruction {name}, which torch.save never writes")
            _STEPS[name](stack)
    raise CheckpointError("its program has no end")


def _named(module: str, name: str) -> Named:
    inside = module == "torch" or module.startswith("torch.") or (module, name) == ("collections", "OrderedDict")
    if not inside:
        raise CheckpointError(f"it names {f'{module}.{name}'[:100]!a}, which is no tensor")
    return Named(module, name)


def _above_mark(stack: list) -> list:
    at = next((i for i in range(len(stack) - 1, -1, -1) if isinstance(stack[i], _Mark)), None)
    if at is None:
        raise CheckpointError("its instructions do not fit each other")
    items = stack[at + 1 :]
    del stack[at:]
    return items


def _set_items(stack: list, items: list) -> None:
    for key, value in zip(items[::2], items[1::2], strict=True):
        if not isinstance(key, (str, int)):  # a tuple of tuples of tuples would take for ever to look up
            raise CheckpointError(f"a key of its table is a {type(key).__name__}, expected a text")
        stack[-1][key] = value


def _set_item(stack: list) -> None:
    value, key = stack.pop(), stack.pop()
    _set_items(stack, [key, value])


def _append(stack: list) -> None:
    value = stack.pop()
    _list(stack[-1]).append(value)


def _appends(stack: list) -> None:
    items = _above_mark(stack)
    _list(stack[-1]).extend(items)


def _list(value: object) -> list:
    if not isinstance(value, list):
        raise CheckpointError(f"it appends to a {type(value).__name__}")
    return value


def _tuple(count: int) -> Callable[[list], None]:
    def step(stack: list) -> None:
        items = tuple(stack[len(stack) - count :])
        del stack[len(stack) - count :]
        stack.append(items)

    return step


def _build(stack: list) -> None:
    """Attributes of a dictionary, as of a module's state; they say nothing about its tensors."""
    stack.pop()
    if not isinstance(stack[-1], (dict, Named)):
        raise CheckpointError(f"it changes a {type(stack[-1]).__name__}")


def _stack_global(stack: list) -> None:
    name, module = stack.pop(), stack.pop()
    if not isinstance(name, str) or not isinstance(module, str):
        raise CheckpointError("it names something without a text")
    stack.append(_named(module, name))


def _storage(stack: list) -> None:
    kind, storage, key, _, count = stack.pop()
    if kind != "storage" or not isinstance(storage, Named) or not isinstance(key, str) or not _is_size(count):
        raise CheckpointError("it refers to something that is no storage")
    if storage.name != "UntypedStorage" and storage.name not in _STORAGES:
        raise CheckpointError(f"it holds values of the kind {storage.name[:60]!a}")
    stack.append(Storage(key, _STORAGES.get(storage.name), count))


def _call(stack: list) -> None:
    arguments, called = stack.pop(), stack.pop()
    if not isinstance(called, Named) or not isinstance(arguments, tuple):
        raise CheckpointError("it calls something without a name")
    stack.append(_CALLS.get((called.module, called.name), lambda *_: called)(*arguments))


def _new_dict(*pairs) -> dict:
    if pairs:
        raise CheckpointError("it fills a dictionary in a way that torch.save never does")
    return {}


def _tensor(storage, offset, shape, stride, *_) -> StoredTensor:
    return _described(storage, storage.dtype, offset, shape, stride)


def _tensor_of_dtype(storage, offset, shape, stride, _grad, _hooks, dtype, *_) -> StoredTensor:
    if not isinstance(dtype, Named) or dtype.module != "torch" or dtype.name not in _DTYPES:
        raise CheckpointError("it holds a tensor of an unknown dtype")
    return _described(storage, getattr(torch, dtype.name), offset, shape, stride)


def _described(storage, dtype, offset, shape, stride) -> StoredTensor:
    sound = isinstance(storage, Storage) and _is_size(offset) and len(shape) == len(stride) <= MOST_DIMS
    if not sound or dtype is None or not all(_is_size(n) for n in (*shape, *stride)):
        raise CheckpointError("it describes a tensor that cannot be")
    return StoredTensor(storage, dtype, offset, tuple(shape), tuple(stride))


def _is_size(value: object) -> bool:
    return type(value) is int and value >= 0


_CONSTANTS: dict[str, Callable[[], object]] = {
    "MARK": _Mark,
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
}
_LITERALS = ("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE")
_STEPS: dict[str, Callable[[list], None]] = {
    "TUPLE": lambda stack: stack.append(tuple(_above_mark(stack))),
    "TUPLE1": _tuple(1),
    "TUPLE2": _tuple(2),
    "TUPLE3": _tuple(3),
    "APPEND": _append,
    "APPENDS": _appends,
    "SETITEM": _set_item,
    "SETITEMS": lambda stack: _set_items(stack, _above_mark(stack)),
    "BUILD": _build,
    "STACK_GLOBAL": _stack_global,
    "BINPERSID": _storage,
    "REDUCE": _call,
}
_CALLS: dict[tuple[str, str], Callable] = {
    ("collections", "OrderedDict"): _new_dict,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_tensor_v3"): _tensor_of_dtype,
    ("torch._utils", "_rebuild_parameter"): lambda tensor, *_: tensor,
}
