"""Latent diffusion as a LightningModule: losses, batches, moving averages, and the training
loop."""

import itertools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, IterableDataset

from ldm.checkpoint import is_ema_name, load_strict, part_of, read_state_dict
from ldm.config.factory import instantiate_from_config
from ldm.config.groups import flat_keys
from ldm.errors import ConfigError
from ldm.models.diffusion.averaging import AveragedWeights
from ldm.models.diffusion.conditions import Condition
from ldm.models.diffusion.latent_diffusion import DiffusionWrapper, LatentDiffusionModel
from ldm.models.diffusion.published import PublishedNames, disabled_train, uniform_on_device
from ldm.models.options import Batches, DiffusionLoss, Optimisation, PublishedOptions, StartingWeights
from ldm.modules.ema import LitEma
from ldm.modules.encoders.modules import ClassEmbedder
from ldm.modules.optimizers import build_optimizer, clip_gradients, published_order

__all__ = ["DDPM", "DiffusionWrapper", "LatentDiffusion", "disabled_train", "uniform_on_device"]

log = logging.getLogger(__name__)


# (what to take of each of the first batches, what to do with all of it)
FirstMeasure = tuple[Callable[[Mapping[str, Tensor]], Tensor], Callable[[Tensor], None]]


class DDPM(PublishedNames, AveragedWeights, LatentDiffusionModel, pl.LightningModule):
    """Every diffusion model here that learns. By itself, without a first stage, it learns pictures
    themselves.

    Parameters beyond LatentDiffusionModel's are in `ldm.models.options`.

    differs: its methods have LatentDiffusion's signatures, with a condition, which is None.
    """

    saves_logvar = False  # whether checkpoints carry it though it is not learned

    @flat_keys
    def __init__(
        self,
        unet_config: Mapping[str, Any],
        first_stage_config: Mapping[str, Any] | None = None,
        *args: Any,
        loss: DiffusionLoss,
        optimisation: Optimisation,
        batches: Batches,
        start: StartingWeights,
        published: PublishedOptions,
        **options: Any,
    ):
        if published.model_class is not None:
            self.wrapper = published.model_class
        pictures = {"target": "ldm.models.autoencoder.IdentityFirstStage"}
        super().__init__(unet_config, first_stage_config or pictures, *args, **options)
        self.learning_rate, self.scheduler_config = optimisation.learning_rate, optimisation.scheduler_config
        self.use_ema, self.scale_batches = optimisation.use_ema, optimisation.scale_batches
        self.monitor, self.monitor_mode = optimisation.monitor, optimisation.monitor_mode
        self.first_stage_key, self.cond_drop = batches.first_stage_key, batches.cond_drop
        self.log_every_t = batches.log_every_t
        if self.cond_drop and not hasattr(self.cond_stage_model, "null_input"):
            raise ConfigError(
                "cond_drop needs a condition stage with a null input, like ClassEmbedder or FrozenCLIPEmbedder"
            )
        self.diffusion_loss, self._scale_is_known = loss, False
        logvar = torch.full((self.num_timesteps,), float(loss.logvar_init))
        if loss.learn_logvar:
            self.logvar = nn.Parameter(logvar)
        else:
            self.register_buffer("logvar", logvar, persistent=self.saves_logvar)
        if self.use_ema:
            self.model_ema = LitEma(self.model)
        self.load_start(start)

    # Weights

    def load_start(self, start: StartingWeights) -> None:
        """Load what a new model starts from, once all its parts are there."""
        if start.ckpt_path is not None:
            self.init_from_ckpt(start.ckpt_path, start.ignore_keys, start.load_only_unet)

    def init_from_ckpt(self, path: str, ignore_keys: Sequence[str] = (), only_model: bool = False) -> None:
        """Load weights strictly (with `only_model`, the network's alone). Raises CheckpointError.
        Averages: see `load_state_dict`."""
        state = read_state_dict(path)
        if only_model:
            load_strict(self.model, part_of(state, "model."), ignore_keys, where=str(path))
            self.start_averages()
            return
        averages = tuple(f"{name}." for name, child in self.named_children() if isinstance(child, LitEma))
        has_averages = any(name.startswith(averages) for name in state)
        left_out = () if has_averages else averages or self._averages_in(state, path)
        load_strict(self, state, (*ignore_keys, *self.optional_keys(state), *left_out), where=str(path))
        self._scale_is_known = True

    def _averages_in(self, state: Mapping[str, Tensor], path: str) -> tuple[str, ...]:
        """Prefixes of a file's moving averages, for which this model has no place."""
        prefixes = {f"{name.partition('.')[0]}." for name in state if is_ema_name(name)}
        if prefixes:
            log.warning("%s: its averaged weights are left out, as the model has use_ema: false", path)
        return tuple(prefixes)

    def averaged(self) -> list[tuple[LitEma, nn.Module]]:
        """What has a moving average: (the average, the module)."""
        return [(self.model_ema, self.model)] if self.use_ema else []

    def trained_parameters(self) -> list[nn.Parameter]:
        """What the optimiser moves."""
        condition_stage = [*self.cond_stage_model.parameters()] if self.cond_stage_trainable else []
        logvar = [self.logvar] if self.diffusion_loss.learn_logvar else []
        return [*self.model.parameters(), *condition_stage, *logvar]

    # Losses

    def shared_step(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """(loss, values to log) of a batch, by `get_input` and `forward`, which a class made from
        this one may override."""
        x, c, *_ = self.get_input(batch, self.first_stage_key)
        return self(x, c)

    def forward(
        self, x: Tensor, c: Any = None, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """(loss, values to log) of latents x at random time steps, under what `get_input` gave for
        the condition."""
        t = torch.randint(0, self.num_timesteps, (len(x),), device=self.device)
        return self.p_losses(x, self.to_condition(c), t, *args, **kwargs)

    def p_losses(
        self, x_start: Tensor, cond: Condition, t: Tensor, noise: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """(loss, values to log, under `train/` or `val/`).

        The loss is l_simple_weight (simple / exp(logvar_t) + logvar_t) + original_elbo_weight vlb:
        that of a Gaussian whose log variance at each time step is logvar_t (as Kendall & Gal 2017,
        equation 8), and the variational bound's (Ho et al. 2020, equation 12).
        """
        loss = self.diffusion_loss
        noise = torch.randn_like(x_start) if noise is None else noise
        prediction = self.apply_model(self.q_sample(x_start, t, noise), t, cond)
        simple = loss.distance(prediction.float(), self.target_of(x_start, noise, t)).mean(dim=(1, 2, 3))
        logvar = self.logvar[t]
        weighted = simple if loss.min_snr_gamma is None else simple * self.min_snr_weight(t)
        total = loss.l_simple_weight * (weighted / logvar.exp() + logvar).mean()
        loss_vlb = (self.lvlb_weights[t] * simple).mean()
        total = total + loss.original_elbo_weight * loss_vlb
        parts = {"loss_simple": simple.mean(), "loss_vlb": loss_vlb, "loss": total}
        if loss.learn_logvar:
            parts["logvar"] = self.logvar.mean()
        prefix = "train" if self.training else "val"
        return total, {f"{prefix}/{name}": value.detach() for name, value in parts.items()}

    def target_of(self, x_start: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """What the network is to predict."""
        if self.parameterization != "v":
            return x_start if self.parameterization == "x0" else noise
        # Salimans & Ho 2022, section 4: v = sqrt(alpha_bar) eps - sqrt(1 - alpha_bar) x_0
        of_noise = self._at(self.sqrt_alphas_cumprod, t, x_start) * noise
        return of_noise - self._at(self.sqrt_one_minus_alphas_cumprod, t, x_start) * x_start

    def get_loss(self, pred: Tensor, target: Tensor, mean: bool = True) -> Tensor:
        """The mean of all elements' losses, or each of them."""
        return self.diffusion_loss.distance(pred, target, "mean" if mean else "none")

    def min_snr_weight(self, t: Tensor) -> Tensor:
        """(N,) weights of the errors at time steps t."""
        return self.diffusion_loss.min_snr_weight(self.alphas_cumprod[t], self.parameterization)

    # Batches

    def encode_batch(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """What the frozen networks make of a batch of channels-last pictures: the scaled latents,
        first of all."""
        return (self.get_first_stage_encoding(self.unscaled_latents(batch)),)

    @torch.no_grad()
    def unscaled_latents(self, batch: Mapping[str, Tensor]) -> Tensor:
        """What the first stage makes of a batch's pictures, or what was computed from them
        before."""
        return self.latent_of(self.encode_first_stage(channels_first(batch[self.first_stage_key])))

    def condition_of(self, batch: Mapping[str, Tensor], x: Tensor) -> Condition:
        """The condition of a model without a condition stage, by the present weights, of a batch
        and what `encode_batch` gave: here none."""
        return None

    def condition_input(self, batch: Mapping[str, Any]) -> Any:
        """What the condition stage takes of a batch; some samples' is the null input while
        training."""
        if self.cond_stage_key not in batch:
            raise ConfigError(
                f"LatentDiffusion: batches have no {self.cond_stage_key!r} (cond_stage_key), only {', '.join(batch)}"
            )
        c = batch[self.cond_stage_key]
        if isinstance(c, Tensor) and c.ndim == 4:
            c = channels_first(c)
        return self._some_dropped(c) if self.training and self.cond_drop else c

    def _some_dropped(self, c: Any) -> Any:
        dropped = torch.rand(len(c)) < self.cond_drop
        null = self.cond_stage_model.null_input(len(c))
        if not isinstance(c, Tensor):
            return [nothing if drop else one for nothing, drop, one in zip(null, dropped, c, strict=True)]
        return torch.where(dropped.to(c.device).reshape(-1, *(1,) * (c.ndim - 1)), null.to(c), c)

    def to_condition(self, c: Any) -> Condition:
        """The condition of what `get_input` gave for it: that itself, or the input of a condition
        stage that learns."""
        return self.get_learned_conditioning(c) if self.cond_stage_trainable else c

    # Pictures

    @torch.no_grad()
    def preview(
        self,
        batch: Mapping[str, Tensor],
        max_images: int = 4,
        ddim_steps: int = 20,
        guidance_scale: float = 3.0,
    ) -> dict[str, Tensor]:
        """Named (N, 3, H, W) pictures for the image logger: reconstructions, and samples of the
        averaged weights.

        Where the condition stage has a null input, samples under guidance too, from the same noise.
        """
        x, c, *_ = self.get_input(first_samples(batch, max_images), self.first_stage_key)
        c = self.to_condition(c)
        runs: dict[str, tuple[Condition, dict[str, Any]]] = {"samples": (c, {})}
        if hasattr(self.cond_stage_model, "null_input"):
            guidance = {
                "unconditional_guidance_scale": guidance_scale,
                "unconditional_conditioning": self.null_condition(len(x)),
            }
            runs[f"guidance_{guidance_scale:g}"] = c, guidance
        return self.previewed(x, runs, ddim_steps)

    def previewed(
        self, z: Tensor, runs: Mapping[str, tuple[Condition, dict[str, Any]]], ddim_steps: int
    ) -> dict[str, Tensor]:
        """Pictures of latents, and of DDIM's runs by name, (condition, options) each, all from one
        noise."""
        noise, latents = torch.randn_like(z), {"reconstructions": z}
        options = {"ddim": True, "ddim_steps": ddim_steps, "ddim_discretize": "trailing", "x_T": noise}
        with self.ema_scope():
            for name, (condition, own) in runs.items():
                latents[name], _ = self.sample_log(condition, len(z), **options, **own)
        return {name: self.decode_first_stage(latent) for name, latent in latents.items()}

    # The training loop

    def on_fit_start(self) -> None:
        """Lightning's: see that what training needs is there."""
        if not (self._scale_is_known or getattr(self.first_stage_model, "has_weights", True)):
            log.warning(
                "the first stage has random weights: give its file as model.params.first_stage_config.params.ckpt_path"
            )
        data = getattr(self.trainer.datamodule, "datasets", {}).get("train")
        if hasattr(data, "classes") and isinstance(self.cond_stage_model, ClassEmbedder):
            self.cond_stage_model.check_classes(data.classes, with_null=self.cond_drop > 0)

    def training_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> Tensor:
        """Lightning's: the loss of a batch, logged."""
        loss, parts = self.shared_step(batch)
        n = samples_in(batch)
        self.log_dict(parts, batch_size=n)
        self.log("loss", loss, prog_bar=True, logger=False, batch_size=n)
        return loss

    @torch.no_grad()
    def validation_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> None:
        """Lightning's: the losses of a batch, logged, for the same random numbers every time."""
        # The same noise and time steps every time: values of different epochs can be compared, and
        # training's random numbers stay what they were.
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(batch_idx)
            _, parts = self.shared_step(batch)
            torch.manual_seed(batch_idx)
            with self.ema_scope():  # where the condition may be another too
                _, averaged = self.shared_step(batch)
        parts |= {f"{name}_ema": value for name, value in averaged.items()}
        self.log_dict(parts, batch_size=samples_in(batch), sync_dist=True)

    def on_train_start(self) -> None:
        """Lightning's: a new model's scale and the like are measured before its first step."""
        measures = self.first_measures()
        if not measures or self._scale_is_known or self.global_step > 0:
            return
        # differs: the published code takes one batch, whose statistics are rough.
        rows = [
            [of_batch(batch) for of_batch, _ in measures] for batch in self._first_batches(self.scale_batches)
        ]
        for (_, take), parts in zip(measures, zip(*rows)):
            take(torch.cat(parts))

    def first_measures(self) -> list[FirstMeasure]:
        """What a new model is set by before training."""
        return [(self.unscaled_latents, self.set_scale)] if self.scale_by_std else []

    def set_scale(self, z: Tensor) -> None:
        """Scale so that these unscaled latents, those of all processes together, get std 1 (and
        mean 0 where there is a shift)."""
        for name, value in self.latent_scale.measure(self.gathered(z)).items():
            getattr(self, name).copy_(value)

    def _first_batches(self, count: int) -> Iterator[Mapping[str, Tensor]]:
        """The batches that training will begin with; reading them does not move its own loader
        on."""
        loader = self.trainer.train_dataloader
        sampler = None if isinstance(loader.dataset, IterableDataset) else loader.sampler
        with torch.random.fork_rng([]):
            again = DataLoader(
                loader.dataset,
                loader.batch_size,
                sampler=sampler,
                collate_fn=loader.collate_fn,
                num_workers=loader.num_workers,
            )
            for batch in itertools.islice(again, count):
                yield self.transfer_batch_to_device(batch, self.device, 0)

    def gathered(self, z: Tensor) -> Tensor:
        """(N, ...) of all processes together."""
        alone = self._trainer is None or self.trainer.world_size == 1
        return z if alone else self.all_gather(z).flatten(0, 1)

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: Optimizer,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        """Lightning's: a step, after which the averages move."""
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        # differs: the published code moves the average once per micro-batch; here once per
        # optimiser step.
        for average, module in self.averaged():
            average(module)

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Lightning's: by norm or value, and a loss that is not finite is an error."""
        clip_gradients(self, optimizer, gradient_clip_val, gradient_clip_algorithm)

    def configure_optimizers(self) -> Any:
        """Lightning's: the optimiser, or two, and the schedules of their learning rates."""
        optimizer = build_optimizer(
            torch.optim.AdamW, published_order(self, self.trained_parameters()), self, lr=self.learning_rate
        )
        if self.scheduler_config is None:
            return optimizer
        # not the object, whose values a checkpoint would bring back
        schedule = instantiate_from_config(
            self.scheduler_config, kind="schedule", key="model.params.scheduler_config"
        ).__call__
        return [optimizer], [{"scheduler": LambdaLR(optimizer, schedule), "interval": "step", "frequency": 1}]


class LatentDiffusion(DDPM):
    """The base of every latent diffusion model that trains; `DualCondLDM` is the one for style
    transfer."""

    def __init__(
        self,
        unet_config: Mapping[str, Any],
        first_stage_config: Mapping[str, Any],
        *args: Any,
        **options: Any,
    ):
        super().__init__(unet_config, first_stage_config, *args, **options)


def channels_first(pictures: Tensor) -> Tensor:
    """(N, C, H, W) of a batch's (N, H, W, C)."""
    return pictures.permute(0, 3, 1, 2).float()


def first_samples(batch: Mapping[str, Any], n: int) -> dict[str, Any]:
    """The first n samples of a batch of tensors and lists."""
    return {key: value[:n] for key, value in batch.items()}


def samples_in(batch: Mapping[str, Any]) -> int:
    return len(next(iter(batch.values())))
