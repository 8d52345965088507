"""The training command's config files, options and trainer: what is merged, what is chosen, what is refused."""

import inspect
import re
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from omegaconf import OmegaConf
from pipeline_builders import save_config
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.strategies import DDPStrategy
from torch import nn
from training_builders import lightning_recipe

from ldm.cli.train import parse_args
from ldm.config.factory import allowing_targets, to_plain
from ldm.config.merge import merged_config
from ldm.data.datamodule import DataModuleFromConfig
from ldm.device import has_bf16
from ldm.errors import ConfigError, UserError
from ldm.files import ROOT
from ldm.training.performance import apply_performance
from ldm.training.published_flags import TRAINER_FLAGS, gpu_devices
from ldm.training.run_folder import run_folder
from ldm.training.trainer import Recipe

# Config files


def save_all(folder: Path, **configs: dict[str, Any]) -> list[str]:
    return [str(save_config(config, folder / f"{name}.yaml")) for name, config in configs.items()]


def plain(*paths: str, overrides: tuple[str, ...] = ()) -> dict[str, Any]:
    return OmegaConf.to_container(merged_config(paths, overrides))


def test_later_files_and_overrides_win(tmp_path: Path) -> None:
    one = {"model": {"a": 1, "b": 1, "c": 1}, "data": {}}
    paths = save_all(tmp_path, one=one, other={"model": {"b": 2, "c": 2}})
    assert plain(*paths, overrides=("model.c=3", "data.x=[1,2]")) == {
        "model": {"a": 1, "b": 2, "c": 3},
        "data": {"x": [1, 2]},
    }


def test_a_file_is_merged_onto_the_one_it_extends_wherever_it_is_read_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sub").mkdir()
    _, top = save_all(
        tmp_path,
        base={"model": {"a": 1, "b": 1, "c": 1}, "data": {}},
        top={"extends": "sub/middle.yaml", "model": {"c": 3}},
    )
    save_all(tmp_path / "sub", middle={"extends": "../base.yaml", "model": {"b": 2, "c": 2}})
    monkeypatch.chdir(tmp_path)
    for path in (top, "top.yaml"):
        assert plain(path) == {"model": {"a": 1, "b": 2, "c": 3}, "data": {}}


def test_interpolations_see_the_merged_values(tmp_path: Path) -> None:
    paths = save_all(
        tmp_path,
        base={"model": {"a": 1, "b": "${model.a}"}, "data": {}},
        top={"extends": "base.yaml", "model": {"a": 2}},
    )
    assert merged_config(paths[1:]).model.b == 2 and merged_config(paths[1:], ["model.a=3"]).model.b == 3


def test_what_is_looked_up_in_a_replaced_target_is_said_to_be_gone(tmp_path: Path) -> None:
    old = {"model": {"target": "torch.nn.Linear", "params": {"n": 3}}, "data": {"n": "${model.params.n}"}}
    paths = save_all(tmp_path, old=old)
    assert to_plain(merged_config(paths))["data"] == {"n": 3}
    with pytest.raises(ConfigError, match=r"'model.params.n' not found; .*another one replaces are gone"):
        to_plain(merged_config(paths, ["model.target=torch.nn.Conv2d"]))


@pytest.mark.parametrize("name", [path.name for path in (ROOT / "configs").glob("*.yaml")])
def test_shipped_configs_are_found_with_what_they_extend_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert merged_config([f"configs/{name}"]).model.target


@pytest.mark.parametrize("extended", [["a"], ["b", "a"], ["b", "c", "a"]])
def test_a_file_that_extends_itself_is_refused(tmp_path: Path, extended: list[str]) -> None:
    for name, base in zip(["a", *extended], extended):
        save_all(tmp_path, **{name: {"extends": f"{base}.yaml", "model": {}, "data": {}}})
    with pytest.raises(ConfigError, match="a.yaml: extends itself"):
        merged_config([str(tmp_path / "a.yaml")])


@pytest.mark.parametrize("way", ["../base.yaml", "absolute", "a link"])
def test_a_file_extends_nothing_outside_of_its_folder(tmp_path: Path, way: str) -> None:
    (tmp_path / "sub").mkdir()
    (base,) = save_all(tmp_path, base={"secret": "word"})
    (tmp_path / "sub/link.yaml").symlink_to(base)
    extended = {"absolute": base, "a link": "link.yaml"}.get(way, way)
    with pytest.raises(
        ConfigError, match="lies outside of .*sub; give both files, --base .*base.yaml"
    ) as caught:
        merged_config(save_all(tmp_path / "sub", a={"extends": extended}))
    assert "secret" not in str(caught.value) and "word" not in str(caught.value)


@pytest.mark.parametrize("extended", [["a.yaml"], {"a": 1}, 3, True], ids=str)
def test_what_is_extended_is_the_name_of_a_file(tmp_path: Path, extended: object) -> None:
    with pytest.raises(ConfigError, match="`extends` must be the name of a file"):
        merged_config(save_all(tmp_path, a={"extends": extended}))


def test_a_config_elsewhere_may_extend_one_of_this_projects(tmp_path: Path) -> None:
    own = str(ROOT / "configs/mini.yaml")
    assert merged_config(save_all(tmp_path, a={"extends": own, "data": {"params": {"batch_size": 1}}})).model


