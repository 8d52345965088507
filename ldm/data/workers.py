"""Loader workers that end before their time."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from ldm.errors import UserError

_OF_WORKER = re.compile(
    r"DataLoader worker \(pid\(?s?\)? ?[\d, ]*\) (is killed by signal|exited unexpectedly)[^.]*"
)


@contextmanager
def worker_errors(advice: str) -> Iterator[None]:
    """Within it the end of a loader's worker is a UserError that says so, and `advice`."""
    try:
        yield
    except RuntimeError as error:
        told = of_worker(error)
        if told is None:
            raise
        raise UserError(
            f"a process that reads the data has ended before its time ({told}), most likely since memory ran out; {advice}"
        ) from error


def of_worker(error: BaseException | None) -> str | None:
    """What torch says of a loader's worker that ended, where that is the error or its reason. It
    can come up anywhere in the program."""
    while error is not None:
        if found := _OF_WORKER.search(str(error)):
            return found[0].strip()
        error = error.__cause__ or error.__context__
    return None
