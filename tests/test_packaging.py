"""What a stranger gets: packages that install, commands that exist, small files, configs that build."""

import ast
import importlib
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from omegaconf import DictConfig, ListConfig, OmegaConf
from pipeline_builders import ROOT
from torch import nn

import main
from benchmarks.suites import SUITES
from ldm.commands import COMMANDS
from ldm.config.merge import merged_config
from ldm.data.datamodule import DataModuleFromConfig
from ldm.errors import UserError
from ldm.media.images import load_image
from ldm.training.performance import apply_performance
from ldm.training.trainer import Recipe
from ldm.util import get_obj_from_str, instantiate_from_config

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pytest brings it

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
SCRIPTS = [command.script for command in COMMANDS.values() if command.script]
CONFIGS = sorted(path.name for path in (ROOT / "configs").glob("*.yaml"))
DOCUMENTS = [
    path
    for pattern in (
        "*.md",
        "docs/*.md",
        "checkpoints/*/*.md",
        "ldm/cli/*.py",
        "benchmarks/suites.py",
        "configs/*.yaml",
        "Makefile",
    )
    for path in sorted(ROOT.glob(pattern))
]

# What a package is imported as, where that is not its name.
IMPORTED_AS = {
    "pillow": "PIL",
    "pyyaml": "yaml",
    "scikit-learn": "sklearn",
    "opencv-python-headless": "cv2",
    "pytorch-lightning": "pytorch_lightning",
    "torch-fidelity": "torch_fidelity",
    "universal_pathlib": "upath",
}


def tracked_files() -> list[Path]:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git clone")
    names = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    return [ROOT / name for name in names.split("\0") if name and (ROOT / name).exists()]


# Packages


def test_conda_users_get_the_same_packages() -> None:
    *conda, pip = OmegaConf.to_container(OmegaConf.load(ROOT / "environment.yaml"))["dependencies"]
    extras = PROJECT["optional-dependencies"]
    assert sorted(name for name in pip["pip"] if not name.startswith("-")) == sorted(
        PROJECT["dependencies"] + extras["test"] + extras["notebook"]
    )
    assert f"python{PROJECT['requires-python']}" in conda


def test_every_package_has_a_range_and_no_pin() -> None:
    names = [
        *PROJECT["dependencies"],
        *(name for extra in PROJECT["optional-dependencies"].values() for name in extra),
    ]
    # an upper bound only where the next major release is another program
    assert all(re.fullmatch(r"[\w-]+(\[\w+\])?>=[\d.]+(,<\d+)?", name) for name in names)


def imports_of(path: Path) -> set[str]:
    nodes = list(ast.walk(ast.parse(path.read_text())))
    modules = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    modules += [
        node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module and not node.level
    ]
    return {module.partition(".")[0] for module in modules}


def test_everything_imported_is_declared() -> None:
    folders = [ROOT / "ldm", ROOT / "scripts", ROOT / "benchmarks"]
    files = [ROOT / "main.py", *(path for folder in folders for path in folder.rglob("*.py"))]
    ours = {"ldm", "main", "benchmarks", "golden_rules"}
    imported = set().union(*map(imports_of, files)) - set(sys.stdlib_module_names) - ours
    extras = [
        name
        for kind, names in PROJECT["optional-dependencies"].items()
        if kind not in ("test", "notebook")
        for name in names
    ]
    declared = {re.split(r"[\[<>=]", name)[0] for name in PROJECT["dependencies"] + extras}
    assert imported <= {IMPORTED_AS.get(name, name) for name in declared}


def test_what_most_need_comes_with_the_package_itself_and_nothing_before_it_is_asked_for() -> None:
    code = "import sys, ldm; assert 'torch' not in sys.modules; from ldm import Settings, StyleMix, StyleRegions, StyleTransferPipeline, UserError"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
    with pytest.raises(AttributeError, match="no attribute 'StyleMixx'"):
        importlib.import_module("ldm").StyleMixx


def test_the_licence_is_there() -> None:
    text = (ROOT / "LICENSE").read_text()
    assert (
        PROJECT["license"] == "MIT"
        and text.startswith("MIT License")
        and "Permission is hereby granted, free of charge" in text
    )


