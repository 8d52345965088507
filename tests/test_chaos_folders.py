"""kill -9 at random moments of painting a folder: whatever is there is whole, and the same command does the rest, as it would have.

Some rounds of it here; `ARTFUSION_CHAOS_ROUNDS=50 pytest -m chaos` for many, each with other moments.
"""

import os
import random
import subprocess
import tarfile
import time
from pathlib import Path

import pytest
from pipeline_builders import picture

from ldm.media.images import load_image
from ldm.program import own_command, own_environment

pytestmark = [pytest.mark.chaos, pytest.mark.skipif(os.name != "posix", reason="needs kill -9")]

ROUNDS = int(os.environ.get("ARTFUSION_CHAOS_ROUNDS", "2"))
KILLS = 3  # of a round
PHOTOS = 40


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos and a painting."""
    root = tmp_path_factory.mktemp("chaos")
    (root / "photos").mkdir()
    for i in range(PHOTOS):
        picture(96, 80, i).save(root / f"photos/{i:02}.png")
    picture(96, 80, 100).save(root / "s.png")
    return root


def begun(folder: Path, output: Path, *options: str) -> "subprocess.Popen[bytes]":
    """The command, in the look that needs no model."""
    inputs = ["--content", "photos", "--style", "s.png", "--output", f"{output}/"]
    command = own_command("stylize", "--look", "palette", "--size", "80", "--quiet", *inputs, *options)
    return subprocess.Popen(command, cwd=folder, env=own_environment())


def files(folder: Path) -> dict[str, bytes]:
    """All of a folder, hidden ones as well, but for indexes, which have its name in them."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.suffix != ".json"}


def check_whole(folder: Path) -> None:
    """What has its name can be read."""
    for path in folder.glob("[!.]*"):
        if path.suffix == ".png":
            load_image(path)
        elif path.suffix == ".tar":
            with tarfile.open(path) as file:
                assert len(file.getnames()) in (14, 2 * (PHOTOS % 7))


@pytest.mark.parametrize("options", [(), ("--pack", "tar", "--pack-size", "7")])
def test_a_killed_folder_run_ends_as_if_it_had_not_been(
    folder: Path, tmp_path: Path, options: tuple[str, ...]
) -> None:
    began = time.monotonic()
    assert begun(folder, tmp_path / "whole", *options).wait() == 0
    seconds = time.monotonic() - began
    for number in range(ROUNDS):
        chance, output = random.Random(number), tmp_path / str(number)
        for _ in range(KILLS):
            run = begun(folder, output, *options)
            try:
                run.wait(chance.uniform(0.3, 1) * seconds)
            except subprocess.TimeoutExpired:
                run.kill()
                run.wait()
            check_whole(output)
        assert begun(folder, output, *options).wait() == 0
        assert files(output) == files(tmp_path / "whole")
