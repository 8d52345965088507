"""The options that spread `artfusion stylize` over processes and machines."""

import json
import pickle
import signal
import socket
import tarfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Thread
from types import SimpleNamespace

import fsspec
import pytest
from pipeline_builders import picture, run_program

from ldm.cli.stylize import main
from ldm.early import handlers_kept, stop_at_once
from ldm.errors import UserError
from ldm.pipeline import ray_engine
from ldm.pipeline.portions import AnyPortion, Done, Worker
from ldm.pipeline.ray_engine import RayEngine

LOOK = ["--look", "palette", "--size", "32"]  # which needs no model


@pytest.fixture
def stylize(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """The command, in a folder with six photos, one of them broken, and two paintings."""
    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    for i in range(6):
        picture(40, 36, i).save(f"photos/{i}.png")
    Path("photos/3.png").write_text("no picture")
    for i, name in enumerate("st"):
        picture(40, 36, 10 + i).save(f"{name}.png")

    def call(*options: str, content: str = "photos") -> int:
        inputs = ["--content", content, "--style", "s.png", "--output", "out/"]
        return run_program(main, [*LOOK, *inputs, *options], monkeypatch)

    return call


@pytest.fixture
def ray_paints(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable], None]:
    """Has portions painted in this process, by a generator in place of Ray's workers."""

    def paint(work: Callable[[Sequence[AnyPortion], Worker], Iterator[Done]]) -> None:
        pytest.importorskip("ray")
        monkeypatch.setattr(ray_engine, "WAYS", {})  # which would stay in the environment
        monkeypatch.setattr(RayEngine, "_begin", lambda self: None)
        monkeypatch.setattr(RayEngine, "_painted", lambda self, portions, make: work(portions, make()))

    return paint


def written() -> list[str]:
    return sorted(path.name for path in Path("out").iterdir())


def test_shares_by_number_make_the_whole(stylize: Callable) -> None:
    codes = [stylize("--shard", f"{number}/2") for number in range(2)]
    assert written() == [f"{i}__s.png" for i in (0, 1, 2, 4, 5)] and sorted(codes) == [0, 1]


@pytest.mark.parametrize("given", ["2/2", "1", "a/b", "-1/2", "0/0", "1/2/3"])
def test_a_share_that_cannot_be_is_one_line(stylize: Callable, capsys, given: str) -> None:
    assert stylize(f"--shard={given}") == 2
    assert "such as 0/8 to 7/8" in capsys.readouterr().err


@pytest.mark.parametrize(
    "options, problem",
    [
        (["--workers", "2"], "--workers is for --engine ray"),
        (["--ray-address", "auto"], "--ray-address is for --engine ray"),
        (["--gpus-per-worker", "1"], "--gpus-per-worker is for --engine ray"),
        (["--engine", "ray", "--shard", "0/2"], "leave out --shard"),
        (["--engine", "ray", "--gpus-per-worker", "-1"], "--gpus-per-worker must be 0 or more"),
        (["--max-failed", "2"], "expected a number from 0 to 1"),
        (["--pack-size", "4"], "--pack-size is for --pack"),
        (["--pack-size", "1000"], "--pack-size is for --pack"),
    ],
)
def test_options_that_do_not_go_together_are_one_line(
    stylize: Callable, capsys, options: list[str], problem: str
) -> None:
    assert stylize(*options) == 2 and problem in capsys.readouterr().err and not Path("out").exists()


def test_a_share_may_fail(stylize: Callable) -> None:
    assert stylize() == 1
    assert stylize("--max-failed", "0.2") == 0
    assert stylize("--max-failed", "0.1") == 1


def test_so_it_may_in_a_dry_run(stylize: Callable) -> None:
    assert stylize("--dry-run") == 1
    assert stylize("--dry-run", "--max-failed", "0.2") == 0
    assert stylize("--dry-run", "--max-failed", "0.1") == 1


def test_a_photo_alone_may_fail_as_one_of_many(stylize: Callable, capsys) -> None:
    assert stylize(content="photos/3.png") == 2
    assert stylize("--max-failed", "1", content="photos/3.png") == 0
    assert "failed: photos/3.png" in capsys.readouterr().err
    assert stylize("--max-failed", "1", "--output", "-", content="photos/0.png") == 2
    assert "it may not fail" in capsys.readouterr().err


