"""kill -9 at random moments of training and of making a cache: what is there is whole, and the same call, begun again, ends where it would have.

Some rounds of it here; `ARTFUSION_CHAOS_ROUNDS=50 pytest -m chaos` for many, each with other moments.
"""

import json
import multiprocessing
import os
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from pipeline_builders import paintings_and_photos
from test_cached import make_recipe, precompute, same_arrays
from test_resume import assert_equal_runs
from training_builders import data_module, diffusion_node, hybrid_node, last, recipe

from ldm.cli.train import main

pytestmark = [
    pytest.mark.chaos,
    pytest.mark.skipif(os.name != "posix", reason="needs kill -9 and processes that are copies"),
]

ROUNDS = int(os.environ.get("ARTFUSION_CHAOS_ROUNDS", "2"))
KILLS = 3  # of a round, at most


def alone(work: Callable[..., Any], *args: Any) -> None:
    torch.set_num_threads(1)  # the threads of the process that this one was copied from are not there
    work(*args)


def begun(work: Callable[..., Any], *args: Any) -> multiprocessing.Process:
    process = multiprocessing.get_context("fork").Process(target=alone, args=(work, *args))
    process.start()
    return process


def undisturbed(work: Callable[..., Any], *args: Any) -> float:
    """Its seconds."""
    began = time.monotonic()
    process = begun(work, *args)
    process.join()
    assert process.exitcode == 0
    return time.monotonic() - began


def disturbed(
    work: Callable[..., Any], *args: Any, seconds: float, seed: int, look: Callable[[], None]
) -> None:
    """Killed at random moments of these seconds, looked at each time, and begun again until it ends by itself."""
    chance = random.Random(seed)
    for _ in range(KILLS):
        process = begun(work, *args)
        process.join(chance.uniform(0, seconds))
        process.kill()
        process.join()
        look()
        if process.exitcode == 0:
            return
    undisturbed(work, *args)
    look()


# Training


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe that writes all the time."""
    root = tmp_path_factory.mktemp("chaos")
    torch.manual_seed(0)
    pictures = paintings_and_photos(root, 12, 4)
    data = data_module(hybrid_node(pictures, style_size=40), hybrid_node(pictures), batch_size=2)
    model = diffusion_node(root, scale_by_std=True, scale_batches=2)
    model["params"]["unet_config"]["params"]["dropout"] = 0.2
    trainer = {"precision": "32-true", "max_epochs": 2, "val_check_interval": 4}
    return recipe(root / "recipe.yaml", {"learning_rate": 1e-2, **model}, data, steps=-1, **trainer)


def train(config: Path, name: str) -> None:
    """The command that somebody gives again after a power cut."""
    run = config.parent / name
    first = ["--base", str(config), "--logdir", str(run.parent), "--name", name]
    often = ["lightning.last.every_n_train_steps=1", "lightning.modelcheckpoint_step.every_n_train_steps=3"]
    main(["--resume", str(run)] if (run / "checkpoints/last.ckpt").exists() else [*first, *often])


def all_whole(run: Path) -> None:
    """Every file under a final name can be read to its end."""
    for path in run.glob("checkpoints/[!.]*.ckpt"):
        assert torch.load(path, weights_only=True)["global_step"] > 0, path
    for path in run.glob("config_*.yaml"):
        assert {"model", "data", "lightning"} == OmegaConf.load(path).keys(), path


@pytest.fixture(scope="module")
def straight(config: Path) -> tuple[dict[str, Any], float]:
    """(an undisturbed run's last checkpoint, its seconds)."""
    seconds = undisturbed(train, config, "straight")
    return last(config.parent / "straight"), seconds


@pytest.mark.parametrize("seed", range(ROUNDS))
def test_training_that_is_killed_again_and_again_ends_where_it_would_have(
    config: Path, straight: tuple[dict[str, Any], float], seed: int
) -> None:
    run = config.parent / f"killed{seed}"
    disturbed(train, config, run.name, seconds=straight[1], seed=seed, look=lambda: all_whole(run))
    assert_equal_runs(last(run), straight[0])
    assert not list(run.glob("checkpoints/.*")) and not list(run.glob(".config_*"))


# The cache


@pytest.fixture(scope="module")
def crops(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return make_recipe(tmp_path_factory.mktemp("crops"), 8, 6)


@pytest.fixture(scope="module")
def whole_cache(crops: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """(a cache that was made undisturbed, the seconds that took)."""
    folder = tmp_path_factory.mktemp("cache") / "whole"
    return folder, undisturbed(cached, crops, folder)


def cached(crops: dict[str, Any], folder: Path) -> None:
    assert precompute(crops, output=folder) == 0


def shards_whole(folder: Path) -> None:
    for path in folder.glob("[!.]*.json"):
        assert json.loads(path.read_text()), path
    for path in folder.glob("[!.]*.npy"):
        assert np.load(path).shape[0] in (4, 8), path  # rows of one picture, or two


@pytest.mark.parametrize("seed", range(ROUNDS))
def test_a_cache_whose_making_is_killed_again_and_again_is_the_same(
    crops: dict[str, Any], whole_cache: tuple[Path, float], seed: int, tmp_path: Path
) -> None:
    folder = tmp_path / "killed"
    disturbed(cached, crops, folder, seconds=whole_cache[1], seed=seed, look=lambda: shards_whole(folder))
    assert same_arrays(folder, whole_cache[0])
    assert (folder / "cache.json").read_bytes() == (whole_cache[0] / "cache.json").read_bytes()
