"""Training steps, from the published way to all that makes them faster."""

import statistics
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.benchmark import timer
from tqdm import tqdm

from benchmarks.measuring import in_own_process, machine
from benchmarks.models import fill_zero_weights
from benchmarks.options import TrainingOptions
from benchmarks.rows import TRAINING, TrainingRow
from ldm.config.factory import instantiate_from_config, to_plain
from ldm.config.merge import merged_config
from ldm.device import autocast, choose_device, memory_errors, peak_memory
from ldm.errors import ConfigError
from ldm.models.diffusion.dual_cond_ddpm import DualCondLDM
from ldm.modules.diffusionmodules.blocks import SelfAttention
from ldm.text import markdown_table
from ldm.training.performance import apply_performance

WARM_UP = 2  # steps

Result = dict[str, float]


def run(options: TrainingOptions) -> None:
    results = {}
    for name in tqdm(options.rows or TRAINING, unit="row"):
        results[name] = in_own_process(name, measure_row, TRAINING[name], options)
    print_table(results, options)


def measure_row(row: TrainingRow, options: TrainingOptions) -> Result:
    torch.manual_seed(0)
    model = build(options.config).to(choose_device(options.device))
    with memory_errors("lower --batch-size"):
        return measure(row, model, options.batch_size, options.steps)


def measure(row: TrainingRow, model: DualCondLDM, batch_size: int, steps: int) -> Result:
    """Median seconds of a step, peak memory in bytes, loss of the first step. The model is
    changed."""
    adapt(model, row)
    optimizer = torch.optim.AdamW(
        model.trained_parameters(), lr=1e-4, fused=(row.fused and model.device.type == "cuda") or None
    )
    batch = made_up_batch(model, batch_size, row.cached)
    losses, seconds = [], []
    for step in range(WARM_UP + steps):
        torch.manual_seed(step)
        began = timer()
        losses.append(train_step(model, optimizer, batch, "bf16" if row.bf16 else "fp32"))
        seconds.append(timer() - began)
    median = statistics.median(seconds[WARM_UP:])
    return {"seconds": median, "bytes": peak_memory(model.device), "loss": losses[0]}


def adapt(model: DualCondLDM, row: TrainingRow) -> None:
    """Recomputing, memory format, compilation, and how exact float32 is."""
    torch.manual_seed(0)
    model.train()
    for block in model.modules():
        if isinstance(block, SelfAttention):
            block.use_checkpoint = row.recompute
    precision = "high" if row.bf16 else "highest"
    options = {"channels_last": row.channels_last, "compile": row.compile, "matmul_precision": precision}
    apply_performance(model, options)


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
    batch = {"style_flag": torch.rand(n) > 0.1, "content_flag": torch.rand(n) > 0.5}
    if cached:
        batch["latent"] = torch.randn(n, model.channels, model.image_size, model.image_size)
        batch["style"] = torch.rand(n, model.null_style_vector.weight.shape[1])
    else:
        side = model.image_size * model.first_stage_model.encoder.factor
        batch["image"] = torch.rand(n, side, side, 3) * 2 - 1
    return {name: value.to(model.device) for name, value in batch.items()}


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
    return loss.item()


def print_table(results: dict[str, Result], options: TrainingOptions) -> None:
    where, first = machine(choose_device(options.device)), next(iter(results.values()))
    print(
        f"{Path(options.config).name}, batch {options.batch_size}, {where}, median of {options.steps} steps\n"
    )
    head = ["way", "images/s", "times the first", "peak memory", "loss of step 1"]
    rows = [
        [
            TRAINING[name].label,
            f"{options.batch_size / result['seconds']:.2f}",
            f"{first['seconds'] / result['seconds']:.2f}",
            f"{result['bytes'] / 1e9:.1f} GB",
            f"{result['loss']:.4f}",
        ]
        for name, result in results.items()
    ]
    print(markdown_table(head, rows))
