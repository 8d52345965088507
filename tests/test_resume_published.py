"""Going on from training checkpoints of the published code, and from older ones of ours: every weight gets its own moments, or none."""

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from builders import FIRST_STAGE
from golden_rules import GOLDEN
from omegaconf import OmegaConf
from pipeline_builders import (
    assert_refused,
    everything_in,
    paintings_and_photos,
    run_program,
    save_config,
    tiny_model,
)
from published.checkpoints import (
    ADAM_STEP,
    RATE,
    STEP,
    adam_state,
    golden_order,
    lightning_1_6,
    moment,
    published_names,
    write,
)
from torch import nn
from torch.optim import SGD, AdamW
from torch.utils.data import IterableDataset
from training_builders import diffusion_node, hybrid_data, recipe

from ldm.cli.train import main
from ldm.data.datamodule import DataModuleFromConfig
from ldm.data.order import EpochOrder, SeededSamples
from ldm.errors import CheckpointError, UserError
from ldm.modules.optimizers import names_of
from ldm.training import published_checkpoint
from ldm.training.moments import NamedMoments, fitted_states
from ldm.training.resume import Resumed
from ldm.util import instantiate_from_config

Patch, Captured = pytest.MonkeyPatch, pytest.CaptureFixture
BATCHES, SEED = 5, 23  # of an epoch; what the command takes without --seed
SCHEDULE = {
    "target": "ldm.lr_scheduler.LambdaWarmUpCosineScheduler",
    "params": {"warm_up_steps": 4, "max_decay_steps": 40},
}


class Watch(pl.Callback):
    """Notes what a run begins with and what it then reads."""

    moments: dict[str, dict[str, Any]]
    paths: list[list[str]]
    began: tuple[int, int]

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        (optimizer,) = trainer.optimizers
        (group,) = optimizer.param_groups
        states = zip(
            names_of(module, group["params"]), (optimizer.state[weight] for weight in group["params"])
        )
        Watch.moments = {name: {key: value.clone() for key, value in state.items()} for name, state in states}
        Watch.group = {key: value for key, value in group.items() if key != "params"}
        Watch.paths, Watch.began, Watch.validations = [], (trainer.global_step, trainer.current_epoch), []
        Watch.averages = {
            name: value.clone() for name, value in module.state_dict().items() if "_ema." in name
        }

    def on_train_batch_start(
        self, trainer: pl.Trainer, module: pl.LightningModule, batch: dict[str, Any], batch_idx: int
    ) -> None:
        Watch.paths.append(batch["path"])

    def on_validation_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        Watch.validations.append(len(Watch.paths))


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("published")
    model = {"learning_rate": 1e-2, **diffusion_node(root, learn_logvar=True)}
    data = hybrid_data(paintings_and_photos(root, 2 * BATCHES), batch_size=2)
    watch = {"watch": {"target": "test_resume_published.Watch"}}
    exactly = {"precision": "32-true", "max_epochs": 10}
    return recipe(root / "recipe.yaml", model, data, steps=-1, callbacks=watch, **exactly)


def built(config: Path, **params: Any) -> pl.LightningModule:
    """The recipe's model with weights of its own and averages that are not those weights."""
    model = tiny_model(seed=3, vgg_ckpt_path=str(config.parent / "style.pt"), learn_logvar=True, **params)
    for average, module in model.averaged():
        average.num_updates.fill_(50)
        for shadow in average.shadow_names.values():
            getattr(average, shadow).mul_(0.5)
    return model


def resumed(config: Path, file: Path, folder: Path, *options: str) -> dict[str, Any]:
    """Go on from a file as the command does, for one step if the options say no other; the last checkpoint."""
    limit = [] if any("max_" in option for option in options) else [f"lightning.trainer.max_steps={STEP + 1}"]
    arguments = [
        "--base",
        str(config),
        "--resume",
        str(file),
        "--logdir",
        str(folder / "logs"),
        "--name",
        "run",
    ]
    main([*arguments, "--allow-target", "test_resume_published", *limit, *options])
    return torch.load(folder / "logs/run/checkpoints/last.ckpt", weights_only=True)


