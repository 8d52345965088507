"""Portions painted by workers of Ray Data: on this machine, or on all of a cluster.

Ray starts the workers, gives each a portion at a time, and does a portion again whose worker has
died; what was written by then is found to be there.
"""

import io
import logging
import os
import pickle
import re
import signal
import socket
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any
from urllib.parse import urlsplit

from ldm.early import handlers_kept
from ldm.errors import UserError, in_one_line, in_short
from ldm.pipeline.portions import AnyPortion, Done, Run, Worker, lost

log = logging.getLogger(__name__)

NO_START = "Ray does not start on this machine"
NOT_TAKEN = "what answers there takes no job; a cluster that asks for a token wants RAY_AUTH_MODE=token"
PATIENCE = 5.0  # seconds in which a cluster answers
TRIES = 10  # of a portion whose workers die
LOST = "each of {} workers that had it died; too little memory, perhaps"
# Where nobody has said otherwise: nothing is told to anybody, and what Ray's own log files have is
# not also written to standard error, past Python.
WAYS = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_BACKEND_LOG_LEVEL": "fatal"}
# Behind its length: the head of the settings by which a server of HTTP/2 begins, and so of gRPC, which Ray speaks.
_GREETING = b"\x04\x00\x00\x00\x00\x00"
_COLOUR = re.compile(r"\x1b\[[\d;]*m")


def check_ray() -> None:
    """Raises UserError without the package."""
    if not find_spec("ray"):
        raise UserError("--engine ray needs the package ray; install it with: pip install -e '.[cluster]'")


@dataclass(frozen=True)
class RayEngine:
    """address: of a cluster, auto for the one that this machine belongs to; None starts one here,
    for as long as it takes. workers: None is as many as there are GPUs, or processors where there
    are none. gpus_per_worker: None is 1 where there are any."""

    address: str | None = None
    workers: int | None = None
    gpus_per_worker: float | None = None

    def __call__(self, portions: Sequence[AnyPortion], make: Callable[[], Worker]) -> Run:
        """What the workers tell, in the order in which they are done; meanwhile, what is printed goes
        into the log. make: can be pickled. Raises UserError where there is no such cluster, or
        nothing of it is left."""
        if not portions:
            return
        check_ray()
        for name, value in WAYS.items():
            os.environ.setdefault(name, value)
        import ray

        with redirect_stdout(_ToLog()):
            try:
                self._begin()
                yield from self._painted(portions, make)
            except ray.exceptions.RayError as error:
                last = str(error).strip().rpartition("\n")[2]  # of pages: what it comes from
                raise UserError(f"Ray cannot go on: {last}") from error
            finally:
                with redirect_stdout(io.StringIO()):  # Ray tells of every worker that it ends
                    ray.shutdown()

    def _begin(self) -> None:
        import ray

        if self.address is not None:
            check_answers(self.address)
        try:
            with handlers_kept(signal.SIGTERM), _without_words():
                ray.init(
                    self.address or "local",
                    include_dashboard=None if self.address else False,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                )
        except SystemExit:  # so Ray answers SIGTERM by then
            signal.raise_signal(signal.SIGTERM)
        except (OSError, RuntimeError, ValueError) as error:
            what = f"--ray-address {self.address}: {NOT_TAKEN}" if self.address else NO_START
            raise UserError(f"{what} ({error})") from error

    def _painted(self, portions: Sequence[AnyPortion], make: Callable[[], Worker]) -> Iterator[Done]:
        import ray
        from ray.data import ActorPoolStrategy, DataContext

        logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # errors are told, not logged
        DataContext.get_current().enable_progress_bars = False  # the run has one of its own
        workers, gpus = self.sizes(ray.cluster_resources())  # type: ignore[no-untyped-call]
        rows = [{"number": i, "portion": pickle.dumps(portion)} for i, portion in enumerate(portions)]
        tries = ray.remote(num_cpus=0)(_Tries).remote()
        # A block for each portion: what comes of a block is told at its end, and lost with its worker.
        told = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
            _Actor,
            fn_constructor_args=(pickle.dumps(make), os.getcwd(), tries, TRIES),
            batch_size=1,
            compute=ActorPoolStrategy(size=min(workers, len(rows))),
            num_cpus=1,
            num_gpus=gpus,
        )
        # One that is fetched ahead would be told when the next is done.
        for block in told.iter_batches(batch_size=None, prefetch_batches=0):
            for pickled in block["done"]:
                done = pickle.loads(pickled)
                if isinstance(done, UserError):
                    raise done
                assert isinstance(done, Done)
                yield done

    def sizes(self, resources: Mapping[str, float]) -> tuple[int, float]:
        """(workers, GPUs for each). Raises UserError where the cluster has not as many."""
        there = resources.get("GPU", 0.0)
        gpus = self.gpus_per_worker if self.gpus_per_worker is not None else min(there, 1.0)
        most = int(there / gpus) if gpus else int(resources.get("CPU", 1.0))
        workers = self.workers or most
        if not 0 < workers <= most:
            what = f"{there:g} GPUs, of which each would have {gpus:g}" if gpus else f"{most} processors"
            raise UserError(f"{workers or 'some'} workers do not fit into a cluster with {what}")
        return workers, gpus


