"""The fine look: what a whole picture takes at each size, and what it is worth to begin with a
sampled picture."""

import statistics
from collections.abc import Iterator
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.utils.benchmark import timer
from tqdm import tqdm

from benchmarks.measuring import machine
from benchmarks.models import check_painting
from benchmarks.options import BrushOptions
from benchmarks.sampling import Measured, measure_process
from ldm.data.splits import find_pictures
from ldm.device import choose_device
from ldm.media.images import load_square
from ldm.media.tensors import image_to_tensor
from ldm.modules.losses.energy import Energy
from ldm.pipeline.brush import Order, descend, levels
from ldm.pipeline.looks import LOOKS
from ldm.pipeline.pipeline import StyleTransferPipeline
from ldm.pipeline.settings import Settings
from ldm.text import markdown_table

STEPS = 100  # of each way
NOTED = (0, 5, 10, 20, 40, 60, 80, 100)
PHOTO, SAMPLED = "the photo", "the sampled picture"


class Way:
    """A way down an energy: (seconds so far, style term, content term, both weighed) before each step
    and in the end."""

    def __init__(self, energy: Energy, start: Tensor, seconds: float, bar: tqdm):
        """From a picture that took these seconds to make."""
        self.energy, self.picture, self.bar = energy, start.clone(), bar
        self.seconds, self.points = seconds, []
        with torch.no_grad():
            descend(energy, self.picture, self._steps(), STEPS, LOOKS["fine"].rate)
            self._note()

    def _steps(self) -> Iterator[int]:
        for i in range(STEPS):
            self._note()  # what is measured here does not count as time
            began = timer()
            yield i
            self.seconds += timer() - began
            self.bar.update()

    def _note(self) -> None:
        style, content = self.energy.terms(self.picture.clamp(-1, 1))
        weighed = self.energy.style_weight * style, self.energy.content_weight * content
        self.points.append((self.seconds, *map(float, weighed)))

    def seconds_to(self, energy: float) -> float | None:
        """Until the energy is as low as that; None if it never is."""
        return next((seconds for seconds, style, content in self.points if style + content <= energy), None)


def run(options: BrushOptions) -> None:
    check_painting(options, options.size, *options.sizes, needs_weights="this suite")
    whole = {size: measure_process(options, size, "fine") for size in sorted(options.sizes)}
    pipeline = StyleTransferPipeline.from_pretrained(options.weights, options.config, options.device)
    print_tables(whole, measure_starts(pipeline, options), options)


def measure_starts(pipeline: StyleTransferPipeline, options: BrushOptions) -> list[dict[str, Way]]:
    """The ways from the photo and from the sampled picture, for each pair."""
    folders = [find_pictures(folder) for folder in (options.contents, options.styles)]
    pairs = [
        [load_square(paths[i % len(paths)], options.size) for paths in folders]
        for i in range(options.pictures)
    ]
    sampling = {
        "look": "sampled",
        "steps": Settings().number_of_steps,
        "size": options.size,
        "seed": options.seed,
    }
    pipeline(*pairs[0], **sampling)  # to warm up
    measured = []
    with tqdm(total=2 * STEPS * len(pairs), unit="step") as bar:
        for photo, painting in pairs:
            began = timer()
            sampled = pipeline(photo, painting, **sampling)
            seconds, energy = timer() - began, energy_for(pipeline, photo, painting)
            starts = {PHOTO: (photo, 0.0), SAMPLED: (sampled, seconds)}
            measured.append(
                {
                    name: Way(energy, _tensor(start, pipeline), taken, bar)
                    for name, (start, taken) in starts.items()
                }
            )
    return measured


def energy_for(pipeline: StyleTransferPipeline, photo: Image.Image, painting: Image.Image) -> Energy:
    """That of the full size of a fine picture."""
    order = Order(photo.size[::-1], [[(painting, 1.0)]], _tensor(photo, pipeline))
    return pipeline.brush.energy(levels(order.size, LOOKS["fine"])[-1], order)


def _tensor(image: Image.Image, pipeline: StyleTransferPipeline) -> Tensor:
    return image_to_tensor(image)[None].to(pipeline.model.device)


def print_tables(whole: dict[int, Measured], ways: list[dict[str, Way]], options: BrushOptions) -> None:
    where = machine(choose_device(options.device))
    print(
        f"artfusion stylize, the whole process, square pictures, {Path(options.config).name}, {where}, median of {options.repeats} runs\n"
    )
    rows = [
        [f"{size} x {size}", f"{result.seconds:.1f}", f"{result.bytes / 1e9:.2f} GB"]
        for size, result in whole.items()
    ]
    print(markdown_table(["picture", "seconds", "peak memory"], rows))
    print(
        f"\nOne size, {options.size} x {options.size} pixels, {len(ways)} pairs, means: energy (style term, content term)\n"
    )
    head = ["begun with", *(f"{steps} steps" for steps in NOTED)]
    print(markdown_table(head, [start_row(name, ways) for name in (PHOTO, SAMPLED)]))
    print(
        f"\nSeconds, that of sampling included, until the energy is what 10, 20 and 40 steps from {SAMPLED} make of it, medians\n"
    )
    head = ["begun with", "10 steps", "20 steps", "40 steps"]
    print(markdown_table(head, [seconds_row(name, ways) for name in (PHOTO, SAMPLED)]))


def start_row(name: str, ways: list[dict[str, Way]]) -> list[str]:
    cells = []
    for steps in NOTED:
        style, content = (statistics.fmean(way[name].points[steps][i] for way in ways) for i in (1, 2))
        cells.append(f"{style + content:.2f} ({style:.2f}, {content:.2f})")
    return [name, *cells]


def seconds_row(name: str, ways: list[dict[str, Way]]) -> list[str]:
    cells = []
    for steps in (10, 20, 40):
        taken = [way[name].seconds_to(sum(way[SAMPLED].points[steps][1:])) for way in ways]
        reached = [seconds if seconds is not None else float("inf") for seconds in taken]
        cells.append(f"{statistics.median(reached):.1f}".replace("inf", f"not in {STEPS} steps"))
    return [name, *cells]
