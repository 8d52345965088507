"""The wheel: what someone has who never clones, in a folder of their own."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from pipeline_builders import ROOT, picture_folder

from ldm.media.images import load_image


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--wheel-dir",
        folder,
        ROOT,
    ]
    subprocess.run(build, check=True)
    (file,) = folder.glob("artfusion-*.whl")
    return file


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the wheel alone is installed in."""
    folder = tmp_path_factory.mktemp("installed")
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--no-deps",
            "--no-index",
            "--target",
            folder,
            wheel,
        ],
        check=True,
    )
    return folder


def artfusion(installed: Path, folder: Path, *arguments: str) -> str:
    """What the installed command prints, run in a folder."""
    environment = {**os.environ, "PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [installed / "bin/artfusion", *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_wheel_holds_the_package_and_nothing_else_at_its_top(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.partition("/")[0] for name in names if ".dist-info" not in name} == {"ldm"}
    assert {
        "ldm/py.typed",
        "ldm/bundled/configs/mini.yaml",
        "ldm/bundled/checkpoints/mini/model.safetensors",
        "ldm/bundled/benchmarks/suites.py",
    } <= {*names}
    assert wheel.stat().st_size < 80e6


def test_it_paints_with_the_bundled_model_from_any_folder(installed: Path, tmp_path: Path) -> None:
    assert f"{installed}/ldm/bundled" in artfusion(installed, tmp_path, "info")
    photo, painting = (
        str(path) for path in (ROOT / "data/contents/moose.jpg", ROOT / "data/styles/turner_whalers.jpg")
    )
    artfusion(installed, tmp_path, photo, painting, "--look", "sampled", "--size", "64", "--steps", "1")
    assert min(load_image(tmp_path / "moose__turner_whalers.png").size) == 64


def test_bundled_files_are_found_by_their_names_in_a_clone(installed: Path, tmp_path: Path) -> None:
    checkpoint = "checkpoints/mini/model.safetensors"
    text = artfusion(installed, tmp_path, "checkpoint", "verify", checkpoint, "--config", "configs/mini.yaml")
    assert "every name and shape fits" in text
    artfusion(installed, tmp_path, "checkpoint", "convert", checkpoint, "small.safetensors")
    photo, painting = (
        str(path) for path in (ROOT / "data/contents/moose.jpg", ROOT / "data/styles/turner_whalers.jpg")
    )
    quick = ["--look", "sampled", "--size", "64", "--steps", "1"]
    artfusion(installed, tmp_path, photo, painting, "r.png", "--checkpoint", checkpoint, *quick)
    demo = ["--contents", "data/contents", "--output", "demo.png"]
    artfusion(installed, tmp_path, "demo", *demo, *quick)
    assert (tmp_path / "demo.png").exists() and (tmp_path / "r.png").exists()


def test_it_measures_itself(installed: Path, tmp_path: Path) -> None:
    rows = ["--rows", "dpm-solver", "process"]
    table = artfusion(installed, tmp_path, "benchmark", "sampling", "--size", "64", "--repeats", "1", *rows)
    assert "mini.yaml, weights mini, 64 x 64 pixels" in table
    assert [line.split(" | ")[0] for line in table.splitlines() if line.startswith("| ")][2:] == [
        "| DPM-Solver++, 10 steps",
        "| whole process: artfusion stylize --look sampled",
    ]


def test_it_trains_from_a_bundled_config(installed: Path, tmp_path: Path) -> None:
    folders = {kind: picture_folder(tmp_path / kind, 3) for kind in ("paintings", "photos")}
    roots = [
        f"data.params.train.params.{key}={folders[kind]}"
        for key, kind in (("style_root", "paintings"), ("content_root", "photos"))
    ]
    small = [
        "data.params.train.params.size=32",
        "data.params.train.params.style_size=32",
        "data.params.train.params.content_size=32",
        "data.params.validation=null",
    ]
    few = [
        "data.params.batch_size=2",
        "data.params.num_workers=0",
        "model.params.scale_batches=1",
        "lightning.trainer.max_steps=2",
    ]
    artfusion(
        installed,
        tmp_path,
        "train",
        "--base",
        "configs/mini.yaml",
        "--name",
        "run",
        *roots,
        *small,
        *few,
        "lightning.trainer.accelerator=cpu",
    )
    assert (tmp_path / "logs/run/checkpoints/last.ckpt").exists()
