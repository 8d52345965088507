"""Train a model from config files.

    python main.py --base configs/kl16_content12.yaml
    python main.py --base configs/mini.yaml --name my-model lightning.trainer.max_epochs=5

Several --base files merge from left to right; `key.sub=value` overrides come last.
"""

import importlib
from typing import Any

from ldm.cli import run

# Published config files name these under `main`. They are imported when asked for, as that takes seconds, in which
# Ctrl-C should end the command as well as later.
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


def main() -> None:
    from ldm.training.train import main

    main()


if __name__ == "__main__":
    run(main)
