"""Loading state dicts strictly: every name and shape agrees, or nothing is touched."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ldm.checkpoint.reading import count_nonfinite
from ldm.errors import CheckpointError
from ldm.text import first_of

_FIT_ADVICE = (
    "use the config that belongs to the checkpoint, or name the prefixes to leave out in ignore_keys"
)

MOST_NAMES = 10  # of those that do not fit are told


def part_of(state_dict: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """What a whole model's checkpoint holds under `prefix`, which is cut off; one without such
    names as it is."""
    part = {name.removeprefix(prefix): value for name, value in state_dict.items() if name.startswith(prefix)}
    return part or dict(state_dict)


@dataclass(frozen=True)
class Mismatch:
    """Where a state dict and a module disagree; false if nowhere."""

    missing: list[str]  # names of the module that the state dict lacks
    unexpected: list[str]  # names of the state dict that the module lacks
    misshapen: list[str]  # "name: shape there, not the module's shape"
    mistyped: list[str] = field(default_factory=list)  # "name: its type there, not the module's type"

    def __bool__(self) -> bool:
        return any(vars(self).values())

    def __str__(self) -> str:
        """How many of each kind, and ten names of them all."""
        kinds = {kind: names for kind, names in vars(self).items() if names}
        shares = _shares([len(names) for names in kinds.values()], MOST_NAMES)
        return ", ".join(
            f"{len(names)} {kind} ({first_of(names, share)})"
            for (kind, names), share in zip(kinds.items(), shares)
        )


def _shares(counts: list[int], limit: int) -> list[int]:
    """How many of each are told, so that all are at most `limit`: the same number, or all there
    are."""
    level = max(
        (each for each in range(1, limit + 1) if sum(min(each, count) for count in counts) <= limit),
        default=1,
    )
    return [min(level, count) for count in counts]


def compare(module: nn.Module, state_dict: Mapping[str, Tensor], ignore_keys: Iterable[str] = ()) -> Mismatch:
    """How names and shapes of a state dict differ from a module's, leaving out names with the given
    prefixes."""
    prefixes = _prefixes(ignore_keys)
    expected = without(module.state_dict(), prefixes)
    given = without(state_dict, prefixes)
    return Mismatch(
        missing=[name for name in expected if name not in given],
        unexpected=[name for name in given if name not in expected],
        misshapen=[
            f"{name}: {tuple(given[name].shape)}, not {tuple(value.shape)}"
            for name, value in expected.items()
            if name in given and given[name].shape != value.shape
        ],
        mistyped=[
            f"{name}: {_type(given[name])}, not {_type(value)}"
            for name, value in expected.items()
            if name in given and _kind(given[name]) != _kind(value)
        ],
    )


def _kind(value: Tensor) -> tuple[bool, bool, bool]:
    """Weights of 16 and of 32 bits are of one kind; whole, complex and true-or-false ones of others,
    which torch would turn into weights."""
    return value.is_floating_point(), value.is_complex(), value.dtype is torch.bool


def _type(value: Tensor) -> str:
    return str(value.dtype).removeprefix("torch.")


def load_strict(
    module: nn.Module,
    state_dict: Mapping[str, Tensor],
    ignore_keys: Iterable[str] = (),
    where: str = "checkpoint",
    advice: str = _FIT_ADVICE,
) -> None:
    """Copy a state dict into a module, in the module's own dtypes, if every name and shape agrees.

    `ignore_keys` are prefixes of names that are neither loaded nor required; `where` names the
    source in errors, and `advice` says what to do. Raises CheckpointError, with the module
    untouched, if anything differs, a weight is NaN or infinite, or nothing is left to load.
    """
    prefixes = _prefixes(ignore_keys)
    given = without(state_dict, prefixes)
    mismatch = compare(module, given, prefixes)
    if mismatch:
        raise CheckpointError(f"{where} does not fit {type(module).__name__}; {advice}: {mismatch}")
    if not given:
        raise CheckpointError(
            f"{where}: nothing to load into {type(module).__name__}: all names are left out"
        )
    bad = [name for name, value in given.items() if count_nonfinite(value)]
    if bad:
        raise CheckpointError(
            f"{where}: NaN or infinite values in {first_of(bad)}: damaged, or of a training that diverged; take another file"
        )
    module.load_state_dict(given, strict=False)  # not strict, as what ignore_keys leave out is missing


def without(state_dict: Mapping[str, Tensor], prefixes: tuple[str, ...]) -> dict[str, Tensor]:
    """The tensors whose names do not begin with any of these."""
    return {name: value for name, value in state_dict.items() if not name.startswith(prefixes)}


def _prefixes(ignore_keys: Iterable[str]) -> tuple[str, ...]:
    if isinstance(ignore_keys, str):  # its single letters would be taken for prefixes
        raise CheckpointError(f"ignore_keys must be a list of prefixes, not the text {ignore_keys!r}")
    return tuple(ignore_keys)
