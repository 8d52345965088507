"""Batches of rows by columns, in the forms that engines and data frames have them."""

from collections.abc import Iterable, Mapping, Sized
from typing import Any

from ldm.errors import UserError, in_short

TAKEN = "a mapping such as a dict of lists or arrays, a pyarrow Table or RecordBatch, or a pandas DataFrame"


def columns_of(batch: Any) -> dict[str, list[Any]]:
    """The columns of a batch (see TAKEN) by their names, all of the same length. Raises
    UserError."""
    columns: dict[str, list[Any]] = {}
    for name, values in _columns(batch):
        if name in columns:
            raise UserError(f"a batch has two columns called {name!r}; rename one")
        columns[name] = _values(name, values)
    _check_lengths({name: len(values) for name, values in columns.items()})
    return columns


def _columns(batch: Any) -> Iterable[tuple[str, Any]]:
    module = type(batch).__module__.partition(".")[0]
    if isinstance(batch, Mapping):
        return batch.items()
    if module == "pandas" and batch.ndim == 2:
        return list(batch.items())
    if module == "pyarrow" and hasattr(batch, "schema"):
        return zip(batch.schema.names, batch.columns, strict=True)
    raise UserError(f"a batch is rows by columns: {TAKEN}; got {in_short(batch)}")


def _values(name: str, values: Any) -> list[Any]:
    if hasattr(values, "to_pylist"):  # pyarrow's values would be scalars of its own
        return list(values.to_pylist())
    is_one = isinstance(values, (str, bytes, bytearray, memoryview, Mapping)) or not isinstance(values, Sized)
    if is_one or getattr(values, "ndim", 1) == 0 or not isinstance(values, Iterable):
        raise UserError(
            f"the column {name!r} of a batch must be a list or an array with a value for each row, got {in_short(values)}"
        )
    return list(values)


def _check_lengths(lengths: Mapping[str, int]) -> None:
    if len(set(lengths.values())) > 1:
        told = ", ".join(f"{name!r} has {length}" for name, length in lengths.items())
        raise UserError(f"the columns of a batch must have as many rows as each other: {told}")
