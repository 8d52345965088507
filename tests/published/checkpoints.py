"""Builds training checkpoints as the published code leaves them under Lightning 1.6, with moments that tell whose they are."""

import argparse
import json
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from golden_rules import GOLDEN
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import Tensor

from ldm.modules.optimizers import names_of, published_order

STEP, RATE, ADAM_STEP = 12, 2.5e-3, 7
BEST = (
    "ModelCheckpoint{'monitor': 'val/loss', 'mode': 'min', 'every_n_train_steps': 0, 'every_n_epochs': 1, "
    "'train_time_interval': None, 'save_on_train_epoch_end': None}"
)


def golden_order(name: str) -> list[str]:
    """The weights' names as the published AdamW holds them."""
    return json.loads((GOLDEN / "optimizer_order.json").read_text())[name]


def moment(name: str) -> float:
    """A number that is this weight's alone."""
    return (1 + zlib.crc32(name.encode()) / 2**32) / 1000


def adam_state(names: Sequence[str], weights: dict[str, Tensor], **group: Any) -> dict[str, Any]:
    """As torch 1.x writes it, where `step` is a plain number."""
    moments = {}
    for number, name in enumerate(names):
        first, second = (torch.full_like(weights[name], moment(name) ** power) for power in (1, 2))
        moments[number] = {"step": ADAM_STEP, "exp_avg": first, "exp_avg_sq": second}
    options = {
        "lr": RATE,
        "betas": (0.9, 0.999),
        "eps": 1e-8,
        "weight_decay": 1e-2,
        "amsgrad": False,
        **group,
    }
    return {"state": moments, "param_groups": [{**options, "params": list(range(len(names)))}]}


def published_names(model: pl.LightningModule) -> list[str]:
    return names_of(model, published_order(model, model.trained_parameters()))


def in_published_layout(model: pl.LightningModule) -> dict[str, Tensor]:
    """The state dict with the network's weights in their published order."""
    state = {name: value.detach().clone() for name, value in model.state_dict().items()}
    network = iter([name for name in published_names(model) if name.startswith("model.")])
    return {
        name: state[name] for name in (next(network) if name.startswith("model.") else name for name in state)
    }


def progress(**counts: int) -> dict[str, Any]:
    return {"total": dict(counts), "current": dict(counts)}


def loops(step: int, epoch: int, batch: int, complete: bool) -> dict[str, Any]:
    batches = progress(ready=batch, started=batch, processed=batch, completed=batch)
    none = progress(ready=0, completed=0)
    fit = {
        "state_dict": {},
        "epoch_loop.state_dict": {"_batches_that_stepped": step},
        "epoch_loop.batch_progress": {**batches, "is_last_batch": complete},
        "epoch_loop.scheduler_progress": progress(ready=step, completed=step),
        "epoch_loop.batch_loop.state_dict": {},
        "epoch_loop.batch_loop.optimizer_loop.state_dict": {},
        "epoch_loop.batch_loop.optimizer_loop.optim_progress": {
            "optimizer": {
                "step": progress(ready=step, completed=step),
                "zero_grad": progress(ready=step, started=step, completed=step),
            },
            "optimizer_position": 1,
        },
        "epoch_loop.batch_loop.manual_loop.state_dict": {},
        "epoch_loop.batch_loop.manual_loop.optim_step_progress": none,
        "epoch_loop.val_loop.state_dict": {},
        "epoch_loop.val_loop.dataloader_progress": none,
        "epoch_loop.val_loop.epoch_loop.state_dict": {},
        "epoch_loop.val_loop.epoch_loop.batch_progress": {
            **progress(ready=0, started=0, processed=0, completed=0),
            "is_last_batch": False,
        },
        "epoch_progress": progress(
            ready=epoch + 1, started=epoch + 1, processed=epoch + complete, completed=epoch
        ),
    }
    return {
        "fit_loop": fit,
        "validate_loop": {"state_dict": {}},
        "test_loop": {"state_dict": {}},
        "predict_loop": {"state_dict": {}},
    }


def lightning_1_6(
    model: pl.LightningModule, epoch: int = 2, batch: int = 3, complete: bool = False, schedule: bool = False
) -> dict[str, Any]:
    """The checkpoint of this model, written in `epoch` after `batch` batches of it."""
    weights = in_published_layout(model)
    group = {"initial_lr": 1e-2} if schedule else {}
    lambda_lr = {"base_lrs": [1e-2], "last_epoch": STEP, "_step_count": STEP + 1, "_last_lr": [RATE]}
    lambda_lr |= {"verbose": False, "_get_lr_called_within_step": False, "lr_lambdas": [{}]}
    best = {
        "monitor": "val/loss",
        "best_model_score": torch.tensor(0.25),
        "best_model_path": "old/epoch=1.ckpt",
        "dirpath": "old",
    }
    return {
        "epoch": epoch,
        "global_step": STEP,
        "pytorch-lightning_version": "1.6.5",
        "state_dict": weights,
        "loops": loops(STEP, epoch, batch, complete),
        # The class itself was the key before Lightning 1.5.
        "callbacks": {BEST: best, ModelCheckpoint: {"best_model_path": "old/epoch=0.ckpt"}},
        "optimizer_states": [adam_state(published_names(model), weights, **group)],
        "lr_schedulers": [lambda_lr] if schedule else [],
        "hparams_name": "kwargs",
        "hyper_parameters": argparse.Namespace(style_dim=40),
    }


def write(checkpoint: dict[str, Any], path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(checkpoint, path)
    return path