def test_a_dry_run_says_whose_time_it_tells(stylize: Callable, capsys) -> None:
    pytest.importorskip("ray")
    stylize("--dry-run", "--engine", "ray")
    assert " in all for one worker" in capsys.readouterr().out


def test_an_empty_share_says_so_in_words_alone(stylize: Callable, capsys) -> None:
    assert stylize("--shard", "1/99") == 0
    said = capsys.readouterr()
    assert said.out == "0 painted, 0 there already, 0 failed\n" and said.err == ""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a file that is always full is Linux's")
def test_a_picture_that_goes_nowhere_is_exit_code_1(
    stylize: Callable, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    with open("/dev/full", "w") as full:
        monkeypatch.setattr("sys.stdout", full)
        assert stylize("--output", "-", content="photos/0.png") == 1
    assert "error: standard output: [Errno 28]" in capsys.readouterr().err


def test_under_torchrun_a_broken_photo_is_no_failure_of_the_process(
    stylize: Callable, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    assert stylize() == 0 and "failed: photos/3.png" in capsys.readouterr().err
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert stylize("--shard", "0/2") == 2


@pytest.mark.parametrize("output", ["out.png", "out/{content}.png"])
def test_packs_need_a_folder(stylize: Callable, capsys, output: str) -> None:
    assert stylize("--pack", "tar", "--output", output) == 2
    assert "--pack takes a folder as --output" in capsys.readouterr().err


def test_names_do_nothing_to_a_terminal(stylize: Callable, capsys) -> None:
    Path("photos/\x1b[31m\n.png").write_text("no picture")
    assert stylize() == 1
    err = capsys.readouterr().err
    assert "failed: photos/\\x1b[31m\\n.png: not a picture" in err and "\x1b[31m" not in err


def test_urls_of_this_machine_are_its_files(stylize: Callable, tmp_path: Path) -> None:
    assert stylize("--max-failed", "1", content=(tmp_path / "photos").as_uri()) == 0
    assert stylize("--max-failed", "1", content=f"{tmp_path.as_uri()}/photos/[01].png") == 0
    assert len(written()) == 5


def test_a_pack_that_cannot_be_written_counts_as_its_pictures(stylize: Callable, capsys) -> None:
    Path("out/part-00000.tar").mkdir(parents=True)
    assert stylize("--pack", "tar", "--pack-size", "4", "--max-failed", "0.5") == 1
    assert "0 there already, 4 failed" in capsys.readouterr().out


def test_a_shard_and_single_photos_do_not_overwrite_each_other(stylize: Callable, capsys) -> None:
    with tarfile.open("part-00000.tar", "w") as file:
        file.add("photos/0.png")
    assert stylize("--pack", "tar", "--content", "part-00000.tar") == 2
    assert "would be lost" in capsys.readouterr().err and not Path("out").exists()


def test_shards_by_a_pattern(stylize: Callable) -> None:
    for number in range(2):
        with tarfile.open(f"photos-{number}.tar", "w") as file:
            file.add(f"photos/{number}.png")
    assert stylize("--pack", "tar", content="photos-*.tar") == 0
    assert written() == [f"photos-{i}.{end}" for i in range(2) for end in ("json", "tar")]


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_results_are_packed(stylize: Callable, kind: str) -> None:
    pytest.importorskip("pyarrow")
    assert stylize("--pack", kind, "--pack-size", "4", "--max-failed", "1") == 0
    assert written() == [f"part-0000{i}.{end}" for i in (0, 1) for end in sorted(("json", kind))]


def test_a_run_that_came_to_its_end_is_not_said_to_be_stopped(stylize: Callable, capsys) -> None:
    assert stylize("--pack", "tar", "--max-failed", "0.1") == 1
    told = capsys.readouterr().err
    assert "more than 10% of the pictures failed" in told and "stopped" not in told


def test_packs_of_an_earlier_larger_run_are_told_of_and_left_alone(stylize: Callable, capsys) -> None:
    assert stylize("--pack", "tar", "--pack-size", "2", "--max-failed", "1") == 0
    assert "earlier" not in capsys.readouterr().err
    for name in ("part-x.tar", "others.tar", "part-00009.parquet"):
        Path("out", name).write_bytes(b"something else")
    before = written()
    assert stylize("--pack", "tar", "--pack-size", "2", content="photos/[01].png") == 0
    assert (
        "out: packs of an earlier run are there, too, and in no index of this one: 3, from part-00001.tar on"
        in capsys.readouterr().err
    )
    assert written() == before
    # each share sees those of the others as such, and one speaks for all
    for number, told in enumerate((1, 0)):
        stylize("--pack", "tar", "--pack-size", "2", "--shard", f"{number}/2", content="photos/[0124].png")
        assert capsys.readouterr().err.count("in no index of this one: 2, from") == told


def test_so_are_those_elsewhere(stylize: Callable, capsys) -> None:
    memory, output = fsspec.filesystem("memory"), ["--output", "memory://packs/out", "--pack", "tar"]
    try:
        for content in ("photos/[012].png", "photos/0.png"):
            assert stylize(*output, "--pack-size", "1", content=content) == 0
        err = capsys.readouterr().err
        assert "memory://packs/out: packs of an earlier" in err and ": 2, from part-00001.tar on" in err
    finally:
        memory.rm("/packs", recursive=True)


def test_photos_in_shards_are_grouped_by_their_paths_in_them(stylize: Callable, capsys) -> None:
    with tarfile.open("photos-0.tar", "w") as file:
        for i in (0, 1):
            file.add(f"photos/{i}.png", f"clip7/{i}.png")
    options = ["--pack", "tar", "--style", "t.png", "--pair", "random", "--group-by"]
    assert stylize(*options, "clip[0-9]", "--json", content="photos-0.tar") == 0
    assert len({json.loads(line)["style"] for line in capsys.readouterr().out.splitlines()}) == 1
    # one in which it finds nothing fails alone
    assert stylize(*options, "clip7/0", content="photos-0.tar") == 1
    said = capsys.readouterr()
    assert "1 painted, 0 there already, 1 failed" in said.out
    assert said.err.endswith("failed: --group-by clip7/0: finds nothing in photos-0.tar/clip7/1.png\n")


def test_photos_in_shards_are_painted_into_shards(stylize: Callable, capsys) -> None:
    for number in range(2):
        with tarfile.open(f"photos-{number}.tar", "w") as file:
            for i in range(3):
                file.add(f"photos/{3 * number + i}.png", f"{i}.png")
    options = ["--pack", "tar", "--json", "--style", "t.png", "--pair", "random"]
    assert stylize(*options, content="photos-{0..1}.tar") == 1
    assert written() == [f"photos-{i}.{end}" for i in range(2) for end in ("json", "tar")]
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["content"] for line in lines][:2] == ["photos-0.tar/0.png", "photos-0.tar/1.png"]
    assert [line["status"] for line in lines].count("painted") == 5


@pytest.mark.parametrize(
    "options, problem",
    [
        ([], "photos in tar shards need --pack"),
        (["--pack", "tar", "--pair", "zip"], "--pair zip is not for photos in tar shards"),
        (["--pack", "tar", "--dry-run"], "--dry-run does not look into packs"),
        (["--pack", "tar", "--write-manifest", "m.csv"], "--write-manifest has no row for photos in tar"),
        (["--pack", "tar", "--pair", "random", "--per-content", "2"], "there are only 1 styles"),
        (["--pack", "tar", "--pack-size", "2"], "--pack-size is for single photos"),
    ],
)
def test_what_shards_cannot_have_is_told(stylize: Callable, capsys, options: list[str], problem: str) -> None:
    with tarfile.open("photos.tar", "w") as file:
        file.add("photos/0.png")
    assert stylize(*options, content="photos.tar") == 2 and problem in capsys.readouterr().err
    assert not Path("out").exists()


def test_a_shard_that_is_missing_is_told_before_anything_is_painted(stylize: Callable, capsys) -> None:
    assert stylize("--pack", "tar", content="photos-{0..1}.tar") == 2
    assert "photos-0.tar: no such shard (2 of 2 are missing)" in capsys.readouterr().err


def test_what_a_killed_run_left_is_removed_by_the_next(stylize: Callable) -> None:
    Path("out").mkdir()
    Path("out/.0__s.abcdefgh.png").write_bytes(b"half")
    stylize()
    assert not Path("out/.0__s.abcdefgh.png").exists()


@pytest.mark.parametrize(
    "engine, resources, sizes",
    [
        (RayEngine(), {"CPU": 8.0}, (8, 0.0)),
        (RayEngine(workers=3), {"CPU": 8.0}, (3, 0.0)),
        (RayEngine(), {"CPU": 8.0, "GPU": 2.0}, (2, 1.0)),
        (RayEngine(gpus_per_worker=0.5), {"CPU": 8.0, "GPU": 2.0}, (4, 0.5)),
        (RayEngine(gpus_per_worker=0), {"CPU": 8.0, "GPU": 2.0}, (8, 0.0)),
    ],
)
def test_as_many_workers_as_the_cluster_has_places_for(
    engine: RayEngine, resources: dict[str, float], sizes: tuple[int, float]
) -> None:
    assert engine.sizes(resources) == sizes


@pytest.mark.parametrize("engine", [RayEngine(workers=9), RayEngine(gpus_per_worker=4)])
def test_more_workers_than_fit_are_refused(engine: RayEngine) -> None:
    with pytest.raises(UserError, match="workers do not fit into a cluster"):
        engine.sizes({"CPU": 8.0, "GPU": 2.0})


# What Ray says and does


@pytest.mark.parametrize(
    "address, problem",
    [
        ("127.0.0.1:1", "Connection refused"),
        ("nonsense", "Invalid address format: nonsense"),
        ("127.0.0.1:", "--ray-address 127.0.0.1:: no cluster is reached there"),
        ("ray://127.0.0.1:10001", "on a machine of the cluster, with auto"),
    ],
)
def test_an_address_without_a_cluster_is_one_line_at_once(
    stylize: Callable, capsys, monkeypatch: pytest.MonkeyPatch, address: str, problem: str
) -> None:
    ray = pytest.importorskip("ray")
    monkeypatch.setattr(ray_engine, "WAYS", {})
    monkeypatch.setattr(ray, "init", lambda *args, **options: pytest.fail("Ray was asked"))
    assert stylize("--engine", "ray", "--ray-address", address, "--quiet") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: --ray-address {address}") and problem in line


def test_a_host_that_does_not_answer_is_given_a_few_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray")

    def silent(address: tuple[str, int], timeout: float) -> None:
        assert address == ("10.0.0.1", 6379) and 1 < timeout < 10
        raise TimeoutError("timed out")

    monkeypatch.setattr(socket, "create_connection", silent)
    with pytest.raises(UserError, match=r"10.0.0.1:6379: no cluster is reached there \(timed out\)"):
        ray_engine.check_answers("10.0.0.1:6379")


@contextmanager
def answering(greeting: bytes) -> Iterator[str]:
    """The address of a server that says this to everybody."""

    def serve() -> None:
        with suppress(OSError):  # until it is closed
            while True:
                connection, _ = server.accept()
                connections.append(connection)
                connection.sendall(greeting)

    connections: list[socket.socket] = []
    with socket.create_server(("", 0)) as server:
        thread = Thread(target=serve)
        thread.start()
        yield f"127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)
        thread.join()
    for connection in connections:
        connection.close()


@pytest.mark.parametrize(
    "greeting, problem",
    [
        (b"", "no cluster is reached there (timed out)"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "no cluster is reached there (what answers is no cluster of Ray)"),
        (b"\0\0\0\x04\0\0\0\0\0", "RAY_AUTH_MODE=token (Failed to connect)"),
    ],
)
def test_what_answers_and_is_no_cluster_of_ours_is_told(
    stylize: Callable, capsys, monkeypatch: pytest.MonkeyPatch, greeting: bytes, problem: str
) -> None:
    ray = pytest.importorskip("ray")

    def refuse(*args: object, **options: object) -> None:
        raise ConnectionError("Failed to connect")

    monkeypatch.setattr(ray_engine, "WAYS", {})
    monkeypatch.setattr(ray_engine, "PATIENCE", 0.5)
    monkeypatch.setattr(ray, "init", refuse)
    with answering(greeting) as address:
        assert stylize("--engine", "ray", "--ray-address", address, "--quiet") == 2
    assert problem in capsys.readouterr().err


@pytest.mark.parametrize("options", [["--json"], ["--json", "--quiet"]], ids=" ".join)
def test_standard_output_is_our_own_whatever_is_printed_under_ray(
    stylize: Callable, capsys, caplog, ray_paints: Callable, options: list[str]
) -> None:
    def paint(portions: Sequence[AnyPortion], worker: Worker) -> Iterator[Done]:
        for portion in portions:
            print("\x1b[33m(raylet)\x1b[0m A worker died. " + "And so on. " * 99)
            yield worker(portion)

    ray_paints(paint)
    caplog.set_level("INFO")
    assert stylize("--engine", "ray", "--batch-size", "3", *options) == 1
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [one["status"] for one in told].count("painted") == 5
    said = [line for line in caplog.messages if line.startswith("(raylet) A worker died. And so on.")]
    assert len(said) == (0 if "--quiet" in options else 2) and all(len(line) <= 100 for line in said)


def test_what_ray_cannot_go_on_from_is_one_line(stylize: Callable, capsys, ray_paints: Callable) -> None:
    def paint(portions: Sequence[AnyPortion], worker: Worker) -> Iterator[Done]:
        from ray.exceptions import RayError

        yield worker(portions[0])
        raise RayError("Pages\nof stack\n\nIt is gone")

    ray_paints(paint)
    assert stylize("--engine", "ray", "--quiet") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == "error: Ray cannot go on: It is gone"


def test_of_a_stopped_job_what_was_not_told_yet_is_counted(
    stylize: Callable, capsys, ray_paints: Callable
) -> None:
    def paint(portions: Sequence[AnyPortion], worker: Worker) -> Iterator[Done]:
        yield worker(portions[0])
        worker(portions[1])
        raise KeyboardInterrupt

    assert stylize("--size", "40", "--content", "photos/4.png", content="photos/5.png") == 0  # another job's
    ray_paints(paint)
    assert stylize("--engine", "ray", "--batch-size", "2") == 130
    assert "stopped: 3 of 6 painted; the same command does the rest" in capsys.readouterr().err


def test_what_killed_workers_left_is_gone_when_the_job_is(stylize: Callable, ray_paints: Callable) -> None:
    def paint(portions: Sequence[AnyPortion], worker: Worker) -> Iterator[Done]:
        Path("out").mkdir()
        Path("out/.part-00001.abcdefgh.tar").write_bytes(b"half")
        yield from map(worker, portions)

    ray_paints(paint)
    assert stylize("--engine", "ray", "--pack", "tar", "--pack-size", "3", "--max-failed", "1") == 0
    assert written() == [f"part-0000{i}.{end}" for i in range(2) for end in ("json", "tar")]


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_job_that_is_stopped_says_what_is_painted_and_leaves_nothing_half(
    stylize: Callable, capsys, monkeypatch: pytest.MonkeyPatch, number: int, code: int
) -> None:
    write = Path.write_bytes

    def stopped(self: Path, content: bytes) -> int:
        if self.name.startswith(".2"):
            write(self, content[:100])
            signal.raise_signal(number)
        return write(self, content)

    monkeypatch.setattr(Path, "write_bytes", stopped)
    monkeypatch.setattr("ldm.early._received", set())
    with handlers_kept(signal.SIGINT, signal.SIGTERM):
        signal.signal(signal.SIGINT, signal.default_int_handler)
        stop_at_once()
        assert stylize("--batch-size", "1") == code
    assert written() == ["0__s.png", "1__s.png"]
    assert "stopped: 2 of 6 painted; the same command does the rest" in capsys.readouterr().err


def test_a_portion_that_kills_its_workers_is_given_up(
    stylize: Callable, ray_paints: Callable, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Workers that die are begun anew here, as Ray does, without processes."""
    ray = pytest.importorskip("ray")
    monkeypatch.setattr(ray, "get", lambda value: value)
    tries, counted = ray_engine._Tries(), SimpleNamespace()
    counted.begin = SimpleNamespace(remote=tries.begin)

    def dying(portions: Sequence[AnyPortion], made: Worker) -> Iterator[Done]:
        def deadly(portion: AnyPortion) -> Done:
            if any("2.png" in str(task.content) for task in portion.tasks):
                raise Death
            return made(portion)

        for number, portion in enumerate(portions):
            for _ in range(99):
                actor = ray_engine._Actor(pickle.dumps(SimpleNamespace), ".", counted, 3)
                actor.worker = deadly
                with suppress(Death):
                    (done,) = actor({"number": [number], "portion": [pickle.dumps(portion)]})["done"]
                    yield pickle.loads(done)
                    break

    ray_paints(dying)
    assert stylize("--engine", "ray", "--batch-size", "1") == 1
    assert written() == [f"{i}__s.png" for i in (0, 1, 4, 5)] and tries.counts[2] == 4
    assert "out/2__s.png: each of 3 workers that had it died" in capsys.readouterr().err


class Death(BaseException):
    """Of a worker."""
