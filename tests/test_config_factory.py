"""The config factory: config nodes become objects, and a stranger's config file can neither run code nor mislead."""

import inspect
import json
import sys
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from pipeline_builders import MODEL, model_config

from ldm.config.factory import (
    allowing_targets,
    get_obj_from_str,
    instantiate_from_config,
    load_config,
    to_plain,
)
from ldm.config.groups import flat_keys, take
from ldm.config.interpolations import RESOLVERS, resolver_in
from ldm.config.registry import registered
from ldm.errors import ConfigError, UserError
from ldm.models.diffusion.dual_cond import DualCondModel
from ldm.models.inference import build_for_inference
from ldm.published.configs import our_target

LINEAR = {"target": "torch.nn.Linear", "params": {"in_features": 2, "out_features": 3}}
DUAL_COND = "ldm.models.diffusion.dual_cond_ddpm.DualCondLDM"


@pytest.fixture
def strangers_module(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A module outside of the trusted prefixes, `stranger.parts`, with a class and a function."""

    class Part(torch.nn.Module):
        def __init__(self, width: int = 1, part: dict | None = None):
            super().__init__()
            self.width, self.part = width, part and instantiate_from_config(part)

    module = ModuleType("stranger.parts")
    module.Part, module.make = Part, lambda width: Part(width)
    monkeypatch.setitem(sys.modules, "stranger", ModuleType("stranger"))
    monkeypatch.setitem(sys.modules, "stranger.parts", module)
    return module


# Building


@pytest.mark.parametrize("wrap", [dict, OmegaConf.create])
def test_builds_dicts_and_omegaconf_nodes(wrap) -> None:
    layer = instantiate_from_config(wrap(LINEAR))
    assert type(layer) is torch.nn.Linear and (layer.in_features, layer.out_features) == (2, 3)


@pytest.mark.parametrize("node", [{"target": "torch.nn.SiLU"}, {"target": "torch.nn.SiLU", "params": None}])
def test_params_may_be_left_out(node: dict) -> None:
    assert type(instantiate_from_config(node)) is torch.nn.SiLU


def test_nested_nodes_reach_the_constructor_as_plain_dicts() -> None:
    node = OmegaConf.create({"batch_size": 2, "train": {"target": "x", "params": {"roots": ["a", "b"]}}})
    data = instantiate_from_config({"target": "main.DataModuleFromConfig", "params": node})
    assert type(data.configs["train"]["params"]["roots"]) is list


def test_a_models_learning_rate_is_no_parameter_of_its_class() -> None:
    assert instantiate_from_config({**LINEAR, "learning_rate": 1e-3, "base_learning_rate": 1e-4})


@pytest.mark.parametrize(
    "target",
    [
        DUAL_COND,
        "ldm.models.diffusion.ddpm.LatentDiffusion",
        "ldm.models.diffusion.ddim.DDIMSampler",
        "ldm.models.autoencoder.AutoencoderKL",
        "ldm.models.autoencoder.VQModel",
        "ldm.models.autoencoder.VQModelInterface",
        "ldm.models.autoencoder.IdentityFirstStage",
        "ldm.modules.encoders.modules.SpatialRescaler",
        "ldm.modules.vae.model.Encoder",
        "ldm.modules.vae.model.Decoder",
        "ldm.modules.diffusionmodules.model.StyleUNetModel",
        "ldm.modules.diffusionmodules.model.UNetModel",
        "ldm.modules.ema.LitEma",
        "ldm.modules.losses.lpips.vgg16",
        "ldm.modules.losses.lpips.ScalingLayer",
        "ldm.modules.losses.lpips.LPIPS",
        "ldm.modules.losses.contperceptual.DummyLoss",
        "ldm.modules.losses.contperceptual.LPIPSWithDiscriminator",
        "ldm.modules.losses.LPIPSWithDiscriminator",
        "ldm.modules.losses.vqperceptual.VQLPIPSWithDiscriminator",
        "ldm.data.wikiart.HybridTrain",
        "ldm.data.wikiart.WikiArtTrain",
        "ldm.data.wikiart.WikiArtValidation",
        "main.DataModuleFromConfig",
        "main.ImageLogger",
    ],
)
def test_names_of_published_configs_resolve(target: str) -> None:
    assert get_obj_from_str(target).__name__ == target.rpartition(".")[2]


# Trust


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "subprocess.Popen",
        "builtins.eval",
        "shutil.rmtree",
        "pathlib.Path",
        "torch.load",
        "torch.hub.load",
        "ldmx.Model",
        "numpy.load",
        "",
    ],
)
def test_targets_elsewhere_are_refused_by_the_option_that_allows_them(target: str) -> None:
    with pytest.raises(
        ConfigError, match=r"--allow-target PREFIX.*instantiate_from_config\(config, \['PREFIX'\]\)"
    ):
        instantiate_from_config({"target": target})


@pytest.mark.parametrize("target", [None, 3])
def test_a_target_that_is_no_text_is_told_by_its_key(target: object) -> None:
    with pytest.raises(ConfigError, match=f"^part: `target` must be the dotted path.*got {target}$"):
        instantiate_from_config({"target": target}, key="part")


@pytest.mark.parametrize(
    "target",
    [
        "ldm.config.factory.importlib",  # a module that a trusted module imported
        "ldm.media.images.Path",  # a class
        "ldm.media.images.os",
        "ldm.checkpoint.save_safetensors",  # a function
        "ldm.pipeline.inputs.dataclass",
        "pytorch_lightning.cli.LightningCLI",  # runs what its arguments name
        "ldm.config.factory.load_config",  # a function of ours: it reads any file
        "ldm.errors.__builtins__",
        "torch.nn.modules.module.warnings",
        "torch.nn.functional.relu",
        "pytorch_lightning.os",
        "torch.nn.modules.linear.SiLU",  # a class of the package, named by where it is not
        # Classes of ours and of Lightning that write where they are told, or delete:
        "pytorch_lightning.loggers.csv_logs.ExperimentWriter",
        "pytorch_lightning.loggers.csv_logs._ExperimentWriter",
        "lightning_fabric.loggers.csv_logs._ExperimentWriter",
        "pytorch_lightning.Trainer",
        "pytorch_lightning.plugins.TorchCheckpointIO",
        "ldm.training.keep_last.KeepLast",
        "ldm.training.run_folder.KeepConfig",
        "ldm.training.checkpoint_files.DurableCheckpointIO",
        "ldm.data.cached.LatentCache",
        "ldm.media.video.VideoWriter",
        "ldm.pipeline.pipeline.StyleTransferPipeline",
    ],
)
def test_what_a_trusted_module_only_imported_is_refused(target: str) -> None:
    with pytest.raises(
        ConfigError, match=f"'{target}'(: .* has no '.*' that a config may name| is not under)"
    ):
        instantiate_from_config({"target": target})


@pytest.mark.parametrize(
    "target, kind",
    [
        ("torch.nn.modules.linear.Linear", "model"),
        ("ldm.modules.losses.LPIPSWithDiscriminator", "model"),
        ("ldm.lr_scheduler.LambdaLinearScheduler", "schedule"),
        ("torch.optim.AdamW", "optimizer"),
        ("torch.optim.lr_scheduler.StepLR", "torch schedule"),
        ("main.DataModuleFromConfig", "data module"),
        ("ldm.data.pictures.PictureFolder", "data set"),
        ("pytorch_lightning.callbacks.EarlyStopping", "callback"),
        ("pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint", "callback"),
        ("ldm.training.budget.TimeBudget", "callback"),
        ("pytorch_lightning.loggers.WandbLogger", "logger"),
        ("pytorch_lightning.loggers.csv_logs.CSVLogger", "logger"),
    ],
)
def test_what_a_config_may_name_is_for_one_purpose(target: str, kind: str) -> None:
    assert registered(our_target(target)) == (get_obj_from_str(target), kind)
    other = "callback" if kind == "model" else "model"
    with pytest.raises(ConfigError, match=f"is a {kind}, where a {other} belongs"):
        registered(our_target(target), other)


@pytest.mark.parametrize("part", ["unet_config", "first_stage_config"])
def test_a_model_is_made_of_models_alone(part: str, tmp_path: Path) -> None:
    writer = {"target": "pytorch_lightning.loggers.CSVLogger", "params": {"save_dir": str(tmp_path)}}
    with pytest.raises(ConfigError, match="is a logger, where a model belongs"):
        instantiate_from_config(model_config(**{part: writer}))


@pytest.mark.parametrize(
    "node",
    [
        {
            "target": "pytorch_lightning.loggers.csv_logs.ExperimentWriter",
            "params": {"log_dir": "LOGS", "first_stage_config": {}},
        },
        {
            "target": "pytorch_lightning.loggers.CSVLogger",
            "params": {"save_dir": "LOGS", "first_stage_config": {}},
        },
        model_config(
            unet_config={
                "target": "pytorch_lightning.loggers.csv_logs.ExperimentWriter",
                "params": {"log_dir": "LOGS"},
            }
        ),
    ],
    ids=["a writer", "a logger", "a part"],
)
def test_a_config_to_paint_with_deletes_nothing(tmp_path: Path, node: dict[str, Any]) -> None:
    (tmp_path / "metrics.csv").write_text("losses of weeks")
    text = json.dumps({"model": node}).replace("LOGS", str(tmp_path))
    path = write(tmp_path / "a.yaml", text)
    with pytest.raises(ConfigError, match="that a config may name|where a model belongs"):
        build_for_inference(path, DualCondModel)
    assert (tmp_path / "metrics.csv").read_text() == "losses of weeks"


def test_a_node_of_another_kind_is_refused_where_one_kind_belongs() -> None:
    with pytest.raises(ConfigError, match="'torch.nn.Linear' is a model, where a callback belongs"):
        instantiate_from_config(LINEAR, kind="callback")


def test_what_was_allowed_is_for_anything(strangers_module: ModuleType) -> None:
    assert instantiate_from_config({"target": "stranger.parts.Part"}, ["stranger"], kind="callback")


def test_refusing_imports_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "hostile_module.py").write_text(f"open({str(tmp_path / 'trace')!r}, 'w')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError):
        instantiate_from_config({"target": "hostile_module.Anything"})
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize("part", ["unet_config", "first_stage_config"])
def test_untrusted_targets_inside_a_model_are_refused(part: str) -> None:
    config = model_config(**{part: {"target": "os.system", "params": {"command": "true"}}})
    with pytest.raises(ConfigError, match="'os.system' is not under"):
        instantiate_from_config(config)


@pytest.mark.parametrize("half", ["encoder_target", "decoder_target"])
def test_untrusted_halves_of_the_first_stage_are_refused(half: str) -> None:
    config = model_config()["params"]["first_stage_config"]
    config["params"]["ddconfig"][half] = "builtins.eval"
    with pytest.raises(ConfigError, match="'builtins.eval' is not under"):
        instantiate_from_config(config)


@pytest.mark.parametrize("allowed", [["stranger"], ["stranger.parts"], ["stranger.parts."], "stranger"])
def test_an_allowed_prefix_is_built(strangers_module: ModuleType, allowed) -> None:
    assert (
        instantiate_from_config({"target": "stranger.parts.Part", "params": {"width": 7}}, allowed).width == 7
    )


def test_what_is_allowed_reaches_nested_nodes(strangers_module: ModuleType) -> None:
    node = {
        "target": "stranger.parts.Part",
        "params": {"part": {"target": "stranger.parts.make", "params": {"width": 5}}},
    }
    assert instantiate_from_config(node, ["stranger"]).part.width == 5


def test_a_trusted_class_builds_allowed_parts(strangers_module: ModuleType) -> None:
    node = model_config(first_stage_config={"target": "stranger.parts.Part"})
    assert instantiate_from_config(node, ["stranger"]).first_stage_model.width == 1


def test_an_allowed_prefix_is_a_whole_dotted_name(strangers_module: ModuleType) -> None:
    with pytest.raises(ConfigError, match="is not under"):
        instantiate_from_config({"target": "stranger.parts.Part"}, ["strange", "stranger.part"])


def test_what_was_allowed_once_is_not_allowed_later(strangers_module: ModuleType) -> None:
    with allowing_targets(["stranger"]), pytest.raises(ConfigError, match="has no 'Prat'; did you mean Part"):
        instantiate_from_config({"target": "stranger.parts.Prat"})
    with pytest.raises(ConfigError, match="is not under"):
        instantiate_from_config({"target": "stranger.parts.Part"})


# Mistakes


@pytest.mark.parametrize(
    "node", [{}, {"params": {}}, None, "torch.nn.SiLU", ["target"], 3, OmegaConf.create([1])]
)
def test_a_node_needs_a_target(node: object) -> None:
    with pytest.raises(ConfigError, match="needs a `target` key"):
        instantiate_from_config(node)


def test_a_node_without_a_target_is_told_by_its_key() -> None:
    first_stage = model_config()["params"]["first_stage_config"]
    broken = {**first_stage, "params": {**first_stage["params"], "lossconfig": {"params": {}}}}
    key = "model.params.first_stage_config.params.lossconfig"
    with pytest.raises(ConfigError, match=f"^{key}: a config node needs a `target` key"):
        instantiate_from_config(model_config(first_stage_config=broken), key="model")
    with pytest.raises(ConfigError, match="^model.params.unet_config: .* unknown key 'x'"):
        instantiate_from_config(model_config(unet_config={"target": "torch.nn.SiLU", "x": 1}), key="model")


@pytest.mark.parametrize("params", [[1, 2], "in_features", {1: 2}])
def test_params_must_be_names_with_values(params: object) -> None:
    with pytest.raises(ConfigError, match="`params` of torch.nn.Linear must be names with values"):
        instantiate_from_config({"target": "torch.nn.Linear", "params": params})


def test_a_misspelt_key_of_a_node_is_named() -> None:
    with pytest.raises(ConfigError, match="unknown key 'parms'; did you mean params"):
        instantiate_from_config({"target": "torch.nn.SiLU", "parms": {"inplace": True}})


@pytest.mark.parametrize(
    "target, near",
    [
        ("torch.nn.Liner", "Linear"),
        ("ldm.data.wikiart.HybridTran", "HybridTrain"),
        ("main.ImageLoger", "ImageLogger"),
    ],
)
def test_a_misspelt_class_names_the_near_one(target: str, near: str) -> None:
    with pytest.raises(ConfigError, match=f"did you mean .*{near}"):
        instantiate_from_config({"target": target})


def test_a_module_that_is_not_there_is_named() -> None:
    with pytest.raises(ConfigError, match="No module named 'ldm.models.modells'"):
        instantiate_from_config({"target": "ldm.models.modells.Model"})


@pytest.mark.parametrize(
    "target, wrong, near",
    [
        ("torch.nn.Linear", "in_feature", "in_features"),
        ("ldm.modules.vae.model.Encoder", "resoluton", "resolution"),
        # What a constructor hands on to its bases by **options:
        (DUAL_COND, "use_emma", "use_ema"),
        (DUAL_COND, "scale_factor_", "scale_factors"),
        ("ldm.modules.diffusionmodules.model.StyleUNetModel", "num_head_channel", "num_head_channels"),
        ("ldm.data.wikiart.HybridTrain", "style_dropp", "style_drop"),
        ("ldm.data.wikiart.WikiArtTrain", "short_sides", "short_side"),
    ],
)
def test_a_wrong_parameter_names_the_near_one(target: str, wrong: str, near: str) -> None:
    with pytest.raises(ConfigError, match=rf"has no parameter '{wrong}'; did you mean (.* or )?{near}\b"):
        instantiate_from_config({"target": target, "params": {wrong: 1}})


def test_a_constructor_that_takes_anything_gets_anything(strangers_module: ModuleType) -> None:
    class Loose:
        def __init__(self, width: int, **options: object):
            self.options = options

    strangers_module.Loose = Loose
    node = {"target": "stranger.parts.Loose", "params": {"width": 1, "depth": 2}}
    assert instantiate_from_config(node, ["stranger"]).options == {"depth": 2}


def test_a_parameter_that_a_base_class_refuses_is_a_config_error() -> None:
    with pytest.raises(ConfigError, match="unexpected keyword argument 'width'"):
        instantiate_from_config({"target": "torch.nn.Module", "params": {"width": 1}})


def test_a_parameter_like_no_other_is_named_alone() -> None:
    with pytest.raises(ConfigError, match="Linear has no parameter 'zzz'$"):
        instantiate_from_config({"target": "torch.nn.Linear", "params": {"zzz": 1}})


@pytest.mark.parametrize(
    "target, params, missing",
    [
        ("torch.nn.Linear", {"in_features": 2}, "out_features"),
        ("main.DataModuleFromConfig", {}, "batch_size"),
        (DUAL_COND, {}, "style_dim"),
        (DUAL_COND, {"style_dim": 2944}, "unet_config.*first_stage_config"),  # of its base
    ],
)
def test_missing_parameters_are_named(target: str, params: dict, missing: str) -> None:
    with pytest.raises(ConfigError, match=missing):
        instantiate_from_config({"target": target, "params": params})


def test_a_default_may_stand_in_for_what_the_base_class_requires(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="datasets/wiki-art: no such folder"):
        instantiate_from_config({"target": "ldm.data.wikiart.WikiArtTrain"})


def test_a_parameter_that_the_class_sets_itself_is_an_error() -> None:
    with pytest.raises(ConfigError, match="split"):
        instantiate_from_config({"target": "ldm.data.wikiart.WikiArtTrain", "params": {"split": "all"}})


def test_a_value_that_the_class_refuses_is_a_config_error() -> None:
    unet = MODEL["params"]["unet_config"]
    with pytest.raises(ConfigError, match="StyleUNetModel cannot be built .*num_groups"):
        instantiate_from_config({**unet, "params": {**unet["params"], "num_norm_groups": 3}})


@pytest.mark.parametrize("value", ["2", None, [2], {"a": 1}, 1.5, -3], ids=str)
def test_a_value_of_a_wrong_type_is_a_config_error_of_one_line(value: object) -> None:
    with pytest.raises(ConfigError, match="^torch.nn.Linear cannot be built from its `params`: .*$"):
        instantiate_from_config(
            {"target": "torch.nn.Linear", "params": {"in_features": value, "out_features": 1}}
        )


def test_errors_inside_an_allowed_constructor_are_not_taken_for_bad_configs(
    strangers_module: ModuleType,
) -> None:
    def broken() -> None:
        raise TypeError("a programming error")

    strangers_module.broken = broken
    with pytest.raises(TypeError, match="a programming error"):
        instantiate_from_config({"target": "stranger.parts.broken"}, ["stranger"])


# Files


def write(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_reads_a_yaml_file(tmp_path: Path) -> None:
    path = write(tmp_path / "a.yaml", "model: {target: torch.nn.SiLU}\n")
    assert to_plain(load_config(str(path))) == {"model": {"target": "torch.nn.SiLU"}}


@pytest.mark.parametrize("name", ["missing.yaml", "."])
def test_a_missing_config_file_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="no such file"):
        load_config(tmp_path / name)


@pytest.mark.parametrize(
    "content",
    [
        "a: [1, 2",
        "a: b: c",
        "\tx: 1",
        "- 1\n- 2",
        "a: 1\na: 2",
        b"\xff\xfe\x00\x80",
        b"\x89PNG\r\n\x1a\n\x00",
        "42",
    ],
)
def test_what_is_no_yaml_of_keys_and_values_is_refused_by_name(tmp_path: Path, content: str | bytes) -> None:
    with pytest.raises(ConfigError, match="config .*a.yaml: "):
        load_config(write(tmp_path / "a.yaml", content))


def test_aliases_that_multiply_are_refused_before_they_are_written_out(tmp_path: Path) -> None:
    levels = [f"a{n + 1}: &a{n + 1} [{', '.join([f'*a{n}'] * 9)}]" for n in range(12)]
    with pytest.raises(
        ConfigError, match="a.yaml: has more than 100,000 values with its aliases written out"
    ):
        load_config(write(tmp_path / "a.yaml", "\n".join(["a0: &a0 [x, y]", *levels])))
    usual = "a: &a {x: 1, y: 2}\nb: *a\nc: {<<: *a, y: 3}\n"
    assert to_plain(load_config(write(tmp_path / "b.yaml", usual))) == {
        "a": {"x": 1, "y": 2},
        "b": {"x": 1, "y": 2},
        "c": {"x": 1, "y": 3},
    }


def test_yaml_tags_run_nothing(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    with pytest.raises(ConfigError):
        load_config(write(tmp_path / "a.yaml", f"a: !!python/object/apply:os.mkdir ['{trace}']"))
    assert not trace.exists()


def test_interpolations_are_resolved(tmp_path: Path) -> None:
    config = load_config(
        write(
            tmp_path / "a.yaml",
            "width: 3\nm: {target: torch.nn.Linear, params: {in_features: '${width}', out_features: 1}}",
        )
    )
    assert instantiate_from_config(config.m).in_features == 3


@pytest.mark.parametrize("text", ["a: ${b}", "a: ???", "a: ${oc.nonsense:1}", "a: ${a}"])
def test_what_cannot_be_resolved_is_a_config_error(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match="^config( .*)?: "):
        to_plain(load_config(write(tmp_path / "a.yaml", text)))


@pytest.mark.parametrize(
    "text, resolver",
    [
        ("${oc.env:HOME}", "oc.env"),
        ("a ${ oc.env : HOME,x} b", "oc.env"),
        ("${oc.env:${model.name}}", "oc.env"),
        ("${oc.select:'${oc.env:HOME}'}", "oc.env"),
        ("${oc.create:'${model.name}'}", "oc.create"),
        ("${oc.decode:x}", "oc.decode"),
        ("${${model.name}:HOME}", "x"),
        ("${oc.e${model.name}:HOME}", "oc.ex"),
        ("${model.name}", None),
        ("${model[name].${model.x}}", None),
        ("${oc.select:model.name, ${model.x}}", None),
        ("at 10:30 for $5", None),
    ],
)
def test_a_file_looks_up_nothing_but_values_of_the_config(
    tmp_path: Path, text: str, resolver: str | None
) -> None:
    assert resolver_in(text) == resolver
    if resolver == "oc.ex":  # which is no interpolation at all
        return
    path = tmp_path / "a.yaml"
    OmegaConf.save({"model": {"name": "env", "x": [text]}}, path)
    with (
        nullcontext()
        if resolver is None
        else pytest.raises(
            ConfigError, match=rf"a.yaml: model.x.0 asks for \$\{{{resolver}:.*on the command line"
        )
    ):
        load_config(path)


def test_the_list_of_resolvers_that_a_file_may_use() -> None:
    assert RESOLVERS == ("oc.select", "oc.dict.keys", "oc.dict.values")


def test_what_a_file_holds_is_not_told_where_it_is_no_config(tmp_path: Path) -> None:
    for content in ("- secret-word", "[secret-word]", "secret-word: [", "a: secret-word: b"):
        with pytest.raises(ConfigError) as caught:
            load_config(write(tmp_path / "a.yaml", content))
        assert "secret-word" not in str(caught.value), content


# Groups of options


@dataclass(frozen=True)
class Shape:
    width: int = 1
    height: int = 2


@dataclass(frozen=True)
class Colour:
    hue: str = "red"


class Base:
    @flat_keys
    def __init__(self, depth: int = 3, *, colour: Colour):
        self.depth, self.colour = depth, colour


class Derived(Base):
    @flat_keys
    def __init__(self, name: str, *, shape: Shape, **options: Any):
        super().__init__(**options)
        self.name, self.shape = name, shape


def test_the_fields_of_a_constructors_groups_are_its_options() -> None:
    for built in (
        Derived("a", width=5, hue="blue", depth=4),
        Derived(name="a", shape=Shape(5), colour=Colour("blue"), depth=4),
        Derived("a", shape=Shape(9), width=5, colour=Colour(), hue="blue", depth=4),
    ):
        assert (built.name, built.shape, built.colour, built.depth) == ("a", Shape(5, 2), Colour("blue"), 4)
    assert Derived("a").shape == Shape() and Base().colour == Colour()


def test_a_constructors_signature_tells_all_options_and_defaults() -> None:
    assert str(inspect.signature(Derived)) == "(name: str, *, width=1, height=2, **options: Any)"
    assert str(inspect.signature(Base)) == "(depth: int = 3, *, hue='red')"
    assert Base.__init__.__qualname__ == "Base.__init__"  # in tracebacks and profiles


def test_the_factory_knows_the_fields_of_groups(strangers_module: ModuleType) -> None:
    strangers_module.Derived = Derived
    node = {"target": "stranger.parts.Derived", "params": {"name": "a", "height": 7, "hue": "blue"}}
    built = instantiate_from_config(node, ["stranger"])
    assert built.shape == Shape(1, 7) and built.colour == Colour("blue")
    for wrong, near in (("heigth", "height"), ("huee", "hue"), ("deph", "depth")):
        with pytest.raises(ConfigError, match=f"no parameter '{wrong}'; did you mean {near}"):
            instantiate_from_config({**node, "params": {"name": "a", wrong: 1}}, ["stranger"])


def test_what_is_taken_is_left_for_no_one_else() -> None:
    options = {"width": 5, "hue": "blue"}
    assert take(Shape(height=8), options) == Shape(5, 8) and options == {"hue": "blue"}


def test_a_constructor_that_hands_all_on_needs_what_its_base_needs(strangers_module: ModuleType) -> None:
    class Handing(Derived):
        def __init__(self, *args: Any, extra: int = 0, **options: Any):
            super().__init__(*args, **options)

    strangers_module.Handing = Handing
    with pytest.raises(ConfigError, match=r"Handing needs the parameter\(s\) name"):
        instantiate_from_config({"target": "stranger.parts.Handing", "params": {"width": 1}}, ["stranger"])
