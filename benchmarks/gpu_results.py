"""What the suite `gpu` has measured so far, in a folder."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.measuring import machine
from benchmarks.options import GpuOptions
from ldm.device import choose_device
from ldm.errors import UserError
from ldm.files import written_whole

Result = dict[str, Any]


class Results:
    """A folder of results, each a JSON file of its own, all with the same settings on the same
    machine.

    Raises UserError for a folder with those of others.
    """

    def __init__(self, options: GpuOptions):
        self.folder = Path(options.output)
        told = ("config", "weights", "seed", "repeats", "published_steps")
        settings = {name: str(getattr(options, name)) for name in told}
        settings["machine"] = machine(choose_device(options.device))
        if self.get("settings") not in (None, settings):
            raise UserError(
                f"{self.folder}: has results of another machine or of other options; choose another --output"
            )
        self.put("settings", settings)

    def get(self, name: str) -> Result | None:
        path = self.folder / f"{name}.json"
        return json.loads(path.read_text()) if path.is_file() else None

    def put(self, name: str, result: Result) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        with written_whole(self.folder / f"{name}.json") as path:
            path.write_text(json.dumps(result))

    def or_measured(self, name: str, measure: Callable[[], Result]) -> Result:
        """What is there under this name, or else measured now."""
        result = self.get(name)
        if result is None:
            result = measure()
            self.put(name, result)
        return result

    def tensors(self, row: str) -> Path:
        """The file of a row's prediction and picture."""
        return self.folder / f"{row}.pt"
