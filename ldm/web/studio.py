"""One model on one device for all who come: one painting at a time, each told how far it is, each
to be stopped within a step."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from PIL import Image

from ldm.errors import UserError

if TYPE_CHECKING:
    from ldm.pipeline.pipeline import StyleTransferPipeline
    from ldm.pipeline.progress import Progress, Watcher

SECONDS_BETWEEN_UPDATES = 0.7  # a preview has to be decoded, sent and drawn
MOST_WAITING = 40
SECONDS_WITHOUT_A_LISTENER = 20  # then whoever asked has gone, and the device is for the next


class Stopped(Exception):
    """Whoever asked for the painting no longer wants it."""


@dataclass(frozen=True)
class Update:
    """How far a piece of work is. done: share of it, 0 to 1; None for what is not at work.
    seconds_left: None where it is not known yet. result: at the end, what the work returned."""

    words: str
    done: float | None = 0.0
    seconds_left: float | None = None
    preview: Image.Image | None = None
    is_last: bool = False
    result: Any = None


class Report:
    """What a piece of work tells whoever waits for it. Every call raises Stopped once nobody does."""

    def __init__(self, mailbox: "Mailbox", stop: threading.Event):
        self._mailbox, self._stop = mailbox, stop
        self._begun = self._told = time.monotonic()

    def check(self) -> None:
        """Raises Stopped."""
        if self._stop.is_set() or self._mailbox.is_forsaken():
            raise Stopped

    def tell(self, words: str, done: float, preview: Callable[[], Image.Image] | None = None) -> None:
        """Pass on how far it is, not more often than somebody can look."""
        self.check()
        now = time.monotonic()
        if now - self._told < SECONDS_BETWEEN_UPDATES:
            return
        self._told = now
        left = (now - self._begun) * (1 - done) / done if done > 0.02 else None
        self._mailbox.put(Update(words, done, left, preview() if preview else None))

    def watcher(self, words: str = "Painting", start: float = 0.0, share: float = 1.0) -> "Watcher":
        """For the pipeline, whose work is this share of all, after what is done at the start."""

        def watch(progress: "Progress") -> None:
            self.tell(words, start + share * progress.done, lambda: progress.preview()[0])

        return watch


class Mailbox:
    """Holds the newest update only, for one thread to put and another to take."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._newest: Update | BaseException | None = None
        self._listened = time.monotonic()
        self._is_waited_for = False

    def put(self, update: Update | BaseException) -> None:
        """Takes the place of an update that nobody has taken."""
        with self._changed:
            self._newest = update
            self._changed.notify()

    def take(self) -> Update:
        """The next update, waited for. Raises what the work raised."""
        with self._changed:
            self._is_waited_for = True
            self._changed.wait_for(lambda: self._newest is not None)
            newest, self._newest = self._newest, None
            self._is_waited_for, self._listened = False, time.monotonic()
        if isinstance(newest, BaseException):
            raise newest
        assert newest is not None
        return newest

    def is_forsaken(self) -> bool:
        """Whether nobody has come for the updates for long: a browser that was closed says
        nothing."""
        with self._changed:
            return not self._is_waited_for and time.monotonic() - self._listened > SECONDS_WITHOUT_A_LISTENER


Work = Callable[["StyleTransferPipeline", Report], Any]


class Studio:
    """The model, and the line of those who wait for it, in the order in which they came."""

    def __init__(self, load: Callable[[], "StyleTransferPipeline"]):
        """load: reads the model, at once, in the background."""
        self._pipeline: Future[StyleTransferPipeline] = ThreadPoolExecutor(1, "model").submit(load)
        self._line: list[Ticket] = []  # the first is at work
        self._moved = threading.Condition()

    @property
    def pipeline(self) -> "StyleTransferPipeline":
        """The model, waited for. Raises what reading it raised."""
        return self._pipeline.result()

    def paint(self, work: Work, visitor: str) -> Iterator[Update]:
        """Runs a piece of work in a thread of its own, when those before it are done; its updates,
        the last with its result. Closed before, or stopped by the visitor, the work ends within a
        step.

        Raises UserError, also where too many wait, and Stopped for what was stopped.
        """
        mailbox = Mailbox()
        with self._in_line(visitor) as ticket:
            threading.Thread(
                target=self._run, args=(work, mailbox, ticket), name="painting", daemon=True
            ).start()
            yield Update("Beginning" if self._pipeline.done() else "Waiting for the model")
            update = None
            while update is None or not update.is_last:
                update = mailbox.take()
                yield update

    def paint_if_free(self, work: Work, visitor: str) -> Any:
        """The work's result if the device is free within a second; None if somebody else's painting
        is on it, or if the visitor stopped it."""
        with self._moved:
            if not self._pipeline.done() or not self._moved.wait_for(lambda: not self._line, timeout=1):
                return None
            ticket = Ticket(visitor, is_running=True)
            self._line.append(ticket)
        try:
            return work(self.pipeline, Report(Mailbox(), ticket.stop))
        except Stopped:
            return None
        finally:
            self._leave(ticket)

    def is_painting_for(self, visitor: str) -> bool:
        """Whether something of this visitor's is painted or waits."""
        with self._moved:
            return any(ticket.visitor == visitor for ticket in self._line)

    def stop(self, visitor: str) -> None:
        """Whatever this visitor has asked for ends at its next step, or is no longer waited for."""
        with self._moved:
            for ticket in self._line:
                if ticket.visitor == visitor:
                    ticket.stop.set()
            self._moved.notify_all()

    @contextmanager
    def _in_line(self, visitor: str) -> Iterator["Ticket"]:
        """At the end of the line until left; then, at the latest, the work has to end."""
        ticket = Ticket(visitor)
        with self._moved:
            if len(self._line) > MOST_WAITING:
                raise UserError(f"{MOST_WAITING} paintings wait already; come back in some minutes")
            self._line.append(ticket)
        try:
            yield ticket
        finally:
            with self._moved:
                ticket.stop.set()
                if not ticket.is_running:
                    self._leave(ticket)

    def _leave(self, ticket: "Ticket") -> None:
        with self._moved:
            if ticket in self._line:
                self._line.remove(ticket)
            self._moved.notify_all()

    def _run(self, work: Work, mailbox: Mailbox, ticket: "Ticket") -> None:
        try:
            pipeline = self.pipeline
            self._wait(mailbox, ticket)
            result = work(pipeline, Report(mailbox, ticket.stop))
            mailbox.put(Update("Done", 1.0, 0.0, is_last=True, result=result))
        except BaseException as error:  # for whoever waits
            mailbox.put(error)
        finally:
            self._leave(ticket)

    def _wait(self, mailbox: Mailbox, ticket: "Ticket") -> None:
        """Until the ticket is the first of the line. Raises Stopped."""
        report, told = Report(mailbox, ticket.stop), 0
        with self._moved:
            report.check()
            while before := self._line.index(ticket):
                if before != told:
                    mailbox.put(Update(f"Waiting: {before} before you", done=None))
                    told = before
                self._moved.wait(timeout=1)
                report.check()
            ticket.is_running = True


@dataclass(eq=False)
class Ticket:
    """A place in the line. is_running: its work is on the device, which is free when that has
    ended."""

    visitor: str
    stop: threading.Event = field(default_factory=threading.Event)
    is_running: bool = False
