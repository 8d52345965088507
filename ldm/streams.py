"""What a program prints, where nobody can take it: a full disk, a closed pipe, an old terminal."""

import io
import os
import sys
from typing import Any, BinaryIO, TextIO


class Lasting:
    """A stream that is written to as long as it can be: a program does not stop half-way because
    its words go nowhere. error: why they do, if they do. BrokenPipeError is raised: who listened,
    `head` say, has heard enough. Characters that it has none for are written as their numbers."""

    def __init__(self, stream: TextIO):
        self._stream = stream
        self.error: OSError | None = None
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")

    def write(self, text: str) -> int:
        """As a text stream's."""
        try:
            return self._stream.write(text)
        except OSError as error:
            self.end(error)
            return len(text)

    def flush(self) -> None:
        """As a text stream's."""
        try:
            self._stream.flush()
        except OSError as error:
            self.end(error)

    @property
    def buffer(self) -> "LastingBytes":
        """What takes bytes, and lasts as long."""
        return LastingBytes(self, self._stream.buffer)

    def end(self, error: OSError) -> None:
        """From now on all goes nowhere."""
        to_nowhere(self._stream)
        self.error = error
        if isinstance(error, BrokenPipeError):
            raise error

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class LastingBytes:
    """The bytes of a `Lasting` stream."""

    def __init__(self, stream: Lasting, buffer: BinaryIO):
        self._stream, self._buffer = stream, buffer

    def write(self, content: bytes) -> int:
        """As a binary stream's."""
        try:
            return self._buffer.write(content)
        except OSError as error:
            self._stream.end(error)
            return len(content)

    def flush(self) -> None:
        """As a binary stream's."""
        try:
            self._buffer.flush()
        except OSError as error:
            self._stream.end(error)


def to_nowhere(stream: TextIO) -> None:
    """Whatever is and will be written there is dropped: Python would try again at its end."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def lasting_streams() -> tuple[Lasting | None, Lasting]:
    """(standard output, None where whoever started this has closed it; standard error)."""
    for number in range(3):  # else the next file that is opened takes its place, and what is printed there
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    error = sys.stderr if sys.stderr is not None else open(os.devnull, "w")
    return None if sys.stdout is None else Lasting(sys.stdout), Lasting(error)
