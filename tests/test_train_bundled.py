"""Training by the clock, and the program that trains the bundled model in all its phases."""

import signal
from argparse import Namespace
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from pipeline_builders import ROOT, assert_refused, paintings_and_photos, run_program, script
from pytorch_lightning import LightningModule
from training_builders import diffusion_node, hybrid_data, last, logged, recipe, train

from ldm.config.merge import merged_config
from ldm.errors import ConfigError
from ldm.training import FINISHED
from ldm.training.budget import TimeBudget

# Training by the clock


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that shows its only number, and goes on by a second with each look."""
    now = [1000.0]

    def look() -> float:
        now[0] += 1
        return now[0]

    monkeypatch.setattr("ldm.training.budget.time", SimpleNamespace(monotonic=look))
    return now


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return paintings_and_photos(tmp_path_factory.mktemp("pictures"), 4)


def budget(seconds: float, **params: Any) -> dict[str, Any]:
    return {
        "budget": {
            "target": "ldm.training.budget.TimeBudget",
            "params": {"hours": seconds / 3600, "warm_up_steps": 1, **params},
        }
    }


def test_the_rate_rises_by_steps_and_falls_by_time() -> None:
    timed = TimeBudget(1.0, warm_up_steps=4, lr_min=0.1)
    assert [timed.factor(0.0, step) for step in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert [timed.factor(share, 100) for share in (0.0, 0.5, 1.0, 1.2)] == pytest.approx(
        [1.0, 0.55, 0.1, 0.1]
    )


def test_a_run_ends_when_its_time_is_over(
    folders: dict[str, Path], tmp_path: Path, clock: list[float]
) -> None:
    node = diffusion_node(tmp_path)
    run = train(
        recipe(
            tmp_path / "timed.yaml",
            node,
            hybrid_data(folders),
            steps=-1,
            max_epochs=-1,
            callbacks=budget(4.5),
        )
    )
    # each step looks at the clock, and so does each checkpoint
    assert 2 <= last(run)["global_step"] <= 5 and (run / FINISHED).exists()
    (rate,) = {group["lr"] for state in last(run)["optimizer_states"] for group in state["param_groups"]}
    assert rate == pytest.approx(0.02e-3, rel=1e-3)
    left = logged(run, "minutes_left")
    assert left == sorted(left, reverse=True) and 0 < left[0] <= 4.5 / 60 and left[-1] == 0


def test_a_stopped_run_has_the_rest_of_its_time_left(
    folders: dict[str, Path], tmp_path: Path, clock: list[float]
) -> None:
    config = recipe(
        tmp_path / "timed.yaml",
        diffusion_node(tmp_path),
        hybrid_data(folders),
        steps=3,
        max_epochs=-1,
        callbacks=budget(20),
    )
    run = train(config)
    assert last(run)["global_step"] == 3 and not (run / FINISHED).exists()
    clock[0] += 10_000  # what passes between two sittings does not count
    train(config, "--resume", run, "lightning.trainer.max_steps=-1")
    kept = last(run)["callbacks"]["TimeBudget"]
    assert (
        (run / FINISHED).exists()
        and 5 < last(run)["global_step"] < 20
        and 20 <= kept["elapsed"] < 30
        and kept["rates"] == [1e-3]
    )


@pytest.mark.parametrize(
    "wrong, problem",
    [
        ({"hours": 0}, "hours"),
        ({"hours": float("nan")}, "hours"),
        ({"lr_min": 2}, "lr_min"),
        ({"warm_up_steps": 0}, "warm_up"),
    ],
)
def test_budgets_that_cannot_be(wrong: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        TimeBudget(**{"hours": 1.0, **wrong})


def test_a_second_schedule_is_refused() -> None:
    with pytest.raises(ConfigError, match="model.params.scheduler_config=null"):
        TimeBudget(1.0).on_train_start(SimpleNamespace(lr_scheduler_configs=["one"]), LightningModule())


# The program


class Sitting:
    """Stands for the programs that train_bundled starts: notes their commands and leaves what they would."""

    def __init__(self, output: Path):
        self.output, self.commands, self.stop_in = output, [], None

    def __call__(self, command: list[str], processes: int = 1) -> None:
        self.commands.append(command)
        if command[0] == "train":
            run = (
                Path(command[command.index("--resume") + 1])
                if "--resume" in command
                else self.output / command[command.index("--name") + 1]
            )
            (run / "checkpoints").mkdir(parents=True, exist_ok=True)
            (run / "checkpoints/last.ckpt").touch()
            if run.name != self.stop_in:
                (run / FINISHED).touch()

    @property
    def runs(self) -> list[str]:
        """What was trained or computed, by name."""
        return [Path(command[command.index("--resume") + 1]).name + " again" if "--resume" in command else command[command.index("--name") + 1]
                if "--name" in command else command[0] for command in self.commands]  # fmt: skip


@pytest.fixture
def program(folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """(the sitting, how to run the program with more options: its exit code)"""
    module, sitting = script("train_bundled"), Sitting(tmp_path / "out")
    monkeypatch.setattr(module, "call", sitting)
    options = [
        "--photos",
        folders["photos"],
        "--paintings",
        folders["paintings"],
        "--output",
        sitting.output,
        "--hours",
        "10",
    ]
    return sitting, lambda *more: run_program(module.main, [*options, *more], monkeypatch)


def settings(sitting: Sitting, phase: str) -> dict[str, Any]:
    """What the phase's run was given beyond its config file."""
    return OmegaConf.to_container(OmegaConf.load(sitting.output / f"{phase}.yaml"))


