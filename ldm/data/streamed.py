"""Training pictures from tar shards in WebDataset's format, for data that is too large for one
disk.

A shard is a tar file with pictures in it, under any names; files that are none are passed over.
Shards are read from beginning to end, from a disk or while they come over the network (by fsspec),
so nothing is unpacked or kept, and no program is run. Nothing is opened before the first sample is
asked for.
"""

import io
import itertools
import random
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from ldm.checks import check_count, check_fractions
from ldm.data.order import Draw, SeededSamples, mixed_seed
from ldm.data.pictures import Crops
from ldm.data.wikiart import HybridDraws
from ldm.errors import UserError
from ldm.media.images import EXTENSIONS
from ldm.media.shards import pictures_in, shard_names

# Of a shuffle buffer, how many pictures are there before the first is picked: a run shall not wait
# for all.
FIRST_PICKED_FROM = 100


class StreamedHybridTrain(IterableDataset):
    """What HybridTrain draws, from shards, with the same options; `style_shards` and
    `content_shards` name the tar files.

    Names are paths or urls that fsspec knows, one pattern such as "paintings-{000..099}.tar" or a
    list. An epoch is `epoch_samples` samples of all processes together, since nobody has counted
    the pictures; it may be shorter or longer than a pass over them. Every process and every loader
    worker of it reads shards of its own, other ones each epoch, and starts again when they are all
    read. Each picks its next picture at random from `shuffle_buffer` of them, kept as the bytes of
    their files, so memory is about twice that many files for each worker.

    Samples are a function of `seed`, the epoch, the process, the worker and the numbers of both:
    the same give the same. `epoch` is the number of the next epoch and counts up; loader workers
    count for themselves, so they have to be persistent, as DataModuleFromConfig's are. Exact resume
    in the middle of an epoch is not provided: a run that goes on begins at the beginning of the
    epoch that `epoch` says, 0 unless it is set, so some pictures come again early.

    Raises ConfigError where a url's package is missing or a value is wrong, and UserError for
    shards that are not there, too few, without pictures or broken. A picture that cannot be read is
    replaced by the next, and the sample says so.
    """

    def __init__(
        self,
        style_shards: str | Sequence[str],
        content_shards: str | Sequence[str],
        epoch_samples: int,
        size: int = 256,
        style_size: int | None = None,
        content_size: int | None = None,
        style_drop: float = 0.1,
        content_drop: float = 0.5,
        photo_share: float = 0.0,
        shuffle_buffer: int = 1000,
        seed: int = 0,
        flip: bool = True,
    ):
        self.shares = {"style_drop": style_drop, "content_drop": content_drop, "photo_share": photo_share}
        check_fractions(**self.shares)
        check_count("epoch_samples", epoch_samples)
        check_count("shuffle_buffer", shuffle_buffer)
        check_count("seed", seed, least=0)
        crops = Crops(size, style_size, flip=flip), Crops(size, content_size, flip=flip)
        self.kinds = list(zip(crops, map(shard_names, (style_shards, content_shards))))
        self.epoch_samples, self.shuffle_buffer, self.seed = epoch_samples, shuffle_buffer, seed
        self.epoch = 0
        self._process = (0, 1)

    @property
    def pictures(self) -> int:
        """What unreadable pictures are counted against: an epoch's samples, in place of the unknown
        number of files."""
        return self.epoch_samples

    def __len__(self) -> int:
        """Samples of this process in an epoch."""
        # all need equally many, or some would wait for ever
        return -(-self.epoch_samples // self._rank_and_world()[1])

    def __iter__(self) -> Iterator[dict[str, Any]]:
        epoch, self.epoch = self.epoch, self.epoch + 1
        return self._samples(epoch)

    def _samples(self, epoch: int) -> Iterator[dict[str, Any]]:
        (rank, world), (worker, workers) = self._rank_and_world(), _worker_and_workers()
        reader, readers = rank * workers + worker, world * workers
        pictures = []
        for kind, (crops, shards) in enumerate(self.kinds):
            mine = share(shards, mixed_seed(self.seed, epoch, kind), reader, readers)
            pictures.append(
                NextPicture(
                    crops, endless(mine, self.shuffle_buffer, mixed_seed(self.seed, epoch, kind, reader))
                )
            )
        draws = SeededSamples(HybridDraws(pictures[0], pictures[1], **self.shares))
        for position in range(worker, len(self), workers):
            yield draws[Draw(position, mixed_seed(self.seed, epoch, rank, position))]

    def _rank_and_world(self) -> tuple[int, int]:
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            return torch.distributed.get_rank(), torch.distributed.get_world_size()
        return self._process

    def __getstate__(self) -> dict[str, Any]:
        # A worker that does not start as a copy of its process has no process group to ask.
        return {**self.__dict__, "_process": self._rank_and_world()}


class NextPicture(Dataset):
    """A stream of pictures (name, file's content) in a data set's clothes: any index gives the next
    one that can be read."""

    pictures = 0  # nobody has counted them

    def __init__(self, crops: Crops, stream: Iterator[tuple[str, bytes]]):
        self.crops, self.stream = crops, stream

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.crops.sample((name, partial(self._read, name, content)) for name, content in self.stream)

    def _read(self, name: str, content: bytes) -> Any:
        file = io.BytesIO(content)
        file.name = name
        return self.crops.scaled(file)


def share(shards: Sequence[str], seed: int, reader: int, readers: int) -> list[str]:
    """One reader's shards: all readers of a seed get different ones, about equally many. Raises
    UserError if there are too few."""
    if len(shards) < readers:
        raise UserError(
            f"{shards[0]} and the others are {len(shards)} shards, too few for {readers} readers (processes x loader workers); "
            "make more and smaller shards, or lower data.params.num_workers"
        )
    return random.Random(seed).sample(shards, len(shards))[reader::readers]


def endless(shards: Sequence[str], buffer: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """The pictures (name, content) of shards over and over, each time in another order. Raises
    UserError if there are none."""
    for turn in itertools.count():
        order = random.Random(mixed_seed(seed, turn))
        contents = itertools.chain.from_iterable(map(pictures_in, order.sample(shards, len(shards))))
        picture = None
        for picture in shuffled(contents, buffer, order):
            yield picture
        if picture is None:
            raise UserError(f"{', '.join(shards)}: no pictures in these shards ({', '.join(EXTENSIONS)})")


def shuffled(
    pictures: Iterable[tuple[str, bytes]], buffer: int, order: random.Random
) -> Iterator[tuple[str, bytes]]:
    """All pictures, each picked at random from up to `buffer`, which fills by one more than are
    picked."""
    pictures = iter(pictures)
    waiting: list[tuple[str, bytes]] = []
    while added := list(itertools.islice(pictures, min(2, buffer - len(waiting)))):
        waiting += added
        if len(waiting) >= min(buffer, FIRST_PICKED_FROM):
            yield _picked(waiting, order)
    while waiting:
        yield _picked(waiting, order)


def _picked(waiting: list[tuple[str, bytes]], order: random.Random) -> tuple[str, bytes]:
    """One of those waiting, whose place the last one takes."""
    place = order.randrange(len(waiting))
    waiting[place], waiting[-1] = waiting[-1], waiting[place]
    return waiting.pop()


def _worker_and_workers() -> tuple[int, int]:
    info = get_worker_info()
    return (info.id, info.num_workers) if info else (0, 1)
