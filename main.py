"""Train a model from config files.

    python main.py --base configs/kl16_content12.yaml
    python main.py --base configs/mini.yaml --name my-model lightning.trainer.max_epochs=5

Several --base files merge from left to right; `key.sub=value` overrides come last.
"""

from ldm.cli import run
from ldm.data.datamodule import DataModuleFromConfig
from ldm.training.image_logger import ImageLogger
from ldm.training.train import main
from ldm.util import get_obj_from_str, instantiate_from_config

# Published config files name these under `main`.
__all__ = ["DataModuleFromConfig", "ImageLogger", "get_obj_from_str", "instantiate_from_config"]

if __name__ == "__main__":
    run(main)
