"""Ctrl-C, and SIGTERM, by which queues and clusters end a job, from a program's first moment on: what
starts one calls `stop_at_once` before it imports anything else, which takes its time."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

STOPPED = 130  # exit code of what Ctrl-C has ended
TERMINATED = 143  # of what SIGTERM has

_received: set[int] = set()


def stop_at_once() -> None:
    """Until `as_usual`, either ends this process with one word; nothing has been begun by then."""
    for number, usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGTERM, signal.SIG_DFL)):
        if signal.getsignal(number) is usual:  # not where it is to be ignored
            signal.signal(number, _stop)


def as_usual() -> None:
    """From now on Ctrl-C is a KeyboardInterrupt again, if it was, and so is SIGTERM."""
    for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGTERM, _interrupt)):
        if signal.getsignal(number) is _stop:
            signal.signal(number, handler)


def was_terminated() -> bool:
    """Whether it was SIGTERM that a KeyboardInterrupt came from."""
    return signal.SIGTERM in _received


@contextmanager
def handlers_kept(*numbers: int) -> Iterator[None]:
    """Puts back, at the end, the handlers of these signals, whatever has replaced them."""
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _interrupt(number: int, frame: FrameType | None) -> None:
    _received.add(number)
    raise KeyboardInterrupt


def _stop(number: int, frame: FrameType | None) -> None:
    try:
        os.write(2, b"stopped\n")
    finally:
        os._exit(128 + number)
