"""Whatever stands in a config or in settings: it builds, or one line says what is wrong; nothing is written, deleted or imported."""

import copy
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
import yaml
from fuzzing import examples
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf
from training_builders import files_below

from ldm.config.factory import instantiate_from_config, to_plain
from ldm.config.merge import merged_config
from ldm.data.datamodule import DataModuleFromConfig
from ldm.errors import UserError
from ldm.files import ROOT
from ldm.models.diffusion.dual_cond import DualCondModel
from ldm.models.inference import build_for_inference
from ldm.pipeline.settings import Settings
from ldm.training.trainer import Recipe

pytestmark = pytest.mark.fuzz

CONFIGS = sorted(path.name for path in (ROOT / "configs").glob("*.yaml"))
TREES = {name: OmegaConf.to_container(merged_config([ROOT / "configs" / name])) for name in CONFIGS}
CANARY = "canary_of_a_stranger"
TARGETS = [
    "os.system",
    "os.remove",
    "shutil.rmtree",
    "pathlib.Path",
    f"{CANARY}.Anything",
    f"ldm.{CANARY}.Anything",
    f"torch.nn.{CANARY}",
    "builtins.exec",
    "torch.load",
    "torch.nn.Linear",
    "torch.optim.AdamW",
    "pytorch_lightning.Trainer",
    "pytorch_lightning.loggers.CSVLogger",
    "pytorch_lightning.loggers.csv_logs.ExperimentWriter",
    "pytorch_lightning.callbacks.ModelCheckpoint",
    "pytorch_lightning.callbacks.OnExceptionCheckpoint",
    "ldm.training.keep_last.KeepLast",
    "ldm.training.budget.TimeBudget",
    "ldm.data.wikiart.CrossPairs",
    "ldm.models.autoencoder.AutoencoderKL",
    "ldm.modules.vae.light.LightEncoder",
    "ldm.lr_scheduler.LambdaLinearScheduler",
    "ldm.data.cached.LatentCache",
    "..",
    "",
    ".Path",
    "ldm.models.",
    "ldm.models.\0.X",
    "torch.nn.Módulo",
]
# Numbers stay small: how large a model may be is its owner's business.
LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 20),
    st.sampled_from([0.0, -1.5, 0.5, float("nan"), float("inf")]),
    st.sampled_from(
        ["", "x", "val/loss", "../..", "*", "notes.txt", "${model.target}", "${nothing}", "${", "???"]
    ),
    st.sampled_from(TARGETS),
    st.text(max_size=8),
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["target", "params", "x", "path", "save_dir"]), inner, max_size=3)
    ),
    max_leaves=6,
)


def places(tree: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The keys that lead to every value in a tree."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        yield (*above, key)
        yield from places(value, (*above, key))


@st.composite
def mutated(draw: st.DrawFn) -> dict[str, Any]:
    """One of this project's configs with a few values dropped, doubled, of other types, or of other classes."""
    tree = copy.deepcopy(TREES[draw(st.sampled_from(CONFIGS))])
    for _ in range(draw(st.integers(1, 3))):
        found = [place for place in places(tree) if place[0] != "data" or len(place) > 1]
        if not found:
            break
        *above, key = draw(st.sampled_from(found))
        parent = tree
        for step in above:
            parent = parent[step]
        change = draw(st.sampled_from(["drop", "double", "value", "target"]))
        if change == "drop":
            del parent[key]
        elif change == "double" and isinstance(parent, dict):
            parent[f"{key}_"] = parent[key]
        elif change == "target" and isinstance(parent[key], dict):
            parent[key]["target"] = draw(st.sampled_from(TARGETS))
        else:
            parent[key] = draw(st.sampled_from(TARGETS) if key == "target" else VALUES)
    return tree


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder that we are in, with what a hostile config could be after; at the end it is all there, and nothing else."""
    work = tmp_path / "work"
    work.mkdir()
    for name in ("metrics.csv", "notes.txt", "last.ckpt", ".last.one.ckpt", "*", ".*.x"):
        (work / name).write_text("of weeks")
    (tmp_path / f"{CANARY}.py").write_text(f"open({str(work / 'trace')!r}, 'w')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(work)
    before = files_below(tmp_path)
    yield work
    after = files_below(tmp_path)
    after.pop("a.yaml", None)
    assert after == before and CANARY not in sys.modules


def told_in_a_line(error: UserError) -> None:
    assert len(str(error).splitlines()) == 1, str(error)


def build_all(path: Path, run: Path) -> None:
    """What training makes of a config, before it reads or writes anything."""
    config = merged_config([path])
    with torch.device("meta"):
        model = instantiate_from_config(config.model, kind="model", key="model")
    instantiate_from_config(config.data, kind="data module", key="data")
    if isinstance(model, pl.LightningModule):
        recipe = Recipe(config, model, DataModuleFromConfig(batch_size=1))
        recipe.configured_callbacks(run)
        recipe.check_loggers(run)
        recipe.trainer_options()


@pytest.mark.filterwarnings("ignore")
@examples(60)
@given(tree=mutated())
def test_a_damaged_config_builds_or_is_told_in_a_line(folder: Path, tree: dict[str, Any]) -> None:
    path = folder.parent / "a.yaml"
    path.write_text(yaml.safe_dump(tree, allow_unicode=True))
    try:
        build_all(path, folder / "run")
    except UserError as error:
        told_in_a_line(error)


@pytest.mark.filterwarnings("ignore")
@examples(40)
@given(tree=mutated())
def test_a_damaged_config_to_paint_with_builds_or_is_told_in_a_line(
    folder: Path, tree: dict[str, Any]
) -> None:
    path = folder.parent / "a.yaml"
    path.write_text(yaml.safe_dump(tree, allow_unicode=True))
    try:
        with torch.device("meta"):
            build_for_inference(path, DualCondModel)
    except UserError as error:
        told_in_a_line(error)


@examples(100)
@given(
    content=st.binary(max_size=60)
    | st.text(alphabet="ab:-[]{}&*!$?\n \"'#|>%@,.${oc.env:HOME}", max_size=60).map(str.encode)
)
def test_any_file_is_a_config_or_told_in_a_line(folder: Path, content: bytes) -> None:
    path = folder.parent / "a.yaml"
    path.write_bytes(content)
    try:
        to_plain(merged_config([path]))
    except UserError as error:
        told_in_a_line(error)


@examples(200)
@given(node=VALUES)
def test_any_node_builds_or_is_told_in_a_line(folder: Path, node: Any) -> None:
    try:
        instantiate_from_config(node)
    except UserError as error:
        told_in_a_line(error)


NUMBERS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=5),
    st.sampled_from(["fine", "sampled", "ddim"]),
)


@examples(300)
@given(
    values=st.dictionaries(
        st.sampled_from([field.name for field in fields(Settings)]),
        NUMBERS
        | st.lists(NUMBERS, max_size=3)
        | st.lists(NUMBERS, min_size=2, max_size=2).map(tuple)
        | st.dictionaries(NUMBERS, NUMBERS, max_size=1),
        max_size=4,
    )
)
def test_any_settings_are_fine_or_told_in_a_line(values: dict[str, Any]) -> None:
    try:
        Settings(**values).check()
    except UserError as error:
        told_in_a_line(error)
