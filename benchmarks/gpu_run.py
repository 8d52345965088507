"""Everything worth doing in a short time on a GPU, in order of value, each part with a time of its
own.

    python benchmarks/gpu_run.py --output gpu --minutes 9                      # the parts check, speed and training
    python benchmarks/gpu_run.py --output gpu --minutes 9 --parts bundled --pictures packed

  check      is what the GPU computes right: golden numbers, every number format against float32 on the CPU, the same seed twice
  speed      the tables of docs/performance.md: whole pictures by every way (artfusion benchmark gpu)
  training   the same for training steps
  bundled    goes on training the bundled model, on pictures from benchmarks/pack_pictures.py, in all the time that is left

What is done is written to --output at once: killed or out of time, the same command does the rest.
The bundled model's weights come back in parts of at most 15 MiB (weights.part-0, ...); `cat
weights.part-* > model.safetensors` makes them whole. With --rehearse all parts run in tiny sizes,
on a CPU too.
"""

import argparse
import os
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ldm.errors import UserError
from ldm.files import ROOT, check_folder, written_whole
from ldm.program import ArgumentParser, own_environment, run

sys.path.insert(0, str(ROOT))
from benchmarks.rows import GPU_PAINTING, GPU_TRAINING

SECONDS = {"check": 90, "speed": 210, "training": 90, "bundled": 3600}  # at most
TABLES_SECONDS = 60
PART_BYTES = 15 * 2**20
SPARE = 20  # seconds to write what there is