# Files


def test_no_large_file_is_in_git() -> None:
    files = tracked_files()
    assert len(files) > 50 and not [path for path in files if path.stat().st_size > 40e6]


def test_no_training_data_or_logs_are_in_git() -> None:
    names = {path.relative_to(ROOT).parts[0] for path in tracked_files()}
    assert not names & {"datasets", "logs", "outputs", ".venv"}


@pytest.mark.parametrize("folder", ["contents", "styles"])
def test_every_bundled_picture_is_readable_and_has_its_source_named(folder: str) -> None:
    paths = sorted((ROOT / "data" / folder).glob("*.*"))
    sources = (ROOT / "data/SOURCES.md").read_text()
    assert len(paths) >= 6 and all(min(load_image(path).size) >= 256 for path in paths)
    assert [path.name for path in paths if f"`{path.name}`" not in sources] == []


def test_the_bundled_pictures_are_small() -> None:
    assert sum(path.stat().st_size for path in (ROOT / "data").rglob("*.jpg")) < 2e6


# Commands


def test_continuous_integration_runs_what_a_developer_runs() -> None:
    assert "make test" in (ROOT / ".ci/run").read_text() and (ROOT / ".ci/run").stat().st_mode & 0o100
    assert re.findall(r"^(demo|test):", (ROOT / "Makefile").read_text(), re.MULTILINE) == ["demo", "test"]


def help_of(command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, *words: str) -> str:
    monkeypatch.setattr("sys.argv", [f"artfusion {command}", *words, "--help"])
    with pytest.raises(SystemExit) as stopped:
        importlib.import_module(COMMANDS[command].module).main()
    assert stopped.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    text = help_of(command, monkeypatch, capsys)
    assert f"usage: artfusion {command}" in text and text.count(f"artfusion {command}") >= 2  # an example


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_script_explains_itself_with_its_own_name(script: str) -> None:
    done = subprocess.run(
        [sys.executable, ROOT / script, "--help"], capture_output=True, text=True, check=True
    )
    assert f"usage: {Path(script).name}" in done.stdout and f"python {script} " in done.stdout


def test_the_commands_of_scripts_are_those_in_the_folder() -> None:
    assert {f"scripts/{path.name}" for path in (ROOT / "scripts").glob("*.py")} - {"scripts/digits.py"} == {
        *SCRIPTS
    } - {"main.py"}


def commands_in(document: Path) -> list[tuple[str, list[str]]]:
    """(command, its arguments) of every `artfusion ...` in a document, those by `torchrun -m ldm` too."""
    text = document.read_text().replace("\\\n", " ")
    names = "|".join(sorted(COMMANDS, key=len, reverse=True))
    found = re.findall(rf"(?:artfusion|-m ldm) ({names})((?: [^\n`]*)?)(?=[\n`]|$)", text)
    return [
        (command, shlex.split(re.split(r" # |  {5,}", arguments)[0], posix=True))
        for command, arguments in found
    ]


def test_documents_show_commands() -> None:
    """So that the two tests below cannot pass by finding nothing."""
    assert {command for document in DOCUMENTS for command, _ in commands_in(document)} == {*COMMANDS}
    assert {command for command, _ in commands_in(ROOT / "README.md")} >= {"train", "stylize"}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_in_documents_name_existing_files(document: Path) -> None:
    for _, arguments in commands_in(document):
        named = [
            argument for argument in arguments if argument.startswith("configs/") and "my_" not in argument
        ]
        assert [name for name in named if not (ROOT / name).is_file()] == []


