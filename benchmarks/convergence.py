"""How many steps each sampler takes to come near the picture that it converges to."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from benchmarks import ways
from benchmarks.measuring import exact_float32, machine, psnr
from benchmarks.models import check_painting, load_model, read_task
from benchmarks.options import ConvergenceOptions
from ldm.device import choose_device, memory_errors
from ldm.models.diffusion.dual_cond import DualCondModel
from ldm.pipeline.settings import Settings
from ldm.text import markdown_table

CONVERGING = ("dpm-solver++", "ddim")
STEPS = (5, 10, 15, 20, 50, 250)
SCALES = ((1.0, 1.0), (0.7, 1.5), (2.0, 2.0))
BATCH = 8  # pictures at once

Measured = dict[tuple[str, tuple[float, float]], list[float]]  # by the sampler and the two scales


def run(options: ConvergenceOptions) -> None:
    check_painting(options, options.size, needs_weights="this suite")
    exact_float32()
    model = load_model(options, choose_device(options.device))
    with memory_errors("lower --size"):
        task = read_task(options, model, options.pictures, options.size, SCALES[0])
        print_table(measure(model, task), model.num_timesteps, options)


def measure(model: DualCondModel, task: ways.Task) -> Measured:
    """The mean PSNR over the pictures at each number of steps."""
    measured = {}
    with tqdm(total=len(SCALES) * (1 + len(CONVERGING) * len(STEPS)), unit="run") as bar:
        for scales in SCALES:
            scaled = replace(task, scales=scales)
            converged = paint(model, scaled, "ddim", model.num_timesteps, bar)
            for sampler in CONVERGING:
                painted = (paint(model, scaled, sampler, steps, bar) for steps in STEPS)
                measured[sampler, scales] = [psnr(pictures, converged).mean().item() for pictures in painted]
    return measured


def paint(model: DualCondModel, task: ways.Task, sampler: str, steps: int, bar: tqdm) -> Tensor:
    settings = Settings(look="sampled", sampler=sampler, steps=steps)
    pictures = torch.cat([ways.prepared(model, part, settings, "fp32")[0] for part in _parts(task)])
    bar.update()
    return pictures


def _parts(task: ways.Task) -> Iterator[ways.Task]:
    for i in range(0, len(task.seeds), BATCH):
        part = slice(i, i + BATCH)
        yield replace(task, content=task.content[part], style=task.style[part], seeds=task.seeds[part])


def print_table(measured: Measured, num_timesteps: int, options: ConvergenceOptions) -> None:
    print(
        f"PSNR in dB to DDIM with {num_timesteps} steps, float32, mean of {options.pictures} pictures of {options.size} x {options.size} "
        f"pixels; {Path(options.config).name}, {options.weights_told}, {machine(choose_device(options.device))}\n"
    )
    head = ["sampler", "content scale", "style scale", *(f"{steps} steps" for steps in STEPS)]
    rows = [
        [
            sampler,
            *(f"{scale:g}" for scale in scales),
            *(f"{value:.1f}" for value in measured[sampler, scales]),
        ]
        for sampler in CONVERGING
        for scales in SCALES
    ]
    rows.append(["ancestral", "any", "any", *["random"] * len(STEPS)])
    print(markdown_table(head, rows))
    print(
        "\nAncestral sampling draws fresh noise at every step: its pictures do not converge to one, so there is nothing to compare with."
    )
