"""A Lightning callback that writes what the model makes, as pictures, while it trains."""

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torchvision.utils import make_grid

from ldm.images import save_image, tensor_to_image


class ImageLogger(pl.Callback):
    """Every `batch_frequency` batches (and, with `increase_log_steps`, after 1, 2, 4, ... before that) save the
    pictures that the model's `log_images(batch, max_images=...)` returns, as PNG and to TensorBoard.

    The pictures draw their randomness aside, so they do not change the training.
    """

    def __init__(self, batch_frequency: int = 1000, max_images: int = 4, increase_log_steps: bool = True, log_images_kwargs: dict | None = None):
        self.batch_frequency, self.max_images = batch_frequency, max_images
        self.first_batches = {2**n for n in range(20) if 2**n < batch_frequency} if increase_log_steps else set()
        self.options = log_images_kwargs or {}

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        done = trainer.fit_loop.total_batch_idx + 1
        if trainer.is_global_zero and (done in self.first_batches or done % self.batch_frequency == 0):
            self.write(trainer, module, batch, done)

    @torch.no_grad()
    def write(self, trainer: pl.Trainer, module: pl.LightningModule, batch: Any, done: int) -> None:
        was_training = module.training
        module.eval()
        devices = [module.device] if module.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            pictures = module.log_images(batch, max_images=self.max_images, **self.options)
        module.train(was_training)
        for name, images in pictures.items():
            grid = make_grid(images.float().clamp(-1, 1), nrow=len(images), padding=2, pad_value=1.0)
            folder = Path(trainer.log_dir or trainer.default_root_dir) / "images"
            save_image(tensor_to_image(grid), folder / f"{name}_{done:08d}.png")
            for logger in trainer.loggers:
                if isinstance(logger, pl.loggers.TensorBoardLogger):
                    logger.experiment.add_image(f"train/{name}", (grid + 1) / 2, done)
