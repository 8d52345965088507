"""`--dry-run`: what training would cost, and nothing written."""

import logging
import re
from pathlib import Path
from typing import Any

import pytest
from pipeline_builders import FIRST_STAGE, paintings_and_photos
from training_builders import (
    LOSS,
    diffusion_node,
    files_below,
    hybrid_data,
    logger_node,
    picture_data,
    recipe,
    train,
)

from ldm.errors import ConfigError


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with paintings and photos."""
    paintings_and_photos(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def diffusion(folder: Path, **trainer: Any) -> Path:
    pictures = {name: folder / name for name in ("paintings", "photos")}
    data = hybrid_data(pictures, batch_size=2)
    model = diffusion_node(folder, scale_by_std=True, monitor="val/loss")
    model["params"]["first_stage_config"]["params"]["ddconfig"]["params"]["widths"] = [32, 64, 96]
    return recipe(folder / "dry.yaml", model, data, callbacks=logger_node(batch_frequency=1), **trainer)


def first_stage(folder: Path) -> Path:
    model = {**FIRST_STAGE, "params": {**FIRST_STAGE["params"], "lossconfig": LOSS}}
    return recipe(
        folder / "dry.yaml", model, picture_data({name: folder / name for name in ("paintings", "photos")})
    )


def report(caplog: pytest.LogCaptureFixture, config: Path, *options: str) -> str:
    with caplog.at_level(logging.INFO):
        train(config, "--dry-run", *options)
    return "\n".join(
        record.getMessage() for record in caplog.records if record.name == "ldm.training.dry_run"
    )


@pytest.mark.parametrize("model", [diffusion, first_stage])
def test_a_dry_run_writes_no_file(folder: Path, model: Any) -> None:
    config = model(folder)
    before = files_below(folder)
    train(config, "--dry-run")
    assert files_below(folder) == before and not (folder / "logs").exists()


def test_a_dry_run_reports_parameters_speed_memory_and_losses(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    text = report(caplog, diffusion(folder))
    parameters = re.search(r"DualCondLDM, ([\d.]+) M parameters, ([\d.]+) M of them trained", text)
    assert float(parameters[1]) > float(parameters[2]) > 0
    assert "data: 5 samples for train, 5 samples for validation" in text
    assert "device: cpu, 1 process(es), precision" in text
    step = re.search(r"step: [\d.]+ s for 2 pictures, ([\d.]+) images/s", text)
    memory = re.search(r"memory: ([\d.]+) GB", text)
    assert float(step[1]) > 0 and 0.05 < float(memory[1]) < 1000
    assert all(re.search(rf"{name} [\d.]+", text) for name in ("train/loss", "val/loss"))


@pytest.mark.parametrize(
    "trainer",
    [
        {"max_epochs": 3, "check_val_every_n_epoch": 2},
        {"val_check_interval": 400, "check_val_every_n_epoch": None},
        {"accumulate_grad_batches": 4, "enable_progress_bar": True},
        {"limit_train_batches": 1},
    ],
    ids=str,
)
def test_whatever_the_trainer_is_told_a_dry_run_is_two_steps_and_a_validation(
    folder: Path, caplog, monkeypatch, trainer: dict[str, Any]
) -> None:
    steps = []
    monkeypatch.setattr(
        "ldm.training.dry_run._Measure.on_train_batch_start",
        lambda self, *args: steps.append(1) or setattr(self, "_began", 0.0),
    )
    assert "val/loss" in report(caplog, diffusion(folder, **trainer))
    assert len(steps) == 2


def test_a_dry_run_of_a_wrong_config_fails_as_the_run_would(folder: Path) -> None:
    with pytest.raises(ValueError, match="did you mean max_epochs"):
        train(diffusion(folder), "--dry-run", "lightning.trainer.max_epoch=3")


@pytest.mark.parametrize(
    "override, problem",
    [
        ("lightning.callbacks.images.params.log_images_kwargs.ddim_step=5", "did you mean ddim_steps"),
        (
            "lightning.logger={target: pytorch_lightning.loggers.CSVLogger, params: {save_dirr: x}}",
            "no parameter 'save_dirr'; did you mean save_dir",
        ),
        ("lightning.modelcheckpoint.params.save_top=1", "did you mean save_top_k"),
        (
            "lightning.modelcheckpoint.params.monitor=val/los",
            "told by 'val/los', which is not logged; did you mean val/loss",
        ),
        ("lightning.trainer.val_check_interval=abc", "the trainer cannot be set up"),
        (
            "lightning.callbacks.images.params.log_images_kwargs=true",
            "must be names with values or null, got True",
        ),
        ("lightning.trainer.weights_summary=full", "lightning.trainer.weights_summary: give"),
    ],
)
def test_a_dry_run_finds_every_key_that_is_wrong(folder: Path, override: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        train(diffusion(folder), "--dry-run", override)


def test_a_dry_run_builds_no_logger_which_may_reach_out_to_a_server(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[str] = []
    monkeypatch.setattr(
        "pytorch_lightning.loggers.CSVLogger.__init__", lambda self, save_dir: built.append(save_dir)
    )
    train(
        diffusion(folder),
        "--dry-run",
        "lightning.logger={target: pytorch_lightning.loggers.CSVLogger, params: {save_dir: x}}",
    )
    assert built == []
