"""What the names in a pickle of torch.save stand for: tensors over the numbers of the file, plain
containers, or nothing. No name has anything imported or called that is not written here."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ldm.checkpoint.headers import MAX_DIMENSIONS, Refused
from ldm.text import printable

MAX_KEY = 2**60  # above, whole numbers have the same hash as others
MAX_KEY_PARTS = 16


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


def as_(kind: type[Any], value: Any) -> Any:
    """The value, which has to be of this kind. Raises Refused."""
    if not isinstance(value, kind):
        raise Refused(
            f"a damaged file: a {type(value).__name__} in its pickle where a {kind.__name__} should be"
        )
    return value


def is_count(value: Any) -> bool:
    """Whether it can be a number of things."""
    return type(value) is int and value >= 0


def checked_key(value: Any) -> Any:
    """The value, if its hash is taken in no time. Raises Refused."""
    parts = value if isinstance(value, tuple) and len(value) <= MAX_KEY_PARTS else (value,)
    for part in parts:
        if isinstance(part, tuple) or (isinstance(part, int) and abs(part) >= MAX_KEY):
            raise Refused("a key in its pickle is a number or a nesting that is no model's")
        if part is not None and not isinstance(part, str | int | float | bytes | Named | torch.dtype):
            raise Refused(f"a key in its pickle is a {type(part).__name__}, which torch.save does not write")
    return value


def _nothing(*arguments: Any) -> Any:
    return _NOTHING


_NOTHING = Named(_nothing)  # takes anything, and is nothing itself


def _dict(content: Any = (), *rest: Any) -> dict[Any, Any]:
    pairs = content.items() if isinstance(content, dict) else content
    return {checked_key(key): value for key, value in pairs}


def _counter(content: Any = ()) -> Counter[Any]:
    return Counter(_dict(content))


def _set(content: Sequence[Any] = ()) -> set[Any]:
    return {checked_key(value) for value in content}


def _bytes(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise Refused(f"a damaged file: bytes written as {printable(encoding)}")
    return text.encode(encoding)


def _tensor(
    storage: Any, offset: Any, size: Any, stride: Any, requires_grad: Any = False, hooks: Any = None,
    metadata: Any = None,
) -> Tensor:  # fmt: skip
    return _viewing(as_(Storage, storage), offset, size, stride, metadata)


def _tensor_of_dtype(
    storage: Any, offset: Any, size: Any, stride: Any, requires_grad: Any, hooks: Any, dtype: Any,
    metadata: Any = None,
) -> Tensor:  # fmt: skip
    numbers = Storage(as_(Storage, storage).untyped, as_(torch.dtype, dtype))
    return _viewing(numbers, offset, size, stride, metadata)


def _viewing(storage: Storage, offset: Any, size: Any, stride: Any, metadata: Any) -> Tensor:
    """A tensor over a storage, all of whose numbers are there."""
    counts = (offset, *as_(tuple, size), *as_(tuple, stride))
    if metadata or not all(map(is_count, counts)) or len(size) != len(stride) or len(size) > MAX_DIMENSIONS:
        raise Refused("a damaged file: a tensor in it has a shape or marks that torch does not write")
    last = offset + sum((length - 1) * step for length, step in zip(size, stride))
    if 0 not in size and last >= storage.length:
        raise Refused("a damaged file: a tensor in it is larger than its numbers are many")
    return torch.empty(0, dtype=storage.dtype, device="cpu").set_(storage.untyped, offset, size, stride)


def viewed(storage: Storage, view: Any = None) -> Storage:
    """A storage, or, of torch before 0.4, the part of it that is (key, offset, how many numbers).
    Raises Refused."""
    if view is None:
        return storage
    _, offset, length = as_(tuple, view)
    if not (is_count(offset) and is_count(length) and offset + length <= storage.length):
        raise Refused("a damaged file: a tensor in it is larger than its numbers are many")
    start, end = (place * storage.dtype.itemsize for place in (offset, offset + length))
    return Storage(storage.untyped[start:end], storage.dtype)


def _parameter(data: Any, *rest: Any) -> Tensor:
    return as_(Tensor, data)  # type: ignore[no-any-return]


def _with_attributes(function: Any, kind: Any, arguments: Any, attributes: Any) -> Tensor:
    """A tensor to which attributes were given, without them."""
    if function not in (_TENSOR, _TENSOR_OF_DTYPE):
        raise Refused("a damaged file: a tensor in it is made of something else")
    return as_(Tensor, function.call(*as_(tuple, arguments)))  # type: ignore[no-any-return]


_TENSOR, _TENSOR_OF_DTYPE, PARAMETER = Named(_tensor), Named(_tensor_of_dtype), Named(_parameter)
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
    "torch._utils._rebuild_parameter": PARAMETER,
    "torch._utils._rebuild_parameter_with_state": PARAMETER,
    "torch._tensor._rebuild_from_type_v2": Named(_with_attributes),
    "torch.Size": Named(lambda sizes=(): tuple(as_(tuple, sizes))),
    "collections.OrderedDict": Named(_dict),
    "collections.Counter": Named(_counter),
    "collections.defaultdict": Named(lambda *arguments: {}),
    "pytorch_lightning.utilities.parsing.AttributeDict": Named(lambda *arguments: {}),
    "builtins.set": Named(_set),
    "_codecs.encode": Named(_bytes),
}


def named(module: str, name: str) -> Any:
    """What a name stands for. Raises Refused for any that is not in the table."""
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