def check_answers(address: str) -> None:
    """Raises UserError where no cluster answers soon: Ray would wait for minutes."""
    try:
        with socket.create_connection(_host_and_port(address), PATIENCE) as connection:
            is_hidden = os.environ.get("RAY_USE_TLS", "0") != "0"
            if not is_hidden and connection.recv(9)[3:] != _GREETING:
                raise ConnectionError("what answers is no cluster of Ray")
    except (OSError, ValueError) as error:
        raise UserError(f"--ray-address {address}: no cluster is reached there ({error})") from error


def _host_and_port(address: str) -> tuple[str, int]:
    """Where the cluster of an address is to answer. Raises ConnectionError or ValueError where there
    is none."""
    from ray._private.services import canonicalize_bootstrap_address

    if "://" in address:
        raise ValueError(
            "Ray Data takes no client's address; start this on a machine of the cluster, with auto"
        )
    found = canonicalize_bootstrap_address(address)  # what Ray makes of auto, too
    place = urlsplit(f"//{found}")
    if not place.hostname or not place.port:
        raise ValueError("expected auto or HOST:PORT")
    return place.hostname, place.port


class _ToLog(io.TextIOBase):
    """Takes what Ray prints, such as that a worker has died."""

    def write(self, text: str) -> int:
        for line in text.splitlines():
            if line.strip():
                log.info("%s", in_short(_COLOUR.sub("", line), str))
        return len(text)


@contextmanager
def _without_words() -> Iterator[None]:
    """Drops what is written to standard error past Python: by Ray, that its level has been set."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


class _Tries:
    """Counts, in a process of its own, how often each portion was begun: Ray gives a portion to a new
    worker as often as one dies of it."""

    def __init__(self) -> None:
        self.counts = Counter[int]()

    def begin(self, number: int) -> int:
        """How often it was, this time included."""
        self.counts[number] += 1
        return self.counts[number]


class _Actor:
    """A worker, as Ray Data keeps one in a process of its own. folder: where the command was started,
    which paths are relative to. tries: a _Tries, of which there are `most` for each portion."""

    def __init__(self, make: bytes, folder: str, tries: Any, most: int):
        self.tries, self.most = tries, most
        with suppress(OSError):  # other machines need not have it where no path is
            os.chdir(folder)
        self.worker: Worker = pickle.loads(make)()

    def __call__(self, batch: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
        rows = zip(batch["number"], batch["portion"], strict=True)
        return {
            "done": [pickle.dumps(self._done(int(number), pickle.loads(portion))) for number, portion in rows]
        }

    def _done(self, number: int, portion: AnyPortion) -> Done | UserError:
        """An error is handed over: raised here, Ray would print pages about it."""
        import ray

        try:
            if ray.get(self.tries.begin.remote(number)) > self.most:
                return Done(lost(portion, LOST.format(self.most)), 0)
            return self.worker(portion)
        except Exception as error:  # no model, say, which is not the portion's fault
            return UserError(in_one_line(error))
