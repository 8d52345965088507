"""Whole pictures in the fast look, from the published way to paint them to ours, step by step."""

import json
import statistics
import subprocess
import sys
import tempfile
from argparse import Namespace
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm import tqdm

from ldm.benchmarking import ways
from ldm.benchmarking.measuring import (
    Stopwatch,
    exact_float32,
    in_own_process,
    machine,
    places,
    psnr,
    row_failed,
)
from ldm.benchmarking.models import RANDOM, check_painting, load_model, read_task
from ldm.data.splits import find_pictures
from ldm.device import choose_device, choose_precision, memory_errors, peak_memory
from ldm.errors import UserError
from ldm.media.images import load_square
from ldm.models.diffusion.dual_cond import DualCondModel
from ldm.pipeline.bundled import BUNDLED
from ldm.pipeline.cuda_graphs import Recorder
from ldm.pipeline.pipeline import compile_networks
from ldm.pipeline.settings import Settings
from ldm.program import own_command, own_environment
from ldm.text import markdown_table

GUIDANCE = (0.7, 1.5)  # of content and style: all three branches of guidance
WARM_UP_STEPS = 2  # of the published way, a full run of which takes minutes

Result = dict[str, float]


@dataclass(frozen=True)
class SamplingRow:
    """One way to paint: what it is called, and how it differs from ours with two-way guidance in float32."""

    name: str
    way: str = "prepared"  # or "published", "unprepared", "process"
    precision: str = "fp32"
    channels_last: bool = False
    fused_attention: bool = True  # torch's kernels for scaled dot product attention, or its plain formula
    compile: bool = False
    record: bool = False  # as CUDA graphs
    optional: bool = False  # the other rows go on where it fails
    scales: tuple[float, float] = GUIDANCE
    interval: tuple[float, float] | None = None
    batch: int = 1
    converged: bool = False  # as many steps of DDIM as there are, once: what the others are compared with

    @property
    def comparable(self) -> bool:
        """Whether its picture goes towards the converged one as steps are added."""
        return self.way in ("unprepared", "prepared")

    def settings(self, num_timesteps: int) -> Settings:
        sampler = {"sampler": "ddim", "steps": num_timesteps} if self.converged else {}
        return Settings(look="fast", guidance_interval=self.interval, **sampler)


ROWS = (
    SamplingRow(
        "published: 250 steps of DDIM with fresh noise, all computed at every step, float32", way="published"
    ),
    SamplingRow("DPM-Solver++, 20 steps", way="unprepared"),
    SamplingRow("+ conditions prepared once"),
    SamplingRow("+ bf16", precision="bf16"),
    SamplingRow("+ channels_last", precision="bf16", channels_last=True),
    SamplingRow("+ compile (optional)", precision="bf16", channels_last=True, compile=True, optional=True),
    SamplingRow(
        "ours, scales 1 and 1 (no null branches)", precision="auto", channels_last=True, scales=(1.0, 1.0)
    ),
    SamplingRow(
        "ours, guidance from 0.2 to 0.8 of the way", precision="auto", channels_last=True, interval=(0.2, 0.8)
    ),
    SamplingRow("ours, batch of 8", precision="auto", channels_last=True, batch=8),
    SamplingRow("whole process: artfusion stylize --look fast", way="process"),
)
REFERENCES = {
    scales: SamplingRow(f"converged, scales {scales[0]:g} and {scales[1]:g}", scales=scales, converged=True)
    for scales in dict.fromkeys(row.scales for row in ROWS if row.comparable)
}
ALL_ROWS = (*ROWS, *REFERENCES.values())


def main(args: Namespace) -> None:
    check(args)
    if args.one_row is not None:
        print(json.dumps(measure(args.one_row, args)))
        return
    chosen = choose_rows(args)
    with tempfile.TemporaryDirectory() as folder:
        results = measure_all(chosen, folder, args)
        print_table(chosen, results, Path(folder), args)


def check(args: Namespace) -> None:
    """Raises UserError, before any work, for what cannot be measured."""
    check_painting(args, needs_weights="--reference" if args.reference else None)
    if not 1 <= args.published_steps <= ways.PUBLISHED_STEPS:
        raise UserError(
            f"--published-steps must be between 1 and {ways.PUBLISHED_STEPS}, got {args.published_steps}"
        )


def choose_rows(args: Namespace) -> list[int]:
    """Places of the rows to measure. The program paints with the bundled model, so its row is for that one alone."""
    bundled = args.checkpoint in BUNDLED
    if args.rows is None:
        return [n for n, row in enumerate(ROWS) if row.way != "process" or bundled]
    chosen = places(args.rows, len(ROWS))
    if not bundled and any(ROWS[n].way == "process" for n in chosen):
        raise UserError("--rows: the whole process is measured with the bundled model only")
    return chosen


def measure_all(chosen: Sequence[int], folder: str, args: Namespace) -> dict[int, Result | None]:
    """The results of rows by their places; None for an optional one that failed. Their pictures are left in the folder."""
    needed = dict.fromkeys(reference_of(n) for n in chosen if ROWS[n].comparable) if args.reference else {}
    results: dict[int, Result | None] = {}
    for n in tqdm([*chosen, *needed], unit="row"):
        results[n] = in_own_process("--one-row", str(n), "--results", folder)
        if results[n] is None and not ALL_ROWS[n].optional:
            raise row_failed(n)
        # Told at once: a run takes long, and one that is stopped prints no table.
        tqdm.write(f"{ALL_ROWS[n].name}: {told(results[n])}", file=sys.stderr)
    return results


