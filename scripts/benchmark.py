"""Measure speed and memory on this machine, all rows in one run, each in a process of its own.

    python scripts/benchmark.py --suite training --config configs/kl16_content12.yaml --batch-size 2
    python scripts/benchmark.py --suite training --config configs/mini.yaml --batch-size 48

`training`: one optimiser step on made-up data and random weights, which serve for time; reading pictures is not
counted. Rows go from the published way to all that makes it faster; each prints the loss of its first step, which
speed must not change. Prints a Markdown table: median of the steps after two to warm up.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ldm.cli import ArgumentParser, run
from ldm.device import autocast, choose_device, memory_errors
from ldm.errors import ConfigError, UserError
from ldm.models.diffusion.dual_cond_ddpm import DualCondLDM
from ldm.modules.diffusionmodules.blocks import AttentionBlock
from ldm.optimizers import build_optimizer
from ldm.training.config import merged_config
from ldm.training.performance import apply_performance
from ldm.training.throughput import peak_memory
from ldm.util import instantiate_from_config, to_plain

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


TRAINING_ROWS = (
    TrainingRow("published: encoders in the step, attention recomputed, float32", recompute=True),
    TrainingRow("no recomputing"),
    TrainingRow("no recomputing, bf16", bf16=True),
    TrainingRow("cached latents, float32", cached=True),
    TrainingRow("cached latents, bf16", cached=True, bf16=True),
    TrainingRow("cached latents, bf16, channels_last", cached=True, bf16=True, channels_last=True),
    TrainingRow("cached latents, bf16, compile", cached=True, bf16=True, compile=True),
)


def parse_args() -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    parser.add_argument("--suite", choices=["training"], default="training")
    parser.add_argument("--config", default="configs/kl16_content12.yaml", help="the model's config")
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--steps", type=int, default=5, help="measured steps of each row (default: 5)")
    parser.add_argument("--rows", type=int, nargs="+", metavar="N", help="only these rows, counted from 1")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--one-row", type=int, help=argparse.SUPPRESS)  # how the parent process calls a row
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    if min(args.batch_size, args.steps) < 1:
        raise UserError("--batch-size and --steps must be at least 1")
    if args.one_row is not None:
        print(json.dumps(measure(TRAINING_ROWS[args.one_row], args)))
        return
    chosen = range(len(TRAINING_ROWS)) if args.rows is None else [n - 1 for n in args.rows]
    if not all(0 <= n < len(TRAINING_ROWS) for n in chosen):
        raise UserError(f"--rows takes numbers from 1 to {len(TRAINING_ROWS)}")
    print_table([(TRAINING_ROWS[n].name, in_own_process(n)) for n in tqdm(chosen, unit="row")], args)


def in_own_process(row: int) -> dict[str, float]:
    """Peak memory and compiled code of one row must not be another's."""
    done = subprocess.run([sys.executable, *sys.argv, "--one-row", str(row)], stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise UserError(f"row {row + 1} failed, see above; leave it out with --rows")
    return json.loads(done.stdout.splitlines()[-1])


def measure(row: TrainingRow, args: argparse.Namespace) -> dict[str, float]:
    """Median seconds of a step, peak memory in bytes, loss of the first step."""
    device = choose_device(args.device)
    torch.manual_seed(0)
    model = build(args.config).to(device).train()
    for block in model.modules():
        if isinstance(block, AttentionBlock):
            block.use_checkpoint = row.recompute
    apply_performance(model, {"channels_last": row.channels_last, "compile": row.compile, "matmul_precision": "high" if row.bf16 else "highest"})
    batch = {name: value.to(device) for name, value in made_up_batch(model, args.batch_size, row.cached).items()}
    optimizer = build_optimizer(torch.optim.AdamW, model.trained_parameters(), model, lr=1e-4)
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
        raise ConfigError(f"{config}: describes a {type(model).__name__}, not a style transfer model (DualCondLDM)")
    for weight in model.model.parameters():
        if weight.dim() > 1 and not bool(weight.any()):
            nn.init.normal_(weight, std=0.02)
    return model


def made_up_batch(model: DualCondLDM, n: int, cached: bool) -> dict[str, Tensor]:
    flags = {"style_flag": torch.rand(n) > 0.1, "content_flag": torch.rand(n) > 0.5}
    if not cached:
        side = model.image_size * model.first_stage_model.encoder.factor
        return flags | {"image": torch.rand(n, side, side, 3) * 2 - 1}
    shape = (n, model.channels, model.image_size, model.image_size)
    return flags | {"latent": torch.randn(shape), "style": torch.rand(n, model.null_style_vector.weight.shape[1])}


def train_step(model: DualCondLDM, optimizer: torch.optim.Optimizer, batch: dict[str, Tensor], precision: str) -> float:
    optimizer.zero_grad(set_to_none=True)
    with autocast(model.device, precision):
        loss, *_ = model.shared_step(batch)
    loss.backward()
    optimizer.step()
    for average, module in model.averaged():
        average(module)
    return loss.item()  # on a GPU this waits for the whole step


def print_table(results: list[tuple[str, dict[str, float]]], args: argparse.Namespace) -> None:
    first = results[0][1]["seconds"]
    where = torch.cuda.get_device_name() if choose_device(args.device).type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(f"{Path(args.config).name}, batch {args.batch_size}, {where}, torch {torch.__version__}, median of {args.steps} steps\n")
    print("| way | images/s | times the first | peak memory | loss of step 1 |\n| --- | ---: | ---: | ---: | ---: |")
    for name, result in results:
        speed, ratio = args.batch_size / result["seconds"], first / result["seconds"]
        print(f"| {name} | {speed:.2f} | {ratio:.2f} | {result['bytes'] / 1e9:.1f} GB | {result['loss']:.4f} |")


if __name__ == "__main__":
    run(main)
