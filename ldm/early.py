"""Ctrl-C from a program's first moment on: what starts one calls `stop_at_once` before it imports
anything else, which takes its time."""

import os
import signal
from types import FrameType

STOPPED = 130  # exit code


def stop_at_once() -> None:
    """Until `as_usual`, Ctrl-C ends this process with one word; nothing has been begun by then."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not where it is to be ignored
        signal.signal(signal.SIGINT, _stop)


def as_usual() -> None:
    """From now on Ctrl-C is a KeyboardInterrupt again, if it was."""
    if signal.getsignal(signal.SIGINT) is _stop:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _stop(number: int, frame: FrameType | None) -> None:
    try:
        os.write(2, b"stopped\n")
    finally:
        os._exit(STOPPED)
