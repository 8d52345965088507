"""How many steps each sampler takes to come near the picture that it converges to."""

from argparse import Namespace
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from ldm.benchmarking import ways
from ldm.benchmarking.measuring import exact_float32, machine, psnr
from ldm.benchmarking.models import check_painting, load_model, read_task
from ldm.device import choose_device, memory_errors
from ldm.models.diffusion.dual_cond import DualCondModel
from ldm.pipeline.settings import Settings
from ldm.text import markdown_table

CONVERGING = ("dpm-solver++", "ddim")
STEPS = (5, 10, 15, 20, 50, 250)
SCALES = ((1.0, 1.0), (0.7, 1.5), (2.0, 2.0))
BATCH = 8  # pictures at once


def main(args: Namespace) -> None:
    check_painting(args, needs_weights="--suite convergence")
    device = choose_device(args.device)
    exact_float32()
    model = load_model(args, device)
    with memory_errors("lower --size"):
        measured = measure(model, read_task(args, model, args.pictures, SCALES[0]))
    print_table(measured, model.num_timesteps, args)


def measure(model: DualCondModel, task: ways.Task) -> dict[tuple[str, tuple[float, float]], list[float]]:
    """For each sampler and pair of scales: the mean PSNR over the pictures at each number of steps."""
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
    settings = Settings(look="fast", sampler=sampler, steps=steps)
    pictures = torch.cat([ways.prepared(model, part, settings, "fp32")[0] for part in _parts(task)])
    bar.update()
    return pictures


def _parts(task: ways.Task) -> Iterator[ways.Task]:
    for i in range(0, len(task.seeds), BATCH):
        part = slice(i, i + BATCH)
        yield replace(task, content=task.content[part], style=task.style[part], seeds=task.seeds[part])


def print_table(
    measured: dict[tuple[str, tuple[float, float]], list[float]], num_timesteps: int, args: Namespace
) -> None:
    print(
        f"PSNR in dB to DDIM with {num_timesteps} steps, float32, mean of {args.pictures} pictures of {args.size} x {args.size} pixels; "
        f"{Path(args.config).name}, weights {args.checkpoint}, {machine(choose_device(args.device))}\n"
    )
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
    print(
        markdown_table(
            ["sampler", "content scale", "style scale", *(f"{steps} steps" for steps in STEPS)], rows
        )
    )
    print(
        "\nAncestral sampling draws fresh noise at every step: its pictures do not converge to one, so there is nothing to compare with."
    )
