"""The models to measure, and what they paint."""

from argparse import Namespace
from pathlib import Path

import torch
from torch import nn

from ldm.benchmarking.ways import Task
from ldm.data.splits import find_pictures
from ldm.errors import UserError
from ldm.files import ROOT
from ldm.media.images import load_square
from ldm.media.tensors import image_to_tensor
from ldm.models.diffusion.dual_cond import DualCondModel
from ldm.pipeline.bundled import BUNDLED
from ldm.pipeline.engine import Painter
from ldm.pipeline.pipeline import StyleTransferPipeline, build_model
from ldm.pipeline.settings import Settings

RANDOM = "random"  # in place of a checkpoint


@torch.no_grad()
def fill_zero_weights(network: nn.Module) -> None:
    """Random weights where a layer starts at zero, so that every layer acts."""
    for weight in network.parameters():
        if weight.dim() > 1 and not bool(weight.any()):
            nn.init.normal_(weight, std=0.02)


def checkpoint_for(config: str) -> str:
    """The bundled weights for the bundled model's config, random ones for others."""
    return next(
        (name for name, (_, path) in BUNDLED.items() if Path(config).resolve() == ROOT / path), RANDOM
    )


def check_painting(args: Namespace, needs_weights: str | None = None) -> None:
    """Raises UserError, before any work, for what cannot be painted; `needs_weights` is an option that needs trained ones."""
    Settings(size=args.size, seed=args.seed).check()
    if needs_weights is not None and args.checkpoint == RANDOM:
        raise UserError(
            f"{needs_weights} needs trained weights: random ones have no picture to converge to; give --checkpoint"
        )
    for folder in (args.contents, args.styles):
        find_pictures(folder)


def load_model(args: Namespace, device: torch.device) -> DualCondModel:
    """The model of --config with the weights of --checkpoint, ready to paint but not made fast: the rows do that."""
    if args.checkpoint != RANDOM:
        model = StyleTransferPipeline.from_pretrained(args.checkpoint, args.config, str(device), "fp32").model
    else:
        torch.manual_seed(0)
        model = build_model(args.config).to(device).eval()
        fill_zero_weights(model.model)
    return model.requires_grad_(False).to(memory_format=torch.contiguous_format)


def read_task(args: Namespace, model: DualCondModel, count: int, scales: tuple[float, float]) -> Task:
    """`count` pairs of --contents and --styles, each list from its start as often as it takes, with seeds from --seed on."""
    painter = Painter(model, "fp32")
    if args.size % painter.codec.multiple:
        raise UserError(
            f"--size must be a multiple of {painter.codec.multiple} for this model, got {args.size}"
        )
    contents, styles = (find_pictures(folder) for folder in (args.contents, args.styles))
    return Task(
        content=_tensors(contents, args.size, count).to(model.device),
        style=_tensors(styles, painter.native_size, count).to(model.device),
        seeds=[args.seed + i for i in range(count)],
        scales=scales,
    )


def _tensors(paths: list[Path], size: int, count: int) -> torch.Tensor:
    return torch.stack([image_to_tensor(load_square(paths[i % len(paths)], size)) for i in range(count)])
