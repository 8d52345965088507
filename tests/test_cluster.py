"""Folders painted by many workers, some of which are killed: every picture once, and the same to the last bit."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import pytest
from pipeline_builders import picture

from ldm.program import own_command, own_environment

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

PHOTOS, BROKEN = 500, 25  # 5 %
MODEL = "--device cpu --precision fp32 --look sampled --size 128 --steps 1 --batch-size 4".split()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """photos/, every twentieth of them broken, and a painting."""
    folder = tmp_path_factory.mktemp("cluster")
    (folder / "photos").mkdir()
    for i in range(PHOTOS):
        path = folder / f"photos/{i:03}.jpg"
        picture(128, 128, i).save(path)
        if i % (PHOTOS // BROKEN) == 7:
            path.write_bytes(path.read_bytes()[:300])
    picture(96, 96, 1000).save(folder / "painting.png")
    return folder


@pytest.fixture(scope="module")
def call(folder: Path, model_files: list[str]) -> Callable[..., list[str]]:
    """The command that paints all photos into a folder."""

    def call(output: str, *options: str, photos: str = "photos") -> list[str]:
        pictures = ["--content", photos, "--style", "painting.png", "--output", output]
        return own_command("stylize", *model_files, *MODEL, *pictures, *options)

    return call


def environment() -> dict[str, str]:
    # What others set for a process group, or for the number of threads, is not this test's.
    clean = {k: v for k, v in own_environment().items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    ray = {"RAY_AUTH_MODE": "disabled", "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0"}
    return clean | {"OMP_NUM_THREADS": "1", **ray}


def run(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True, timeout=300)


@pytest.fixture
def started(folder: Path) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Starts a job in a session of its own, of which nothing is left at the end; what it prints goes
    into job.out and job.err."""
    with ExitStack() as stack:

        def start(command: list[str]) -> subprocess.Popen[bytes]:
            out, err = (stack.enter_context((folder / f"job.{name}").open("wb")) for name in ("out", "err"))
            return stack.enter_context(in_a_session(command, folder, out, err))

        yield start