def test_the_command_line_may_look_up_what_files_may_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PICTURES", "/mnt/pictures")
    (path,) = save_all(tmp_path, a={"model": {"name": "x"}, "data": {"root": "y"}})
    config = merged_config([path], ["data.root=${oc.env:PICTURES}/${model.name}", "data.n=${model.name}"])
    assert OmegaConf.to_container(config, resolve=False)["data"] == {
        "root": "/mnt/pictures/x",  # the run keeps its config in a file, to go on with
        "n": "${model.name}",
    }
    with pytest.raises(ConfigError, match="data.root=.*NOWHERE"):
        merged_config([path], ["data.root=${oc.env:NOWHERE}"])
    kept = {"model": {}, "data": {"root": "${oc.env:PICTURES}"}}
    with pytest.raises(ConfigError, match="data.root asks for"):
        merged_config(save_all(tmp_path, kept=kept))


def test_a_missing_file_to_extend_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere.yaml: no such file"):
        merged_config(save_all(tmp_path, a={"extends": "nowhere.yaml"}))


OLD = {"data": {"params": {"train": {"target": "A", "params": {"x": 1, "y": 1}}, "n": 4}}, "model": {}}
BASE, SUBCLASS = "ldm.models.first_stage.KLAutoencoder", "ldm.models.autoencoder.AutoencoderKL"
CHANGES = [
    ({"target": "B", "params": {"y": 2}}, {"y": 2}),
    ({"target": "A", "params": {"y": 2}}, {"x": 1, "y": 2}),
    ({"params": {"y": 2}}, {"x": 1, "y": 2}),
]


@pytest.mark.parametrize(
    "old, new, params",
    [(BASE, SUBCLASS, {"x": 1, "y": 2}), (SUBCLASS, BASE, {"y": 2})],
    ids=["subclass", "base"],
)
def test_a_subclass_keeps_the_parameters(tmp_path: Path, old: str, new: str, params: dict[str, int]) -> None:
    base = {"model": {"target": old, "params": {"x": 1, "y": 1}}, "data": {}}
    paths = save_all(
        tmp_path, base=base, child={"extends": "base.yaml", "model": {"target": new, "params": {"y": 2}}}
    )
    assert plain(paths[1])["model"] == {"target": new, "params": params}


@pytest.mark.parametrize("change, params", CHANGES, ids=["another target", "same target", "no target"])
@pytest.mark.parametrize("way", ["second file", "extends", "overrides"])
def test_only_another_target_replaces_a_node_whole(
    tmp_path: Path, change: dict[str, Any], params: dict[str, int], way: str
) -> None:
    overrides = [f"data.params.train.target={change['target']}"] if "target" in change else []
    new = {"data": {"params": {"train": change}}}
    paths = save_all(tmp_path, old=OLD, new=new, top={"extends": "old.yaml", **new})
    calls = {
        "second file": (paths[:2], []),
        "extends": (paths[2:], []),
        "overrides": (paths[:1], [*overrides, "data.params.train.params.y=2"]),
    }
    config = OmegaConf.to_container(merged_config(*calls[way]))
    assert config["data"]["params"] == {
        "n": 4,
        "train": {"target": change.get("target", "A"), "params": params},
    }


