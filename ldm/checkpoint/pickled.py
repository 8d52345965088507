"""The pickle in a `.ckpt` file, read by a machine that knows the few instructions which torch.save
writes.

A name in the file is looked up in a table of this module and stands for what is written there:
nothing is imported or called because a file names it. torch's own reader, whose list of names is
wide, can be kept busy for hours or given any amount of memory to fill by a file of a kilobyte.
"""

import pickletools
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from mmap import mmap
from typing import Any

import torch
from torch import Tensor

from ldm.checkpoint.headers import MAX_DIMENSIONS, Refused
from ldm.text import printable

MAX_STEPS = 3_000_000  # a training checkpoint of the published model takes 200,000, at most 100 bytes each
TENSOR_STEPS = 30  # what torch.save writes for one; a file that writes less pays as much
MAX_DEPTH = 100  # containers within each other
MAX_KEY = 2**60  # above, whole numbers have the same hash as others
MAX_KEY_PARTS = 16

Pickle = bytes | mmap


@dataclass(frozen=True, eq=False)
class Named:
    """What a name in a pickle stands for: called with what the file gives as arguments. dtype: of
    the numbers in a storage."""

    call: Callable[..., Any]
    dtype: torch.dtype | None = None


@dataclass(frozen=True)
class Storage:
    """Numbers in a file, of which tensors are made."""

    untyped: torch.UntypedStorage
    dtype: torch.dtype

    @property
    def length(self) -> int:
        """How many numbers there are."""
        return self.untyped.nbytes() // self.dtype.itemsize


# Gives the storage of (dtype, key, how many numbers).
FindStorage = Callable[[torch.dtype, str, int], torch.UntypedStorage]


def unpickle(pickle: Pickle, find_storage: FindStorage) -> Any:
    """The content of a pickle up to its end, after which a file stays. Raises Refused."""
    content = _Machine(find_storage).run(pickle)
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

    def __init__(self, find_storage: FindStorage):
        self._find_storage = find_storage
        self._stack: list[Any] = []
        self._marked: list[list[Any]] = []
        self._memo: dict[int, Any] = {}
        self._steps = 0

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
        _as(list, self._stack[-1]).append(item)

    def _extend(self, _: Any) -> None:
        items = self._marked_items()
        _as(list, self._stack[-1]).extend(items)

    def _set(self, _: Any) -> None:
        value, key = self._stack.pop(), self._stack.pop()
        _as(dict, self._stack[-1])[_key(key)] = value

    def _update(self, _: Any) -> None:
        items = self._marked_items()
        target = _as(dict, self._stack[-1])
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[_key(key)] = value

    def _name(self, argument: str) -> None:
        self._stack.append(_named(*argument.split(" ", 1)))

    def _call(self, _: Any) -> None:
        arguments, function = _as(tuple, self._stack.pop()), _as(Named, self._stack.pop())
        result = function.call(*arguments)
        if isinstance(result, Tensor):
            self._spend(TENSOR_STEPS)
        elif isinstance(result, dict | set | tuple | bytes):  # copies of what the arguments hold
            self._spend(len(result))
        self._stack.append(result)

    def _build(self, _: Any) -> None:
        self._stack.pop()  # what the object, which is none, would hold

    def _storage(self, _: Any) -> None:
        kind, named, key, _, length, *view = _as(tuple, self._stack.pop())
        dtype = _as(Named, named).dtype
        if kind != "storage" or dtype is None or not isinstance(key, str) or not _is_count(length):
            raise Refused("a damaged file: it names tensors' numbers in a way that torch does not")
        storage = Storage(self._find_storage(dtype, key, length), dtype)
        self._stack.append(_viewed(storage, *view))


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


