"""Nothing that happens to a run harms its checkpoints: kills, full disks, losses that are no numbers."""

import multiprocessing
import os
import signal
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from omegaconf import OmegaConf
from pipeline_builders import paintings_and_photos, save_config
from torch.utils.data import get_worker_info
from training_builders import data_module, diffusion_node, hybrid_node, last, recipe

from ldm.cli.train import main
from ldm.data.wikiart import HybridTrain
from ldm.data.workers import worker_errors
from ldm.errors import CheckpointError, NonFiniteError, UserError
from ldm.training.checkpoint_files import DurableCheckpointIO, find_checkpoint
from ldm.training.run_folder import KeepConfig, alone_in

posix = pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals and limits")


def checkpoint(step: int, values: int = 300_000) -> dict[str, Any]:
    return {"state_dict": {"weight": torch.full((values,), float(step))}, "global_step": step}


def in_a_process(work: Callable[..., None], *args: Any) -> multiprocessing.Process:
    process = multiprocessing.get_context("fork").Process(target=_alone, args=(work, *args))
    process.start()
    return process


def _alone(work: Callable[..., None], *args: Any) -> None:
    torch.set_num_threads(1)  # the threads of the process that this one was copied from are not there
    work(*args)


def save_up_to(moment: str, path: Path, reached: Connection) -> None:
    """Saves twice; the second save gets as far as the call of `moment`, and stays there."""
    DurableCheckpointIO().save_checkpoint(checkpoint(1), path)
    save = torch.save

    def stop(*args: Any) -> None:
        if moment == "torch.save":  # in its middle
            save(*args)
            os.truncate(args[1], args[1].stat().st_size // 2)
        reached.send(moment)
        signal.pause()

    pytest.MonkeyPatch().setattr(moment, stop)
    DurableCheckpointIO().save_checkpoint(checkpoint(2), path)


@posix
@pytest.mark.parametrize(
    "moment, kept, leftovers",
    [("torch.save", 1, 1), ("os.fsync", 1, 1), ("os.replace", 1, 1), ("ldm.files._flush_folder", 2, 0)],
)
def test_a_kill_at_any_moment_of_a_save_leaves_a_whole_checkpoint(
    tmp_path: Path, moment: str, kept: int, leftovers: int
) -> None:
    path, (reached, tell) = tmp_path / "last.ckpt", multiprocessing.Pipe(duplex=False)
    process = in_a_process(save_up_to, moment, path, tell)
    assert reached.poll(120)
    process.kill()
    process.join()
    found = torch.load(path, weights_only=True)
    assert found["global_step"] == kept and (found["state_dict"]["weight"] == kept).all()
    assert len(list(tmp_path.glob(".last.*"))) == leftovers


def save_on_a_full_disk(path: Path) -> None:
    import resource

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    with pytest.raises(CheckpointError, match="could not be written, is the disk full"):
        DurableCheckpointIO().save_checkpoint(checkpoint(2), path)


@posix
def test_a_full_disk_is_an_error_and_leaves_the_checkpoint_before(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    DurableCheckpointIO().save_checkpoint(checkpoint(1), path)
    process = in_a_process(save_on_a_full_disk, path)
    process.join()
    assert process.exitcode == 0
    assert torch.load(path, weights_only=True)["global_step"] == 1
    assert os.listdir(tmp_path) == ["last.ckpt"]


KILLED = "DataLoader worker (pid 7) is killed by signal: Killed. "


def test_a_worker_that_ends_during_a_save_is_not_taken_for_a_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def save(*args: Any) -> None:
        raise RuntimeError(KILLED)  # torch tells of it wherever the program is

    monkeypatch.setattr("torch.save", save)
    with pytest.raises(
        UserError, match="has ended before its time .*killed by signal: Killed.*do that$"
    ) as caught:
        with worker_errors("do that"):
            DurableCheckpointIO().save_checkpoint(checkpoint(1), tmp_path / "last.ckpt")
    assert "disk" not in str(caught.value) and not list(tmp_path.iterdir())


class Deadly(HybridTrain):
    """Its loader's worker is killed in the middle, as by a system that is out of memory."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        if get_worker_info() and Path(self.mark).exists():
            os.kill(os.getpid(), signal.SIGKILL)
        Path(self.mark).touch()
        return super().__getitem__(index)

    def __init__(self, mark: str, **options: Any):
        super().__init__(**options)
        self.mark = mark


@posix
def test_a_killed_loader_worker_is_told_in_one_line_which_names_no_disk(
    config: Path, caplog: pytest.LogCaptureFixture
) -> None:
    deadly = ["data.params.train.target=test_interrupted.Deadly", "data.params.num_workers=1"]
    mark = f"data.params.train.params.mark={config.parent / 'mark'}"
    with pytest.raises(UserError, match="that reads the data has ended .*data.params.num_workers.*--resume"):
        run(config, "deadly", None, *deadly, mark)
    assert "disk" not in caplog.text


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("part", ["state_dict", "optimizer_states"])
def test_a_checkpoint_that_is_not_finite_is_never_written(tmp_path: Path, part: str, value: float) -> None:
    path = tmp_path / "last.ckpt"
    DurableCheckpointIO().save_checkpoint(checkpoint(1), path)
    with pytest.raises(CheckpointError, match="weight has values that are not finite"):
        DurableCheckpointIO().save_checkpoint(
            {**checkpoint(2), part: {"weight": torch.tensor([0.0, value])}}, path
        )
    assert torch.load(path, weights_only=True)["global_step"] == 1


def test_a_run_is_found_by_its_folder(tmp_path: Path) -> None:
    path = tmp_path / "checkpoints/last.ckpt"
    DurableCheckpointIO().save_checkpoint(checkpoint(1), path)
    assert (
        find_checkpoint(tmp_path)
        == find_checkpoint(tmp_path / "checkpoints")
        == find_checkpoint(path)
        == path
    )
    with pytest.raises(CheckpointError, match="no checkpoints/last.ckpt in this folder"):
        find_checkpoint(tmp_path.parent)


# Losses that are no numbers


class Poison(pl.Callback):
    """Spoils the n-th batch, or the gradients that come of it; or simply fails there."""

    def __init__(self, batch: int, gradients: bool = False, fail: bool = False):
        self.batch, self.gradients, self.fail = batch, gradients, fail

    def on_train_batch_start(
        self, trainer: pl.Trainer, module: pl.LightningModule, batch: dict[str, Any], batch_idx: int
    ) -> None:
        self.batch -= 1
        if self.batch == 0 and self.fail:
            raise RuntimeError("something broke")
        if self.batch == 0 and not self.gradients:
            batch["image"][0] = float("nan")

    def on_after_backward(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if self.batch == 0 and self.gradients:
            next(module.model.parameters()).grad[0] = float("inf")


@pytest.fixture
def config(tmp_path: Path) -> Path:
    data = data_module(hybrid_node(paintings_and_photos(tmp_path, 8)), batch_size=2)
    exactly = {"precision": "32-true", "max_epochs": 2}
    return recipe(tmp_path / "recipe.yaml", diffusion_node(tmp_path), data, steps=-1, **exactly)


def run(config: Path, name: str, poison: dict[str, Any] | None = None, *options: str) -> dict[str, Any]:
    extra = {} if poison is None else {"poison": {"target": "test_interrupted.Poison", "params": poison}}
    second = save_config({"lightning": {"callbacks": extra}}, config.parent / "callbacks.yaml")
    main(
        [
            "--base",
            str(config),
            str(second),
            "--logdir",
            str(config.parent),
            "--name",
            name,
            "--allow-target",
            "test_interrupted",
            *options,
        ]
    )
    return last(config.parent / name)


@pytest.mark.parametrize(("gradients", "what"), [(False, "the loss"), (True, "a gradient")])
def test_a_loss_that_is_no_number_stops_before_the_weights_change(
    config: Path, gradients: bool, what: str
) -> None:
    three = run(config, "three", None, "lightning.trainer.max_steps=3")
    with pytest.raises(NonFiniteError, match=f"{what} is not finite at step 3, epoch 0"):
        run(config, "poisoned", {"batch": 4, "gradients": gradients})
    kept = last(config.parent / "poisoned", "not_finite.ckpt")
    assert kept["global_step"] == 3
    assert all(torch.equal(kept["state_dict"][name], value) for name, value in three["state_dict"].items())


def test_the_message_names_the_pictures_and_what_to_try(config: Path) -> None:
    with pytest.raises(NonFiniteError) as caught:
        run(config, "poisoned", {"batch": 1}, "lightning.trainer.accumulate_grad_batches=2")
    pictures = [str(p) for p in config.parent.rglob("*.png") if str(p) in str(caught.value)]
    assert 1 <= len(pictures) <= 4  # of the two batches that make the step
    assert "model.learning_rate" in str(caught.value)


def test_the_last_good_checkpoint_stays_when_the_loss_breaks(config: Path) -> None:
    with pytest.raises(NonFiniteError):
        run(config, "poisoned", {"batch": 4}, "lightning.last.every_n_train_steps=2")
    assert last(config.parent / "poisoned")["global_step"] == 2


def test_a_broken_loss_is_a_user_error() -> None:
    assert issubclass(NonFiniteError, UserError)  # one line and exit code 2


def test_signal_handlers_are_given_back(config: Path) -> None:
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.getsignal(number) for number in numbers]
    run(config, "plain", None, "lightning.trainer.max_steps=1")
    assert [signal.getsignal(number) for number in numbers] == before


def test_what_a_killed_save_left_is_removed_by_the_next_run(config: Path) -> None:
    folder = config.parent / "plain/checkpoints"
    folder.mkdir(parents=True)
    (folder / ".last.abc.ckpt").write_text("half")
    run(config, "plain", None, "lightning.trainer.max_steps=1")
    assert sorted(os.listdir(folder)) == ["last.ckpt"]


def test_only_what_a_save_left_of_this_file_is_removed(config: Path) -> None:
    folder = config.parent / "kept"
    folder.mkdir()
    for name in (".x.one.ckpt", ".notes.one.ckpt", ".[x]*.one.ckpt"):
        (folder / name).write_text("half")
    options = ["lightning.trainer.max_steps=1", f"lightning.last.path={folder}/[x]*.ckpt"]
    main(["--base", str(config), "--logdir", str(config.parent), "--name", "plain", *options])
    assert sorted(os.listdir(folder)) == [".notes.one.ckpt", ".x.one.ckpt", "[x]*.ckpt"]


# The folder of a run


def test_a_kill_while_the_config_is_kept_leaves_none_under_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep = KeepConfig(OmegaConf.create({"model": {}}), tmp_path)
    trainer: Any = SimpleNamespace(is_global_zero=True)

    def half(config: Any, path: Path) -> None:
        path.write_text("model: {targ")
        os._exit(9)

    def work() -> None:
        monkeypatch.setattr("ldm.training.run_folder.OmegaConf.save", half)
        keep.on_train_start(trainer, pl.LightningModule())

    process = in_a_process(work)
    process.join()
    assert process.exitcode == 9 and not list(tmp_path.glob("config_*"))
    (left,) = tmp_path.iterdir()
    (tmp_path / "checkpoints").mkdir()
    also_left = tmp_path / "checkpoints/.best-epoch=0-step=3.a1b2c3d4.ckpt"
    also_left.write_text("half")
    with alone_in(tmp_path):  # a run goes on there, be it finished or not
        assert not left.exists() and not also_left.exists()


def test_a_new_run_never_goes_into_the_folder_of_an_old_one(config: Path) -> None:
    before = run(config, "plain", None, "lightning.trainer.max_steps=1")
    with pytest.raises(
        UserError,
        match="holds a run already; go on with it by --resume .*plain, or give this one another name",
    ):
        run(config, "plain", None, "lightning.trainer.max_steps=2")
    assert last(config.parent / "plain")["global_step"] == before["global_step"] == 1


def test_a_refused_resume_leaves_the_run_as_it_was(config: Path) -> None:
    with pytest.raises(RuntimeError):
        run(config, "stopped", {"batch": 2, "fail": True})
    folder = config.parent / "stopped"
    configs = sorted(folder.glob("config_*.yaml"))
    with pytest.raises(UserError, match="go on with 2"):
        main(["--resume", str(folder), "data.params.batch_size=4", "--allow-target", "test_interrupted"])
    assert sorted(folder.glob("config_*.yaml")) == configs


def test_two_runs_cannot_write_into_one_folder(tmp_path: Path) -> None:
    with alone_in(tmp_path / "run"):
        with (
            pytest.raises(UserError, match="another training run is writing into it"),
            alone_in(tmp_path / "run"),
        ):
            pass
    with alone_in(tmp_path / "run"):
        pass


@posix
def test_a_run_that_was_killed_locks_nobody_out(tmp_path: Path) -> None:
    def work(folder: Path) -> None:
        with alone_in(folder):
            os.kill(os.getpid(), signal.SIGKILL)

    process = in_a_process(work, tmp_path / "run")
    process.join()
    assert process.exitcode == -signal.SIGKILL and (tmp_path / "run/.running").exists()
    with alone_in(tmp_path / "run"):
        pass
