"""The models to measure, and what they paint."""

from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.options import RANDOM, PaintingOptions
from benchmarks.ways import Task
from ldm.data.splits import find_pictures
from ldm.errors import UserError
from ldm.media.images import load_square
from ldm.media.tensors import image_to_tensor
from ldm.models.diffusion.dual_cond import DualCondModel
from ldm.pipeline.engine import Painter
from ldm.pipeline.pipeline import StyleTransferPipeline, build_model
from ldm.pipeline.settings import Settings


@torch.no_grad()
def fill_zero_weights(network: nn.Module) -> None:
    """Random weights where a layer starts at zero, so that every layer acts."""
    for weight in network.parameters():
        if weight.dim() > 1 and not bool(weight.any()):
            nn.init.normal_(weight, std=0.02)


def check_painting(options: PaintingOptions, *sizes: int, needs_weights: str | None = None) -> None:
    """Raises UserError, before any work, for what cannot be painted; `needs_weights`: what it is
    that needs trained ones."""
    for size in sizes:
        Settings(size=size, seed=options.seed).check()
    if needs_weights is not None and options.weights == RANDOM:
        raise UserError(
            f"{needs_weights} needs trained weights: random ones have no picture to converge to; give --checkpoint"
        )
    for folder in (options.contents, options.styles):
        find_pictures(folder)


def load_model(options: PaintingOptions, device: torch.device) -> DualCondModel:
    """The model with its weights, ready to paint but not made fast: the rows do that."""
    if options.weights != RANDOM:
        pipeline = StyleTransferPipeline.from_pretrained(
            options.weights, options.config, str(device), precision="fp32"
        )
        model = pipeline.model
    else:
        torch.manual_seed(0)
        model = build_model(options.config).to(device).eval()
        fill_zero_weights(model.model)
    return model.requires_grad_(False).to(memory_format=torch.contiguous_format)


def read_task(
    options: PaintingOptions, model: DualCondModel, count: int, size: int, scales: tuple[float, float]
) -> Task:
    """`count` pairs of --contents and --styles, each list from its start as often as it takes, with
    seeds from --seed on."""
    painter = Painter(model, "fp32")
    multiple = painter.codec.multiple
    if size % multiple:
        raise UserError(f"--size must be a multiple of {multiple} for this model, got {size}")
    return Task(
        content=_pictures(options.contents, size, count).to(model.device),
        style=_pictures(options.styles, painter.native_size, count).to(model.device),
        seeds=[options.seed + i for i in range(count)],
        scales=scales,
    )


def _pictures(folder: Path, size: int, count: int) -> Tensor:
    """(count, 3, size, size) in [-1, 1]."""
    paths = find_pictures(folder)
    return torch.stack([image_to_tensor(load_square(paths[i % len(paths)], size)) for i in range(count)])