def test_all_phases_follow_each_other(program: Any, folders: dict[str, Path]) -> None:
    sitting, train_bundled = program
    assert train_bundled() == 0
    assert sitting.runs == ["first", "decoder", "cache", "diffusion", "cross", "large", "checkpoint convert"]
    last_of = {
        name: str(sitting.output / name / "checkpoints/last.ckpt")
        for name in ("first", "decoder", "diffusion", "cross", "large")
    }
    assert settings(sitting, "decoder")["model"]["params"]["ckpt_path"] == last_of["first"]
    cross = settings(sitting, "cross")
    parts = {
        "first_stage_config": {"params": {"ckpt_path": last_of["decoder"]}},
        "ckpt_path": last_of["diffusion"],
    }
    assert cross["model"]["params"] == {"scheduler_config": None, **parts}
    assert cross["data"]["params"]["train"]["params"] == {
        "style_root": str(folders["paintings"]),
        "content_root": str(folders["photos"]),
    }
    hours = [
        settings(sitting, name)["lightning"]["callbacks"]["budget"]["params"]["hours"] for name in last_of
    ]
    assert hours == pytest.approx([2, 0.5, 2.5, 3, 2]) and settings(sitting, "first")["model"]["params"] == {
        "scheduler_config": None
    }
    assert settings(sitting, "large")["model"]["params"]["ckpt_path"] == last_of["cross"]
    result = [last_of["large"], str(sitting.output / "model.safetensors")]
    config = str(ROOT / "configs/mini.yaml")
    assert sitting.commands[-1] == [
        "checkpoint convert", *result, "--half", "--leave-out", "vgg.", "--config", config, "--force",
    ]  # fmt: skip


def test_what_is_not_trained_comes_from_the_bundled_weights(program: Any) -> None:
    sitting, train_bundled = program
    assert train_bundled("--phases", "cross", "decoder") == 0
    assert sitting.runs == ["decoder", "cross", "checkpoint convert"]
    bundled, own = (
        str(ROOT / "checkpoints/mini/model.safetensors"),
        str(sitting.output / "decoder/checkpoints/last.ckpt"),
    )
    params = settings(sitting, "cross")["model"]["params"]
    assert (params["ckpt_path"], params["first_stage_config"]["params"]["ckpt_path"]) == (bundled, own)
    assert settings(sitting, "cross")["lightning"]["callbacks"]["budget"]["params"]["hours"] == pytest.approx(
        10 * 0.3 / 0.35
    )