# The order of an optimiser's weights


@pytest.fixture(scope="module", params=["tiny", "class_cond_ldm"])
def golden(request: pytest.FixtureRequest) -> tuple[pl.LightningModule, list[str]]:
    return instantiate_from_config(OmegaConf.load(GOLDEN / f"{request.param}.yaml").model), golden_order(
        request.param
    )


def test_an_optimiser_holds_its_weights_in_the_published_order(
    golden: tuple[pl.LightningModule, list[str]],
) -> None:
    model, order = golden
    (group,) = model.configure_optimizers().param_groups
    assert names_of(model, group["params"]) == order


def test_a_learned_logvar_comes_last(config: Path) -> None:
    assert published_names(built(config))[-2:] == ["null_style_vector.weight", "logvar"]


@pytest.mark.parametrize("layout", ["published", "ours", "mixed up"])
def test_the_published_models_moments_reach_their_weights(
    golden: tuple[pl.LightningModule, list[str]], layout: str
) -> None:
    """Whatever the order of the file's state dict: where that is not the optimiser's, shapes tell."""
    model, order = golden
    weights = dict(model.named_parameters())
    in_file = {"published": order, "ours": list(model.state_dict()), "mixed up": sorted(weights)}[layout]
    optimizer = model.configure_optimizers()
    (state,) = fitted_states(model, [optimizer], [adam_state(order, weights)], in_file)
    optimizer.load_state_dict(state)
    for name, weight in zip(order, optimizer.param_groups[0]["params"], strict=True):
        assert weight is weights[name]
        assert optimizer.state[weight]["step"] == ADAM_STEP
        assert (optimizer.state[weight]["exp_avg"] == moment(name)).all()
        assert (optimizer.state[weight]["exp_avg_sq"] == moment(name) ** 2).all()


def test_names_in_a_state_count_more_than_any_order() -> None:
    model = nn.ModuleDict({name: nn.Linear(2, 2) for name in "abc"})  # all of one shape
    weights = dict(model.named_parameters())
    shuffled = [*weights][::-1]
    state = adam_state(shuffled, weights)
    state["param_groups"][0]["param_names"] = shuffled
    (fitted,) = fitted_states(model, [AdamW(model.parameters())], [state], [*weights])
    assert [float(fitted["state"][number]["exp_avg"].mean()) for number in range(6)] == pytest.approx(
        [moment(name) for name in weights]
    )


def test_other_optimisers_keep_what_they_like() -> None:
    layer = nn.Linear(2, 3)
    optimizer = SGD(layer.parameters(), lr=0.1, momentum=0.9)
    layer(torch.ones(2)).sum().backward()
    optimizer.step()
    state = optimizer.state_dict()
    state["state"][1]["momentum_buffer"] = None
    (fitted,) = fitted_states(layer, [optimizer], [state], ["weight", "bias"])
    assert torch.equal(fitted["state"][0]["momentum_buffer"], layer.weight.grad) and fitted["state"][1] == {
        "momentum_buffer": None
    }


# Going on


