"""The rooms of the house: who may import whom, as docs/architecture.md tells it."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from pipeline_builders import ROOT

# Every room may import from those before it. The first ones are single files: the ground floor.
GROUND = (
    "errors",
    "files",
    "text",
    "checks",
    "memory",
    "device",
    "ranks",
    "commands",
    "early",
    "streams",
    "program",
    "lazy",
)
ROOMS = (
    *GROUND,
    "published",
    "config",
    "checkpoint",
    "media",
    "modules",
    "data",
    "models",
    "pipeline",
    "evaluation",
    "training",
    "web",
    "cli",
)
# of a room, under a published name
FACES = {
    "__init__": "pipeline",
    "__main__": "cli",
    "util": "config",
    "lr_scheduler": "modules",
}


def room_of(module: str) -> str:
    name = (module.split(".") + ["__init__"])[1]
    return FACES.get(name, name)


def modules() -> Iterator[tuple[str, Path]]:
    for path in sorted((ROOT / "ldm").rglob("*.py")):
        yield ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"), path


def imports_of(path: Path) -> set[str]:
    """The modules of this project that a file imports, anywhere in it."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    named = {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module}
    named |= {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return {name for name in named if name.split(".")[0] == "ldm"}


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_from_those_below_it(room: str) -> None:
    upward = [
        (module, imported)
        for module, path in modules()
        if room_of(module) == room
        for imported in imports_of(path)
        if imported != "ldm" and ROOMS.index(room_of(imported)) > ROOMS.index(room)
    ]
    assert upward == []


def test_every_module_is_in_a_room() -> None:
    assert {room_of(module) for module, _ in modules()} == {*ROOMS}


def test_benchmarks_are_outside_and_only_their_command_knows_of_them() -> None:
    knowing = [
        module for module, path in modules() if re.search(r"(from|import) benchmarks\b", path.read_text())
    ]
    assert knowing == ["ldm.cli.benchmark"]


def test_the_document_has_every_room_and_no_file_that_is_gone() -> None:
    text = (ROOT / "docs/architecture.md").read_text()
    assert [room for room in ROOMS if f"`{room}" not in text] == []
    named = re.findall(r"`((?:ldm|tests|configs|docs|scripts|benchmarks)/[\w/.*-]+)`", text)
    assert named and [name for name in named if not list(ROOT.glob(name))] == []
