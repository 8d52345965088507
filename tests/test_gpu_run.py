"""What is made ready for a short time on a GPU: pictures packed small, and all that is worth doing, rehearsed on the CPU."""

import json
import os
import subprocess
import zipfile
from io import BytesIO
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from PIL import Image
from pipeline_builders import (
    ROOT,
    assert_refused,
    paintings_and_photos,
    picture,
    program_file,
    run_program,
)

from benchmarks.rows import GPU
from ldm.errors import UserError


@pytest.fixture(scope="module")
def gpu_run() -> ModuleType:
    return program_file(ROOT / "benchmarks/gpu_run.py")


@pytest.fixture(scope="module")
def pack() -> ModuleType:
    return program_file(ROOT / "benchmarks/pack_pictures.py")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    pictures = paintings_and_photos(tmp_path_factory.mktemp("pictures"), 4, 3)
    return ["--photos", str(pictures["photos"]), "--paintings", str(pictures["paintings"])]


# Packing


def test_packed_pictures_are_the_pictures(
    pack: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for kind in ("photos", "paintings"):
        (tmp_path / kind).mkdir()
        picture(400, 320, 1).resize((400, 320)).save(tmp_path / kind / "large.png")
        picture(60, 48, 2).save(tmp_path / kind / "small.png")
    (tmp_path / "photos/broken.jpg").write_text("no picture")
    options = [
        "--photos",
        tmp_path / "photos",
        "--paintings",
        tmp_path / "paintings",
        "--output",
        tmp_path / "packed",
        "--short-side",
        "64",
    ]
    assert run_program(pack.main, options, monkeypatch) == 0
    with zipfile.ZipFile(tmp_path / "packed/photos.zip") as archive:
        sizes = sorted(Image.open(BytesIO(archive.read(name))).size for name in archive.namelist())
    assert sizes == [(60, 48), (80, 64)]
    with zipfile.ZipFile(tmp_path / "packed/paintings.zip") as archive:
        assert len(archive.namelist()) == 2


def test_quality_falls_until_all_fit(pack: ModuleType, tmp_path: Path) -> None:
    paths = [tmp_path / f"{i}.png" for i in range(4)]
    for number, path in enumerate(paths):
        picture(200, 160, number).save(path)
    sizes = {
        quality: sum(len(pack.encoded(path, 160, quality)) + 150 for path in paths) / 0.97
        for quality in pack.QUALITIES
    }
    assert (
        pack.quality_for(paths, 160, int(sizes[85]) + 1) == 85
        and pack.quality_for(paths, 160, int(sizes[55]) + 1) == 55
    )
    with pytest.raises(UserError, match="4 pictures do not fit into .* MiB; give a smaller --short-side"):
        pack.quality_for(paths, 160, int(sizes[35]) - 10)
    pack.pack(paths, tmp_path / "all.zip", 160, int(sizes[55]) + 1)
    assert (tmp_path / "all.zip").stat().st_size <= sizes[55] + 1


@pytest.mark.parametrize("wrong", [["--short-side", "2"], ["--megabytes", "0"], ["--photos", "nowhere"]])
def test_bad_packing_is_refused(
    pack: ModuleType, folders: list[str], tmp_path: Path, wrong: list[str], monkeypatch, capsys
) -> None:
    code = run_program(pack.main, [*folders, "--output", tmp_path / "packed", *wrong], monkeypatch)
    assert_refused(
        code, capsys.readouterr(), wrong[0] if wrong[0] != "--photos" else "nowhere: no such folder"
    )
    assert not (tmp_path / "packed").exists()


# The run


def test_the_whole_run_is_rehearsed(
    gpu_run: ModuleType, pack: ModuleType, folders: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run_program(pack.main, [*folders, "--output", tmp_path / "packed"], monkeypatch) == 0
    parts = ["check", "speed", "training", "bundled"]
    call = [
        "--output",
        tmp_path / "out",
        "--device",
        "cpu",
        "--rehearse",
        "--parts",
        *parts,
        "--pictures",
        tmp_path / "packed",
        "--minutes",
        "20",
    ]
    monkeypatch.setitem(gpu_run.SECONDS, "bundled", 15)  # it takes all the time that it gets
    # and these few seconds do not do for starting on a busy machine
    monkeypatch.setattr(gpu_run, "SPARE", 600)
    monkeypatch.setitem(gpu_run.SECONDS, "check", 600)
    monkeypatch.setitem(gpu_run.SECONDS, "speed", 600)
    monkeypatch.setitem(gpu_run.SECONDS, "training", 600)
    assert run_program(gpu_run.main, call, monkeypatch) == 0
    assert all((tmp_path / "out" / f"{name}.done").exists() for name in parts)
    checked = json.loads((tmp_path / "out/check.json").read_text())
    assert (
        checked["fast picture of 64 px, fp32: PSNR"]
        == checked["fine picture of 64 px, fp32: PSNR"]
        == float("inf")
    )
    assert (
        checked["fast picture of 64 px, bf16: PSNR"] > 30
        and checked["fine picture of 64 px, bf16: the same twice"] is True
    )
    assert (
        checked["golden prediction, fp32: relative error"] < 1e-5
        and checked["golden guided run, fp32: relative error"] < 1e-4
    )
    assert 1e-4 < checked["golden prediction, bf16: relative error"] < 0.05
    assert (
        "DPM-Solver++" not in (tmp_path / "out/training.txt").read_text()
        and "bf16" in (tmp_path / "out/speed.txt").read_text()
    )
    weights = b"".join((tmp_path / f"out/weights.part-{n}").read_bytes() for n in range(2))
    assert weights == (tmp_path / "out/training-bundled/model.safetensors").read_bytes()
    for name in parts:  # nothing is done twice
        monkeypatch.setattr(gpu_run, name, None)
    assert run_program(gpu_run.main, call, monkeypatch) == 0


def test_a_part_that_fails_does_not_stop_the_next(
    gpu_run: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def fail(*args: Any) -> None:
        raise RuntimeError("no such kernel")

    done = []
    monkeypatch.setattr(gpu_run, "check", fail)
    monkeypatch.setattr(gpu_run, "speed", lambda *args: done.append("speed"))
    assert run_program(gpu_run.main, ["--output", tmp_path, "--parts", "check", "speed"], monkeypatch) == 1
    assert done == ["speed"] and "check: RuntimeError: no such kernel" in capsys.readouterr().out
    assert (tmp_path / "speed.done").exists() and not (tmp_path / "check.done").exists()


def suite_calls(
    gpu_run: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    output: Path,
    failing: str | None = None,
    slow: str | None = None,
) -> list[str]:
    """Stands for artfusion benchmark gpu: the calls, of which one fails and one takes all the time that is left."""
    calls = []

    def called(command: list[str], seconds: float) -> str:
        folder = Path(command[command.index("--output") + 1])
        calls.append(" ".join(command[command.index("--output") + 1 :]).replace(f"{output}/", ""))
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "limits.json").touch()
        if failing and failing in calls[-1] and "--tables-only" not in command:
            raise UserError("row 9 failed")
        if slow and slow in calls[-1] and "--tables-only" not in command:
            raise subprocess.TimeoutExpired(command, seconds)
        return f"tables of {folder.name}"

    monkeypatch.setattr(gpu_run, "called", called)
    return calls


def test_a_run_of_the_tables_that_fails_leaves_the_others(
    gpu_run: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = suite_calls(gpu_run, monkeypatch, tmp_path, failing="--rows compiled-graph compile")
    assert (
        run_program(gpu_run.main, ["--output", tmp_path, "--parts", "speed", "--device", "cpu"], monkeypatch)
        == 1
    )
    runs = sum(len(table.runs) for table in gpu_run.SPEED)
    assert (
        len(calls) == runs + 2
        and all("--tables-only" in call for call in calls[runs:])
        and not (tmp_path / "speed.done").exists()
    )
    assert (tmp_path / "speed.txt").read_text() == "tables of speed" and (
        tmp_path / "speed-mini.txt"
    ).read_text() == "tables of speed-mini"


def test_tables_are_written_of_what_there_was_time_for(
    gpu_run: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    calls = suite_calls(gpu_run, monkeypatch, tmp_path, slow="speed-mini")
    assert (
        run_program(
            gpu_run.main,
            ["--output", tmp_path, "--parts", "speed", "training", "--device", "cpu"],
            monkeypatch,
        )
        == 1
    )
    assert (
        "speed: TimeoutExpired" in capsys.readouterr().out
        and (tmp_path / "training.done").exists()
        and not (tmp_path / "speed.done").exists()
    )
    assert [call.split()[0] for call in calls[:5]] == [
        "speed",
        "speed",
        "speed-mini",
        "speed",
        "speed-mini",
    ] and "--tables-only" in calls[3]


def test_the_rows_of_the_tables_are_those_of_the_suite(gpu_run: ModuleType) -> None:
    runs = [run for table in (*gpu_run.SPEED, *gpu_run.TRAINING) for run in table.runs]
    named = [run.split("--rows")[1].split() for run in runs]
    assert {name for names in named for name in names} == {*GPU}
    # What compiles has processes of its own, after what does not.
    assert all(len({GPU[name].compile for name in names}) == 1 for names in named)


@pytest.mark.timeout(120)
def test_a_part_out_of_time_ends_with_all_that_it_started(
    gpu_run: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe, opened = tmp_path / "pipe", []
    os.mkfifo(pipe)

    def communicate(process: subprocess.Popen, timeout: float) -> None:
        opened.append(pipe.open("rb", buffering=0))
        assert opened[0].read(1) == b"x"  # the child runs
        raise subprocess.TimeoutExpired(process.args, timeout)

    monkeypatch.setattr(subprocess.Popen, "communicate", communicate)
    child = f"import signal; pipe = open({str(pipe)!r}, 'wb', buffering=0); pipe.write(b'x'); signal.pause()"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    with pytest.raises(subprocess.TimeoutExpired):
        gpu_run.called(["-c", parent], 10)
    with opened[0]:
        assert opened[0].read() == b""  # nobody holds the other end any more


@pytest.mark.parametrize(
    "wrong, problem",
    [
        (["--minutes", "0"], "--minutes must be above 0"),
        (["--parts", "bundled"], "the part bundled needs --pictures"),
        (["--parts", "all"], "--parts"),
    ],
)
def test_bad_runs_are_refused(
    gpu_run: ModuleType, tmp_path: Path, wrong: list[str], problem: str, monkeypatch, capsys
) -> None:
    assert_refused(
        run_program(gpu_run.main, ["--output", tmp_path / "out", *wrong], monkeypatch),
        capsys.readouterr(),
        problem,
    )
    assert not (tmp_path / "out").exists()


def test_pictures_that_are_not_there_are_told(gpu_run: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="neither photos.zip nor a folder photos in it"):
        gpu_run.unpacked(tmp_path, "photos", tmp_path)
