"""A run that was stopped and resumed ends where it would have ended straight, bit by bit (CPU, float32)."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pipeline_builders import paintings_and_photos, save_config
from pytorch_lightning.callbacks import Timer
from training_builders import data_module, diffusion_node, hybrid_node, last, recipe

from ldm.cli.train import main
from ldm.errors import UserError

BATCHES = 5  # of an epoch
EPOCHS = 3


class SignalIn(pl.Callback):
    """Sends this process a signal while it works on its n-th batch; with `look`, notes the last checkpoint's step after it."""

    seen: int | None = None

    def __init__(self, batch: int, number: int = signal.SIGTERM, look: bool = False):
        self.batch, self.number, self.look = batch, number, look

    def on_train_batch_start(self, trainer: pl.Trainer, *args: Any) -> None:
        self.batch -= 1
        if self.batch == 0:
            os.kill(os.getpid(), self.number)
        if self.batch == -1 and self.look:
            path = Path(trainer.default_root_dir) / "checkpoints/last.ckpt"
            SignalIn.seen = torch.load(path, weights_only=True)["global_step"]


class FailIn(pl.Callback):
    """Raises an error in the n-th optimiser step, before it."""

    def __init__(self, step: int):
        self.step = step

    def on_before_zero_grad(self, *args: Any) -> None:
        self.step -= 1
        if self.step == 0:
            raise RuntimeError("something broke")


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe in which everything that a resume could lose acts: dropout, warm-up, averages, both data sets, crops."""
    root = tmp_path_factory.mktemp("resume")
    torch.manual_seed(0)
    schedule = {
        "target": "ldm.lr_scheduler.LambdaWarmUpCosineScheduler",
        "params": {"warm_up_steps": 7, "max_decay_steps": 15},
    }
    model = diffusion_node(
        root,
        scale_by_std=True,
        scale_batches=2,
        learn_logvar=True,
        scheduler_config=schedule,
    )
    model["params"]["unet_config"]["params"]["dropout"] = 0.2
    pictures = paintings_and_photos(root, 4 * BATCHES + 2, 6)
    data = data_module(hybrid_node(pictures, style_size=40), hybrid_node(pictures))
    trainer = {
        "precision": "32-true",
        "max_epochs": EPOCHS,
        "limit_val_batches": 2,
        "num_sanity_val_steps": 2,
        "gradient_clip_val": 1.0,
    }
    return recipe(root / "recipe.yaml", {"learning_rate": 1e-2, **model}, data, steps=-1, **trainer)


def run(config: Path, name: str, *options: str, callback: dict[str, Any] | None = None) -> dict[str, Any]:
    """Train as the command does; the last checkpoint."""
    paths = [str(config)]
    if callback is not None:
        paths.append(
            str(
                save_config(
                    {"lightning": {"callbacks": {"extra": callback}}}, config.parent / f"{name}-callback.yaml"
                )
            )
        )
    main(
        [
            "--base",
            *paths,
            "--logdir",
            str(config.parent / "logs"),
            "--name",
            name,
            "--allow-target",
            "test_resume",
            *options,
        ]
    )
    return last(config.parent / "logs" / name)


def resumed(config: Path, name: str, *options: str, callback: dict[str, Any] | None = None) -> dict[str, Any]:
    return run(config, name, "--resume", str(config.parent / "logs" / name), *options, callback=callback)


def differences(a: Any, b: Any, where: str = "") -> list[str]:
    """Where two trees of tensors and plain values differ."""
    if isinstance(a, torch.Tensor):
        return [] if torch.equal(a, b) else [where]
    if isinstance(a, dict):
        return [
            d
            for key in {*a, *b}
            for d in (
                differences(a[key], b[key], f"{where}.{key}") if key in a and key in b else [f"{where}.{key}"]
            )
        ]
    if isinstance(a, (list, tuple)):
        return [
            d for i, pair in enumerate(zip(a, b, strict=True)) for d in differences(*pair, f"{where}.{i}")
        ]
    return [] if a == b else [where]


STATE = ("state_dict", "optimizer_states", "lr_schedulers", "epoch", "global_step")


def assert_equal_runs(a: dict[str, Any], b: dict[str, Any]) -> None:
    assert not differences({key: a[key] for key in STATE}, {key: b[key] for key in STATE})


def stop_after(batch: int, number: int = signal.SIGTERM) -> dict[str, Any]:
    return {"target": "test_resume.SignalIn", "params": {"batch": batch, "number": int(number)}}


@pytest.fixture(scope="module")
def straight(config: Path) -> dict[str, Any]:
    return run(config, "straight")


@pytest.mark.parametrize("batch", [1, BATCHES, BATCHES + 1, 2 * BATCHES + 4])
def test_a_stop_anywhere_changes_nothing(config: Path, straight: dict[str, Any], batch: int) -> None:
    stopped = run(config, f"stop{batch}", callback=stop_after(batch))
    assert stopped["global_step"] == batch
    assert_equal_runs(resumed(config, f"stop{batch}"), straight)


@pytest.mark.parametrize("first, second", [(3, 4), (BATCHES, 1), (BATCHES - 1, 1)])
def test_several_stops_change_nothing(
    config: Path, straight: dict[str, Any], first: int, second: int
) -> None:
    name = f"twice{first}"
    run(config, name, callback=stop_after(first, signal.SIGINT))
    resumed(config, name, callback=stop_after(second))
    assert last(config.parent / "logs" / name)["global_step"] == first + second
    assert_equal_runs(resumed(config, name), straight)


def test_loader_workers_change_nothing(config: Path, straight: dict[str, Any]) -> None:
    workers = "data.params.num_workers=2"
    run(config, "workers", workers, callback=stop_after(7))
    assert_equal_runs(resumed(config, "workers", workers), straight)


def test_an_error_leaves_a_checkpoint_to_go_on_from(config: Path, straight: dict[str, Any]) -> None:
    with pytest.raises(RuntimeError, match="something broke"):
        run(config, "failed", callback={"target": "test_resume.FailIn", "params": {"step": 8}})
    assert last(config.parent / "logs/failed")["global_step"] == 7
    assert_equal_runs(resumed(config, "failed"), straight)


def test_the_save_signal_writes_a_checkpoint_and_training_goes_on(
    config: Path, straight: dict[str, Any]
) -> None:
    whole = run(
        config,
        "usr1",
        callback={
            "target": "test_resume.SignalIn",
            "params": {"batch": 2, "number": int(signal.SIGUSR1), "look": True},
        },
    )
    assert SignalIn.seen == 2  # the next one by itself would come at the end of the epoch
    assert_equal_runs(whole, straight)


def test_gradient_accumulation_is_resumed_at_its_bounds(config: Path) -> None:
    twice = "lightning.trainer.accumulate_grad_batches=2"
    whole = run(config, "accumulated", twice)
    stopped = run(config, "accumulating", twice, callback=stop_after(BATCHES + 1))
    # 2 + 2 + 1 batches make the first epoch's steps; the fourth step is made of the batch with the signal and the next.
    assert stopped["global_step"] == 4
    assert_equal_runs(resumed(config, "accumulating", twice), whole)


def test_validation_within_an_epoch_changes_nothing(config: Path, straight: dict[str, Any]) -> None:
    often = "lightning.trainer.val_check_interval=2"
    run(config, "validated", often, callback=stop_after(9))
    assert_equal_runs(resumed(config, "validated", often), straight)


def test_another_batch_size_in_the_middle_of_an_epoch_is_refused(config: Path) -> None:
    run(config, "size", callback=stop_after(2))
    with pytest.raises(
        UserError, match="with batches of 4 samples .all processes together., not 2; go on with 4"
    ):
        resumed(config, "size", "data.params.batch_size=2")


def test_the_seed_belongs_to_the_run(config: Path) -> None:
    first = run(config, "seed", "--seed", "5", callback=stop_after(2))
    with pytest.raises(UserError, match="the run to resume has the seed 5"):
        resumed(config, "seed", "--seed", "6")
    straight = run(config, "seed-straight", "--seed", "5")
    assert first["global_step"] == 2
    assert_equal_runs(resumed(config, "seed"), straight)


class FailAt(pl.Callback):
    """Raises an error in the n-th batch."""

    def __init__(self, batch: int):
        self.batch = batch

    def on_train_batch_start(self, *args: Any) -> None:
        self.batch -= 1
        if self.batch == 0:
            raise RuntimeError("something broke")


class StopIn(pl.Callback):
    """Asks for the end in the n-th batch, as `max_time` and early stopping do."""

    def __init__(self, batch: int):
        self.batch = batch

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        self.batch -= 1
        trainer.should_stop = trainer.should_stop or self.batch == 0


MAX_STEPS, MAX_EPOCHS = "lightning.trainer.max_steps=", "lightning.trainer.max_epochs="
TWICE = "lightning.trainer.accumulate_grad_batches=2"
TO_THE_END = (MAX_STEPS + "-1", MAX_EPOCHS + str(EPOCHS))


@pytest.mark.parametrize(
    "ends, options",
    [
        ((MAX_STEPS + "2",), ()),
        ((MAX_STEPS + str(BATCHES + 2),), ()),
        ((MAX_STEPS + str(2 * BATCHES),), ()),
        ((MAX_STEPS + "2", MAX_STEPS + "4", MAX_STEPS + str(BATCHES + 3)), ()),
        ((MAX_EPOCHS + "1", MAX_EPOCHS + "2"), ()),
        ((MAX_STEPS + str(BATCHES + 2), MAX_EPOCHS + "2"), ("lightning.trainer.val_check_interval=2",)),
        (
            (MAX_STEPS + str(BATCHES), MAX_STEPS + str(BATCHES + 1)),
            ("lightning.trainer.val_check_interval=2",),
        ),
        ((MAX_STEPS + "3", MAX_STEPS + "4"), (TWICE, "lightning.trainer.val_check_interval=2")),
        ((MAX_STEPS + "4",), (TWICE,)),
        ((MAX_STEPS + "3", MAX_STEPS + "5"), (TWICE,)),
    ],
)
def test_a_run_that_came_to_its_end_goes_on_exactly(
    config: Path, straight: dict[str, Any], ends: tuple[str, ...], options: tuple[str, ...]
) -> None:
    name = f"ended-{abs(hash((ends, options)))}"
    run(config, name, *options, ends[0])
    for end in ends[1:]:
        resumed(config, name, *options, end)
    expected = run(config, f"{name}-straight", *options) if options else straight
    assert_equal_runs(resumed(config, name, *options, *TO_THE_END), expected)


def test_an_error_within_accumulation_leaves_what_its_last_step_left(config: Path) -> None:
    whole = run(config, "accumulated-straight", TWICE)
    with pytest.raises(RuntimeError, match="something broke"):
        run(
            config,
            "accumulated-failed",
            TWICE,
            callback={"target": "test_resume.FailAt", "params": {"batch": BATCHES + 2}},
        )
    assert last(config.parent / "logs/accumulated-failed")["global_step"] == 3
    assert_equal_runs(resumed(config, "accumulated-failed", TWICE), whole)


@pytest.mark.parametrize("batch, options", [(2, ()), (BATCHES + 3, ()), (BATCHES + 3, (TWICE,))])
def test_a_run_that_was_asked_to_end_goes_on_exactly(
    config: Path, straight: dict[str, Any], batch: int, options: tuple[str, ...]
) -> None:
    name, asked = f"asked{batch}{len(options)}", {"target": "test_resume.StopIn", "params": {"batch": batch}}
    run(config, name, *options, callback=asked)
    expected = run(config, f"{name}-straight", *options) if options else straight
    assert_equal_runs(resumed(config, name, *options), expected)


def test_a_run_ends_by_its_time_in_the_middle_of_an_epoch_and_goes_on_exactly(
    config: Path, straight: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[pl.Trainer] = []

    def over(timer: Timer, trainer: pl.Trainer) -> None:
        asked.append(trainer)
        trainer.should_stop = len(asked) > BATCHES + 2  # it is asked before the first batch, too

    monkeypatch.setattr(Timer, "_check_time_remaining", over)
    run(config, "timed", "lightning.trainer.max_time={hours: 1}")
    assert BATCHES < last(config.parent / "logs/timed")["global_step"] < 2 * BATCHES
    monkeypatch.undo()
    assert_equal_runs(resumed(config, "timed", "lightning.trainer.max_time={hours: 2}"), straight)
