"""What each suite can be told: a dataclass, whose fields are the options of its sub-command.
Nothing here imports torch."""

from argparse import ArgumentTypeError
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from benchmarks import rows
from ldm.files import ROOT, own_or
from ldm.pipeline.bundled import BUNDLED, PUBLISHED_CONFIG
from ldm.pipeline.looks import SAMPLERS

PUBLISHED_STEPS = SAMPLERS["ancestral"].steps
MINI_CONFIG = BUNDLED["mini"][1]
RANDOM = "random"  # in place of a checkpoint


def option(default: Any, help: str, **arguments: Any) -> Any:
    """A field, whose metadata are argparse's arguments for its option.

    False is a switch; a number is a whole one from 1 on; a tuple may be given several values.
    """
    if default is False:
        arguments = {"action": "store_true", **arguments}
    elif isinstance(default, (int, tuple)):
        arguments = {"type": count, "metavar": "N", **arguments}
    if isinstance(default, tuple):
        arguments["nargs"] = "+"
    shown = " ".join(map(str, default if isinstance(default, tuple) else [default] if default else []))
    told = help + f" (default: {shown})" * bool(shown)
    return field(default=default, metadata={"default": default, "help": told, **arguments})


def count(text: str) -> int:
    """Reads a whole number from 1 on."""
    if int(text) < 1:
        raise ArgumentTypeError(f"must be at least 1, got {text}")
    return int(text)


def steps_of_published(text: str) -> int:
    if not 1 <= int(text) <= PUBLISHED_STEPS:
        raise ArgumentTypeError(f"must be between 1 and {PUBLISHED_STEPS}, got {text}")
    return int(text)


def published_steps_option(default: int) -> Any:
    text = "of the published way run only so many steps, and scale"
    return option(default, text, type=steps_of_published)


def rows_option(names: Iterable[str]) -> Any:
    text = f"only these rows, of {', '.join(names)}"
    return option((), text, type=str, choices=[*names], metavar="NAME")


@dataclass(frozen=True)
class TrainingOptions:
    """An optimiser's step: seconds and memory.

    On made-up data and random weights, which serve for time; reading pictures is not counted. Each
    row prints the loss of its first step, which speed must not change. Median of the steps after
    two to warm up.
    """

    config: str = option(PUBLISHED_CONFIG, "the model's config", metavar="YAML")
    device: str = option("auto", "auto, cpu or cuda")
    batch_size: int = option(2, "pictures in a step")
    steps: int = option(5, "measured steps of each row")
    rows: tuple[str, ...] = rows_option(rows.TRAINING)


@dataclass(frozen=True)
class PaintingOptions:
    """Of all suites that paint."""

    config: str = option(MINI_CONFIG, "the model's config", metavar="YAML")
    device: str = option("auto", "auto, cpu or cuda")
    checkpoint: str | None = option(
        None, "weights (default: mini for its own config, else random)", metavar="mini|PATH|random"
    )
    contents: str = option("data/contents", "folder of photos", metavar="DIR")
    styles: str = option("data/styles", "folder of paintings", metavar="DIR")
    seed: int = option(0, "of the first picture's noise", type=int)

    @property
    def weights(self) -> str:
        """What --checkpoint says, else the bundled weights for the bundled model's config and
        random ones for others."""
        config = own_or(self.config).resolve()
        own = (name for name, (_, path) in BUNDLED.items() if config == (ROOT / path).resolve())
        return self.checkpoint or next(own, RANDOM)

    @property
    def weights_told(self) -> str:
        return "random weights" if self.weights == RANDOM else f"weights {self.weights}"


@dataclass(frozen=True)
class SamplingOptions(PaintingOptions):
    """Whole pictures in the look sampled: seconds and memory.

    With guidance in both conditions: encoding content and style, all sampling steps, decoding;
    reading pictures and weights is not counted, but for the whole process, the last row. Median of
    the runs after one to warm up.
    """

    size: int = option(256, "side of the pictures in pixels")
    repeats: int = option(3, "measured runs of each row")
    published_steps: int = published_steps_option(PUBLISHED_STEPS)
    reference: bool = option(False, "also paint with 1000 steps, for the column of PSNR")
    rows: tuple[str, ...] = rows_option(rows.SAMPLING)


@dataclass(frozen=True)
class ConvergenceOptions(PaintingOptions):
    """How near each sampler comes to the picture of 1000 steps of DDIM, by its number of steps."""

    size: int = option(256, "side of the pictures in pixels")
    pictures: int = option(4, "pairs of photo and painting to take the mean over")


@dataclass(frozen=True)
class BrushOptions(ConvergenceOptions):
    """The fine look: seconds and memory of whole processes by size.

    And how much sooner its energy is low when it begins with a sampled picture instead of the
    photo.
    """

    sizes: tuple[int, ...] = option((256, 512, 1024), "sides of the pictures of the first table")
    repeats: int = option(3, "measured runs of each size")


@dataclass(frozen=True)
class SteadinessOptions:
    """Painted clips: how steady they are, how near the painting, and seconds a frame.

    Of three clips made from the bundled photos with a camera's noise: a pan, something that moves
    before what stands still, and a cut. Needs pip install 'artfusion[video]'.
    """

    config: str = option(MINI_CONFIG, "the model's config", metavar="YAML")
    checkpoint: str = option("mini", "weights", metavar="mini|PATH")
    device: str = option("auto", "auto, cpu or cuda")
    style: str = option("data/styles/van_gogh_wheat_field_with_cypresses.jpg", "the painting", metavar="FILE")
    look: str = option("sampled", "the look", choices=["sampled", "fast", "fine"])
    size: int = option(256, "side of the frames in pixels")
    frames: int = option(24, "of each clip")
    save: str = option("", "keep clips and results as folders of frames there", metavar="DIR")
    compare: str = option(
        "",
        "measure pan.mp4, moving.mp4 and cut.mp4 there, too: what another program made of the clips"
        " that --save has kept",
        metavar="DIR",
    )


@dataclass(frozen=True)
class GpuOptions(PaintingOptions):
    """Training and sampling in full on a GPU.

    At several sizes and numbers of pictures, beside what the machine can do at most and how exact
    each way is. Results go to --output as they come; called again, it goes on where it was.
    """

    config: str = option(PUBLISHED_CONFIG, "the model's config", metavar="YAML")
    sizes: tuple[int, ...] = option((256, 512), "sides of the pictures in pixels")
    batch_sizes: tuple[int, ...] = option((1, 8, 64), "pictures painted at once")
    training_batch_sizes: tuple[int, ...] = option((16, 64, 256), "pictures in a training step")
    repeats: int = option(10, "measured runs of each row")
    published_steps: int = published_steps_option(10)
    rows: tuple[str, ...] = rows_option(rows.GPU)
    output: str = option("outputs/gpu", "folder for the results", metavar="DIR")
    tables_only: bool = option(False, "measure nothing, print what --output has")
