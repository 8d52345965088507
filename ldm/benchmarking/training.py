"""Training steps, from the published way to all that makes them faster."""

import json
import statistics
import time
from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from ldm.benchmarking.measuring import in_own_process, machine, places, row_failed
from ldm.benchmarking.models import fill_zero_weights
from ldm.config.factory import instantiate_from_config, to_plain
from ldm.config.merge import merged_config
from ldm.device import autocast, choose_device, memory_errors, peak_memory
from ldm.errors import ConfigError
from ldm.models.diffusion.dual_cond_ddpm import DualCondLDM
from ldm.modules.diffusionmodules.blocks import SelfAttention
from ldm.text import markdown_table
from ldm.training.performance import apply_performance

WARM_UP = 2


@dataclass(frozen=True)
class TrainingRow:
    """One way to train: what it is called, and how it differs from float32 on pictures."""

    name: str
    cached: bool = False
    recompute: bool = False  # attention's activations, as the published code always does
    bf16: bool = False
    channels_last: bool = False
    compile: bool = False
    fused: bool = True  # the optimiser, on CUDA


ROWS = (
    TrainingRow("published: encoders in the step, attention recomputed, float32", recompute=True),
    TrainingRow("no recomputing"),
    TrainingRow("no recomputing, bf16", bf16=True),
    TrainingRow("cached latents, float32", cached=True),
    TrainingRow("cached latents, bf16", cached=True, bf16=True),
    TrainingRow("cached latents, bf16, channels_last", cached=True, bf16=True, channels_last=True),
    TrainingRow("cached latents, bf16, compile", cached=True, bf16=True, compile=True),
)


def main(args: Namespace) -> None:
    if args.one_row is not None:
        torch.manual_seed(0)
        print(
            json.dumps(measure(ROWS[args.one_row], build(args.config).to(choose_device(args.device)), args))
        )
        return
    chosen = range(len(ROWS)) if args.rows is None else places(args.rows, len(ROWS))
    print_table([(ROWS[n].name, measured(n)) for n in tqdm(chosen, unit="row")], args)


def measured(row: int) -> dict[str, float]:
    result = in_own_process("--one-row", str(row))
    if result is None:
        raise row_failed(row)
    return result


def measure(row: TrainingRow, model: DualCondLDM, args: Namespace) -> dict[str, float]:
    """Median seconds of a step, peak memory in bytes, loss of the first step. The model is changed."""
    device = model.device
    torch.manual_seed(0)
    model.train()
    for block in model.modules():
        if isinstance(block, SelfAttention):
            block.use_checkpoint = row.recompute
    apply_performance(
        model,
        {
            "channels_last": row.channels_last,
            "compile": row.compile,
            "matmul_precision": "high" if row.bf16 else "highest",
        },
    )
    batch = {
        name: value.to(device) for name, value in made_up_batch(model, args.batch_size, row.cached).items()
    }
    optimizer = torch.optim.AdamW(
        model.trained_parameters(), lr=1e-4, fused=(row.fused and device.type == "cuda") or None
    )
    losses, seconds = [], []
    with memory_errors("lower --batch-size"):
        for step in range(WARM_UP + args.steps):
            torch.manual_seed(step)
            began = time.perf_counter()
            losses.append(train_step(model, optimizer, batch, "bf16" if row.bf16 else "fp32"))
            seconds.append(time.perf_counter() - began)
    return {"seconds": statistics.median(seconds[WARM_UP:]), "bytes": peak_memory(device), "loss": losses[0]}


def build(config: str) -> DualCondLDM:
    """The config's model with random weights everywhere, so that no layer's output is zero."""
    node = to_plain(merged_config([config]).model)
    node["params"]["first_stage_config"]["params"]["ckpt_path"] = None
    model = instantiate_from_config(node)
    if not isinstance(model, DualCondLDM):
        raise ConfigError(
            f"{config}: describes a {type(model).__name__}, not a style transfer model (DualCondLDM)"
        )
    fill_zero_weights(model.model)
    return model


def made_up_batch(model: DualCondLDM, n: int, cached: bool) -> dict[str, Tensor]:
    flags = {"style_flag": torch.rand(n) > 0.1, "content_flag": torch.rand(n) > 0.5}
    if not cached:
        side = model.image_size * model.first_stage_model.encoder.factor
        return flags | {"image": torch.rand(n, side, side, 3) * 2 - 1}
    shape = (n, model.channels, model.image_size, model.image_size)
    return flags | {
        "latent": torch.randn(shape),
        "style": torch.rand(n, model.null_style_vector.weight.shape[1]),
    }


def train_step(
    model: DualCondLDM, optimizer: torch.optim.Optimizer, batch: dict[str, Tensor], precision: str
) -> float:
    optimizer.zero_grad(set_to_none=True)
    with autocast(model.device, precision):
        loss, _ = model.shared_step(batch)
    loss.backward()
    optimizer.step()
    for average, module in model.averaged():
        average(module)
    return loss.item()  # on a GPU this waits for the whole step


def print_table(results: list[tuple[str, dict[str, float]]], args: Namespace) -> None:
    first = results[0][1]["seconds"]
    where = machine(choose_device(args.device))
    print(f"{Path(args.config).name}, batch {args.batch_size}, {where}, median of {args.steps} steps\n")
    head = ["way", "images/s", "times the first", "peak memory", "loss of step 1"]
    print(markdown_table(head, [cells(*result, first, args.batch_size) for result in results]))


def cells(name: str, result: dict[str, float], first: float, batch_size: int) -> list[str]:
    seconds = result["seconds"]
    return [
        name,
        f"{batch_size / seconds:.2f}",
        f"{first / seconds:.2f}",
        f"{result['bytes'] / 1e9:.1f} GB",
        f"{result['loss']:.4f}",
    ]
