"""The command `artfusion train`, in a clone, and what published scripts import of `main`."""

import importlib
from typing import Any

from ldm.cli.main import run_command

# Imported when asked for, as that takes seconds, in which Ctrl-C should end the command as well as later.
_ELSEWHERE = {
    "DataModuleFromConfig": "ldm.data.datamodule",
    "ImageLogger": "ldm.training.image_logger",
    "get_obj_from_str": "ldm.util",
    "instantiate_from_config": "ldm.util",
}


def __getattr__(name: str) -> Any:
    if name not in _ELSEWHERE:
        raise AttributeError(f"module 'main' has no attribute {name!r}")
    return getattr(importlib.import_module(_ELSEWHERE[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_ELSEWHERE])


if __name__ == "__main__":
    run_command("train")
