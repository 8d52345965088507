"""ldm.data.streamed: pictures in tar shards become the samples that folders of them would give, shared out and repeatable."""

import io
import logging
import pickle
import tarfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import torch
from fsspec.registry import known_implementations
from pipeline_builders import model_config, picture, picture_folder, save_config, tiny_model
from torch.utils.data import DataLoader

from ldm.cli.train import main
from ldm.data.datamodule import DataModuleFromConfig
from ldm.data.order import Draw, SeededSamples, mixed_seed
from ldm.data.streamed import StreamedHybridTrain, endless, share
from ldm.data.wikiart import HybridTrain
from ldm.errors import ConfigError, UserError
from ldm.media.shards import expanded, pictures_in, shard_names

SHARDS, PER_SHARD = 4, 3


def png(seed: int) -> bytes:
    file = io.BytesIO()
    picture(14, 12, seed).save(file, "PNG")
    return file.getvalue()


def shard(path: Path, files: dict[str, bytes]) -> str:
    with tarfile.open(path, "w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return str(path)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Four shards of three paintings each and four of one photo each."""
    root = tmp_path_factory.mktemp("shards")
    for s in range(SHARDS):
        shard(
            root / f"paintings-{s:03d}.tar",
            {f"by.a.b/{s}-{i}.st.png": png(10 * s + i) for i in range(PER_SHARD)},
        )
        shard(root / f"photos-{s:03d}.tar", {f"{s}.png": png(100 + s)})
    return {
        f"{kind}_shards": str(root / f"{name}-{{000..003}}.tar")
        for kind, name in (("style", "paintings"), ("content", "photos"))
    }


def stream(shards: dict[str, str], **options: Any) -> StreamedHybridTrain:
    """By default an epoch of every painting once, no photos."""
    return StreamedHybridTrain(
        **{**shards, "epoch_samples": SHARDS * PER_SHARD, "size": 8, "style_drop": 0.0, **options}
    )


def names(samples: Any) -> list[str]:
    return [Path(sample["path"]).name for sample in samples]


def in_process(monkeypatch: pytest.MonkeyPatch, rank: int, world: int) -> None:
    for name, value in (("is_initialized", True), ("get_rank", rank), ("get_world_size", world)):
        monkeypatch.setattr(f"torch.distributed.{name}", lambda value=value: value)


# Samples


def test_samples_are_those_that_folders_give(tmp_path: Path) -> None:
    for kind, seed in (("style", 1), ("content", 2)):
        (tmp_path / kind).mkdir()
        (tmp_path / kind / "a.png").write_bytes(png(seed))
        shard(tmp_path / f"{kind}.tar", {"a.png": png(seed)})
    options = {
        "size": 6,
        "style_size": 9,
        "content_size": 7,
        "style_drop": 0.3,
        "content_drop": 0.4,
        "photo_share": 0.3,
    }
    folders = SeededSamples(
        HybridTrain(
            str(tmp_path / "style"), str(tmp_path / "content"), **options, split="train", validation_share=0.0
        )
    )
    streamed = StreamedHybridTrain(
        str(tmp_path / "style.tar"), str(tmp_path / "content.tar"), 60, **options, seed=5
    )
    kinds = Counter()
    for position, sample in enumerate(streamed):
        expected = folders[Draw(0, mixed_seed(5, 0, 0, position))]
        assert sample.keys() == expected.keys() and np.array_equal(sample["image"], expected["image"])
        assert [sample[key] for key in ("style_flag", "content_flag")] == [
            expected[key] for key in ("style_flag", "content_flag")
        ]
        kinds[Path(sample["path"]).parent.name, sample["style_flag"], sample["content_flag"]] += 1
    # paintings and photos with style, whose content is on or off; photos without style
    assert len(kinds) == 5 and kinds.total() == 60


def test_an_epoch_has_its_number_of_samples_and_shows_every_picture_before_any_again(
    shards: dict[str, str],
) -> None:
    seen = Counter(names(stream(shards, epoch_samples=2 * SHARDS * PER_SHARD)))
    assert len(seen) == SHARDS * PER_SHARD and set(seen.values()) == {2}
    assert len(names(stream(shards, epoch_samples=5))) == 5


def test_the_training_processs_random_numbers_stay_as_they_are(shards: dict[str, str]) -> None:
    before = torch.get_rng_state()
    list(stream(shards, style_drop=0.5))
    assert torch.equal(torch.get_rng_state(), before)


def test_only_picture_files_of_a_shard_are_read(tmp_path: Path) -> None:
    files = {
        "a.jpg": b"1",
        "deep/er/st.-remy.JPEG": b"2",
        "deep/er/st.-paul.JPEG": b"3",
        "a.json": b"{}",
        "a": b"",
        "._a.jpg": b"mac",
    }
    found = dict(pictures_in(shard(tmp_path / "a.tar", files)))
    assert found == {f"{tmp_path}/a.tar/{name}": files[name] for name in list(files)[:3]}


# Order


def test_epochs_have_orders_of_their_own_that_the_seed_repeats(shards: dict[str, str]) -> None:
    data, other = stream(shards, seed=1), stream(shards, seed=2)
    first, second = names(data), names(data)
    assert sorted(first) == sorted(second) and len({tuple(first), tuple(second), tuple(names(other))}) == 3
    again, later = stream(shards, seed=1), stream(shards, seed=1)
    later.epoch = 1
    assert (names(again), names(later)) == (first, second)


def test_the_pictures_of_a_single_shard_come_in_another_order_each_epoch(shards: dict[str, str]) -> None:
    data = stream({**shards, "style_shards": shards["style_shards"].replace("003", "000")})
    assert names(data) != names(data)


def test_the_shuffle_buffer_mixes_shards(shards: dict[str, str]) -> None:
    def shard_of_each(buffer: int) -> list[str]:
        return [
            Path(name).parts[-3]
            for name, _ in islice(endless(shard_names(shards["style_shards"]), buffer, 3), SHARDS * PER_SHARD)
        ]

    unmixed, mixed = shard_of_each(1), shard_of_each(1000)
    assert (
        len(set(unmixed[:PER_SHARD])) == 1
        and len(set(mixed[:PER_SHARD])) > 1
        and Counter(unmixed) == Counter(mixed)
    )


def test_readers_share_the_shards_in_another_way_for_each_seed() -> None:
    shards = [str(i) for i in range(13)]
    one, other = ([share(shards, seed, reader, 4) for reader in range(4)] for seed in (1, 2))
    assert sorted(sum(one, [])) == sorted(shards) == sorted(sum(other, []))
    assert [*map(len, one)] == [4, 3, 3, 3] and [*map(set, one)] != [*map(set, other)]


def test_loader_workers_share_an_epoch_and_the_next_one_differs(shards: dict[str, str]) -> None:
    loader = DataLoader(stream(shards), batch_size=3, num_workers=2, persistent_workers=True)
    first, second = ([Path(path).name for batch in loader for path in batch["path"]] for _ in range(2))
    assert sorted(first) == sorted(second) == sorted(names(stream(shards))) and first != second
    again = [
        Path(path).name
        for batch in DataLoader(stream(shards), batch_size=3, num_workers=2)
        for path in batch["path"]
    ]
    assert again == first


def test_processes_share_every_epoch_in_equal_parts_and_in_another_way(
    shards: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    everything, parts = sorted(names(stream(shards))), []
    for rank in range(2):
        in_process(monkeypatch, rank, 2)
        data = stream(shards)
        parts.append([names(data) for _ in range(4)])
        assert len(data) == SHARDS * PER_SHARD // 2 == len(parts[rank][0])
    assert all(sorted(one + other) == everything for one, other in zip(*parts))
    assert len({frozenset(names) for names in parts[0]}) > 1


def test_a_worker_without_a_process_group_knows_its_processs_part(
    shards: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as process:
        in_process(process, 1, 2)
        expected, sent = names(stream(shards)), pickle.dumps(stream(shards))
    assert names(pickle.loads(sent)) == expected


# What cannot be read


def test_an_unreadable_picture_is_named_once_and_replaced(
    tmp_path: Path, shards: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    style = shard(tmp_path / "a.tar", {"good.png": png(0), "broken.png": b"no picture"})
    node = {
        "target": "ldm.data.streamed.StreamedHybridTrain",
        "params": {**shards, "style_shards": style, "epoch_samples": 30, "size": 8},
    }
    data = DataModuleFromConfig(batch_size=1, train=node, num_workers=0)
    data.setup()
    with caplog.at_level(logging.WARNING):
        batches = [data.on_before_batch_transfer(batch, 0) for batch in data.train_dataloader()]
    assert [len(batch["image"]) for batch in batches] == [1] * 30 and "unreadable" not in batches[0]
    assert [line for line in caplog.messages if "a.tar/broken.png: not a picture" in line] == [
        f"picture left out: {data.unreadable[0]}"
    ]


def test_too_many_unreadable_pictures_in_a_row_are_a_user_error(
    tmp_path: Path, shards: dict[str, str]
) -> None:
    style = shard(tmp_path / "a.tar", {"a.png": b"no picture"})
    with pytest.raises(
        UserError, match="20 pictures in a row could not be read: .*a.tar/a.png: not a picture"
    ):
        next(iter(stream({**shards, "style_shards": style})))


@pytest.mark.parametrize(
    "content, problem", [(b"", "empty"), (b"no tar file" * 100, "invalid header"), (None, "unexpected end")]
)
def test_a_shard_that_is_not_whole_is_a_user_error(
    tmp_path: Path, content: bytes | None, problem: str
) -> None:
    path = Path(shard(tmp_path / "a.tar", {"a.png": bytes(3000)}))
    path.write_bytes(path.read_bytes()[:2000] if content is None else content)
    with pytest.raises(UserError, match=rf"a.tar: this shard cannot be read to its end.*\({problem}"):
        list(pictures_in(str(path)))


def test_shards_without_pictures_are_a_user_error(tmp_path: Path, shards: dict[str, str]) -> None:
    with pytest.raises(UserError, match="a.tar: no pictures in these shards"):
        next(iter(stream({**shards, "style_shards": shard(tmp_path / "a.tar", {"a.txt": b"hello"})})))


def test_fewer_shards_than_readers_are_a_user_error_before_any_is_read(shards: dict[str, str]) -> None:
    photos = shards["content_shards"].replace("003", "000")
    with pytest.raises(
        UserError, match=r"photos-000.tar .* 1 shards, too few for 2 readers .* lower data.params.num_workers"
    ):
        next(iter(DataLoader(stream({**shards, "content_shards": photos}), num_workers=2)))


@pytest.mark.parametrize(
    "options, problem",
    [
        (
            {"style_shards": "paintings-{000..002}.tar"},
            r"paintings-000.tar: no such shard \(3 of 3 are missing\); write names such as",
        ),
        (
            {"content_shards": "pipe:touch made #://"},
            "pipe:touch made #://: pipe: urls run a command; name a file or a url such as https://, gs:// or s3://",
        ),
        ({"content_shards": "pipe:touch made"}, "pipe:touch made: pipe: urls run a command"),
        ({"content_shards": ["a.tar", "sh -c made::file://a.tar"]}, "Protocol not known: sh -c made::file"),
        ({"style_shards": []}, "no shards are named"),
        ({"epoch_samples": 0}, "epoch_samples must be a whole number from 1 on, got 0"),
        ({"shuffle_buffer": 1.5}, "shuffle_buffer must be a whole number from 1 on"),
        ({"seed": -1}, "seed must be a whole number from 0 on"),
        ({"style_drop": 2}, "style_drop must be between 0 and 1"),
        ({"style_size": 7}, "short_side 7 is smaller than the crop of 8"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_read(
    shards: dict[str, str],
    options: dict[str, Any],
    problem: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=problem):
        stream(shards, **options)
    assert not list(tmp_path.iterdir())


def test_the_package_for_a_kind_of_url_is_asked_for_before_anything_is_read(
    shards: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = {"class": "no_such_package.FileSystem", "err": "Install no-such-package"}
    monkeypatch.setitem(known_implementations, "far", missing)
    with pytest.raises(ConfigError, match=r"far://a.tar: .* cannot be read \(Install no-such-package\)"):
        stream({**shards, "style_shards": "far://a.tar"})


@pytest.mark.parametrize(
    "pattern, expected",
    [
        ("a.tar", ["a.tar"]),
        ("a-{008..010}.tar", ["a-008.tar", "a-009.tar", "a-010.tar"]),
        ("a-{9..10}.tar", ["a-9.tar", "a-10.tar"]),
        ("{a,b}/{0..1}.tar", ["a/0.tar", "a/1.tar", "b/0.tar", "b/1.tar"]),
    ],
)
def test_a_pattern_stands_for_its_names(pattern: str, expected: list[str]) -> None:
    assert expanded(pattern) == expected


@pytest.mark.parametrize(
    "pattern",
    [
        "a-{000..99999999999}.tar",
        "a-{0..1000000}.tar",
        "{0..999}/{0..999}/{a,b}.tar",
        "{1..0}{0..99999999}.tar",
        f"{{0..1{'0' * 5000}}}.tar",
        "{a,b}" * 400 + ".tar",
    ],
    ids=range(6),
)
def test_a_pattern_stands_for_no_more_names_than_a_million(pattern: str) -> None:
    with pytest.raises(UserError, match="stands for more than 1,000,000 names, the most that a pattern may"):
        expanded(pattern)


def test_a_pattern_may_be_long() -> None:
    assert expanded("{1..1}" * 2000) == ["1" * 2000] and expanded("{1..0}{0..9}") == []


# Over the network


@pytest.fixture
def memory() -> Iterator[fsspec.AbstractFileSystem]:
    """The file system behind memory:// urls, empty before and after."""
    system = fsspec.filesystem("memory")
    yield system
    system.rm("/", recursive=True)


def test_shards_come_through_the_file_system_of_their_url(
    memory: fsspec.AbstractFileSystem, shards: dict[str, str], tmp_path: Path
) -> None:
    for number in range(SHARDS):
        for pattern in shards.values():
            file = pattern.replace("{000..003}", f"{number:03d}")
            memory.pipe(f"/far/{Path(file).name}", Path(file).read_bytes())
    far = {key: f"memory://far/{Path(pattern).name}" for key, pattern in shards.items()}
    samples, expected = list(stream(far)), list(stream(shards))
    assert [sample["path"].startswith("memory://far/paintings-") for sample in samples] == [True] * 12
    assert all(np.array_equal(one["image"], other["image"]) for one, other in zip(samples, expected))


class Server(BaseHTTPRequestHandler):
    """Gives `content` in answer to every request, of which it breaks off after `given` bytes."""

    content, given = b"", 0

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.content)))
        self.end_headers()
        self.wfile.write(self.content[: self.given])
        self.close_connection = True

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def served() -> Iterator[Callable[[bytes, int], str]]:
    """Serves so many bytes of a content; its url."""
    with ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (Server,), {})) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()

        def serve(content: bytes, given: int) -> str:
            server.RequestHandlerClass.content, server.RequestHandlerClass.given = content, given
            return f"http://127.0.0.1:{server.server_port}/a.tar"

        yield serve
        server.shutdown()


def test_shards_are_read_while_they_come(tmp_path: Path, served: Callable[[bytes, int], str]) -> None:
    content = Path(shard(tmp_path / "a.tar", {"a.png": png(0), "b.png": png(1)})).read_bytes()
    url = served(content, len(content))
    assert shard_names(url) == [url]
    assert list(pictures_in(url)) == [(f"{url}/a.png", png(0)), (f"{url}/b.png", png(1))]


def test_a_failed_download_is_a_user_error_though_the_tar_file_seems_whole(
    tmp_path: Path, served: Callable[[bytes, int], str]
) -> None:
    content = Path(shard(tmp_path / "a.tar", {"a.png": png(0), "b.png": png(1)})).read_bytes()
    end_of_first = 512 + -(-len(png(0)) // 512) * 512
    url = served(content, end_of_first)
    with pytest.raises(UserError, match=f"{url}: this shard cannot be read to its end"):
        list(pictures_in(url))


def test_a_shard_left_in_the_middle_is_closed(
    memory: fsspec.AbstractFileSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Path(shard(tmp_path / "a.tar", {f"{i}.png": bytes(10000) for i in range(3)}))
    file = path.open("rb")
    monkeypatch.setattr(type(memory), "open", lambda self, name: file)
    pictures = pictures_in("memory://a.tar")
    next(pictures)
    assert not file.closed
    pictures.close()
    assert file.closed


# Training


def streamed_recipe(folder: Path, train: dict[str, str], workers: int) -> Path:
    """A config of two epochs of 16 samples for the tiny model, with a folder for validation."""
    torch.save(tiny_model().vgg.state_dict(), folder / "style.pt")
    roots = {f"{kind}_root": str(picture_folder(folder / kind, 4)) for kind in ("style", "content")}
    train = {
        "target": "ldm.data.streamed.StreamedHybridTrain",
        "params": {**train, "epoch_samples": 16, "size": 32, "style_drop": 0.3},
    }
    validation = {"target": "ldm.data.wikiart.HybridTrain", "params": {**roots, "size": 32, "split": "all"}}
    data = {
        "target": "main.DataModuleFromConfig",
        "params": {"batch_size": 4, "num_workers": workers, "train": train, "validation": validation},
    }
    trainer = {
        "accelerator": "cpu",
        "max_epochs": 2,
        "log_every_n_steps": 1,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    model = {"learning_rate": 1e-3, **model_config(vgg_ckpt_path=str(folder / "style.pt"))}
    return save_config({"model": model, "data": data, "lightning": {"trainer": trainer}}, folder / "a.yaml")


@pytest.mark.parametrize("workers", [0, 2])
def test_the_training_command_trains_on_shards(shards: dict[str, str], tmp_path: Path, workers: int) -> None:
    main(["--base", str(streamed_recipe(tmp_path, shards, workers)), "--logdir", str(tmp_path)])
    checkpoint = torch.load(tmp_path / "a/checkpoints/last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 8 and checkpoint["epoch"] == 1