def test_commands_in_documents_have_options_that_exist(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    calls = [*((command,) for command in COMMANDS), *(("benchmark", suite) for suite in SUITES)]
    helps = {(command, *words): help_of(command, monkeypatch, capsys, *words) for command, *words in calls}
    for document in DOCUMENTS:
        for command, arguments in commands_in(document):
            options = [argument for argument in arguments if argument.startswith("--")]
            text = helps.get((command, *arguments[:1])) or helps[command,]
            assert [o for o in options if not re.search(rf"{o}\b", text)] == [], (
                document.name,
                command,
            )


@pytest.mark.parametrize(
    "document",
    [path for path in DOCUMENTS if path.suffix == ".md"],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_links_in_documents_lead_somewhere(document: Path) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", document.read_text())
    local = [link.partition("#")[0] for link in links if not re.match(r"https?:|mailto:|#", link)]
    assert [link for link in local if not (document.parent / link).exists()] == []


# Configs


def test_published_paths_are_importable_from_main() -> None:
    assert (
        main.DataModuleFromConfig is DataModuleFromConfig
        and main.instantiate_from_config is instantiate_from_config
    )


SMALL = [name for name in CONFIGS if name.startswith(("mini", "class"))]
RECIPES = [name for name in CONFIGS if not name.endswith("_cached.yaml")]


def config_of(name: str, *overrides: str) -> DictConfig:
    return merged_config([str(ROOT / "configs" / name)], overrides)


def build_model(name: str) -> nn.Module:
    """The model of a config, without the files that it names."""
    config = config_of(name).model
    for path in ("params.ckpt_path", "params.first_stage_config.params.ckpt_path"):
        if OmegaConf.select(config, path) is not None:
            OmegaConf.update(config, path, None)
    return instantiate_from_config(config)


@pytest.mark.parametrize("name", SMALL)
def test_the_model_of_every_small_config_builds_without_any_file(name: str) -> None:
    assert sum(p.numel() for p in build_model(name).parameters()) > 1e5


@pytest.mark.parametrize("name", [name for name in CONFIGS if name not in SMALL])
def test_the_model_of_every_large_config_has_parameters_that_exist(name: str) -> None:
    with torch.device("meta"):
        assert sum(p.numel() for p in build_model(name).parameters()) > 5e7


def nodes_below(config: DictConfig | ListConfig) -> Iterator[DictConfig]:
    """Every node with a target in a config."""
    for value in config.values() if isinstance(config, DictConfig) else config:
        if isinstance(value, DictConfig) and "target" in value:
            yield value
        if isinstance(value, (DictConfig, ListConfig)):
            yield from nodes_below(value)


@pytest.mark.parametrize("name", CONFIGS)
def test_every_class_that_a_config_names_exists(name: str) -> None:
    targets = [node.target for node in nodes_below(config_of(name))]
    assert len(targets) >= 4 and all(callable(get_obj_from_str(target)) for target in targets)


@pytest.mark.parametrize("name", [name for name in CONFIGS if name.endswith("_cached.yaml")])
def test_a_cached_recipe_trains_the_model_of_its_pictures(name: str) -> None:
    cached, plain = config_of(name), config_of(name.replace("_cached", ""))
    assert (cached.model, cached.lightning) == (plain.model, plain.lightning)
    drops = [
        {key: data.params.train.params.get(key) for key in ("style_drop", "content_drop", "photo_share")}
        for data in (cached.data, plain.data)
    ]
    assert drops[0] == drops[1]


@pytest.mark.parametrize("name", CONFIGS)
def test_the_data_of_every_config_is_found_where_it_says(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    data = instantiate_from_config(config_of(name).data)
    with pytest.raises(UserError, match="datasets/"):  # and no other error
        data.setup()
    if name not in RECIPES:
        return
    for path in (
        tmp_path / "datasets" / folder / f"{i}.jpg"
        for folder in ("photos", "paintings", "wiki-art", "ms-coco", "classes/a")
        for i in range(30)
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    data.setup()
    described = {kind for kind in ("train", "validation") if config_of(name).data.params.get(kind)}
    assert set(data.datasets) == described >= {"train"}


class Drawing(pl.LightningModule):
    def log_images(self, batch: Any, **options: Any) -> dict[str, torch.Tensor]:
        return {}


@pytest.mark.parametrize("name", CONFIGS)
def test_every_configs_trainer_has_options_that_exist(name: str, tmp_path: Path) -> None:
    recipe = Recipe(
        config_of(name, "lightning.trainer.accelerator=cpu"), Drawing(), DataModuleFromConfig(batch_size=1)
    )
    assert isinstance(recipe.trainer(tmp_path, seed=0), pl.Trainer)
    apply_performance(recipe.model, recipe.section("performance"))
