"""A Lightning callback that writes what the model makes, as pictures, while it trains."""

import inspect
import logging
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torchvision.utils import make_grid

from ldm.images import save_image, tensor_to_image
from ldm.util import check_count

log = logging.getLogger(__name__)


class ImageLogger(pl.Callback):
    """Every `batch_frequency` batches (and, with `increase_log_steps`, after 1, 2, 4, ..., the powers of `frequency_base`, before
    that) save the pictures that the model's `log_images(batch, max_images=...)` returns, as PNG and to TensorBoard.

    The pictures draw their randomness aside, so they do not change the training. Only the first process makes them;
    the others wait at their next exchange of gradients. `nrow` pictures stand in a row, all by default. `log_images_kwargs` go to the model's `log_images`.
    """

    def __init__(
        self,
        batch_frequency: int = 1000,
        max_images: int = 4,
        increase_log_steps: bool = True,
        log_images_kwargs: dict[str, Any] | None = None,
        disabled: bool = False,
        frequency_base: int = 2,
        nrow: int | None = None,
        # Published config files may give these, which have no effect: pictures are always clamped
        # and in TensorBoard's range, and come after a step.
        clamp: bool = True,
        rescale: bool = True,
        log_on_batch_idx: bool = True,
        log_first_step: bool = True,
    ):
        check_count("ImageLogger: batch_frequency", batch_frequency)
        self.batch_frequency, self.max_images, self.disabled = batch_frequency, max_images, disabled
        check_count("ImageLogger: frequency_base", frequency_base, least=2)
        self.first_batches = {frequency_base**n for n in range(20) if frequency_base**n < batch_frequency} if increase_log_steps else set()
        self.nrow = nrow
        self.options = dict(log_images_kwargs or {})

    def on_fit_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        known = inspect.signature(module.log_images).parameters
        for name in [name for name in self.options if name not in known]:
            log.warning("ImageLogger: log_images_kwargs.%s has no effect here; there are %s", name, ", ".join(known))
            del self.options[name]

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        done = trainer.fit_loop.total_batch_idx + 1
        if self.disabled or not trainer.is_global_zero:
            return
        if done in self.first_batches or done % self.batch_frequency == 0:
            self.write(trainer, module, batch, done)

    @torch.no_grad()
    def write(self, trainer: pl.Trainer, module: pl.LightningModule, batch: Any, done: int) -> None:
        was_training = module.training
        module.eval()
        devices = [module.device] if module.device.type == "cuda" else []
        with torch.random.fork_rng(devices), trainer.precision_plugin.forward_context():
            pictures = module.log_images(batch, max_images=self.max_images, **self.options)
        module.train(was_training)
        for name, images in pictures.items():
            grid = make_grid(images.float().clamp(-1, 1), nrow=self.nrow or len(images), padding=2, pad_value=1.0)
            # Not trainer.log_dir: that is a broadcast, and the other processes are not here.
            save_image(tensor_to_image(grid), Path(trainer.default_root_dir) / "images" / f"{name}_{done:08d}.png")
            for logger in trainer.loggers:
                if isinstance(logger, pl.loggers.TensorBoardLogger):
                    logger.experiment.add_image(f"train/{name}", (grid + 1) / 2, done)
