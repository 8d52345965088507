"""The notebook's code cells run from top to bottom on the bundled model."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from ldm.settings import LOOKS

NOTEBOOK = Path(__file__).parents[1] / "notebooks/style_transfer.ipynb"


@pytest.fixture(scope="module")
def notebook() -> dict:
    return json.loads(NOTEBOOK.read_text())


def test_every_code_cell_runs_and_shows_what_it_should(notebook, monkeypatch):
    for name, brush in (("fast", 0), ("fine", 1)):  # few steps suffice to see that it runs
        monkeypatch.setitem(LOOKS, name, replace(LOOKS[name], step_share=0.1, brush=brush))
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    settings = "SIZE, SMALL, SEED = 512, 256, 0"
    assert settings in cells[0]
    cells[0] = cells[0].replace(settings, "SIZE, SMALL, SEED = 64, 64, 0")
    names: dict = {}
    sheets = 0
    for cell in cells:
        *body, last = cell.rsplit("\n", 1)
        if not last.startswith("labelled_sheet("):
            exec(cell, names)
            continue
        exec("\n".join(body), names)
        sheet = eval(last, names)
        assert isinstance(sheet, Image.Image) and len(sheet.getcolors(2**24)) > 1000
        sheets += 1
    assert sheets == 5


def test_no_outputs_are_stored(notebook):
    assert not any(cell.get("outputs") for cell in notebook["cells"])
