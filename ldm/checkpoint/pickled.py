"""The pickle in a `.ckpt` file, read by a machine that knows the few instructions which torch.save
writes.

A name in the file stands for what the table of `ldm.checkpoint.names` says:
nothing is imported or called because a file names it. torch's own reader, whose list of names is
wide, can be kept busy for hours or given any amount of memory to fill by a file of a kilobyte.
"""

import pickletools
from collections.abc import Callable
from mmap import mmap
from typing import Any

import torch
from torch import Tensor

from ldm.checkpoint.headers import Refused
from ldm.checkpoint.names import PARAMETER, Named, Storage, as_, checked_key, is_count, named, viewed
from ldm.text import human_size

MAX_STEPS = 3_000_000  # a training checkpoint of the published model takes 200,000, at most 100 bytes each
TENSOR_STEPS = 30  # what torch.save writes for one; a file that writes less pays as much
# Tensors may share numbers, as tied weights do, but not make much of few: so many times a file's
# size, or so many bytes.
MOST_SHARED, SMALL = 4, 64_000_000
MAX_DEPTH = 100  # containers within each other

Pickle = bytes | mmap


# Gives the storage of (dtype, key, how many numbers).
FindStorage = Callable[[torch.dtype, str, int], torch.UntypedStorage]


def unpickle(pickle: Pickle, find_storage: FindStorage, size: int) -> Any:
    """The content of a pickle up to its end, after which a file stays; size: of the file. Raises
    Refused."""
    content = _Machine(find_storage, max(MOST_SHARED * size, SMALL)).run(pickle)
    _check_nesting(content, {}, MAX_DEPTH)
    return content


def no_storage(dtype: torch.dtype, key: str, length: int) -> torch.UntypedStorage:
    """For a pickle of no tensors. Raises Refused."""
    raise Refused("a damaged file: tensors where there should be none")


def _check_nesting(value: Any, seen: dict[int, int], depth: int) -> int:
    """How many values a container has, those that stand in several places counted in each. Raises
    Refused for more than can be gone through, and for containers within themselves."""
    if not isinstance(value, dict | list | tuple | set):
        return 1
    if id(value) not in seen:
        if depth == 0:
            raise Refused(
                f"containers in its pickle stand within each other {MAX_DEPTH} times, which is no model's"
            )
        seen[id(value)] = MAX_STEPS  # until it is known: what holds itself has no end
        parts = [*value.keys(), *value.values()] if isinstance(value, dict) else value
        seen[id(value)] = 1 + sum(_check_nesting(part, seen, depth - 1) for part in parts)
    if seen[id(value)] >= MAX_STEPS:
        raise Refused("containers in its pickle hold each other over and over, which is no model's")
    return seen[id(value)]


