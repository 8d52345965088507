"""Errors that a user can mend: the command-line programs show their message as one line and exit
with 2."""

import difflib
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path

MAX_SHOWN = 100  # characters of a value in a message


class UserError(ValueError):
    """Input that cannot be used. The message says what is wrong, where, and what to do, in one
    line."""


class CheckpointError(UserError):
    """A checkpoint file that is missing, broken, or does not fit the model."""


class ConfigError(UserError):
    """A configuration that cannot be built: an unknown target, a wrong parameter name, a missing
    key."""


class NonFiniteError(UserError):
    """A loss or gradient in training is not finite."""


def did_you_mean(name: object, names: Iterable[str]) -> str:
    """The end of a message about a name that there is not: those of `names` that are like it, if
    any."""
    like = difflib.get_close_matches(str(name), list(dict.fromkeys(names)), n=3)
    return f"; did you mean {' or '.join(like)}?" if like else ""


def in_short(value: object, show: Callable[[object], str] = repr) -> str:
    """A value as a message shows it: the beginning of what `show` makes of it, in one line."""
    try:
        text = " ".join(show(value).split())
    except ValueError:  # a whole number of more digits than Python writes out
        text = f"a number of very many digits ({type(value).__name__})"
    return text if len(text) <= MAX_SHOWN else f"{text[: MAX_SHOWN - 4]} ..."


def in_one_line(error: Exception) -> str:
    """What an error says; of one that nobody has thought of, also its kind and where it was raised."""
    if isinstance(error, (UserError, OSError)):
        return str(error)
    place = traceback.extract_tb(error.__traceback__)[-1]
    text = " ".join(f"{type(error).__name__}: {error}".split()).rstrip(": ")
    return f"unforeseen {text} ({Path(place.filename).name}, line {place.lineno})"