@pytest.fixture(scope="module")
def gone_on(config: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a run of one step began with, and its checkpoint."""
    folder, model = tmp_path_factory.mktemp("gone_on"), built(config)
    with pytest.MonkeyPatch.context() as patch:
        messages: list[str] = []
        patch.setattr(published_checkpoint.log, "info", lambda text, *values: messages.append(text % values))
        after = resumed(config, write(lightning_1_6(model), folder / "old.ckpt"), folder)
    seen = {name: getattr(Watch, name) for name in ("moments", "group", "began", "averages")}
    return {"model": model, "after": after, "messages": messages, **seen}


def test_every_weight_goes_on_with_its_own_moments(gone_on: dict[str, Any]) -> None:
    assert list(gone_on["moments"]) == published_names(gone_on["model"]) and len(gone_on["moments"]) > 50
    for name, state in gone_on["moments"].items():
        assert state["step"] == ADAM_STEP
        assert (state["exp_avg"] == moment(name)).all() and (state["exp_avg_sq"] == moment(name) ** 2).all()


def test_learning_rate_step_and_averages_go_on(gone_on: dict[str, Any]) -> None:
    # the config's rate is another
    assert gone_on["group"]["lr"] == RATE and gone_on["group"]["weight_decay"] == 1e-2
    assert gone_on["began"] == (STEP, 2)
    expected = {name: value for name, value in gone_on["model"].state_dict().items() if "_ema." in name}
    assert all(torch.equal(gone_on["averages"][name], value) for name, value in expected.items())
    after = gone_on["after"]
    assert (after["global_step"], after["epoch"]) == (STEP + 1, 2)
    assert after["state_dict"]["model_ema.num_updates"] == 51
    (state,) = after["optimizer_states"]
    assert {int(moments["step"]) for moments in state["state"].values()} == {ADAM_STEP + 1}


def test_what_is_taken_over_and_what_not_is_said_in_one_line_each(gone_on: dict[str, Any]) -> None:
    told = [message.partition(".ckpt: ")[2] for message in gone_on["messages"]]
    assert told == [
        "goes on from step 12, epoch 2, with the optimiser's moments and a learning rate of 0.0025",
        "does not say which samples of its epoch came before; epoch 2 begins anew, by the seed 23",
        "the state of its callbacks, such as the best values so far, is left out",
    ]


def test_a_checkpoint_of_ours_carries_the_weights_names(gone_on: dict[str, Any]) -> None:
    (group,) = gone_on["after"]["optimizer_states"][0]["param_groups"]
    assert group["param_names"] == published_names(gone_on["model"])


def expected_paths(config: Path, epoch: int) -> list[str]:
    """Of an epoch's first samples."""
    dataset = instantiate_from_config(OmegaConf.load(config).data.params.train)
    order = EpochOrder(len(dataset), 2, SEED, shuffle=True, drop_last=True)
    order.begin_at(epoch, 0)
    samples = SeededSamples(dataset)
    return [samples[draw]["path"] for draw, _ in zip(order, range(2))]


@pytest.mark.parametrize(
    "complete, version, epoch",
    [(False, "1.6.5", 2), (True, "1.6.5", 3), (True, "1.5.10", 2), (None, "1.4.2", 2)],
)
def test_the_epoch_begins_anew_or_the_next_one_begins(
    config: Path, tmp_path: Path, complete: bool | None, version: str, epoch: int
) -> None:
    """Until 1.6 a file says the epoch to go on with; 1.4 has no loops."""
    checkpoint = lightning_1_6(built(config), complete=bool(complete), batch=BATCHES if complete else 3) | {
        "pytorch-lightning_version": version
    }
    if complete is None:
        del checkpoint["loops"]
    after = resumed(
        config,
        write(checkpoint, tmp_path / "old.ckpt"),
        tmp_path,
        f"lightning.trainer.max_epochs={epoch + 1}",
    )
    assert Watch.began == (STEP, epoch)
    assert Watch.paths[0] == expected_paths(config, epoch)
    assert len(Watch.paths) == BATCHES and Watch.validations == [BATCHES]
    assert after["global_step"] == STEP + BATCHES


class Endless(IterableDataset):
    """A data set that counts its epochs itself, as streamed ones do."""

    epoch = 0

    def __iter__(self) -> Iterator[int]:
        return iter(())


def test_data_that_counts_its_epochs_begins_at_the_right_one(config: Path, tmp_path: Path) -> None:
    checkpoint = Resumed(write(lightning_1_6(built(config)), tmp_path / "old.ckpt"))
    checkpoint.fit_to(built(config), seed=7)
    data = DataModuleFromConfig(batch_size=1, num_workers=0)
    data.datasets["train"] = Endless()
    data.load_state_dict(checkpoint.take()["DataModuleFromConfig"])
    data.train_dataloader()
    assert (data.datasets["train"].epoch, data.seed) == (2, 7)


def test_gradients_are_accumulated_from_the_epochs_begin(config: Path, tmp_path: Path) -> None:
    options = ("lightning.trainer.max_epochs=3", "lightning.trainer.accumulate_grad_batches=2")
    after = resumed(config, write(lightning_1_6(built(config)), tmp_path / "old.ckpt"), tmp_path, *options)
    assert after["global_step"] == STEP + 3 and len(Watch.paths) == BATCHES  # 2 + 2 + 1


def test_what_goes_on_can_be_stopped_and_resumed_as_ever(config: Path, tmp_path: Path) -> None:
    file, end = (
        write(lightning_1_6(built(config)), tmp_path / "old.ckpt"),
        f"lightning.trainer.max_steps={STEP + 4}",
    )
    straight = resumed(config, file, tmp_path / "straight", end)
    stop = save_config(
        {"lightning": {"callbacks": {"stop": {"target": "test_resume.SignalIn", "params": {"batch": 2}}}}},
        tmp_path / "stop.yaml",
    )
    stopped = resumed(
        config, file, tmp_path, end, "--base", str(config), str(stop), "--allow-target", "test_resume"
    )
    assert stopped["global_step"] == STEP + 2
    again = resumed(config, tmp_path / "logs/run", tmp_path, end)
    assert all(
        torch.equal(again["state_dict"][name], value) for name, value in straight["state_dict"].items()
    )


def test_the_learning_rate_goes_on_along_its_schedule(config: Path, tmp_path: Path) -> None:
    file = write(lightning_1_6(built(config), schedule=True), tmp_path / "old.ckpt")
    scheduled = save_config({"model": {"params": {"scheduler_config": SCHEDULE}}}, tmp_path / "schedule.yaml")
    after = resumed(config, file, tmp_path, "--base", str(config), str(scheduled), "model.learning_rate=0.5")
    assert Watch.group["lr"] == RATE
    factor = instantiate_from_config(SCHEDULE).schedule(STEP + 1)
    # of the rate that the file began with
    assert after["optimizer_states"][0]["param_groups"][0]["lr"] == pytest.approx(1e-2 * factor)


@pytest.mark.parametrize(
    "in_file, in_config, told",
    [
        (
            True,
            False,
            "its learning-rate schedule is left out, as the config has none; the rate stays as it is",
        ),
        (False, True, "holds no learning-rate schedule; the config's begins with its first step"),
        (True, True, ""),
        (False, False, ""),
    ],
)
def test_a_schedule_on_one_side_alone_is_told(
    config: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, in_file: bool, in_config: bool, told: str
) -> None:
    checkpoint = Resumed(write(lightning_1_6(built(config), schedule=in_file), tmp_path / "old.ckpt"))
    checkpoint.fit_to(built(config, scheduler_config=SCHEDULE if in_config else None), SEED)
    assert [message.partition(".ckpt: ")[2] for message in caplog.messages if "schedule" in message] == (
        [told] if told else []
    )


def test_weights_without_moments_are_named(
    config: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoint = lightning_1_6(built(config))
    for number in (0, 1):
        del checkpoint["optimizer_states"][0]["state"][number]
    Resumed(write(checkpoint, tmp_path / "old.ckpt")).fit_to(built(config), SEED)
    count = len(published_names(built(config)))
    first = "model.diffusion_model.time_embed.mlp.0"
    assert (
        f"no moments for 2 of {count} weights ({first}.weight, {first}.bias); theirs start at zero"
        in caplog.text
    )


def gone_on_from(old: Path, logs: Path, *options: str) -> None:
    """Go on for a step from a published run's folder."""
    main(
        [
            "--resume",
            str(old),
            "--logdir",
            str(logs),
            "--allow-target",
            "test_resume_published",
            "--max_steps",
            "13",
            *options,
        ]
    )


def test_a_published_run_keeps_its_folder_to_itself(
    config: Path, tmp_path: Path, monkeypatch: Patch, capsys: Captured
) -> None:
    old = tmp_path / "2023_kl16"
    write(lightning_1_6(built(config)), old / "checkpoints/last.ckpt")
    before = everything_in(old)
    assert_refused(
        run_program(main, ["--resume", old], monkeypatch), capsys.readouterr(), "give the config with --base"
    )
    gone_on_from(old, tmp_path / "logs", "--base", str(config))
    assert everything_in(old) == before and (tmp_path / "logs/recipe/checkpoints/last.ckpt").exists()


def test_a_published_run_goes_on_with_the_configs_of_its_folder(
    config: Path, tmp_path: Path, monkeypatch: Patch
) -> None:
    old = tmp_path / "2023_kl16"
    write(lightning_1_6(built(config)), old / "checkpoints/last.ckpt")
    recipe = OmegaConf.load(config)
    # as the published command writes it
    trainer = {
        "accelerator": "ddp",
        "resume_from_checkpoint": str(old / "checkpoints/last.ckpt"),
    }
    (old / "configs").mkdir()
    OmegaConf.save({"model": recipe.model, "data": recipe.data}, old / "configs/2023-project.yaml")
    OmegaConf.save(
        {"lightning": OmegaConf.merge(recipe.lightning, {"trainer": trainer})},
        old / "configs/2023-lightning.yaml",
    )
    before = everything_in(old)
    gone_on_from(old, tmp_path / "logs")
    assert everything_in(old) == before
    assert (
        torch.load(tmp_path / "logs/2023_kl16/checkpoints/last.ckpt", weights_only=True)["global_step"] == 13
    )
    gone_on_from(old, tmp_path)
    assert everything_in(old) == before and (tmp_path / "2023_kl16_resumed/checkpoints/last.ckpt").exists()


def test_an_optimiser_computes_in_its_own_way_after_loading(tmp_path: Path) -> None:
    """A file says nothing of one fused kernel, or was written without."""
    module = nn.Linear(2, 2)
    optimizer = AdamW(module.parameters(), fused=True)
    NamedMoments().on_fit_start(type("Trainer", (), {"optimizers": [optimizer]}), module)
    optimizer.load_state_dict(adam_state(["weight", "bias"], dict(module.named_parameters())))
    assert optimizer.param_groups[0]["fused"] is True
    module(torch.ones(2)).sum().backward()
    optimizer.step()
    assert {int(state["step"]) for state in optimizer.state.values()} == {ADAM_STEP + 1}


def test_a_first_stage_goes_on_with_both_its_optimisers(tmp_path: Path) -> None:
    """Lightning 1.6 counts the steps of both, ours the pictures' one."""
    node = copy.deepcopy(FIRST_STAGE)
    node["params"]["lossconfig"] = {
        "target": "ldm.modules.losses.contperceptual.LPIPSWithDiscriminator",
        "params": {"disc_start": 0},
    }
    model = instantiate_from_config(node)
    weights, optimizers = dict(model.named_parameters()), model.configure_optimizers()
    names = [names_of(model, optimizer.param_groups[0]["params"]) for optimizer in optimizers]
    state = {
        "state_dict": model.state_dict(),
        "optimizer_states": [adam_state(of_one, weights) for of_one in names],
        "lr_schedulers": [],
    }
    checkpoint = Resumed(
        write(
            {**state, "epoch": 1, "global_step": 2 * STEP, "pytorch-lightning_version": "1.6.5"},
            tmp_path / "old.ckpt",
        )
    )
    checkpoint.fit_to(model, SEED)
    taken = checkpoint.take()
    assert taken["global_step"] == STEP
    for of_one, moments in zip(names, taken["optimizer_states"], strict=True):
        assert all(
            (moments["state"][number]["exp_avg"] == moment(name)).all() for number, name in enumerate(of_one)
        )


# Older checkpoints of this project


def test_a_checkpoint_of_ours_from_before_names_were_kept_goes_on(
    config: Path, gone_on: dict[str, Any], tmp_path: Path
) -> None:
    """It holds the weights as the model registers them, the null style vector last."""
    model = built(config)
    names, weights = names_of(model, model.trained_parameters()), dict(model.named_parameters())
    assert names != published_names(model) and names[-2:] == ["logvar", "null_style_vector.weight"]
    state = adam_state(names, weights)
    old = {**gone_on["after"], "state_dict": model.state_dict(), "optimizer_states": [state]}
    resumed(
        config,
        write(old, tmp_path / "run1/checkpoints/last.ckpt"),
        tmp_path,
        f"lightning.trainer.max_steps={STEP + 2}",
    )
    assert all((state["exp_avg"] == moment(name)).all() for name, state in Watch.moments.items()) and len(
        Watch.moments
    ) == len(names)


class AsksItsTrainer(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def configure_optimizers(self) -> AdamW:
        return AdamW(self.parameters(), lr=1 / self.trainer.max_steps)


@pytest.mark.parametrize("ours", [True, False])
def test_optimisers_that_need_a_trainer_go_on_by_order_in_files_of_ours_alone(
    tmp_path: Path, ours: bool
) -> None:
    model = AsksItsTrainer()
    state = adam_state(["layer.weight", "layer.bias"], dict(model.named_parameters()))
    content = {
        "state_dict": model.state_dict(),
        "optimizer_states": [state],
        "lr_schedulers": [],
        "callbacks": {"StepSeeds": {}} if ours else {},
    }
    checkpoint = Resumed(write(content, tmp_path / "a.ckpt"))
    if ours:
        checkpoint.fit_to(model, SEED)
        assert checkpoint.take()["optimizer_states"][0]["param_groups"] == state["param_groups"]
    else:
        with pytest.raises(CheckpointError, match="optimisers need a trainer"):
            checkpoint.fit_to(model, SEED)


# What does not fit


def without_a_weight(checkpoint: dict[str, Any]) -> None:
    checkpoint["optimizer_states"][0]["param_groups"][0]["params"].pop()


def with_a_wrong_shape(checkpoint: dict[str, Any]) -> None:
    checkpoint["optimizer_states"][0]["state"][3]["exp_avg_sq"] = torch.zeros(5)


def without_second_moments(checkpoint: dict[str, Any]) -> None:
    del checkpoint["optimizer_states"][0]["state"][3]["exp_avg_sq"]


def of_another_optimiser(checkpoint: dict[str, Any]) -> None:
    weight = nn.Parameter(torch.zeros(2))
    checkpoint["optimizer_states"] = [SGD([weight], lr=0.1).state_dict()]


def moments_of_two_optimisers(checkpoint: dict[str, Any]) -> None:
    checkpoint["optimizer_states"] *= 2


def without_states(checkpoint: dict[str, Any]) -> None:
    checkpoint["optimizer_states"] = []


def no_state_at_all(checkpoint: dict[str, Any]) -> None:
    checkpoint["optimizer_states"] = ["moments"]


def weights_alone(checkpoint: dict[str, Any]) -> None:
    del checkpoint["optimizer_states"], checkpoint["lr_schedulers"]


def of_another_model(checkpoint: dict[str, Any]) -> None:
    name = "model.diffusion_model.input_blocks.0.0.weight"
    checkpoint["state_dict"][name] = torch.zeros(9, 7, 3, 3)


def lacking_weights(checkpoint: dict[str, Any]) -> None:
    del checkpoint["state_dict"]["null_style_vector.weight"]


def not_by_lightning(checkpoint: dict[str, Any]) -> None:
    del checkpoint["pytorch-lightning_version"]


def without_its_step(checkpoint: dict[str, Any]) -> None:
    checkpoint["global_step"] = None


def another_schedule(checkpoint: dict[str, Any]) -> None:
    checkpoint["lr_schedulers"] = [{"best": 0.5, "num_bad_epochs": 3}]


@pytest.mark.parametrize(
    "spoil, problem",
    [
        (without_a_weight, "its optimiser holds"),
        (with_a_wrong_shape, "its optimiser has exp_avg_sq of shape (5,) for model.diffusion_model."),
        (without_second_moments, "its optimiser has no exp_avg_sq for model.diffusion_model."),
        (of_another_optimiser, "its optimiser is no AdamW: it has no betas, eps"),
        (moments_of_two_optimisers, "its optimiser is one of 2, this model has 1"),
        (without_states, "its optimiser has no state"),
        (no_state_at_all, "its optimiser is none of PyTorch's"),
        (
            weights_alone,
            "weights alone, without an optimiser's state; only a checkpoint of the same model can be resumed",
        ),
        (of_another_model, "does not fit DualCondLDM"),
        (lacking_weights, "1 missing (null_style_vector.weight)"),
        (not_by_lightning, "not written by Lightning"),
        (without_its_step, "does not say its global_step"),
        (another_schedule, "the state of its learning-rate schedule is none of LambdaLR's"),
    ],
)
def test_what_does_not_fit_is_refused_and_leaves_nothing(
    config: Path,
    tmp_path: Path,
    monkeypatch: Patch,
    capsys: Captured,
    spoil: Callable[[dict[str, Any]], None],
    problem: str,
) -> None:
    checkpoint = lightning_1_6(built(config))
    spoil(checkpoint)
    assert_nothing_is_left(config, write(checkpoint, tmp_path / "old.ckpt"), monkeypatch, capsys, problem)


def assert_nothing_is_left(
    config: Path, file: Path, monkeypatch: Patch, capsys: Captured, problem: str, *options: str
) -> None:
    monkeypatch.chdir(file.parent)
    before = everything_in(file.parent)
    arguments = ["--base", config, "--resume", file, "--allow-target", "test_resume_published", *options]
    assert_refused(run_program(main, arguments, monkeypatch), capsys.readouterr(), problem)
    assert everything_in(file.parent) == before


@pytest.mark.parametrize("share", [0.3, 0.95])
def test_a_file_cut_short_is_refused(
    config: Path, tmp_path: Path, monkeypatch: Patch, capsys: Captured, share: float
) -> None:
    file = write(lightning_1_6(built(config)), tmp_path / "old.ckpt")
    file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])
    assert_nothing_is_left(config, file, monkeypatch, capsys, "cut short")


def test_a_checkpoint_from_behind_the_end_is_refused(
    config: Path, tmp_path: Path, monkeypatch: Patch, capsys: Captured
) -> None:
    file = write(lightning_1_6(built(config)), tmp_path / "old.ckpt")
    assert_nothing_is_left(
        config,
        file,
        monkeypatch,
        capsys,
        "is at epoch 2, behind lightning.trainer.max_epochs=1",
        "--max_epochs",
        "1",
    )


class Hostile:
    def __reduce__(self) -> tuple:
        return print, ("run",)


def test_nothing_in_a_file_is_run(config: Path, tmp_path: Path, monkeypatch: Patch, capsys: Captured) -> None:
    file = write({**lightning_1_6(built(config)), "hparams": Hostile()}, tmp_path / "old.ckpt")
    assert_nothing_is_left(config, file, monkeypatch, capsys, "refused, and nothing in it was run")


def test_a_dry_run_checks_it_too(config: Path, tmp_path: Path) -> None:
    checkpoint = lightning_1_6(built(config))
    with_a_wrong_shape(checkpoint)
    with pytest.raises(UserError, match="its optimiser has"):
        resumed(config, write(checkpoint, tmp_path / "old.ckpt"), tmp_path, "--dry-run")