class _Machine:
    """A stack, a memory, and what each instruction does with them."""

    def __init__(self, find_storage: FindStorage, room: int):
        """room: bytes that its tensors have at most."""
        self._find_storage, self._room = find_storage, room
        self._stack: list[Any] = []
        self._marked: list[list[Any]] = []
        self._memo: dict[int, Any] = {}
        self._steps = self._claimed = 0

    def run(self, pickle: Pickle) -> Any:
        for operation, argument, _ in pickletools.genops(pickle):  # type: ignore[arg-type]  # mmap reads as files do
            self._spend(1)
            name = operation.name
            if name in _CONSTANTS:
                self._stack.append(argument)
            elif name in _MAKERS:
                self._stack.append(_MAKERS[name]())
            elif name == "STOP":
                return self._stack.pop()
            elif name in _INSTRUCTIONS:
                _INSTRUCTIONS[name](self, argument)
            else:
                raise Refused(f"not a checkpoint: pickled with {name}, which torch.save does not write")
        raise Refused("a damaged file: its pickle has no end")  # pragma: no cover - genops says so itself

    def _spend(self, steps: int) -> None:
        self._steps += steps
        if self._steps > MAX_STEPS:
            raise Refused(
                f"more than {MAX_STEPS:,} steps to unpickle it, which is no model's; it is made to keep the reader busy"
            )

    def _claim(self, size: int) -> None:
        self._claimed += size
        if self._claimed > self._room:
            raise Refused(
                f"its tensors claim {human_size(self._claimed)} and more, which a file of this size does not hold; made so "
                "that reading it never ends"
            )

    def _marked_items(self) -> list[Any]:
        items, self._stack = self._stack, self._marked.pop()
        return items

    def _mark(self, _: Any) -> None:
        self._marked.append(self._stack)
        self._stack = []

    def _keep(self, number: int) -> None:
        self._memo[number] = self._stack[-1]

    def _recall(self, number: int) -> None:
        self._stack.append(self._memo[number])

    def _tuple(self, _: Any) -> None:
        items = self._marked_items()
        self._stack.append(tuple(items))

    def _tuple_of(self, length: int) -> None:
        self._stack[-length:] = [tuple(self._stack[-length:])]

    def _append(self, _: Any) -> None:
        item = self._stack.pop()
        as_(list, self._stack[-1]).append(item)

    def _extend(self, _: Any) -> None:
        items = self._marked_items()
        as_(list, self._stack[-1]).extend(items)

    def _set(self, _: Any) -> None:
        value, key = self._stack.pop(), self._stack.pop()
        as_(dict, self._stack[-1])[checked_key(key)] = value

    def _update(self, _: Any) -> None:
        items = self._marked_items()
        target = as_(dict, self._stack[-1])
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[checked_key(key)] = value

    def _name(self, argument: str) -> None:
        self._stack.append(named(*argument.split(" ", 1)))

    def _call(self, _: Any) -> None:
        arguments, function = as_(tuple, self._stack.pop()), as_(Named, self._stack.pop())
        result = function.call(*arguments)
        if isinstance(result, Tensor) and function is not PARAMETER:
            self._spend(TENSOR_STEPS)
            self._claim(result.numel() * result.element_size())
        elif isinstance(result, dict | set | tuple | bytes):  # copies of what the arguments hold
            self._spend(len(result))
        self._stack.append(result)

    def _build(self, _: Any) -> None:
        self._stack.pop()  # what the object, which is none, would hold

    def _storage(self, _: Any) -> None:
        kind, named, key, _, length, *view = as_(tuple, self._stack.pop())
        dtype = as_(Named, named).dtype
        if kind != "storage" or dtype is None or not isinstance(key, str) or not is_count(length):
            raise Refused("a damaged file: it names tensors' numbers in a way that torch does not")
        storage = Storage(self._find_storage(dtype, key, length), dtype)
        self._stack.append(viewed(storage, *view))


_MAKERS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_SET": frozenset,
}
_CONSTANTS = {"BININT", "BININT1", "BININT2", "BINFLOAT", "LONG1", "BINUNICODE", "SHORT_BINSTRING"}
_INSTRUCTIONS: dict[str, Callable[[_Machine, Any], None]] = {
    "PROTO": lambda machine, argument: None,
    "MARK": _Machine._mark,
    "BINPUT": _Machine._keep,
    "LONG_BINPUT": _Machine._keep,
    "BINGET": _Machine._recall,
    "LONG_BINGET": _Machine._recall,
    "TUPLE": _Machine._tuple,
    "TUPLE1": lambda machine, argument: machine._tuple_of(1),
    "TUPLE2": lambda machine, argument: machine._tuple_of(2),
    "TUPLE3": lambda machine, argument: machine._tuple_of(3),
    "APPEND": _Machine._append,
    "APPENDS": _Machine._extend,
    "SETITEM": _Machine._set,
    "SETITEMS": _Machine._update,
    "GLOBAL": _Machine._name,
    "REDUCE": _Machine._call,
    "NEWOBJ": _Machine._call,
    "BUILD": _Machine._build,
    "BINPERSID": _Machine._storage,
}
