"""One model on one device for all who come: one painting at a time, each told how far it is, each
to be stopped within a step."""

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from PIL import Image

if TYPE_CHECKING:
    from ldm.pipeline.pipeline import StyleTransferPipeline
    from ldm.pipeline.progress import Progress, Watcher

SECONDS_BETWEEN_UPDATES = 0.7  # a preview has to be decoded, sent and drawn
SECONDS_WITHOUT_A_LISTENER = 20  # then whoever asked has gone, and the device is for the next


class Stopped(Exception):
    """Whoever asked for the painting no longer wants it."""


@dataclass(frozen=True)
class Update:
    """How far a piece of work is. done: share of it, 0 to 1. seconds_left: None where it is not
    known yet. result: at the end, what the work returned."""

    words: str
    done: float = 0.0
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
    """The model, and whose turn it is."""

    def __init__(self, load: Callable[[], "StyleTransferPipeline"]):
        """load: reads the model, at once, in the background."""
        self._loader = ThreadPoolExecutor(1, "model")
        self._pipeline: Future[StyleTransferPipeline] = self._loader.submit(load)
        self._turn = threading.Lock()
        self._stops: dict[str, set[threading.Event]] = defaultdict(set)
        self._visitors = threading.Lock()

    @property
    def pipeline(self) -> "StyleTransferPipeline":
        """The model, waited for. Raises what reading it raised."""
        return self._pipeline.result()

    def paint(self, work: Work, visitor: str) -> Iterator[Update]:
        """Runs a piece of work in a thread of its own when the device is free; its updates, the last
        with its result. Closed before, or stopped by the visitor, the work ends within a step.

        Raises UserError, and Stopped for what was stopped.
        """
        mailbox = Mailbox()
        with self._stoppable(visitor) as stop:
            threading.Thread(
                target=self._run, args=(work, mailbox, stop), name="painting", daemon=True
            ).start()
            yield Update("Waiting for the model" if not self._pipeline.done() else "Beginning")
            update = None
            while update is None or not update.is_last:
                update = mailbox.take()
                yield update

    def paint_if_free(self, work: Work, visitor: str) -> Any:
        """The work's result if the device is free within a second; None if somebody else's painting
        is on it, or if the visitor stopped it."""
        if not self._pipeline.done() or not self._turn.acquire(timeout=1):
            return None
        try:
            with self._stoppable(visitor) as stop:
                return work(self.pipeline, Report(Mailbox(), stop))
        except Stopped:
            return None
        finally:
            self._turn.release()

    def stop(self, visitor: str) -> None:
        """Whatever is being painted for this visitor ends at its next step."""
        with self._visitors:
            for stop in self._stops.get(visitor, ()):
                stop.set()

    @contextmanager
    def _stoppable(self, visitor: str) -> Iterator[threading.Event]:
        stop = threading.Event()
        with self._visitors:
            self._stops[visitor].add(stop)
        try:
            yield stop
        finally:
            stop.set()
            with self._visitors:
                self._stops[visitor].discard(stop)
                if not self._stops[visitor]:
                    del self._stops[visitor]

    def _run(self, work: Work, mailbox: Mailbox, stop: threading.Event) -> None:
        try:
            pipeline = self.pipeline
            while not self._turn.acquire(timeout=0.2):
                Report(mailbox, stop).check()
            try:
                result = work(pipeline, Report(mailbox, stop))
            finally:
                self._turn.release()
            mailbox.put(Update("Done", 1.0, 0.0, is_last=True, result=result))
        except BaseException as error:  # for whoever waits
            mailbox.put(error)
