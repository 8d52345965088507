"""A config file written for the published code trains as it is, all of its sections."""

from pathlib import Path
from typing import Any

import pytest
from pipeline_builders import picture_folder, save_config
from training_builders import QUIET, diffusion_node, last, logged

from ldm.cli.train import main
from ldm.errors import UserError


@pytest.fixture
def published(tmp_path: Path) -> dict[str, Any]:
    """The published sections about a tiny model, at an eighth of the sizes."""
    roots = {
        "style_root": str(picture_folder(tmp_path / "wiki-art", 8)),
        "content_root": str(picture_folder(tmp_path / "train2017", 8, seed=50)),
    }
    train = {
        "random_augment": True,
        "style_size": 64,
        "style_crop_size": 32,
        "content_size": 48,
        "content_crop_size": 32,
        "content_drop": 0.5,
        "style_drop": 0.1,
    }
    images = {
        "frequency_base": 4,
        "batch_frequency": 4096,
        "max_images": 2,
        "clamp": True,
        "increase_log_steps": True,
        "nrow": 8,
    }
    return {
        "model": {"base_learning_rate": 1.0e-4, **diffusion_node(tmp_path)},
        "data": {
            "target": "main.DataModuleFromConfig",
            "params": {
                "batch_size": 2,
                "num_workers": 0,
                "wrap": True,
                "train": {"target": "ldm.data.wikiart.HybridTrain", "params": {**train, **roots}},
            },
        },
        "lightning": {
            "callbacks": {"image_logger": {"target": "main.ImageLogger", "params": images}},
            "modelcheckpoint_step": {"params": {"every_n_train_steps": 2}},
            "modelcheckpoint_epoch": {"params": {"every_n_epochs": 25}},
            "trainer": {"max_epochs": 1000, "log_every_n_steps": 1, "accumulate_grad_batches": 2, **QUIET},
        },
    }


def test_it_trains_by_the_published_command_line(published: dict[str, Any], tmp_path: Path) -> None:
    path = save_config(published, tmp_path / "published.yaml")
    main(
        [
            "--base",
            str(path),
            "-t",
            "True",
            "-n",
            "run",
            "-l",
            str(tmp_path / "logs"),
            "--no-test",
            "--max_steps",
            "3",
        ]
    )
    run = tmp_path / "logs/run"
    assert last(run)["global_step"] == 3 and len(logged(run, "train/loss_simple")) >= 3
    assert {path.name.rpartition("_")[2] for path in (run / "images").iterdir()} == {
        "00000001.png",
        "00000004.png",
    }
    assert [path.name for path in (run / "checkpoints").glob("*step=2*")]


@pytest.mark.parametrize(
    "section, key, near",
    [
        (("data", "params", "train", "params"), "style_crop_sise", "style_crop_size"),
        (("lightning", "callbacks", "image_logger", "params"), "frequency_bass", "frequency_base"),
        (("lightning", "trainer"), "max_epoch", "max_epochs"),
    ],
)
def test_a_dry_run_finds_every_unknown_key(
    published: dict[str, Any], tmp_path: Path, section: tuple[str, ...], key: str, near: str
) -> None:
    node = published
    for part in section:
        node = node[part]
    node[key] = 1
    with pytest.raises(UserError, match=f"{key}.*{near}"):
        main(
            [
                "--base",
                str(save_config(published, tmp_path / "wrong.yaml")),
                "--logdir",
                str(tmp_path / "logs"),
                "--dry-run",
            ]
        )
    assert not (tmp_path / "logs").exists()