def test_a_gpu_gets_batches_of_its_own_size(program: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    sitting, train_bundled = program
    module = script("train_bundled")
    assert train_bundled("--phases", "cross") == 0 and settings(sitting, "cross")["data"][
        "params"
    ].keys() == {"train"}
    args = Namespace(
        hours=1,
        phases=["cross"],
        photos=Path("photos"),
        paintings=Path("paintings"),
        output=sitting.output,
        start="mini",
    )
    monkeypatch.setattr("ldm.device.choose_device", lambda name: torch.device("cuda"))
    given = module.settings_of("cross", args)
    assert given.data.params.batch_size == 64 and given.data.params.train.params.variants == 4
    assert {OmegaConf.select(given, key) for key in module.PHASES["cross"].on_gpu} == set(
        module.PHASES["cross"].on_gpu.values()
    )


def test_a_stopped_training_goes_on_where_it_was(program: Any, capsys: pytest.CaptureFixture) -> None:
    sitting, train_bundled = program
    sitting.stop_in = "decoder"
    assert train_bundled() == 130 and sitting.runs == ["first", "decoder"]
    assert "stopped in the phase 'decoder'; the same command goes on from there" in capsys.readouterr().err
    sitting.stop_in = None
    assert train_bundled() == 0
    assert sitting.runs[2:] == ["decoder again", "cache", "diffusion", "cross", "large", "checkpoint convert"]


@pytest.mark.parametrize("terminated", [False, True])
def test_a_stop_reaches_the_run_that_is_trained_once(
    monkeypatch: pytest.MonkeyPatch, terminated: bool
) -> None:
    module, told = script("train_bundled"), list[str]()

    class Run(nullcontext):
        """Waits until it is stopped; Ctrl-C reaches it from the terminal, as it does its parent."""

        def wait(self) -> int:
            if not told:
                told.append("waited for")
                raise KeyboardInterrupt
            return 0

        def terminate(self) -> None:
            told.append("told")

    run = Run()
    run.enter_result = run
    monkeypatch.setattr("subprocess.Popen", lambda command, env: run)
    monkeypatch.setattr("ldm.early._received", {signal.SIGTERM} if terminated else set())
    module.call(["train"])
    assert told == ["waited for", *["told"] * terminated]


@pytest.mark.parametrize(
    "wrong, problem",
    [
        (["--hours", "0"], "--hours must be above 0"),
        (["--hours", "nan"], "--hours must be above 0"),
        (["--photos", "nowhere"], "nowhere: no such folder of pictures"),
        (["--phases", "last"], "--phases"),
        (["--start", "nothing.ckpt"], "--start nothing.ckpt: no such file"),
        (["--processes", "0"], "--processes: expected a whole number between 1 and"),
    ],
)
def test_bad_input_is_refused_before_anything_is_made(
    program: Any, wrong: list[str], problem: str, capsys: pytest.CaptureFixture
) -> None:
    sitting, train_bundled = program
    assert_refused(train_bundled(*wrong), capsys.readouterr(), problem)
    assert not sitting.commands and not sitting.output.exists()


def test_a_phase_that_fails_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    module = script("train_bundled")
    with pytest.raises(module.UserError, match="artfusion train ended with exit code 2, see above"):
        module.call(["train", "--no-such-option"])


@pytest.mark.parametrize("name", script("train_bundled").PHASES)
def test_every_phase_has_its_config_and_takes_away_a_schedule_that_is_there(name: str) -> None:
    phase = script("train_bundled").PHASES[name]
    assert "scheduler_config" in merged_config([str(ROOT / "configs" / phase.config)], []).model.params
