"""The order of training samples and their random choices, as functions of a seed, the epoch and the
position alone.

So a run that stopped goes on with the very samples it would have drawn, on any number of loader
workers.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler


class Draw(NamedTuple):
    """One sample to fetch: its index in the data set and the seed of its random choices."""

    index: int  # type: ignore[assignment]  # over tuple.index, which no draw needs
    seed: int


def mixed_seed(*parts: int) -> int:
    """A 64-bit seed from several whole numbers >= 0; close numbers give unrelated seeds."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0])


class EpochOrder(Sampler[Draw]):
    """The samples of one process (`rank` of `world`) in one epoch.

    Every process takes each world-th position, so a batch of all processes together holds the
    samples that one process would put into a batch of that size. `start` is the position to begin
    at, counted over all processes. With `shuffle` each epoch has an order and choices of its own,
    without it all epochs are equal.
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        seed: int,
        shuffle: bool,
        drop_last: bool,
        rank: int = 0,
        world: int = 1,
    ):
        whole = batch_size * world
        # All processes need equally many samples: what is left over is dropped, or filled up from
        # the beginning.
        self.total = length - length % whole if drop_last else -(-length // world) * world
        self.length, self.seed, self.shuffle, self.rank, self.world = length, seed, shuffle, rank, world
        self.epoch, self.start = 0, 0

    def begin_at(self, epoch: int, start: int) -> None:
        """Begin that epoch, which has this number, behind the first `start` samples of all
        processes together."""
        self.epoch, self.start = epoch, start

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning before every epoch."""
        if epoch != self.epoch:
            self.begin_at(epoch, 0)

    def __len__(self) -> int:
        """Samples of a whole epoch."""
        return self.total // self.world

    def __iter__(self) -> Iterator[Draw]:
        epoch = self.epoch if self.shuffle else 0
        order = (
            np.random.default_rng((self.seed, epoch)).permutation(self.length)
            if self.shuffle
            else np.arange(self.length)
        )
        for position in range(self.start + self.rank, self.total, self.world):
            yield Draw(int(order[position % self.length]), mixed_seed(self.seed, epoch, position))


class Indexed(Protocol):
    """A data set with a length, which torch's Dataset does not promise."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Any: ...


class SeededSamples(Dataset):
    """A data set asked by `Draw`: while it makes a sample, torch's CPU generator starts from the
    draw's seed."""

    def __init__(self, dataset: Indexed):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, draw: Draw) -> Any:
        # Without workers this runs in the training process, whose own random numbers must not
        # change.
        state = torch.get_rng_state()
        try:
            torch.default_generator.manual_seed(draw.seed)
            return self.dataset[draw.index]
        finally:
            torch.set_rng_state(state)

    def __getitems__(self, draws: Sequence[Draw]) -> list[Any]:
        """torch's loader's: the samples of a batch, of which the data set may make more
        `together`."""
        samples = [self[draw] for draw in draws]
        together = getattr(self.dataset, "together", None)
        return together(samples) if together else samples