def _as(kind: type[Any], value: Any) -> Any:
    if not isinstance(value, kind):
        raise Refused(
            f"a damaged file: a {type(value).__name__} in its pickle where a {kind.__name__} should be"
        )
    return value


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _key(value: Any) -> Any:
    """The value, if its hash is taken in no time. Raises Refused."""
    parts = value if isinstance(value, tuple) and len(value) <= MAX_KEY_PARTS else (value,)
    for part in parts:
        if isinstance(part, tuple) or (isinstance(part, int) and abs(part) >= MAX_KEY):
            raise Refused("a key in its pickle is a number or a nesting that is no model's")
        if part is not None and not isinstance(part, str | int | float | bytes | Named | torch.dtype):
            raise Refused(f"a key in its pickle is a {type(part).__name__}, which torch.save does not write")
    return value


# What names stand for


def _nothing(*arguments: Any) -> Any:
    return _NOTHING


_NOTHING = Named(_nothing)  # takes anything, and is nothing itself


def _dict(content: Any = (), *rest: Any) -> dict[Any, Any]:
    pairs = content.items() if isinstance(content, dict) else content
    return {_key(key): value for key, value in pairs}


def _counter(content: Any = ()) -> Counter[Any]:
    return Counter(_dict(content))


def _set(content: Sequence[Any] = ()) -> set[Any]:
    return {_key(value) for value in content}