@pytest.mark.parametrize(
    "override, problem",
    [
        ("modle.target=x", "unknown config key 'modle'; did you mean model"),
        ("max_steps=3", "unknown config key 'max_steps'; the top level has model, data, lightning"),
        ("max_steps", "'max_steps' is not an override; write key.sub=value"),
        ("model.x=[1", "not valid YAML"),
    ],
)
def test_what_is_no_key_of_the_top_level_is_refused(tmp_path: Path, override: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        merged_config(save_all(tmp_path, a=OLD), [override])


@pytest.mark.parametrize("missing", ["model", "data"])
def test_a_config_needs_a_model_and_data(tmp_path: Path, missing: str) -> None:
    with pytest.raises(ConfigError, match=f"no `{missing}` section"):
        merged_config(save_all(tmp_path, a={key: {} for key in ("model", "data") if key != missing}))


# Options


@pytest.mark.parametrize(
    "given, overrides",
    [
        (
            "--max_epochs 5 --accumulate_grad_batches 2 --precision 16",
            ["max_epochs=5", "accumulate_grad_batches=2", "precision=16"],
        ),
        ("--max-steps=7 a.b=1 --fast_dev_run --no-test", ["max_steps=7", "fast_dev_run=true"]),
        (
            "--deterministic a.b=1 --benchmark true --scale_lr False --no-test True",
            ["deterministic=true", "benchmark=true"],
        ),
        ("--max_epochs -1 --benchmark -n n", ["max_epochs=-1", "benchmark=true"]),
    ],
)
def test_lightnings_flags_set_the_trainers_options(given: str, overrides: list[str]) -> None:
    args = parse_args(["-b", "a.yaml", *given.split(), "-l", "DIR", "-f", "_x", "-n", "n", "-s", "3"])
    found = [text.removeprefix("lightning.trainer.") for text in args.overrides if text != "a.b=1"]
    assert (
        sorted(found) == sorted(overrides)
        and args.base == ["a.yaml"]
        and ("a.b=1" in args.overrides) == ("a.b=1" in given)
    )
    assert run_folder(args, None) == Path("DIR/n_x") and args.seed == 3


def test_every_option_of_lightnings_trainer_is_a_flag() -> None:
    assert ["self", *TRAINER_FLAGS] == list(inspect.signature(pl.Trainer.__init__).parameters)


@pytest.mark.parametrize(
    "given, problem",
    [
        ("-p project", "--project: give --logdir DIR and --name NAME, or --resume DIR"),
        ("--debug", "--debug: run `python -m pdb -m ldm train"),
        ("--scale_lr", "--scale_lr: give the learning rate itself as model.learning_rate=VALUE"),
        ("--no-test maybe", "--no_test: expected true or false, got 'maybe'"),
        ("--resume_from_checkpoint x.ckpt", "--resume_from_checkpoint: give --resume FILE"),
        ("--progress_bar_refresh_rate=0", "enable_progress_bar=false"),
        ("--callbacks x", "--callbacks: give lightning.callbacks"),
        ("--weights_save_path=x", "--weights_save_path: give --logdir DIR"),
    ],
)
def test_published_flags_without_a_meaning_are_refused_by_what_replaces_them(
    given: str, problem: str
) -> None:
    with pytest.raises(UserError, match=re.escape(problem)):
        parse_args(["--base", "a.yaml", *given.split()])


def test_the_published_command_line_means_what_it_did(tmp_path: Path) -> None:
    (path,) = save_all(tmp_path, a=OLD)
    args = parse_args(f"--name n --base {path} --basedir DIR -t True --gpus 0,".split())
    assert (args.name, args.base, args.logdir, args.gpus) == ("n", [path], "DIR", "0,")
    assert (args.overrides, args.resume, args.seed, args.dry_run) == ([], None, None, False)
    options = lightning_recipe(args.gpus).trainer_options()
    assert (options["accelerator"], options["devices"]) == ("gpu", [0])


@pytest.mark.parametrize("value", ["False", "false", "0", "no"])
def test_a_command_that_shall_not_train_is_refused(value: str) -> None:
    with pytest.raises(UserError, match=f"--train {value}: this command trains; leave the option out"):
        parse_args(["--base", "a.yaml", "-t", value])


@pytest.mark.parametrize("options", [[], ["-t"], ["-t", "true"], ["--train", "1"]])
def test_the_option_to_train_changes_nothing(options: list[str]) -> None:
    assert parse_args([*options, "--base", "a.yaml"]).base == ["a.yaml"]


@pytest.mark.parametrize("option", ["-t", "--train"])
def test_the_option_to_train_leaves_the_next_flag_its_value(option: str) -> None:
    assert parse_args(["--base", "a.yaml", option, "--max_epochs", "1"]).overrides == [
        "lightning.trainer.max_epochs=1"
    ]


@pytest.mark.parametrize(
    "arguments",
    [
        "--base one.yaml other.yaml a.b=1 c.d=2",
        "a.b=1 --base one.yaml other.yaml --seed 3 c.d=2",
        "--name x a.b=1 c.d=2 --base one.yaml other.yaml",
    ],
)
def test_overrides_may_stand_anywhere(arguments: str) -> None:
    args = parse_args(arguments.split())
    assert (sorted(args.overrides), args.base) == (["a.b=1", "c.d=2"], ["one.yaml", "other.yaml"])


def test_a_config_file_may_have_an_equals_sign_in_its_name(tmp_path: Path) -> None:
    path = save_config({}, tmp_path / "lr=3.yaml")
    assert parse_args(["--base", str(path), "a.b=1"]).base == [str(path)]


@pytest.mark.parametrize("options", [[], ["a.b=1"], ["--base", "a.b=1"], ["--name", "x"]])
def test_a_config_file_or_a_run_to_resume_is_needed(options: list[str]) -> None:
    with pytest.raises(
        UserError, match="name a config file with --base, a run to go on with --resume, or weights"
    ):
        parse_args(options)
    assert parse_args([*options, "--resume", "run"]).base == []


@pytest.mark.parametrize(
    "options, problem",
    [
        (["--max_epoch", "5"], "did you mean --max_epochs"),
        (["--seed", "-1"], "--seed must be between 0 and"),
        (["--seed", "4294967296"], "--seed must be between 0 and"),
        (["--sede", "1"], "--sede"),
    ],
)
def test_a_wrong_option_is_a_user_error(options: list[str], problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        parse_args(["--base", "a.yaml", *options])


@pytest.mark.parametrize(
    "given, devices",
    [
        ("0,", [0]),
        ("0,1", [0, 1]),
        ("2,5,", [2, 5]),
        ([0, 2], [0, 2]),
        ("2", 2),
        (3, 3),
        ("-1", -1),
        (-1, -1),
    ],
    ids=repr,
)
def test_gpus_are_numbers_with_commas_or_a_count_as_in_lightning_1_6(
    given: object, devices: int | list[int]
) -> None:
    assert gpu_devices(given) == devices


@pytest.mark.parametrize(
    "text, problem",
    [
        *((text, "--gpus takes numbers such as 0,1") for text in ("first", "", ",", "0,-1", "1.5")),
        ("0", "--gpus 0 is no GPU, .*`--gpus 0,` for the first"),
    ],
)
def test_what_is_no_gpu_is_refused(text: str, problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        gpu_devices(text)


# The trainer


@pytest.mark.parametrize("option", [None, "2,3"], ids=["config alone", "option too"])
def test_published_configs_may_name_gpus_and_the_option_wins(option: str | None) -> None:
    options = lightning_recipe(option, trainer={"gpus": "0,"}).trainer_options()
    assert options["devices"] == ([0] if option is None else [2, 3]) and "gpus" not in options


@pytest.mark.parametrize("key", ["accelerator", "distributed_backend"])
def test_what_the_published_command_set_itself_is_taken_for_what_it_means_now(
    key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = lightning_recipe(trainer={key: "ddp", "devices": 2}).trainer_options()
    assert key not in options and isinstance(options["strategy"], DDPStrategy)


@pytest.mark.parametrize(
    "key, value, advice",
    [
        ("progress_bar_refresh_rate", 20, "give lightning.trainer.enable_progress_bar=false"),
        ("weights_summary", "full", "give lightning.trainer.enable_model_summary=false"),
        ("terminate_on_nan", True, "leave it out: a loss that is no number always ends the run"),
        ("replace_sampler_ddp", False, "leave it out: the loaders share the samples"),
        ("amp_level", "O2", "give lightning.trainer.precision="),
        ("checkpoint_callback", True, "give lightning.trainer.enable_checkpointing=false"),
        ("resume_from_checkpoint", "a.ckpt", "give --resume FILE"),
        ("accelerator", "ddp_spawn", "give lightning.trainer.strategy=ddp"),
        ("distributed_backend", "horovod", "give lightning.trainer.strategy=ddp"),
        ("strategy", "ddp_spawn", "give ddp; processes that are not started anew"),
        ("callbacks", [], "give lightning.callbacks.NAME.target=CLASS"),
        ("default_root_dir", "x", "give --logdir DIR"),
    ],
)
def test_keys_of_an_older_lightning_name_what_replaced_them(key: str, value: object, advice: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(f"lightning.trainer.{key}: {advice}")):
        lightning_recipe(trainer={key: value}).trainer_options()


def test_a_processor_wins_over_the_gpus_of_a_published_config() -> None:
    options = lightning_recipe(trainer={"gpus": "0,", "accelerator": "cpu"}).trainer_options()
    assert options["accelerator"] == "cpu" and "devices" not in options and "gpus" not in options


class OptimisesItself(pl.LightningModule):
    automatic_optimization = False


@pytest.mark.parametrize("options", [{"accumulate_grad_batches": 2}, {"gradient_clip_val": 1.0}], ids=str)
def test_what_lightning_does_not_do_for_a_model_is_refused_before_it_trains(options: dict[str, Any]) -> None:
    with pytest.raises(
        ConfigError,
        match=f"lightning.trainer.{next(iter(options))}: OptimisesItself optimises by itself .*leave it out",
    ):
        lightning_recipe(None, OptimisesItself(), trainer=options)
    assert (
        lightning_recipe(None, OptimisesItself(), trainer={"accumulate_grad_batches": 1}).trainer_options()[
            "log_every_n_steps"
        ]
        == 20
    )


@pytest.mark.parametrize("fast, expected", [(True, "bf16-mixed"), (False, "32-true")])
@pytest.mark.parametrize(
    "trainer", [{}, {"precision": "auto"}, {"precision": "auto", "accelerator": "cpu"}], ids=str
)
def test_precision_is_bfloat16_where_the_device_is_fast_at_it(
    trainer: dict[str, str], fast: bool, expected: str, monkeypatch
) -> None:
    asked = []
    monkeypatch.setattr("ldm.training.trainer.has_bf16", lambda device: asked.append(device.type) or fast)
    monkeypatch.setattr(
        "ldm.training.trainer.choose_device", lambda name: torch.device("cuda" if name == "auto" else name)
    )
    assert lightning_recipe(trainer=trainer).trainer_options()["precision"] == expected
    assert asked == [trainer.get("accelerator", "cuda")]


def test_a_precision_that_was_asked_for_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ldm.training.trainer.has_bf16", lambda device: pytest.fail("asked"))
    assert lightning_recipe(trainer={"precision": "32-true"}).trainer_options()["precision"] == "32-true"


@pytest.mark.parametrize(
    "features, expected",
    [
        ({}, False),
        ({"avx512_bf16": False, "avx2": True}, False),
        ({"avx512_bf16": True}, True),
        ({"amx_bf16": True}, True),
    ],
)
def test_a_cpu_is_fast_at_bfloat16_with_instructions_for_it(
    features: dict[str, bool], expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: features, raising=False)
    assert has_bf16(torch.device("cpu")) == expected and not has_bf16(torch.device("mps"))


@pytest.mark.parametrize("avx, amx", [(False, False), (True, False), (False, True)])
def test_the_oldest_torch_tells_of_bfloat16_in_its_own_way(
    avx: bool, amx: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr("torch.cpu.get_capabilities", raising=False)
    monkeypatch.setattr("torch.cpu._is_avx512_bf16_supported", lambda: avx, raising=False)
    monkeypatch.setattr("torch.cpu._is_amx_tile_supported", lambda: amx, raising=False)
    assert has_bf16(torch.device("cpu")) == (avx or amx)


def trainer_of(folder: Path, model: pl.LightningModule | None = None, **lightning: Any) -> pl.Trainer:
    lightning["trainer"] = {"accelerator": "cpu", **(lightning.get("trainer") or {})}
    return lightning_recipe(None, model, **lightning).trainer(folder, seed=0)


def test_the_trainer_takes_the_configs_options(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, trainer={"max_steps": 7, "gradient_clip_val": 0.5})
    assert (trainer.max_steps, trainer.gradient_clip_val, trainer.log_every_n_steps) == (7, 0.5, 20)
    assert {type(logger).__name__ for logger in trainer.loggers} == {"TensorBoardLogger", "CSVLogger"}


def test_training_says_which_extra_it_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*args: Any, **options: Any) -> None:
        raise ModuleNotFoundError("Neither `tensorboard` nor `tensorboardX` is available")

    monkeypatch.setattr("ldm.training.trainer.TensorBoardLogger", missing)
    with pytest.raises(UserError, match=r"pip install 'artfusion\[train\]'"):
        trainer_of(tmp_path)


class Monitored(pl.LightningModule):
    monitor = "val/loss"


@pytest.mark.parametrize(
    "wrap", [lambda params: params, lambda params: {"params": params}], ids=["plain", "published"]
)
def test_checkpoints_of_the_best_and_of_every_n_steps_are_asked_for(tmp_path: Path, wrap: Any) -> None:
    nodes = {
        "modelcheckpoint": wrap({"save_top_k": 2}),
        "modelcheckpoint_step": wrap({"every_n_train_steps": 5}),
    }
    lightning = lightning_recipe(None, Monitored(), trainer={"accelerator": "cpu"}, **nodes)
    lightning.data.datasets["validation"] = []
    best, steps = [c for c in lightning.trainer(tmp_path, seed=0).callbacks if isinstance(c, ModelCheckpoint)]
    assert (best.monitor, best.save_top_k) == ("val/loss", 2)
    assert (steps.monitor, steps._every_n_train_steps, steps.save_top_k) == (None, 5, -1)
    assert {str(best.dirpath), str(steps.dirpath)} == {str(tmp_path / "checkpoints")}


@pytest.mark.parametrize(
    "options, expected",
    [({"every_n_train_steps": 3}, (None, -1)), ({"monitor": "train/loss"}, ("train/loss", 3))],
    ids=str,
)
def test_checkpoints_that_need_no_validation_are_written_without(
    tmp_path: Path, options: dict[str, Any], expected: tuple[str | None, int]
) -> None:
    recipe = lightning_recipe(
        None, Monitored(), trainer={"accelerator": "cpu"}, modelcheckpoint={"params": options}
    )
    (found,) = [c for c in recipe.trainer(tmp_path, seed=0).callbacks if isinstance(c, ModelCheckpoint)]
    assert (found.monitor, found.save_top_k) == expected


@pytest.mark.parametrize("validates, monitored", [(False, True), (True, False)])
def test_without_a_value_to_watch_there_is_no_best_checkpoint(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, validates: bool, monitored: bool
) -> None:
    model = Monitored() if monitored else None
    for options, told in (({}, 0), ({"save_top_k": 2}, 1)):
        recipe = lightning_recipe(None, model, trainer={"accelerator": "cpu"}, modelcheckpoint=options)
        recipe.data.datasets |= {"validation": []} if validates else {}
        assert not [c for c in recipe.trainer(tmp_path, seed=0).callbacks if isinstance(c, ModelCheckpoint)]
        assert caplog.text.count("lightning.modelcheckpoint has no effect") == told


@pytest.mark.parametrize(
    "section",
    ["trainer", "callbacks", "logger", "performance", "modelcheckpoint", "modelcheckpoint_step", "last"],
)
def test_sections_of_the_trainer_may_be_null(tmp_path: Path, section: str) -> None:
    assert isinstance(trainer_of(tmp_path, **{section: None}), pl.Trainer)


def _callback(name: str, **params: Any) -> dict[str, Any]:
    return {"callbacks": {"x": {"target": f"pytorch_lightning.callbacks.{name}", "params": params}}}


@pytest.mark.parametrize(
    "lightning, problem",
    [
        ({"trainr": {}}, "unknown config key 'trainr'; did you mean trainer"),
        (
            {"modelcheckpoint_steps": {}},
            "unknown config key 'modelcheckpoint_steps'; did you mean modelcheckpoint_step",
        ),
        ({"trainer": {"max_epoch": 3}}, "has no parameter 'max_epoch'; did you mean max_epochs"),
        (
            {"trainer": {"precision": "fp7"}},
            "lightning.trainer.precision must be .*'bf16-mixed'.*, got 'fp7'",
        ),
        ({"trainer": {"precision": "64-true"}}, "32 bits at most; give 32-true"),
        ({"trainer": {"precision": "bf16-true"}}, "lose an optimiser's small steps; give bf16-mixed"),
        (
            _callback("OnExceptionCheckpoint", filename="last"),
            "callbacks.x: leave OnExceptionCheckpoint out; an error",
        ),
        ({"trainer": {"precision": "transformer-engine"}}, "lightning.trainer: .* package that is not inst"),
        ({"trainer": {"max_steps": "many"}}, "lightning.trainer.max_steps must be a whole number"),
        ({"trainer": {"max_steps": -2}}, "lightning.trainer.max_steps must be a whole number from -1"),
        ({"trainer": {"max_steps": 0}}, "lightning.trainer.max_steps is 0, so that nothing would be trained"),
        ({"trainer": {"max_epochs": 0}}, "lightning.trainer.max_epochs is 0"),
        ({"trainer": {"limit_train_batches": 0}}, "limit_train_batches is 0, so that nothing would be train"),
        ({"trainer": {"limit_train_batches": 0.0}}, "limit_train_batches is 0"),
        ({"trainer": {"max_time": "many"}}, "the trainer cannot be set up"),
        ({"trainer": {"max_time": 3}}, "lightning.trainer.max_time must be text or .*, got 3"),
        ({"trainer": {"num_nodes": 2}}, "num_nodes is 2, and nothing says which of these machines this is"),
        ({"trainer": {"num_nodes": "x"}}, "lightning.trainer.num_nodes must be a whole number, got 'x'"),
        (
            {"trainer": {"benchmark": "x"}},
            "lightning.trainer.benchmark must be true or false or null, got 'x'",
        ),
        ({"trainer": {"num_sanity_val_steps": "x"}}, "num_sanity_val_steps must be a whole number"),
        ({"trainer": {"logger": "x"}}, "lightning.trainer.logger must be .*, got 'x'"),
        ({"trainer": {"profiler": 3}}, "lightning.trainer.profiler must be .* or text or null, got 3"),
        (
            {"trainer": {"strategy": "xla"}},
            "lightning.trainer: .* package that is not installed: .*torch_xla",
        ),
        (
            {"trainer": {"check_val_every_n_epoch": 0}},
            "check_val_every_n_epoch must be a whole number from 1",
        ),
        ({"trainer": {"gradient_clip_algorithm": "x"}}, "gradient_clip_algorithm must be norm or value"),
        ({"trainer": {"overfit_batches": 1}}, "overfit_batches is not for this data"),
        (
            {"trainer": {"accumulate_grad_batches": 0}},
            "lightning.trainer.accumulate_grad_batches must be a whole number from 1 on",
        ),
        ({"trainer": {"val_check_interval": 0}}, "lightning.trainer.val_check_interval must be above 0"),
        ({"modelcheckpoint_step": {"params": {"every_n_train_step": 3}}}, "did you mean every_n_train_steps"),
        ({"modelcheckpoint": {"params": {"save_top_kk": 3}}}, "did you mean save_top_k"),
        (
            {"modelcheckpoint": {"target": "pytorch_lightning.callbacks.ModelChekpoint"}},
            "did you mean ModelCheckpoint",
        ),
        (
            {"logger": {"target": "pytorch_lightning.loggers.TestTubeLogger"}},
            "TensorBoard's and CSV files are always written",
        ),
        (
            {"modelcheckpoint_step": {"every_n_train_steps": 3, "every_n_epochs": 3}},
            "lightning.modelcheckpoint_step: .*mutually exclusive",
        ),
        (
            {"last": {"every_n_train_step": 3}},
            "KeepLast has no parameter 'every_n_train_step'; did you mean every_n_train_steps",
        ),
        ({"callbacks": {"x": {"target": "os.system"}}}, "'os.system' is not under"),
        ({"callbacks": [1]}, "`lightning.callbacks` must be names with values, got"),
        (
            _callback("LambdaCallback", on_train_start="print('x')"),
            "lightning.callbacks.x.params.on_train_start must be a function, which a config cannot give",
        ),
        (_callback("EarlyStopping", monitor="val/loss", patience="x"), "patience must be a whole number"),
        (_callback("LearningRateFinder", min_lr="x"), "min_lr must be a number, got 'x'"),
        (_callback("ModelSummary", max_depth="x"), "max_depth must be a whole number, got 'x'"),
        (_callback("SpikeDetection", mode="x"), "mode must be 'min' or 'max', got 'x'"),
        (
            {"callbacks": {"x": {"target": "main.ImageLogger", "params": {"max_images": "x"}}}},
            "lightning.callbacks.x.params.max_images must be a whole number, got 'x'",
        ),
        ({"modelcheckpoint": {"save_top_k": "x"}}, "lightning.modelcheckpoint.save_top_k must be a whole n"),
        (
            {"logger": {"target": "pytorch_lightning.loggers.CSVLogger", "params": {"name": 3}}},
            "lightning.logger.params.name must be text or null, got 3",
        ),
        (
            {"logger": {"target": "pytorch_lightning.loggers.CometLogger"}},
            "CometLogger needs a package that is not installed",
        ),
    ],
)
def test_what_the_trainer_does_not_know_is_refused(
    tmp_path: Path, lightning: dict[str, Any], problem: str
) -> None:
    trainer = lightning.get("trainer", {})
    with pytest.raises(ConfigError, match=problem):
        lightning_recipe(**{**lightning, "trainer": {"accelerator": "cpu", **trainer}}).trainer(
            tmp_path, seed=0
        )


@pytest.mark.parametrize("name", ["NODE_RANK", "GROUP_RANK"])
def test_a_machine_has_a_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    recipe = lightning_recipe(trainer={"accelerator": "cpu"})
    monkeypatch.setenv(name, "x")
    with pytest.raises(
        ConfigError, match=f"environment's {name} must be the number of this machine, got 'x'"
    ):
        recipe.trainer(tmp_path, seed=0)
    monkeypatch.setenv(name, "0")
    recipe.trainer(tmp_path, seed=0)


@pytest.mark.parametrize(
    "lightning",
    [
        {"modelcheckpoint_step": {"every_n_train_steps": 1e3}},  # as YAML has it
        _callback("EarlyStopping", monitor="val/loss", verbose=1),
        _callback("StochasticWeightAveraging", swa_lrs=[0.5]),
        _callback("ModelPruning", pruning_fn="l1_unstructured", amount=0.5),
        _callback("Timer", duration={"minutes": 3}),
        {"trainer": {"max_epochs": None, "limit_val_batches": 0, "deterministic": "warn", "precision": 32}},
    ],
    ids=str,
)
def test_values_of_any_type_that_lightning_takes_are_taken(tmp_path: Path, lightning: dict[str, Any]) -> None:
    trainer = {"accelerator": "cpu", **lightning.get("trainer", {})}
    lightning_recipe(**{**lightning, "trainer": trainer}).trainer(tmp_path, seed=0)


@pytest.mark.parametrize("lightning", [3, [1], "trainer"])
def test_the_trainers_section_is_names_with_values(lightning: object) -> None:
    with pytest.raises(ConfigError, match="`lightning` must be names with values"):
        Recipe(OmegaConf.create({"lightning": lightning}), pl.LightningModule(), pl.LightningDataModule())


# Paths


ELSEWHERE = [
    ({"last": {"path": "OUT/last.ckpt"}}, "lightning.last.path"),
    ({"last": {"path": "last.ckpt"}}, "lightning.last.path"),  # of the folder that the command is given in
    ({"modelcheckpoint": {"dirpath": "OUT"}}, "lightning.modelcheckpoint.dirpath"),
    ({"modelcheckpoint": {"params": {"dirpath": "OUT"}}}, "lightning.modelcheckpoint.params.dirpath"),
    ({"modelcheckpoint_step": {"dirpath": ".."}}, "lightning.modelcheckpoint_step.dirpath"),
    ({"modelcheckpoint_epoch": {"filename": "../../x"}}, "lightning.modelcheckpoint_epoch.filename"),
    *(
        (
            {"callbacks": {"x": {"target": f"pytorch_lightning.callbacks.{name}", "params": params}}},
            f"lightning.callbacks.x.params.{next(iter(params))}",
        )
        for name, params in (
            ("ModelCheckpoint", {"dirpath": "OUT"}),
            ("ModelCheckpoint", {"filename": "OUT/x"}),
            ("SpikeDetection", {"exclude_batches_path": "OUT/x"}),
        )
    ),
    *(
        (
            {"logger": {"target": f"pytorch_lightning.loggers.{name}", "params": params}},
            f"lightning.logger.params.{next(iter(params))}",
        )
        for name, params in (
            ("CSVLogger", {"save_dir": "OUT"}),
            ("CSVLogger", {"save_dir": "."}),
            ("CSVLogger", {"name": "OUT"}),
            ("CSVLogger", {"version": "../../.."}),
            ("TensorBoardLogger", {"sub_dir": "OUT"}),
            ("WandbLogger", {"dir": "OUT"}),
            ("MLFlowLogger", {"tracking_uri": "file:OUT"}),
        )
    ),
]


def in_folder(value: Any, folder: Path) -> Any:
    """A config's part with OUT as the folder."""
    if isinstance(value, dict):
        return {key: in_folder(item, folder) for key, item in value.items()}
    return value.replace("OUT", str(folder)) if isinstance(value, str) else value


@pytest.mark.parametrize("lightning, key", ELSEWHERE, ids=str)
def test_a_config_file_makes_a_run_write_into_its_own_folder_alone(
    tmp_path: Path, lightning: dict[str, Any], key: str
) -> None:
    lightning = in_folder(lightning, tmp_path / "elsewhere")
    recipe = lightning_recipe(trainer={"accelerator": "cpu"}, **lightning)
    with pytest.raises(
        ConfigError, match=f"^{key}: .* leads out of the run's folder, .*command line: {key}="
    ):
        recipe.trainer(tmp_path / "run", seed=0)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "lightning, key",
    [each for each in ELSEWHERE if "Wandb" not in str(each) and "MLFlow" not in str(each)],
    ids=str,
)
def test_the_command_line_may_name_any_place(tmp_path: Path, lightning: dict[str, Any], key: str) -> None:
    config = OmegaConf.create({"lightning": in_folder(lightning, tmp_path / "elsewhere")})
    config.lightning.trainer = {"accelerator": "cpu"}
    if "CSVLogger" in str(lightning):
        config = OmegaConf.merge({"lightning": {"logger": {"params": {}}}}, config)
    recipe = Recipe(config, Monitored(), DataModuleFromConfig(batch_size=1), typed={key})
    assert recipe.trainer(tmp_path / "run", seed=0)


def test_loggers_and_callbacks_write_into_the_runs_folder_by_themselves(tmp_path: Path) -> None:
    trainer = trainer_of(
        tmp_path,
        logger={"target": "pytorch_lightning.loggers.CSVLogger", "params": {"name": "mine"}},
        **_callback("ModelCheckpoint", filename="mine"),
    )
    assert Path(trainer.loggers[-1].log_dir).parent == tmp_path / "mine"
    (found,) = [c for c in trainer.callbacks if getattr(c, "filename", None) == "mine"]
    assert Path(found.dirpath) == tmp_path / "checkpoints"


def test_a_callback_whose_state_no_checkpoint_has_is_told_of(tmp_path: Path, caplog) -> None:
    trainer_of(tmp_path, **_callback("StochasticWeightAveraging", swa_lrs=1e-2))
    assert "lightning.callbacks.x: a run with StochasticWeightAveraging does not go on exactly" in caplog.text


def test_a_path_within_the_runs_folder_is_taken(tmp_path: Path) -> None:
    places = {
        "last": {"path": str(tmp_path / "run/a/last.ckpt")},
        "modelcheckpoint_step": {"dirpath": str(tmp_path / "run/b"), "every_n_train_steps": 5},
    }
    assert trainer_of(tmp_path / "run", **places)


def test_what_was_allowed_by_name_sees_to_its_paths_itself(tmp_path: Path) -> None:
    node = {"target": "training_builders.Anywhere", "params": {"path": "/x"}}
    with allowing_targets(["training_builders"]):
        assert trainer_of(tmp_path, callbacks={"x": node})


# Performance


class Convolution(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Conv2d(3, 4, 3)


@pytest.fixture
def matmul_precision():
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    yield
    torch.set_float32_matmul_precision(before[0])
    torch.backends.cudnn.allow_tf32 = before[1]


@pytest.mark.parametrize("wanted", [True, False])
def test_channels_last_is_the_order_of_the_weights(matmul_precision: None, wanted: bool) -> None:
    model = Convolution()
    apply_performance(model, {"channels_last": wanted})
    assert model.encoder.weight.is_contiguous(memory_format=torch.channels_last) == wanted


@pytest.mark.parametrize("options, expected", [({}, "high"), ({"matmul_precision": "highest"}, "highest")])
def test_float32_products_may_be_as_fast_as_asked(
    matmul_precision: None, options: dict[str, str], expected: str
) -> None:
    apply_performance(Convolution(), options)
    assert torch.get_float32_matmul_precision() == expected
    assert torch.backends.cudnn.allow_tf32 == (expected != "highest")


def test_networks_are_compiled_in_place_so_that_names_in_checkpoints_stay(
    matmul_precision: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled, model = [], Convolution()
    monkeypatch.setattr(nn.Module, "compile", lambda self, dynamic: compiled.append(self))
    names = list(model.state_dict())
    apply_performance(model, {"compile": True})
    assert compiled == [model.encoder] and list(model.state_dict()) == names
    apply_performance(model, {"compile": ["encoder"]})
    assert compiled == 2 * [model.encoder]
    apply_performance(model, {"compile": []})
    with pytest.raises(ConfigError, match="no part 'encodre'; did you mean encoder"):
        apply_performance(model, {"compile": ["encodre"]})
    assert compiled == 2 * [model.encoder]


@pytest.mark.parametrize(
    "options, problem",
    [
        ({"chanels_last": True}, "unknown config key 'chanels_last'; did you mean channels_last"),
        ({"matmul_precision": "best"}, "matmul_precision must be highest or high or medium, got 'best'"),
        ({"matmul_precision": 3}, "matmul_precision must be highest or high or medium, got 3"),
    ],
)
def test_unknown_performance_options_are_refused(
    matmul_precision: None, options: dict[str, Any], problem: str
) -> None:
    with pytest.raises(ConfigError, match=problem):
        apply_performance(Convolution(), options)


@pytest.mark.parametrize(
    "lightning, problem",
    [
        (
            {"last": {"every_n_train_steps": 0}},
            "lightning.last.every_n_train_steps must be a whole number from 1 on",
        ),
        (
            {"callbacks": {"images": {"target": "main.ImageLogger", "params": {"batch_frequency": 0}}}},
            "batch_frequency must be a whole number from 1 on",
        ),
        (
            {"modelcheckpoint_step": {"params": {}, "every_n_train_steps": 5}},
            "unknown config key 'every_n_train_steps'; `lightning.modelcheckpoint_step` has target, params",
        ),
    ],
)
def test_settings_that_would_fail_or_be_forgotten_later_are_refused(
    lightning: dict, problem: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=problem):
        lightning_recipe(**lightning).trainer(tmp_path, seed=0)


def test_a_run_may_go_without_loggers(tmp_path: Path) -> None:
    assert (
        lightning_recipe(trainer={"logger": False, "accelerator": "cpu"}).trainer(tmp_path, seed=0).loggers
        == []
    )


def test_an_override_given_twice_is_refused() -> None:
    with pytest.raises(ConfigError, match="a.b is given 2 times; give it once"):
        merged_config([], ["a.b=1", "a.c=1", "a.b=2"])
