"""Folders painted by many workers, some of which are killed: every picture once, and the same to the last bit."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pipeline_builders import picture

from ldm.program import own_command, own_environment

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

PHOTOS, BROKEN = 500, 25  # 5 %
MODEL = "--device cpu --precision fp32 --look fast --size 128 --steps 1 --batch-size 4".split()


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

    def call(output: str, *options: str) -> list[str]:
        pictures = ["--content", "photos", "--style", "painting.png", "--output", output]
        return own_command("stylize", *model_files, *MODEL, *pictures, *options)

    return call


def environment() -> dict[str, str]:
    # What others set for a process group, or for the number of threads, is not this test's.
    clean = {k: v for k, v in own_environment().items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    return clean | {"OMP_NUM_THREADS": "1"}


def run(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True, timeout=300)


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


def wait_for(count: int, folder: Path, job: subprocess.Popen[bytes]) -> None:
    """Until so many pictures are there."""
    until = time.monotonic() + 240
    while painted(folder) < count and time.monotonic() < until:
        assert job.poll() is None, "the job ended too early"
        time.sleep(0.05)
    assert painted(folder) >= count


def workers_of(job: subprocess.Popen[bytes]) -> list[int]:
    """The processes of its workers that paint, by what Ray calls them."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if b"ray::MapWorker" in path.read_bytes() and _is_below(int(path.parent.name), job.pid):
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


def _is_below(process: int, ancestor: int) -> bool:
    while process > 1:
        process = int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
        if process == ancestor:
            return True
    return False


@pytest.fixture
def started(folder: Path) -> Iterator[Callable[[list[str]], subprocess.Popen[bytes]]]:
    """Starts a job in a session of its own, of which nothing is left at the end."""
    jobs = []

    def start(command: list[str]) -> subprocess.Popen[bytes]:
        with (folder / "job.log").open("ab") as log:
            jobs.append(
                subprocess.Popen(
                    command, cwd=folder, env=environment(), stdout=log, stderr=log, start_new_session=True
                )
            )
        return jobs[-1]

    yield start
    for job in jobs:
        try:
            os.killpg(job.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        job.wait()


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds the workers in /proc")
def test_killed_workers_and_jobs_lose_nothing_and_change_nothing(
    folder: Path, call: Callable, undisturbed: dict[str, bytes], started: Callable
) -> None:
    pytest.importorskip("ray")
    command = call("ray", "--engine", "ray", "--workers", "2")
    job, out = started(command), folder / "ray"
    for count in (20, 60, 100):  # a worker is killed at each
        wait_for(count, out, job)
        victims = workers_of(job)
        assert victims
        os.kill(victims[0], signal.SIGKILL)
    for count in (140, 220):  # the job is
        wait_for(count, out, job)
        os.kill(job.pid, signal.SIGKILL)
        job.wait()
        job = started(command)
    assert job.wait(300) == 1
    told = (folder / "job.log").read_text()
    assert broken_in(told) == BROKEN_NAMES
    last = told.splitlines()[-BROKEN - 2 :]
    (summary,) = [line for line in last if " painted, " in line]
    fresh, there, failed = map(int, re.findall(r"(\d+) (?:painted|there already|failed)", summary))
    assert fresh + there == PHOTOS - BROKEN and failed == BROKEN and there >= 220
    assert results(out) == undisturbed


def test_without_a_model_a_job_is_one_line(folder: Path, call: Callable) -> None:
    pytest.importorskip("ray")
    (folder / "empty.ckpt").write_bytes(b"")
    done = run(call("none", "--engine", "ray", "--workers", "1", "--checkpoint", "empty.ckpt"), folder)
    assert done.returncode == 2 and done.stderr.splitlines()[-1].startswith("error: empty.ckpt")


PIPELINE = """
import ray
from ldm import Settings
from ldm.pipeline.batches import BatchOptions, BatchPainter

ray.init(num_cpus=3, include_dashboard=False)
options = BatchOptions({"painting": "painting.png"}, Settings(look="palette", size=32))
photos = ray.data.read_binary_files("photos", include_paths=True).limit(20)
painted = photos.map_batches(
    BatchPainter,
    fn_constructor_args=[options],
    batch_size=8,
    compute=ray.data.ActorPoolStrategy(size=1),
)
painted.write_parquet("table")
"""


def test_the_painter_goes_into_a_pipeline_of_ray_data(folder: Path) -> None:
    pytest.importorskip("ray")
    parquet = pytest.importorskip("pyarrow.parquet")
    done = run([sys.executable, "-c", PIPELINE], folder)
    assert done.returncode == 0, done.stderr
    rows = parquet.read_table(folder / "table").to_pylist()
    assert len(rows) == 20 and sum(row["error"] is not None for row in rows) == 1
    assert all((row["picture"] or b"\x89PNG").startswith(b"\x89PNG") for row in rows)


def test_shares_by_number_paint_what_one_process_does(
    folder: Path, call: Callable, undisturbed: dict[str, bytes]
) -> None:
    told = ""
    for number in range(3):
        done = run(call("shares", "--shard", f"{number}/3"), folder)
        assert done.returncode == 1  # of this share's broken ones
        told += done.stderr
    assert results(folder / "shares") == undisturbed and broken_in(told) == BROKEN_NAMES


def test_under_torchrun_a_broken_photo_stops_no_process(
    folder: Path, call: Callable, undisturbed: dict[str, bytes]
) -> None:
    command = call("torchrun")
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = run([*start, *command[command.index("-m") :]], folder)
    assert done.returncode == 0, done.stderr
    assert results(folder / "torchrun") == undisturbed and broken_in(done.stderr) == BROKEN_NAMES


def test_a_job_ends_early_where_too_many_fail(folder: Path, call: Callable) -> None:
    done = run(call("few", "--max-failed", "0.01"), folder)
    assert done.returncode == 1 and "more than 1% of the pictures failed" in done.stderr
    assert painted(folder / "few") < PHOTOS // 2
    assert run(call("few", "--max-failed", "0.05"), folder).returncode == 0
