"""A Lightning callback that writes what the model makes, as pictures, while it trains."""

import inspect
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torchvision.utils import make_grid

from ldm.checks import check_count
from ldm.errors import ConfigError, did_you_mean
from ldm.media.images import save_image
from ldm.media.tensors import tensor_to_image
from ldm.models.diffusion.published_pictures import PublishedPictures

log = logging.getLogger(__name__)

# What only the published pictures have.
PUBLISHED_OPTIONS = set(inspect.signature(PublishedPictures.log_images).parameters) - {
    "self",
    "batch",
    "ddim_steps",
}


class ImageLogger(pl.Callback):
    """Every `batch_frequency` batches (and, with `increase_log_steps`, after 1, 2, 4, ..., the
    powers of `frequency_base`, before that) save the pictures that the model draws of the batch, as
    PNG and to TensorBoard. By default the early ones are drawn on GPUs only: a CPU would work on
    them for minutes before its first steps.

    The pictures draw their randomness aside, so they do not change the training. Only the first
    process makes them; the others wait at their next exchange of gradients. `nrow` pictures stand
    in a row, all by default. `log_images_kwargs` go to the model's `preview`; to its `log_images`
    where that is the model's own, or where they are options of the published pictures, which take
    much longer to draw.
    """

    def __init__(
        self,
        batch_frequency: int = 1000,
        max_images: int = 4,
        increase_log_steps: bool | None = None,
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
        self.increase_log_steps = increase_log_steps
        self.first_batches = {frequency_base**n for n in range(20) if frequency_base**n < batch_frequency}
        self.nrow = nrow
        if not isinstance(log_images_kwargs, Mapping | None):
            raise ConfigError(
                f"ImageLogger: log_images_kwargs must be names with values, got {log_images_kwargs!r}"
            )
        self.options = dict(log_images_kwargs or {})

    def check_model(self, module: pl.LightningModule) -> None:
        """Raises ConfigError for a model that draws nothing, and for options that its pictures do
        not have."""
        if not hasattr(module, "log_images"):
            raise ConfigError(
                f"ImageLogger: {type(module).__name__} has no `log_images` to draw its pictures; take the callback out"
            )
        known = inspect.signature(self.drawing_of(module)).parameters
        takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values())
        for name in self.options:
            if not (takes_any or name in known):
                names = sorted({*known, *PUBLISHED_OPTIONS} - {"batch"})
                raise ConfigError(
                    f"ImageLogger: log_images_kwargs.{name} is unknown{did_you_mean(name, names)}; there are {', '.join(names)}"
                )

    def drawing_of(self, module: pl.LightningModule) -> Callable[..., dict[str, Tensor]]:
        """The method that draws: a `log_images` of the model's own, or of our diffusion models the
        shorter `preview`."""
        is_own = getattr(type(module), "log_images", None) is not PublishedPictures.log_images
        name = "log_images" if is_own or set(self.options) & PUBLISHED_OPTIONS else "preview"
        method: Callable[..., dict[str, Tensor]] = getattr(module, name)
        return method

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Draw if it is time to; batches are counted over the whole run."""
        done = trainer.fit_loop.total_batch_idx + 1
        if self.disabled or not trainer.is_global_zero:
            return
        is_early = self.increase_log_steps
        if is_early is None:
            is_early = module.device.type != "cpu"
        if (is_early and done in self.first_batches) or done % self.batch_frequency == 0:
            log.info("after %d batches: drawing sample pictures", done)
            self.write(trainer, module, batch, done)

    @torch.no_grad()
    def write(self, trainer: pl.Trainer, module: pl.LightningModule, batch: Any, done: int) -> None:
        """Draw a batch with the model as it is: into the run's folder and TensorBoard. Raises
        ConfigError for options it does not take."""
        was_training = module.training
        module.eval()
        devices = [module.device] if module.device.type == "cuda" else []
        with torch.random.fork_rng(devices), trainer.precision_plugin.forward_context():
            draw = self.drawing_of(module)
            count = {
                name: self.max_images
                for name in ("max_images", "N")
                if name in inspect.signature(draw).parameters
            }
            try:
                pictures = draw(batch, **{**count, **self.options})
            except (TypeError, ValueError) as error:
                if not self.options:
                    raise
                raise ConfigError(
                    f"ImageLogger: no pictures with log_images_kwargs {self.options}: {error}"
                ) from error
        module.train(was_training)
        for name, images in pictures.items():
            grid = make_grid(
                images.float().clamp(-1, 1), nrow=self.nrow or len(images), padding=2, pad_value=1.0
            )
            # Not trainer.log_dir: that is a broadcast, and the other processes are not here.
            save_image(
                tensor_to_image(grid), Path(trainer.default_root_dir) / "images" / f"{name}_{done:08d}.png"
            )
            for logger in trainer.loggers:
                if isinstance(logger, pl.loggers.TensorBoardLogger):
                    logger.experiment.add_image(f"train/{name}", (grid + 1) / 2, done)
