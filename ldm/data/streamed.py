"""Training pictures from tar shards in WebDataset's format, for data that is too large for one disk.

A shard is a tar file with pictures in it, under any names; files that are none are passed over. Shards are read from
beginning to end, from a disk or while they come over the network, so nothing is unpacked or kept. Needs the package
`webdataset`: pip install -e '.[stream]'. Nothing is opened before the first sample is asked for.
"""

import io
import itertools
import random
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import Any, BinaryIO

import torch
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from ldm.checks import check_count, check_fractions
from ldm.data.order import Draw, SeededSamples, mixed_seed
from ldm.data.pictures import Crops
from ldm.data.wikiart import HybridDraws
from ldm.errors import ConfigError, UserError
from ldm.media.images import EXTENSIONS

# Read through programs: curl, gsutil and (which webdataset does not do itself) aws. Its "pipe:" urls are left out on
# purpose, as they run whatever command a config file, maybe a stranger's, has behind them.
SCHEMES = ("http", "https", "gs", "s3")


class StreamedHybridTrain(IterableDataset):
    """What HybridTrain draws, from shards, with the same options; `style_shards` and `content_shards` name the tar files.

    Names are paths or http, https, gs and s3 urls, one pattern such as "paintings-{000..099}.tar" or a list. An epoch is
    `epoch_samples` samples of all processes together, since nobody has counted the pictures; it may be shorter or longer
    than a pass over them. Every process and every loader worker of it reads shards of its own, other ones each epoch, and
    starts again when they are all read. Each picks its next picture at random from `shuffle_buffer` of them, kept as the
    bytes of their files, so memory is about twice that many files for each worker.

    Samples are a function of `seed`, the epoch, the process, the worker and the numbers of both: the same give the same.
    `epoch` is the number of the next epoch and counts up; loader workers count for themselves, so they have to be
    persistent, as DataModuleFromConfig's are. Exact resume in the middle of an epoch is not provided: a run that goes on
    begins at the beginning of the epoch that `epoch` says, 0 unless it is set, so some pictures come again early.

    Raises ConfigError where the package is missing or a value is wrong, and UserError for shards that are not there, too
    few, without pictures or broken. A picture that cannot be read is replaced by the next, and the sample says so.
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
        """What unreadable pictures are counted against: an epoch's samples, in place of the unknown number of files."""
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
    """A stream of pictures (name, file's content) in a data set's clothes: any index gives the next one that can be read."""

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
    """One reader's shards: all readers of a seed get different ones, about equally many. Raises UserError if there are too few."""
    if len(shards) < readers:
        raise UserError(
            f"{shards[0]} and the others are {len(shards)} shards, too few for {readers} readers (processes x loader workers); "
            "make more and smaller shards, or lower data.params.num_workers"
        )
    return random.Random(seed).sample(shards, len(shards))[reader::readers]


def endless(shards: Sequence[str], buffer: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """The pictures (name, content) of shards over and over, each time in another order. Raises UserError if there are none."""
    for turn in itertools.count():
        order = random.Random(mixed_seed(seed, turn))
        contents = itertools.chain.from_iterable(map(pictures_in, order.sample(shards, len(shards))))
        picture = None
        for picture in _webdataset().shuffle(buffer, rng=order)(contents):
            yield picture
        if picture is None:
            raise UserError(f"{', '.join(shards)}: no pictures in these shards ({', '.join(EXTENSIONS)})")


def pictures_in(shard: str) -> Iterator[tuple[str, bytes]]:
    """(name, content) of each picture file in a shard, in its order. Raises UserError if it cannot be read to its end."""
    # Not webdataset's samples: they cut names at the first dot, and "st.-remy.jpg" and "st.-paul.jpg" would be one.
    expand = _webdataset().tariterators.tar_file_expander
    try:
        with _opened(shard) as stream:
            for file in expand([{"url": shard, "stream": stream}], select_files=_is_picture, eof_value=None):
                yield f"{shard}/{file['fname']}", file["data"]
    except (OSError, tarfile.TarError) as error:
        # webdataset adds the open file and the url to what happened.
        reason = str(error) if getattr(error, "errno", None) else str(error.args[0]).partition(" @ ")[0]
        raise UserError(
            f"{shard}: this shard cannot be read to its end; is it a tar file, and whole? ({reason})"
        ) from error


@contextmanager
def _opened(shard: str) -> Iterator[BinaryIO]:
    """A shard's bytes. Raises OSError, also at the end for a download that failed on its way."""
    stream = _open(shard)
    try:
        yield stream
        # a program that cannot write all of what it has would seem to have failed
        while stream.read(1 << 20):
            pass
        stream.close()
    finally:
        # of a shard that is left in the middle; it may be waiting for the network
        if hasattr(stream, "proc"):
            stream.proc.terminate()
        with suppress(OSError):
            stream.close()


def _open(shard: str) -> BinaryIO:
    scheme = _scheme(shard)
    if not scheme:
        return open(shard, "rb")
    if scheme == "s3":
        from webdataset.gopen import Pipe

        return Pipe(["aws", "s3", "cp", "--only-show-errors", shard, "-"], mode="rb")
    return _webdataset().gopen(shard)


def shard_names(patterns: str | Sequence[str]) -> list[str]:
    """All shards that brace patterns name. Raises ConfigError for a kind of url that is not read, UserError for missing files."""
    patterns = [patterns] if isinstance(patterns, str) else patterns
    names = [name for pattern in patterns for name in _webdataset().SimpleShardList(pattern).urls]
    for name in names:
        if _scheme(name) and _scheme(name) not in SCHEMES:
            raise ConfigError(
                f"{name}: shards are files or have urls that begin with {', '.join(f'{s}://' for s in SCHEMES)}"
            )
    missing = [name for name in names if not _scheme(name) and not Path(name).is_file()]
    if missing or not names:
        what = (
            f"{missing[0]}: no such shard ({len(missing)} of {len(names)} are missing)"
            if names
            else "no shards are named"
        )
        raise UserError(
            f"{what}; write names such as paintings-{{000..099}}.tar, in quotes on a command line"
        )
    return names


def _scheme(shard: str) -> str:
    """What stands before "://", or nothing for a path."""
    return shard.partition("://")[0] if "://" in shard else ""


def _is_picture(name: str) -> bool:
    path = PurePosixPath(name)
    # macOS's tar adds such files to every one
    return path.suffix.lower() in EXTENSIONS and not path.name.startswith("._")


def _worker_and_workers() -> tuple[int, int]:
    info = get_worker_info()
    return (info.id, info.num_workers) if info else (0, 1)


def _webdataset() -> ModuleType:
    try:
        import webdataset
    except ModuleNotFoundError as error:
        raise ConfigError(
            "training from shards needs the package webdataset; install it with: pip install -e '.[stream]'"
        ) from error
    return webdataset