def reference_of(number: int) -> int:
    """The place of what a row is compared with."""
    return ALL_ROWS.index(REFERENCES[ROWS[number].scales])


# One row


def measure(number: int, args: Namespace) -> Result:
    """Median seconds for a picture, peak memory in bytes."""
    row, device = ALL_ROWS[number], choose_device(args.device)
    if row.way == "process":
        return measure_process(args, args.size, "fast")
    exact_float32()
    model = load_model(args, device)
    adapt(model, row)
    task = read_task(args, model, row.batch, row.scales)
    with memory_errors("lower --size"):
        if not row.converged:
            paint(model, task, row, WARM_UP_STEPS)
        runs = [
            paint(model, task, row, args.published_steps) for _ in range(1 if row.converged else args.repeats)
        ]
    if args.results is not None:
        torch.save(runs[0][0][0].float().cpu(), picture_file(args.results, number))
    return {
        "seconds": statistics.median(seconds for _, seconds in runs) / row.batch,
        "bytes": peak_memory(device),
    }


def adapt(model: DualCondModel, row: SamplingRow) -> None:
    """Weights kept in bf16 (see `make_fast`), memory format, compilation."""
    if row.precision != "fp32":
        model.requires_grad_(True)
    if row.channels_last:
        model.to(memory_format=torch.channels_last)
    if row.compile:
        compile_networks(model)


def paint(
    model: DualCondModel,
    task: ways.Task,
    row: SamplingRow,
    published_steps: int,
    recorder: Recorder | None = None,
) -> ways.Painted:
    precision = choose_precision(row.precision, model.device)
    with nullcontext() if row.fused_attention else sdpa_kernel(SDPBackend.MATH):
        if row.way == "published":
            return ways.published(model, task, published_steps)
        if row.way == "unprepared":
            return ways.unprepared(model, task, precision)
        return ways.prepared(model, task, row.settings(model.num_timesteps), precision, recorder)


def measure_process(args: Namespace, size: int, look: str) -> Result:
    """Of the program that paints one square picture, its start included."""
    seconds, device = [], choose_device(args.device)
    hidden = {"CUDA_VISIBLE_DEVICES": ""} if device.type == "cpu" else {}
    with tempfile.TemporaryDirectory() as folder:
        content = Path(folder) / "content.png"
        load_square(find_pictures(args.contents)[0], size).save(content)
        files = {
            "--content": content,
            "--style": find_pictures(args.styles)[0],
            "--output": Path(folder) / "result.png",
        }
        options = {**files, "--look": look, "--size": str(size)}
        command = own_command("stylize", *(str(part) for option in options.items() for part in option))
        for _ in range(1 + args.repeats):
            watch = Stopwatch(torch.device("cpu"))
            done = subprocess.run(
                command,
                env=own_environment() | hidden,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
            seconds.append(watch.seconds())
            if done.returncode:
                raise UserError(f"artfusion stylize failed: {' '.join(done.stderr.splitlines()[-1:])}")
    return {"seconds": statistics.median(seconds[1:]), "bytes": peak_memory(device, children=True)}


def picture_file(folder: str | Path, number: int) -> Path:
    return Path(folder) / f"{number}.pt"


# The table


def print_table(
    chosen: Sequence[int], results: dict[int, Result | None], folder: Path, args: Namespace
) -> None:
    device = choose_device(args.device)
    weights = "random weights" if args.checkpoint == RANDOM else f"weights {args.checkpoint}"
    scales = f"scales {GUIDANCE[0]:g} and {GUIDANCE[1]:g}"
    print(
        f"{Path(args.config).name}, {weights}, {args.size} x {args.size} pixels, {scales}, {machine(device)}, median of {args.repeats} runs,"
    )
    print(f"our own number format here: {choose_precision('auto', device)}\n")
    rows = [
        [row_name(n, args), *numbers(results[n], results[chosen[0]]), quality(n, results, folder, args)]
        for n in chosen
    ]
    print(
        markdown_table(
            ["way", "seconds per picture", "times the first", "peak memory", "PSNR to converged"], rows
        )
    )
    if args.reference:
        print(
            "\nPSNR in dB to DDIM with as many steps as the schedule has, in float32, with the row's scales acting all the way."
        )
        print("random: fresh noise at every step makes another picture each time.")


def row_name(number: int, args: Namespace) -> str:
    name, steps = ROWS[number].name, args.published_steps
    if ROWS[number].way == "published" and steps < ways.PUBLISHED_STEPS:
        return name.replace("250 steps", f"250 steps, from {steps} measured,")
    return name


def told(result: Result | None) -> str:
    seconds, _, memory = numbers(result, result)
    return f"{seconds} s, {memory}" if result else "failed"


def numbers(result: Result | None, first: Result | None) -> list[str]:
    """The cells of seconds, speed and memory."""
    if result is None:
        return ["failed"] * 3
    ratio = "?" if first is None else f"{first['seconds'] / result['seconds']:.2f}"
    return [
        f"{result['seconds']:.3g}",
        ratio,
        f"{result['bytes'] / 1e9:.2f} GB" if result["bytes"] else "not known",
    ]


def quality(number: int, results: dict[int, Result | None], folder: Path, args: Namespace) -> str:
    """The cell of the PSNR."""
    row = ROWS[number]
    if not args.reference or row.way == "process" or results[number] is None:
        return "not run"
    if not row.comparable:
        return "random"
    files = [picture_file(folder, n) for n in (number, reference_of(number))]
    painted, converged = (torch.load(file, weights_only=True)[None] for file in files)
    return f"{psnr(painted, converged).item():.1f}"