def parse_args() -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="folder for the results")
    parser.add_argument("--minutes", type=float, default=9.0, metavar="M", help="in all (default: 9)")
    parser.add_argument(
        "--parts",
        nargs="+",
        choices=SECONDS,
        default=["check", "speed", "training"],
        metavar="PART",
        help="some of check, speed, training, bundled (default: all but bundled)",
    )
    parser.add_argument(
        "--pictures",
        type=Path,
        metavar="DIR",
        help="for bundled: photos.zip and paintings.zip, or folders of these names",
    )
    parser.add_argument(
        "--start", default="mini", metavar="mini|FILE", help="for bundled: the weights to go on from"
    )
    parser.add_argument(
        "--phases",
        nargs="+",
        default=["cross", "large"],
        metavar="PHASE",
        help="for bundled: as of artfusion train-bundled (default: cross large)",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--rehearse", action="store_true", help="everything in tiny sizes")
    return parser.parse_args()


def main() -> int:
    args = parse_args()
    if not args.minutes > 0:
        raise UserError(f"--minutes must be above 0, got {args.minutes}")
    if "bundled" in args.parts and args.pictures is None:
        raise UserError("the part bundled needs --pictures, see benchmarks/pack_pictures.py")
    check_folder(args.output)
    args.output.mkdir(parents=True, exist_ok=True)
    end, failed = time.monotonic() + 60 * args.minutes, []
    parts: dict[str, Callable[[argparse.Namespace, float], None]]
    parts = {"check": check, "speed": speed, "training": training, "bundled": bundled}
    for name in [name for name in parts if name in args.parts]:
        seconds = min(SECONDS[name], end - time.monotonic() - SPARE)
        if (args.output / f"{name}.done").exists() or seconds <= 0:
            print(f"{name}: {'done before' if seconds > 0 else 'no time left'}", flush=True)
            continue
        began = time.monotonic()
        try:
            parts[name](args, seconds)
            (args.output / f"{name}.done").touch()
        # the next part may work all the same
        except (UserError, OSError, RuntimeError, subprocess.SubprocessError) as error:
            failed.append(name)
            print(f"{name}: {type(error).__name__}: {error}", flush=True)
        print(f"{name}: {time.monotonic() - began:.0f} s", flush=True)
    return 1 if failed else 0


# Is it right, and how fast


def check(args: argparse.Namespace, seconds: float) -> None:
    """Writes check.json, see benchmarks/gpu_check.py."""
    options = ["--output", str(args.output / "check.json"), "--device", args.device]
    called([str(ROOT / "benchmarks/gpu_check.py"), *options, *["--tiny"] * args.rehearse], seconds)


@dataclass(frozen=True)
class Table:
    """Results of artfusion benchmark gpu: their name, options of all runs, and those of each run,
    the most valuable first."""

    name: str
    options: str
    runs: Sequence[str]


FEW = "--config configs/mini.yaml --sizes 64 --batch-sizes 1 --training-batch-sizes 1"
# What compiles, and takes a process of its own for it, comes after all that does not.
LIGHT = "bf16 channels-last prepared fused-attention graph graph-fp16"
LIGHT_TRAINING = "train-published train-bf16 train-stored train-cached train-channels-last train-fused-adamw"
SPEED = (
    Table(
        "speed",
        "",
        (
            f"--sizes 256 --batch-sizes 1 64 --rows published dpm-solver {LIGHT}",
            "--sizes 256 --batch-sizes 1 --rows compiled-graph compile",
        ),
    ),
    Table(
        "speed-mini",
        "--config configs/mini.yaml",
        (
            "--sizes 256 --batch-sizes 1 64 --rows dpm-solver fused-attention graph",
            "--sizes 256 --batch-sizes 1 --rows compiled-graph",
        ),
    ),
    Table(
        "speed",
        "",
        (f"--batch-sizes 1 8 --rows dpm-solver {LIGHT}", "--sizes 256 --batch-sizes 64 --rows compile"),
    ),
)
TRAINING = (
    Table(
        "training",
        "",
        (
            f"--training-batch-sizes 16 --rows {LIGHT_TRAINING}",
            "--training-batch-sizes 128 --rows train-fused-adamw",
            "--training-batch-sizes 16 --rows train-compile",
        ),
    ),
)
TINY_SPEED = (Table("speed", FEW, ("--rows published channels-last",)),)
TINY_TRAINING = (Table("training", FEW, ("--rows train-cached",)),)


def speed(args: argparse.Namespace, seconds: float) -> None:
    """The published model's tables into speed.txt, the bundled model's into speed-mini.txt."""
    measure(TINY_SPEED if args.rehearse else SPEED, GPU_PAINTING, args, seconds)


def training(args: argparse.Namespace, seconds: float) -> None:
    """Tables into training.txt."""
    measure(TINY_TRAINING if args.rehearse else TRAINING, GPU_TRAINING, args, seconds)


def measure(tables: Sequence[Table], rows: Iterable[str], args: argparse.Namespace, seconds: float) -> None:
    """All runs, as far as the time goes; then, in any case, the tables of what there is. Raises
    UserError for the first run that failed."""
    end, failed = time.monotonic() + seconds, []
    try:
        for table, options in [(table, options) for table in tables for options in table.runs]:
            try:
                called([*suite(table, args), *options.split()], end - time.monotonic())
            except UserError as error:  # the next may work all the same
                failed.append(error)
    finally:
        for table in {table.name: table for table in tables}.values():
            write_tables(table, rows, args)
    if failed:
        raise failed[0]


def write_tables(table: Table, rows: Iterable[str], args: argparse.Namespace) -> None:
    if (args.output / table.name / "limits.json").is_file():
        output = called([*suite(table, args), "--rows", *rows, "--tables-only"], TABLES_SECONDS)
        with written_whole(args.output / f"{table.name}.txt") as aside:
            aside.write_text(output)


def suite(table: Table, args: argparse.Namespace) -> list[str]:
    few = "--repeats 1 --published-steps 1" if args.rehearse else "--repeats 5"
    where = ["--device", args.device, "--output", str(args.output / table.name)]
    return ["-m", "ldm", "benchmark", "gpu", *where, *few.split(), *table.options.split()]


# The bundled model


def bundled(args: argparse.Namespace, seconds: float) -> None:
    """Trains in the time that there is, and writes the weights in parts."""
    pictures = {name: unpacked(args.pictures, name, args.output) for name in ("photos", "paintings")}
    hours = max(seconds - (0 if args.rehearse else 60), 10) / 3600  # starting and ending take their time, too
    folder = args.output / "training-bundled"
    options = [
        "--output",
        str(folder),
        "--hours",
        f"{hours:.5f}",
        "--start",
        args.start,
        "--phases",
        *args.phases,
    ]
    for name, path in pictures.items():
        options += [f"--{name}", str(path)]
    called(["-m", "ldm", "train-bundled", *options], seconds + SPARE / 2)
    weights = (folder / "model.safetensors").read_bytes()
    for number in range(-(-len(weights) // PART_BYTES)):
        with written_whole(args.output / f"weights.part-{number}") as aside:
            aside.write_bytes(weights[number * PART_BYTES : (number + 1) * PART_BYTES])


def unpacked(packed: Path, name: str, output: Path) -> Path:
    """The folder of pictures of this name. Raises UserError where there is none."""
    if (packed / name).is_dir():
        return packed / name
    if not (packed / f"{name}.zip").is_file():
        raise UserError(f"{packed}: neither {name}.zip nor a folder {name} in it")
    folder = output / "pictures" / name
    if not folder.is_dir():
        aside = folder.with_name(f".{name}")  # what a killed run left of it is unpacked again
        with zipfile.ZipFile(packed / f"{name}.zip") as archive:
            archive.extractall(aside)
        aside.rename(folder)
    return folder


def called(command: list[str], seconds: float) -> str:
    """Run a program of this project; what it printed. Raises UserError where it fails,
    SubprocessError where its time is over."""
    call = {"env": own_environment(), "text": True, "stdout": subprocess.PIPE, "start_new_session": True}
    with subprocess.Popen([sys.executable, *command], **call) as process:
        try:
            output, _ = process.communicate(timeout=seconds)
        except BaseException:  # what it has started ends with it, else it would hold the GPU
            _end_all(process)
            raise
    print(output, flush=True)
    if process.returncode:
        raise UserError(f"{command[0]} ended with exit code {process.returncode}, see above")
    return output


def _end_all(process: subprocess.Popen) -> None:
    """End a program and all that it has started, first by Ctrl-C, so that training writes a
    checkpoint."""
    for number, patience in ((signal.SIGINT, SPARE / 2), (signal.SIGKILL, None)):
        os.killpg(process.pid, number)
        try:
            process.wait(patience)
            return
        except subprocess.TimeoutExpired:
            pass


if __name__ == "__main__":
    run(main)