@contextmanager
def in_a_session(
    command: list[str], folder: Path, out: IO[bytes], err: IO[bytes]
) -> Iterator[subprocess.Popen[bytes]]:
    """A process, and at the end nothing of what it has started."""
    process = subprocess.Popen(
        command,
        cwd=folder,
        env=environment(),
        stdout=out,
        stderr=err,
        start_new_session=True,
        # what is started in the background by some shells is not to hear Ctrl-C
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@dataclass
class Cluster:
    """A cluster of Ray on this machine, begun in another folder than the jobs are."""

    address: str
    process: subprocess.Popen[bytes]

    def options(self, workers: int) -> list[str]:
        """What has a job painted there."""
        return ["--engine", "ray", "--ray-address", self.address, "--workers", str(workers)]

    def workers(self) -> list[int]:
        """The processes of workers that paint, by what Ray calls them."""
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with suppress(OSError):
                if b"ray::MapWorker" in path.read_bytes() and self._has(int(path.parent.name)):
                    found.append(int(path.parent.name))
        return found

    def _has(self, process: int) -> bool:
        while process > 1:
            process = int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
            if process == self.process.pid:
                return True
        return False


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """One for all tests: it takes ten seconds to start."""
    pytest.importorskip("ray")
    with tempfile.TemporaryDirectory(prefix="ray") as folder:  # Ray's sockets need a short name
        port = free_port()
        options = ["--num-cpus=5", f"--port={port}", f"--temp-dir={folder}", "--include-dashboard=false"]
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", *options]
        with Path(folder, "log").open("wb") as log, in_a_session(command, Path(folder), log, log) as process:
            wait_until(lambda: b"Ray runtime started" in Path(folder, "log").read_bytes(), process)
            yield Cluster(f"127.0.0.1:{port}", process)
            process.terminate()
            process.wait(30)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def wait_until(reached: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + 240
    while not reached():
        assert process.poll() is None and time.monotonic() < until, "it has ended, or hangs"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def undisturbed(folder: Path, call: Callable[..., list[str]]) -> dict[str, bytes]:
    """What one process paints, by name."""
    done = run(call("plain"), folder)
    assert done.returncode == 1, done.stderr
    assert f"{PHOTOS - BROKEN} painted, 0 there already, {BROKEN} failed" in done.stdout
    return results(folder / "plain")


def results(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("[!.]*"))}


def broken_in(text: str) -> set[str]:
    return set(re.findall(r"failed: photos/(\d+)\.jpg: the picture is broken or cut short", text))


BROKEN_NAMES = {f"{i:03}" for i in range(PHOTOS) if i % (PHOTOS // BROKEN) == 7}


def painted(folder: Path) -> int:
    return len(list(folder.glob("[!.]*"))) if folder.is_dir() else 0


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds the workers in /proc")
def test_killed_workers_and_jobs_lose_nothing_and_change_nothing(
    folder: Path, call: Callable, undisturbed: dict[str, bytes], cluster: Cluster, started: Callable
) -> None:
    command = call("ray", *cluster.options(2), "--json")
    job, out = started(command), folder / "ray"
    for count in (20, 60, 100):  # a worker is killed at each
        wait_until(lambda: painted(out) >= count, job)
        victims = cluster.workers()
        assert victims
        os.kill(victims[0], signal.SIGKILL)
    for count in (140, 220):  # the job is
        wait_until(lambda: painted(out) >= count, job)
        os.kill(job.pid, signal.SIGKILL)
        job.wait()
        job = started(command)
    assert job.wait(300) == 1
    told = [json.loads(line) for line in (folder / "job.out").read_text().splitlines()]
    statuses = Counter(one["status"] for one in told)
    assert statuses["failed"] == BROKEN and statuses["painted"] + statuses["there"] == PHOTOS - BROKEN
    assert len({one["output"] for one in told}) == PHOTOS and statuses["there"] >= 220
    assert broken_in((folder / "job.err").read_text()) == BROKEN_NAMES
    assert results(out) == undisturbed and not list(out.glob(".*"))


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_job_that_is_stopped_tells_what_is_painted(
    folder: Path, call: Callable, cluster: Cluster, started: Callable, number: int, code: int
) -> None:
    out = folder / f"stopped-{code}"
    job = started(call(out.name, *cluster.options(2), "--quiet"))
    wait_until(lambda: painted(out) >= 10, job)
    job.send_signal(number)
    assert job.wait(60) == code
    line = f"stopped: {painted(out)} of {PHOTOS} painted; the same command does the rest"
    assert (folder / "job.err").read_text().splitlines() == [line] and not list(out.glob(".*"))
    assert (folder / "job.out").read_text() == ""


def test_without_a_model_a_job_is_one_line(folder: Path, call: Callable) -> None:
    pytest.importorskip("ray")
    (folder / "empty.ckpt").write_bytes(b"")
    options = ["--engine", "ray", "--workers", "1", "--checkpoint", "empty.ckpt", "--quiet"]
    done = run(call("none", *options), folder)
    (line,) = done.stderr.splitlines()
    assert done.returncode == 2 and line.startswith("error: empty.ckpt") and done.stdout == ""


PIPELINE = """
import os, sys

import ray
from ldm import Settings
from ldm.pipeline.batches import BatchOptions, BatchPainter

ray.init(sys.argv[1])
options = BatchOptions({"painting": os.path.abspath("painting.png")}, Settings(look="palette", size=32))
photos = ray.data.read_binary_files(os.path.abspath("photos"), include_paths=True).limit(20)
painted = photos.map_batches(
    BatchPainter,
    fn_constructor_args=[options],
    batch_size=8,
    compute=ray.data.ActorPoolStrategy(size=1),
)
painted.write_parquet(os.path.abspath("table"))
"""


def test_the_painter_goes_into_a_pipeline_of_ray_data(folder: Path, cluster: Cluster) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    done = run([sys.executable, "-c", PIPELINE, cluster.address], folder)
    assert done.returncode == 0, done.stderr
    rows = parquet.read_table(folder / "table").to_pylist()
    assert len(rows) == 20 and sum(row["error"] is not None for row in rows) == 1
    assert all((row["picture"] or b"\x89PNG").startswith(b"\x89PNG") for row in rows)


FIRST = "photos/0*.jpg"  # a hundred, in the same portions as of all


def first(pictures: dict[str, bytes]) -> dict[str, bytes]:
    return {name: content for name, content in pictures.items() if name.startswith("0")}


FIRST_BROKEN = {name for name in BROKEN_NAMES if name.startswith("0")}


def test_shares_by_number_paint_what_one_process_does(
    folder: Path, call: Callable, undisturbed: dict[str, bytes]
) -> None:
    told = ""
    for number in range(3):
        done = run(call("shares", "--shard", f"{number}/3", photos=FIRST), folder)
        assert done.returncode == 1  # of this share's broken ones
        told += done.stderr
    assert results(folder / "shares") == first(undisturbed) and broken_in(told) == FIRST_BROKEN


def test_under_torchrun_a_broken_photo_stops_no_process(
    folder: Path, call: Callable, undisturbed: dict[str, bytes]
) -> None:
    command = call("torchrun", photos=FIRST)
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = run([*start, *command[command.index("-m") :]], folder)
    assert done.returncode == 0, done.stderr
    assert results(folder / "torchrun") == first(undisturbed) and broken_in(done.stderr) == FIRST_BROKEN


def test_a_job_ends_early_where_too_many_fail(
    folder: Path, call: Callable, undisturbed: dict[str, bytes]
) -> None:
    done = run(call("few", "--max-failed", "0.01"), folder)
    assert done.returncode == 1 and "more than 1% of the pictures failed" in done.stderr
    assert painted(folder / "few") < PHOTOS // 2
    assert run(call("plain", "--max-failed", "0.05"), folder).returncode == 0
