"""Names that live in other modules, which are imported when one of them is asked for."""

import importlib
from collections.abc import Callable, Mapping
from typing import Any


def names_from(module: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """The `__getattr__` of a module that hands on names: homes[name] is the module that each lives
    in."""

    def get(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        return getattr(importlib.import_module(homes[name]), name)

    return get
