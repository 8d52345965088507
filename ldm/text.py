"""Texts that people read: tables, lists of names, sizes."""

import os
from collections.abc import Iterable, Sequence


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]], names: int = 1) -> str:
    """A Markdown table; its first `names` columns are text, the others numbers. Bars within cells
    are escaped."""
    rule = ["---"] * names + ["---:"] * (len(head) - names)
    lines = ([cell.replace("|", "\\|") for cell in cells] for cells in (head, rule, *rows))
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def first_of(names: list[str], limit: int = 5) -> str:
    """The first `limit` names and how many more there are: "a, b, and 7 more"; "none" without
    any."""
    more = f", and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more or "none"


def human_size(size: int) -> str:
    """A size in bytes, as downloads show it: "512 bytes", "1.2 MB", "3.1 GB"."""
    if size < 1000:
        return f"{size} bytes"
    exponent = 1 if size < 1e6 else 2 if size < 1e9 else 3
    return f"{size / 1000**exponent:.1f} {' kMG'[exponent]}B"


def as_typed(text: str) -> str:
    """A program's argument as the UTF-8 that was typed, whatever the locale; bytes that are none as
    their numbers."""
    return os.fsencode(text).decode("utf-8", "backslashreplace")


def one_line(error: Exception) -> str:
    """An error's class and text in at most 160 characters."""
    return printable(" ".join(f"{type(error).__name__}: {error}".split()), 160)


def printable(text: object, limit: int = 80) -> str:
    """A stranger's text as it can stand in a line: control characters as `?`, and no longer than
    that."""
    shown = "".join(each if each.isprintable() else "?" for each in str(text)[: limit + 1])
    return shown if len(shown) <= limit else shown[: limit - 3] + "..."