def _bytes(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise Refused(f"a damaged file: bytes written as {printable(encoding)}")
    return text.encode(encoding)


def _tensor(
    storage: Any, offset: Any, size: Any, stride: Any, requires_grad: Any = False, hooks: Any = None,
    metadata: Any = None,
) -> Tensor:  # fmt: skip
    return _viewing(_as(Storage, storage), offset, size, stride, metadata)


def _tensor_of_dtype(
    storage: Any, offset: Any, size: Any, stride: Any, requires_grad: Any, hooks: Any, dtype: Any,
    metadata: Any = None,
) -> Tensor:  # fmt: skip
    numbers = Storage(_as(Storage, storage).untyped, _as(torch.dtype, dtype))
    return _viewing(numbers, offset, size, stride, metadata)


def _viewing(storage: Storage, offset: Any, size: Any, stride: Any, metadata: Any) -> Tensor:
    """A tensor over a storage, all of whose numbers are there."""
    counts = (offset, *_as(tuple, size), *_as(tuple, stride))
    if metadata or not all(map(_is_count, counts)) or len(size) != len(stride) or len(size) > MAX_DIMENSIONS:
        raise Refused("a damaged file: a tensor in it has a shape or marks that torch does not write")
    last = offset + sum((length - 1) * step for length, step in zip(size, stride))
    if 0 not in size and last >= storage.length:
        raise Refused("a damaged file: a tensor in it is larger than its numbers are many")
    return torch.empty(0, dtype=storage.dtype, device="cpu").set_(storage.untyped, offset, size, stride)


def _viewed(storage: Storage, view: Any = None) -> Storage:
    """Of torch before 0.4: a part of a storage, (key, offset, how many numbers)."""
    if view is None:
        return storage
    _, offset, length = _as(tuple, view)
    if not (_is_count(offset) and _is_count(length) and offset + length <= storage.length):
        raise Refused("a damaged file: a tensor in it is larger than its numbers are many")
    start, end = (place * storage.dtype.itemsize for place in (offset, offset + length))
    return Storage(storage.untyped[start:end], storage.dtype)


def _parameter(data: Any, *rest: Any) -> Tensor:
    return _as(Tensor, data)  # type: ignore[no-any-return]


def _with_attributes(function: Any, kind: Any, arguments: Any, attributes: Any) -> Tensor:
    """A tensor to which attributes were given, without them."""
    if function not in (_TENSOR, _TENSOR_OF_DTYPE):
        raise Refused("a damaged file: a tensor in it is made of something else")
    return _as(Tensor, function.call(*_as(tuple, arguments)))  # type: ignore[no-any-return]


_TENSOR, _TENSOR_OF_DTYPE = Named(_tensor), Named(_tensor_of_dtype)
_STORAGES = {
    "Float": torch.float32, "Double": torch.float64, "Half": torch.float16, "BFloat16": torch.bfloat16,
    "Byte": torch.uint8, "Char": torch.int8, "Short": torch.int16, "Int": torch.int32, "Long": torch.int64,
    "Bool": torch.bool, "ComplexFloat": torch.complex64, "ComplexDouble": torch.complex128,
}  # fmt: skip
# Tensors of these kinds are no model's here, and torch makes them of any size from no numbers at
# all.
_OTHER_TENSORS = {
    "_rebuild_qtensor": "quantised", "_rebuild_sparse_tensor": "sparse", "_rebuild_nested_tensor": "nested",
    "_rebuild_meta_tensor_no_storage": "meta", "_rebuild_wrapper_subclass": "wrapped",
    "_rebuild_device_tensor_from_numpy": "device's", "_rebuild_device_tensor_from_cpu_tensor": "device's",
}  # fmt: skip
# What stands beside the weights and is not read: an instance of each is nothing.
_INERT = (
    # Checkpoints of Lightning 1.x; before 1.5 the class of a callback is its key in `callbacks`.
    "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",
    "pytorch_lightning.callbacks.early_stopping.EarlyStopping",
    # Forms that `hyper_parameters` take, and the types that omegaconf's containers note.
    "argparse.Namespace",
    "omegaconf.base.ContainerMetadata",
    "omegaconf.base.Metadata",
    "omegaconf.dictconfig.DictConfig",
    "omegaconf.listconfig.ListConfig",
    "omegaconf.nodes.AnyNode",
    "typing.Any",
    *(f"builtins.{name}" for name in ("bool", "bytearray", "complex", "dict", "float", "int", "list", "str")),
    # Metrics and step counts as numpy values, by the names of numpy 1 and 2.
    "numpy.dtype",
    "numpy.ndarray",
    "numpy.core.multiarray._reconstruct",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray._reconstruct",
    "numpy._core.multiarray.scalar",
    "torch.device",
    "torch.serialization._get_layout",
    "torch.Tensor",
    "torch._tensor.Tensor",
    "torch.nn.parameter.Parameter",
)
_PYTHON_2 = {"long": "int", "unicode": "str", "xrange": "range"}
_NAMES: dict[str, Any] = {
    **{name: Named(_nothing) for name in _INERT},
    **{f"torch.{name}Storage": Named(_nothing, dtype) for name, dtype in _STORAGES.items()},
    **{str(value): value for value in vars(torch).values() if isinstance(value, torch.dtype)},
    "torch.storage.UntypedStorage": Named(_nothing, torch.uint8),
    "torch._utils._rebuild_tensor": _TENSOR,
    "torch._utils._rebuild_tensor_v2": _TENSOR,
    "torch._utils._rebuild_tensor_v3": _TENSOR_OF_DTYPE,
    "torch._utils._rebuild_parameter": Named(_parameter),
    "torch._utils._rebuild_parameter_with_state": Named(_parameter),
    "torch._tensor._rebuild_from_type_v2": Named(_with_attributes),
    "torch.Size": Named(lambda sizes=(): tuple(_as(tuple, sizes))),
    "collections.OrderedDict": Named(_dict),
    "collections.Counter": Named(_counter),
    "collections.defaultdict": Named(lambda *arguments: {}),
    "pytorch_lightning.utilities.parsing.AttributeDict": Named(lambda *arguments: {}),
    "builtins.set": Named(_set),
    "_codecs.encode": Named(_bytes),
}


def _named(module: str, name: str) -> Any:
    if module == "torch._utils" and name in _OTHER_TENSORS:
        raise Refused(f"a {_OTHER_TENSORS[name]} tensor in it; weights here are plain tensors")
    # torch.save writes names as Python 2 knew them
    module = "builtins" if module == "__builtin__" else module
    full = f"{module}.{_PYTHON_2.get(name, name) if module == 'builtins' else name}"
    if full not in _NAMES:
        raise Refused(
            f"refused, and nothing in it was run: it names the code `{printable(full)}`, which weights do not need; if "
            "you trust its source, save its state_dict alone as .safetensors on a machine that you can do without"
        )
    return _NAMES[full]
