"""The tables of the suite `gpu`, of what has been measured."""

from collections.abc import Sequence
from itertools import product
from pathlib import Path

import torch

from benchmarks.gpu_results import Result, Results
from benchmarks.measuring import machine, psnr
from benchmarks.options import PUBLISHED_STEPS, GpuOptions
from benchmarks.rows import GPU_PAINTING, GPU_TRAINING, GUIDANCE, REFERENCE
from ldm.device import choose_device
from ldm.pipeline.settings import Settings
from ldm.text import markdown_table

SHARE, MEMORY = "share of the bf16 matrix rate", "peak memory"


def print_tables(names: Sequence[str], results: Results, options: GpuOptions) -> None:
    limits, where = results.get("limits"), machine(choose_device(options.device))
    print(
        f"{Path(options.config).name}, {options.weights_told}, {where}, medians of {options.repeats} runs\n"
        f"matrix products: {limits['fp32'] / 1e12:.3g} TFLOP/s in float32, {limits['bf16'] / 1e12:.3g} in bf16; "
        f"copies: {limits['bytes'] / 1e9:.3g} GB/s, read and written\n"
    )
    painting, training = ([name for name in names if name in kind] for kind in (GPU_PAINTING, GPU_TRAINING))
    if painting:
        reference = GPU_PAINTING[REFERENCE].label
        print(f"Against {reference} in float32: one guided prediction from random inputs, and a picture\n")
        head = ["way", "relative error of a prediction", "PSNR of the picture"]
        print(markdown_table(head, [accuracy(name, results) for name in painting]))
    for size, batch in product(options.sizes, options.batch_sizes) if painting else ():
        scales = f"scales {GUIDANCE[0]:g} and {GUIDANCE[1]:g}"
        print(f"\n{size} x {size} pixels, {batch} at once, {scales}, encoding and decoding included\n")
        weights = "reading weights, share of copies"
        head = ["way", "ms per picture", "pictures/s", "times the first", SHARE, weights, MEMORY]
        print(markdown_table(head, [painting_cells(name, batch, size, results) for name in painting]))
    for batch in options.training_batch_sizes if training else ():
        print(f"\nTraining, batch {batch}\n")
        head = ["way", "images/s", "times the first", SHARE, MEMORY, "loss of step 1"]
        print(markdown_table(head, [training_cells(name, batch, results) for name in training]))


def accuracy(name: str, results: Results) -> list[str]:
    label, files = GPU_PAINTING[name].label, [results.tensors(each) for each in (name, REFERENCE)]
    if not all(file.is_file() for file in files):
        return [label, *["not run"] * 2]
    own, wanted = (torch.load(file, weights_only=True) for file in files)
    error = (own["prediction"] - wanted["prediction"]).norm() / wanted["prediction"].norm()
    picture = f"{psnr(own['picture'], wanted['picture']).item():.1f}" if "picture" in own else "random"
    return [label, f"{error:.2g}", picture]


def painting_cells(name: str, batch: int, size: int, results: Results) -> list[str]:
    row, work, limits = GPU_PAINTING[name], results.get(f"work-{size}"), results.get("limits")
    own, first = (results.get(f"{each}-{batch}x{size}") for each in (name, next(iter(GPU_PAINTING))))
    if own is None or own["seconds"] is None:
        return [row.label, *[_why_not(own)] * 2, *["-"] * 4]
    seconds, shares = own["seconds"], ["?", "?"]
    if work is not None:
        steps = PUBLISHED_STEPS if row.way == "published" else Settings(look="sampled").number_of_steps
        operations = work["rest"] + steps * work["step"]
        read = steps * work["weights"] * (1 if row.precision == "fp32" else 0.5) / batch
        rates = (operations / seconds / limits["bf16"], read / seconds / limits["bytes"])
        shares = [f"{rate:.1%}" for rate in rates]
    speed = [f"{1000 * seconds:.3g}", f"{1 / seconds:.3g}", _times(first, seconds)]
    return [row.label, *speed, *shares, _gigabytes(own)]


def training_cells(name: str, batch: int, results: Results) -> list[str]:
    label = GPU_TRAINING[name].label
    own, first = (results.get(f"{each}-{batch}") for each in (name, next(iter(GPU_TRAINING))))
    if own is None or own["seconds"] is None:
        return [label, _why_not(own), *["-"] * 4]
    rate = batch / own["seconds"]
    share = rate * own["work"] / results.get("limits")["bf16"]
    speed = [f"{rate:.4g}", _times(first, own["seconds"]), f"{share:.1%}"]
    return [label, *speed, _gigabytes(own), f"{own['loss']:.4f}"]


def _why_not(result: Result | None) -> str:
    return "not run" if result is None else "out of memory"


def _times(first: Result | None, seconds: float) -> str:
    return "?" if first is None or first["seconds"] is None else f"{first['seconds'] / seconds:.1f}"


def _gigabytes(result: Result) -> str:
    return f"{result['bytes'] / 1e9:.1f} GB" if result["bytes"] else "not known"
