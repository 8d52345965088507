"""Checks of values that come from configs and callers."""

import inspect
import math
from collections.abc import Callable
from functools import wraps
from importlib.util import find_spec
from numbers import Real
from typing import Any, ParamSpec, TypeVar

from ldm.errors import ConfigError, UserError

P = ParamSpec("P")
R = TypeVar("R")

# What callers may name; here, so that options are checked before torch is imported.
DEVICES = ("auto", "cpu", "cuda", "mps")
PRECISIONS = ("auto", "fp32", "bf16", "fp16")
FACES = "faces"  # in place of a mask: those of each picture, where they are found


def check_count(name: str, value: Any, least: int = 1) -> None:
    """Raises ConfigError unless the value is a whole number from `least` on."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ConfigError(f"{name} must be a whole number from {least} on, got {value!r}")


def check_number(name: str, value: Any, above: float = -math.inf, least: float = -math.inf) -> None:
    """Raises ConfigError unless the value is a finite number, above `above` and from `least` on."""
    if not _is_number(value) or not max(above, least) <= value < math.inf or value == above:
        limits = (
            f" above {above:g}" if above > -math.inf else f" from {least:g} on" if least > -math.inf else ""
        )
        raise ConfigError(f"{name} must be a number{limits}, got {value!r}")


def check_flags(**flags: Any) -> None:
    """Raises ConfigError, by its name, for a value that is neither true nor false."""
    for name, value in flags.items():
        if not isinstance(value, bool):
            raise ConfigError(f"{name} must be true or false, got {value!r}")


def check_choice(name: str, value: object, choices: tuple[str | None, ...]) -> None:
    """Raises ConfigError for a value that is none of the choices."""
    if value not in choices:
        raise ConfigError(f"{name} must be one of {', '.join(map(str, choices))}, got {value!r}")


def check_fractions(**fractions: float) -> None:
    """Raises ConfigError, by its name, for a number that is not from 0 to 1."""
    for name, value in fractions.items():
        if not (_is_number(value) and 0 <= value <= 1):
            raise ConfigError(f"{name} must be between 0 and 1, got {value}")


def rightly_called(function: Callable[P, R]) -> Callable[P, R]:
    """The function, with a UserError where it is called with arguments that it does not take, lacks
    some, or is given one twice."""
    signature = inspect.signature(function)

    @wraps(function)
    def called(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            signature.bind(*args, **kwargs)
        except TypeError as error:
            raise UserError(f"{error} ({', '.join(list(signature.parameters)[1:])})") from error
        return function(*args, **kwargs)

    return called


def check_face_detector() -> None:
    """Raises UserError without the packages of the extra for faces. Imports none of them."""
    if not all(map(find_spec, ("mtcnn", "joblib", "lz4"))):
        raise UserError("finding faces needs the package mtcnn; install it with: pip install -e '.[faces]'")


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)
