"""Portions painted by workers of Ray Data: on this machine, or on all of a cluster.

Ray starts the workers, gives each a portion at a time, and does a portion again whose worker has
died; what was written by then is found to be there.
"""

import logging
import os
import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from ldm.errors import UserError
from ldm.pipeline.portions import AnyPortion, Done, Worker


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

    def __call__(self, portions: Sequence[AnyPortion], make: Callable[[], Worker]) -> Iterator[Done]:
        """What the workers tell, in the order in which they are done. make: can be pickled. Raises
        UserError where there is no such cluster, or nothing of it is left."""
        if not portions:
            return
        check_ray()
        # Nothing is told to anybody; and it would say so at every start.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        import ray

        try:
            dashboard = None if self.address else False
            ray.init(
                self.address, include_dashboard=dashboard, log_to_driver=False, logging_level=logging.ERROR
            )
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise UserError(f"--ray-address {self.address}: no cluster is reached there ({error})") from error
        try:
            yield from self._painted(portions, make)
        finally:
            ray.shutdown()

    def _painted(self, portions: Sequence[AnyPortion], make: Callable[[], Worker]) -> Iterator[Done]:
        import ray
        from ray.data import ActorPoolStrategy, DataContext

        logging.getLogger("ray.data").setLevel(logging.ERROR)
        DataContext.get_current().enable_progress_bars = False  # the run has one of its own
        workers, gpus = self.sizes(ray.cluster_resources())  # type: ignore[no-untyped-call]
        rows = [{"portion": pickle.dumps(portion)} for portion in portions]
        # A block for each portion: what comes of a block is told at its end, and lost with its worker.
        told = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
            _Actor,
            fn_constructor_args=(pickle.dumps(make),),
            batch_size=1,
            compute=ActorPoolStrategy(size=min(workers, len(rows))),
            num_cpus=1,
            num_gpus=gpus,
        )
        for row in told.iter_rows():
            done = pickle.loads(row["done"])
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


class _Actor:
    """A worker, as Ray Data keeps one in a process of its own."""

    def __init__(self, make: bytes):
        self.worker: Worker = pickle.loads(make)()

    def __call__(self, batch: Mapping[str, Sequence[Any]]) -> dict[str, list[bytes]]:
        return {"done": [pickle.dumps(self._done(pickle.loads(portion))) for portion in batch["portion"]]}

    def _done(self, portion: AnyPortion) -> Done | UserError:
        """An error is handed over: raised here, Ray would print pages about it."""
        try:
            return self.worker(portion)
        except UserError as error:  # no model, say, which is not the portion's fault
            return error
