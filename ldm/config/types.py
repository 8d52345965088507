"""Values of a config held against the types that a constructor says it takes: a class that does not
look at them fails much later, or does nothing."""

import inspect
import typing
from collections.abc import Callable, Iterable, Mapping
from types import NoneType, UnionType
from typing import Any, Literal, Union

from ldm.errors import ConfigError, in_short

_FUNCTIONS = (Callable, typing.Callable)
_SIMPLE = {
    NoneType: "null",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    dict: "names with values",
    list: "a list",
}


def check_types(target: Any, params: Mapping[str, Any], key: str) -> None:
    """Raises ConfigError, with where the values stand, for one of a type that the target's
    constructor does not take. Types that say nothing of a config's values, or that cannot be told,
    take all."""
    for name, value in params.items():
        parameter, hint = _declared(target, name)
        if hint is Any or parameter is None or value is parameter.default or _takes(hint, value):
            continue
        if _kind(hint) in _FUNCTIONS or all(
            _kind(each) in (*_FUNCTIONS, NoneType) for each in _options(hint)
        ):
            raise ConfigError(
                f"{key}.{name} must be a function, which a config cannot give; got {in_short(value)}"
            )
        raise ConfigError(f"{key}.{name} must be {_named(hint)}, got {in_short(value)}")


def _declared(target: Any, name: str) -> tuple[inspect.Parameter | None, Any]:
    """(the parameter of the first constructor that has it, its type)."""
    for cls in getattr(target, "__mro__", ()):
        constructor = vars(cls).get("__init__")
        try:
            parameter = inspect.signature(constructor).parameters.get(name) if constructor else None
            if parameter is not None:
                return parameter, typing.get_type_hints(constructor).get(name, Any)
        except (NameError, TypeError, ValueError):  # of a package that is not there; written in C
            return None, Any
    return None, Any


def _kind(hint: Any) -> Any:
    return typing.get_origin(hint) or hint


def _options(hint: Any) -> tuple[Any, ...]:
    return typing.get_args(hint) if _kind(hint) in (Union, UnionType) else (hint,)


def _takes(hint: Any, value: Any) -> bool:
    kind = _kind(hint)
    if kind in (Union, UnionType):
        return any(_takes(option, value) for option in typing.get_args(hint))
    if kind is Literal:
        return any(value == each and type(value) is type(each) for each in typing.get_args(hint))
    if kind in _FUNCTIONS:
        return callable(value)
    if kind is bool:
        return value in (True, False)
    if kind is int:  # YAML has 1e3 as a number with a point
        return isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    if kind is float:
        return isinstance(value, (int, float))
    if inspect.isclass(kind) and issubclass(kind, Iterable) and not issubclass(kind, (str, Mapping)):
        return isinstance(value, Iterable) and not isinstance(value, (str, Mapping))
    return not inspect.isclass(kind) or isinstance(value, kind)


def _named(hint: Any) -> str:
    """The types in words."""
    words = []
    for option in _options(hint):
        kind = _kind(option)
        if kind is Literal:
            words += [repr(each) for each in typing.get_args(option)]
        elif inspect.isclass(kind):
            words.append(_SIMPLE.get(kind) or f"of the kind {kind.__name__}")
    return " or ".join(dict.fromkeys(words))
