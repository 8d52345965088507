"""Whole pictures in the look sampled, from the published way to paint them to ours, step by step."""

import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.benchmark import timer
from tqdm import tqdm

from benchmarks import ways
from benchmarks.measuring import exact_float32, in_own_process, machine, psnr
from benchmarks.models import check_painting, load_model, read_task
from benchmarks.options import PUBLISHED_STEPS, BrushOptions, SamplingOptions
from benchmarks.rows import GUIDANCE, SAMPLING, SamplingRow
from ldm.data.splits import find_pictures
from ldm.device import choose_device, choose_precision, memory_errors, peak_memory
from ldm.errors import UserError
from ldm.media.images import load_square
from ldm.models.diffusion.dual_cond import DualCondModel
from ldm.pipeline.bundled import BUNDLED
from ldm.pipeline.cuda_graphs import Recorder
from ldm.pipeline.pipeline import compile_networks
from ldm.program import own_command, own_environment
from ldm.text import markdown_table

WARM_UP_STEPS = 2  # of the published way, a full run of which takes minutes


@dataclass(frozen=True)
class Measured:
    """Seconds for a picture, the median; peak memory in bytes, 0 if not known; the first picture,
    (3, H, W) in [-1, 1]."""

    seconds: float
    bytes: int
    picture: np.ndarray | None = None


def run(options: SamplingOptions) -> None:
    check_painting(options, options.size, needs_weights="--reference" if options.reference else None)
    names = choose_rows(options)
    scales = {SAMPLING[name].scales for name in names if SAMPLING[name].comparable and options.reference}
    results, converged = {}, {}
    for name in tqdm(names, unit="row"):
        results[name] = measured(name, options)
    for each in tqdm(sorted(scales), unit="reference", disable=not scales):
        row = SamplingRow("converged", scales=each, converged=True)
        converged[each] = in_own_process(row.label, measure, row, options)
    print_table(results, converged, options)


def choose_rows(options: SamplingOptions) -> list[str]:
    """The rows to measure. The program paints with the bundled model, so its row is for that one
    alone."""
    bundled = options.weights in BUNDLED
    if "process" in options.rows and not bundled:
        raise UserError("--rows: the whole process is measured with the bundled model only")
    return [name for name in options.rows or SAMPLING if bundled or name != "process"]


def measured(name: str, options: SamplingOptions) -> Measured | None:
    """A row's result; None where an optional one failed."""
    result = None
    try:
        result = in_own_process(name, measure, SAMPLING[name], options)
    except UserError as error:
        if not SAMPLING[name].optional:
            raise
        tqdm.write(str(error), file=sys.stderr)
    # Told at once: a run takes long, and one that is stopped prints no table.
    seconds, _, memory = numbers(result, None)
    tqdm.write(f"{SAMPLING[name].label}: {seconds} s, {memory}", file=sys.stderr)
    return result


# One row


def measure(row: SamplingRow, options: SamplingOptions) -> Measured:
    if row.way == "process":
        return measure_process(options, options.size, "sampled")
    exact_float32()
    model = load_model(options, choose_device(options.device))
    adapt(model, row)
    task = read_task(options, model, row.batch, options.size, row.scales)
    with memory_errors("lower --size"):
        if not row.converged:
            paint(model, task, row, WARM_UP_STEPS)
        repeats = 1 if row.converged else options.repeats
        runs = [paint(model, task, row, options.published_steps) for _ in range(repeats)]
    seconds = statistics.median(seconds for _, seconds in runs) / row.batch
    return Measured(seconds, peak_memory(model.device), runs[0][0][0].float().cpu().numpy())


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


def measure_process(options: SamplingOptions | BrushOptions, size: int, look: str) -> Measured:
    """Of the program that paints one square picture, its start included."""
    device = choose_device(options.device)
    hidden = {"CUDA_VISIBLE_DEVICES": ""} if device.type == "cpu" else {}
    with tempfile.TemporaryDirectory() as folder:
        content, result = (f"{folder}/{name}.png" for name in ("content", "result"))
        load_square(find_pictures(options.contents)[0], size).save(content)
        files = ["--content", content, "--style", str(find_pictures(options.styles)[0]), "--output", result]
        command = own_command("stylize", *files, "--look", look, "--size", str(size))
        seconds = [seconds_of(command, hidden) for _ in range(1 + options.repeats)]
    return Measured(statistics.median(seconds[1:]), peak_memory(device, children=True))


def seconds_of(command: Sequence[str], environment: dict[str, str]) -> float:
    """That a program takes. Raises UserError where it fails."""
    call = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    began = timer()
    done = subprocess.run(command, env=own_environment() | environment, **call)
    seconds = timer() - began
    if done.returncode:
        raise UserError(f"artfusion stylize failed: {' '.join(done.stderr.splitlines()[-1:])}")
    return seconds


# The table


def print_table(
    results: dict[str, Measured | None],
    converged: dict[tuple[float, float], Measured],
    options: SamplingOptions,
) -> None:
    device, first = choose_device(options.device), next(iter(results.values()))
    print(
        f"{Path(options.config).name}, {options.weights_told}, {options.size} x {options.size} pixels, "
        f"scales {GUIDANCE[0]:g} and {GUIDANCE[1]:g}, {machine(device)}, median of {options.repeats} runs,\n"
        f"our own number format here: {choose_precision('auto', device)}\n"
    )
    head = ["way", "seconds per picture", "times the first", "peak memory", "PSNR to converged"]
    rows = []
    for name, result in results.items():
        row = SAMPLING[name]
        rows.append(
            [told(row, options), *numbers(result, first), quality(row, result, converged.get(row.scales))]
        )
    print(markdown_table(head, rows))
    if options.reference:
        print(
            "\nPSNR in dB to DDIM with as many steps as the schedule has, in float32, with the row's scales acting all the way.\n"
            "random: fresh noise at every step makes another picture each time."
        )


def told(row: SamplingRow, options: SamplingOptions) -> str:
    """The row's label; of the published way with the number of steps that were measured, if not
    all."""
    if row.way == "published" and options.published_steps < PUBLISHED_STEPS:
        return row.label.replace("250 steps", f"250 steps, from {options.published_steps} measured,")
    return row.label


def numbers(result: Measured | None, first: Measured | None) -> list[str]:
    """The cells of seconds, speed and memory."""
    if result is None:
        return ["failed"] * 3
    ratio = "?" if first is None else f"{first.seconds / result.seconds:.2f}"
    memory = f"{result.bytes / 1e9:.2f} GB" if result.bytes else "not known"
    return [f"{result.seconds:.3g}", ratio, memory]


def quality(row: SamplingRow, result: Measured | None, converged: Measured | None) -> str:
    """The cell of the PSNR."""
    if result is None or result.picture is None or converged is None:
        return "not run"
    if not row.comparable:
        return "random"
    pictures = (torch.from_numpy(each.picture)[None] for each in (result, converged))
    return f"{psnr(*pictures).item():.1f}"
