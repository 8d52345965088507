"""Reading pictures without the warnings that Pillow has for them, and its libtiff.

Not by `warnings.catch_warnings`, which changes the filters of all threads, and where two of them use
it at a time can leave its own behind for good: one filter stays, and matches nothing but what Pillow
says in a thread, or task, that reads a picture here at that moment.
"""

import ctypes
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import cache
from importlib import import_module

from PIL import Image

_reading: ContextVar[bool] = ContextVar("_reading", default=False)
# Of EXIF data and the like, naming no file: what cannot be read of them is not needed. And of
# decompression bombs: our own limit is lower.
_UNHEARD = (UserWarning, Image.DecompressionBombWarning)


class _AsReading(type):
    """The filter's category asks at every warning whether it is one of its own."""

    def __subclasscheck__(cls, category: type) -> bool:
        return _reading.get() and issubclass(category, _UNHEARD)


class _WhileReading(Warning, metaclass=_AsReading):
    pass


@contextmanager
def unwarned() -> Iterator[None]:
    """What Pillow warns of in the body is not heard."""
    if not any(known[2] is _WhileReading for known in tuple(warnings.filters)):
        warnings.filterwarnings("ignore", category=_WhileReading, module=r"(PIL|pillow_heif)\b")
    token = _reading.set(True)
    try:
        yield
    finally:
        _reading.reset(token)


@cache
def hush_libtiff() -> None:
    """Pillow's libtiff writes to standard error no more what it finds broken, which is raised
    anyway, and which names no file."""
    with suppress(OSError, AttributeError):  # where it is built in, nobody can tell it
        libtiff = ctypes.CDLL(import_module("PIL._imaging").__file__)
        libtiff.TIFFSetErrorHandler.argtypes = [ctypes.c_void_p]
        libtiff.TIFFSetErrorHandler.restype = ctypes.c_void_p
        libtiff.TIFFSetErrorHandler(None)
