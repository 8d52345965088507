"""What the tests of training share: recipes for tiny models on a few made-up pictures, and what a run leaves behind."""

import csv
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from omegaconf import OmegaConf
from pipeline_builders import model_config, save_config, tiny_model

from ldm.cli.train import main
from ldm.data.datamodule import DataModuleFromConfig
from ldm.training.trainer import Recipe

QUIET = {
    "accelerator": "cpu",
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "num_sanity_val_steps": 0,
    "limit_val_batches": 1,
}
LOSS = {
    "target": "ldm.modules.losses.contperceptual.LPIPSWithDiscriminator",
    "params": {"disc_start": 0, "disc_factor": 0.0, "perceptual_weight": 0.0},
}


class Anywhere(pl.Callback):
    """A callback of somebody's own, which takes a path."""

    def __init__(self, path: str):
        self.path = path


def style_weights(folder: Path) -> str:
    """A file with the weights of the tiny model's style network."""
    torch.save(tiny_model().vgg.state_dict(), folder / "style.pt")
    return str(folder / "style.pt")


def diffusion_node(folder: Path, **params: Any) -> dict[str, Any]:
    """The tiny model's `model` node, ready to train."""
    return model_config(vgg_ckpt_path=style_weights(folder), **params)


def picture_data(pictures: dict[str, Path]) -> dict[str, Any]:
    node = {
        "target": "ldm.data.pictures.PictureFolder",
        "params": {"roots": [str(p) for p in pictures.values()], "size": 32},
    }
    validation = {**node, "params": {**node["params"], "split": "all"}}
    return data_module({**node, "params": {**node["params"], "validation_share": 0.0}}, validation)


def data_module(
    train: dict[str, Any], validation: dict[str, Any] | None = None, batch_size: int = 4
) -> dict[str, Any]:
    params = {"batch_size": batch_size, "num_workers": 0, "train": train}
    return {
        "target": "main.DataModuleFromConfig",
        "params": params if validation is None else {**params, "validation": validation},
    }


def hybrid_node(pictures: dict[str, Path], **params: Any) -> dict[str, Any]:
    """Paintings and photos in one data set, 32 pixels each."""
    roots = {"style_root": str(pictures["paintings"]), "content_root": str(pictures["photos"])}
    return {
        "target": "ldm.data.wikiart.HybridTrain",
        "params": {**roots, "size": 32, "split": "all", **params},
    }


def hybrid_data(pictures: dict[str, Path], batch_size: int = 4) -> dict[str, Any]:
    return data_module(hybrid_node(pictures), hybrid_node(pictures), batch_size)


def logger_node(**params: Any) -> dict[str, Any]:
    return {"images": {"target": "main.ImageLogger", "params": {"max_images": 2, **params}}}


def recipe_node(
    model: dict[str, Any],
    data: dict[str, Any],
    steps: int = 2,  # -1: as many as the trainer's own options say
    callbacks: dict[str, Any] | None = None,
    **trainer: Any,
) -> dict[str, Any]:
    lightning = {
        "trainer": {"max_steps": steps, "log_every_n_steps": 1, **QUIET, **trainer},
        "callbacks": callbacks or {},
    }
    return {"model": {"learning_rate": 1e-3, **model}, "data": data, "lightning": lightning}


def recipe(path: Path, model: dict[str, Any], data: dict[str, Any], *args: Any, **options: Any) -> Path:
    """The file of `recipe_node`."""
    return save_config(recipe_node(model, data, *args, **options), path)


def train(config: Path, *options: Any, name: str | None = None) -> Path:
    """Run the training command; the run's folder."""
    named = ["--name", name] if name else []
    main(["--base", str(config), "--basedir", str(config.parent / "logs"), *named, *map(str, options)])
    return config.parent / "logs" / (name or config.stem)


def lightning_recipe(
    gpus: str | None = None, model: pl.LightningModule | None = None, **lightning: Any
) -> Recipe:
    """The recipe of a config with this `lightning` section, for a model and data that do nothing."""
    return Recipe(
        OmegaConf.create({"lightning": lightning}),
        model or pl.LightningModule(),
        DataModuleFromConfig(batch_size=1),
        gpus,
    )


def last(run: Path, file: str = "last.ckpt") -> dict[str, Any]:
    return torch.load(run / "checkpoints" / file, weights_only=True)


def equal_weights(a: Path, b: Path) -> bool:
    one, other = last(a)["state_dict"], last(b)["state_dict"]
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def logged(run: Path, column: str, version: int = 0) -> list[float]:
    with (run / f"csv/version_{version}/metrics.csv").open() as file:
        return [float(row[column]) for row in csv.DictReader(file) if row.get(column)]


def files_below(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
