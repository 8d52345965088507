"""Two processes (gloo, on the CPU) train as one does with the same global batch, and nothing hangs."""

import csv
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pipeline_builders import FIRST_STAGE, ROOT, paintings_and_photos, picture_folder, save_config, tiny_model
from training_builders import data_module, diffusion_node, hybrid_data, last, logger_node, recipe_node

from ldm.cli.train import main
from ldm.errors import UserError
from ldm.models.diffusion.dual_cond_ddpm import DualCondLDM
from ldm.ranks import local_rank, rank_and_world, torchrun_group

pytestmark = pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="needs torch with gloo")


EXACTLY = {
    "precision": "32-true",
    "val_check_interval": 1,
    "num_sanity_val_steps": 2,
    "limit_val_batches": 1.0,
}


class OwnNoise(DualCondLDM):
    """Noise and time steps follow from the picture, so they are the same however a batch is shared out."""

    def p_losses(
        self, x: torch.Tensor, c: Any, t: torch.Tensor, noise: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        marks = [int(z.abs().sum() * 10) for z in x]
        noise = torch.stack(
            [torch.randn(z.shape, generator=torch.Generator().manual_seed(mark)) for z, mark in zip(x, marks)]
        )
        return super().p_losses(x, c, torch.tensor([mark % self.num_timesteps for mark in marks]), noise)


class SignalOne(pl.Callback):
    """Sends a signal to the second process alone, in the batch of that index of the first epoch."""

    def __init__(self, batch: int):
        self.batch = batch

    def on_train_batch_start(
        self, trainer: pl.Trainer, module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if (trainer.global_rank, trainer.current_epoch, batch_idx) == (1, 0, self.batch):
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    root = tmp_path_factory.mktemp("distributed")
    model = tiny_model()
    torch.save(model.state_dict(), root / "model.pt")  # untrained, most gradients would be zero
    node = diffusion_node(
        root, scale_by_std=True, scale_batches=1, ckpt_path=str(root / "model.pt"), load_only_unet=True
    )
    node |= {"target": "test_distributed.OwnNoise", "learning_rate": 1e-4}
    return recipe_node(
        node,
        hybrid_data(paintings_and_photos(root, 8)),
        steps=3,
        callbacks=logger_node(batch_frequency=2),
        **EXACTLY,
    )


def in_two_processes(folder: Path, config: dict[str, Any], *options: str) -> dict[str, Any]:
    """Train by torchrun; the last checkpoint."""
    path = save_config(config, folder / "two.yaml")
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node=2",
        "--master-port=0",
        "--rdzv-backend=c10d",
        "--rdzv-endpoint=localhost:0",
    ]
    arguments = ["--base", str(path), "--logdir", str(folder), "--allow-target", "test_distributed", *options]
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT / "tests"),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    done = subprocess.run(
        [*command, str(ROOT / "main.py"), *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return last(folder / "two")


def losses(folder: Path) -> list[float]:
    """The validation losses of a run, which are means over all processes."""
    with next(folder.glob("csv/*/metrics.csv")).open() as file:
        return [float(row["val/loss"]) for row in csv.DictReader(file) if row["val/loss"]]


def with_batch(recipe: dict[str, Any], size: int) -> dict[str, Any]:
    return {**recipe, "data": {**recipe["data"], "params": {**recipe["data"]["params"], "batch_size": size}}}


def test_two_processes_equal_one_at_the_same_global_batch(recipe: dict[str, Any], tmp_path: Path) -> None:
    one = save_config(with_batch(recipe, 4), tmp_path / "one.yaml")
    main(["--base", str(one), "--logdir", str(tmp_path), "--allow-target", "test_distributed"])
    alone, together = last(tmp_path / "one"), in_two_processes(tmp_path, with_batch(recipe, 2))
    assert together["global_step"] == alone["global_step"] == 3
    for key in ("shift_values", "scale_factors"):
        torch.testing.assert_close(together["state_dict"][key], alone["state_dict"][key])
    for mine, theirs in zip(
        *(run["optimizer_states"][0]["state"].values() for run in (alone, together)), strict=True
    ):
        gradient = mine["exp_avg"]  # of all three steps
        torch.testing.assert_close(
            theirs["exp_avg"], gradient, rtol=1e-3, atol=1e-4 * float(gradient.abs().max())
        )
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-4)
    assert list((tmp_path / "two").rglob("neighbours_style_00000002.png"))


def test_a_first_stage_with_a_discriminator_trains_in_two_processes(tmp_path: Path) -> None:
    loss = {
        "target": "ldm.modules.losses.contperceptual.LPIPSWithDiscriminator",
        "params": {"disc_start": 1, "perceptual_weight": 0.0, "disc_num_layers": 1},
    }
    pictures = {
        "target": "ldm.data.pictures.PictureFolder",
        "params": {"roots": str(picture_folder(tmp_path / "pictures", 8)), "size": 32, "split": "all"},
    }
    model = {**FIRST_STAGE, "params": {**FIRST_STAGE["params"], "lossconfig": loss}}
    recipe = recipe_node(model, data_module(pictures, batch_size=2), steps=3, val_check_interval=1)
    assert in_two_processes(tmp_path, recipe)["global_step"] == 3


def test_a_signal_to_one_process_stops_both_after_they_agreed(recipe: dict[str, Any], tmp_path: Path) -> None:
    callback = {"target": "test_distributed.SignalOne", "params": {"batch": 1}}
    config = with_batch(
        {**recipe, "lightning": {**recipe["lightning"], "callbacks": {"signal": callback}}}, 1
    )
    config["lightning"]["trainer"] = {
        **recipe["lightning"]["trainer"],
        "max_steps": 100,
        "val_check_interval": 1.0,
    }
    # Four batches an epoch: the second one's signal waits for the next agreement, at the beginning of the next epoch.
    assert in_two_processes(tmp_path, config)["global_step"] == 5


# Which process this is

RANKS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "TORCHELASTIC_RUN_ID")


def says(monkeypatch: pytest.MonkeyPatch, **environment: str) -> None:
    for name in RANKS:
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)


def test_a_process_by_itself_is_the_only_one(monkeypatch: pytest.MonkeyPatch) -> None:
    says(monkeypatch)
    assert (rank_and_world(), local_rank(), torchrun_group()) == ((0, 1), None, (1, 1))


def test_torchrun_tells_each_process_which_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    says(monkeypatch, RANK="6", WORLD_SIZE="8", LOCAL_RANK="2", LOCAL_WORLD_SIZE="4", TORCHELASTIC_RUN_ID="r")
    assert (rank_and_world(), local_rank(), torchrun_group()) == ((6, 8), 2, (4, 2))


@pytest.mark.parametrize(
    "environment", [{"RANK": "3"}, {"RANK": "2", "WORLD_SIZE": "2"}, {"WORLD_SIZE": "two"}]
)
def test_ranks_that_cannot_be_are_refused(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]
) -> None:
    says(monkeypatch, **environment)
    with pytest.raises(UserError, match="set both, as torchrun does, or none"):
        rank_and_world()


@pytest.mark.parametrize("number", ["x", "-1", ""])
def test_a_local_rank_that_is_no_number_is_refused(monkeypatch: pytest.MonkeyPatch, number: str) -> None:
    says(monkeypatch, LOCAL_RANK=number)
    with pytest.raises(UserError, match=f"LOCAL_RANK {number!r}"):
        local_rank()
