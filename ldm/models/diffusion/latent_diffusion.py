"""Latent diffusion (Rombach et al. 2022): Gaussian diffusion of a first stage's latents, under the conditions of a condition stage.

Shapes: x (N, 3, H, W) pictures in [-1, 1]; z, x_0, x_t (N, channels, h, w) latents; t (N,) time steps, int64.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ldm.checkpoint import is_ema_name, load_strict, part_of, read_state_dict
from ldm.checks import check_choice, check_fractions
from ldm.config.factory import instantiate_from_config
from ldm.errors import ConfigError
from ldm.models.diffusion.ddim import DDIMSampler
from ldm.models.diffusion.gaussian import GaussianDiffusion
from ldm.models.diffusion.guidance import Condition
from ldm.models.diffusion.published import PublishedNames
from ldm.modules.distributions import DiagonalGaussianDistribution
from ldm.modules.ema import LitEma

log = logging.getLogger(__name__)

CONDITIONING_KEYS = (None, "concat", "crossattn", "hybrid", "adm")


class LatentDiffusionModel(PublishedNames, GaussianDiffusion):
    """What every latent diffusion model here shares, without Lightning; `ddpm.LatentDiffusion` adds the training loop.

    Parameters beyond GaussianDiffusion's:

    unet_config: the network, called through `model_class(unet_config, conditioning_key)`.
    first_stage_config: the frozen autoencoder.
    cond_stage_config: the condition stage, which makes conditions of what batches have under `cond_stage_key`; or
        "__is_first_stage__", "__is_unconditional__", or "__is_adaptive__" (the child class makes the conditions). It learns
        with `cond_stage_trainable` and else stays frozen, in eval mode. `cond_stage_forward` names its method; by default
        `encode`, if it has that, or the call itself.
    conditioning_key: how the network takes the condition, see DiffusionWrapper. None with a condition stage is, as in
        published config files, "concat" with `concat_mode` and "crossattn" without.
    cond_drop: share of the training samples that get the condition stage's null input instead of theirs, for
        classifier-free guidance (Ho & Salimans 2022).
    scale_by_std: set the latent's scale (and shift, where there is one) from the first `scale_batches` training batches,
        unless a whole model's weights came from `ckpt_path`.
    """

    what = "a latent diffusion model"  # in messages

    def __init__(
        self,
        unet_config: Mapping[str, Any],
        first_stage_config: Mapping[str, Any],
        cond_stage_config: str | Mapping[str, Any] = "__is_unconditional__",
        cond_stage_key: str = "image",
        cond_stage_trainable: bool = False,
        cond_stage_forward: str | None = None,
        cond_drop: float = 0.0,
        conditioning_key: Any = None,
        concat_mode: bool = True,
        scale_factor: float = 1.0,
        scale_by_std: bool = False,
        scale_batches: int = 16,
        first_stage_key: str = "image",
        use_ema: bool = True,
        ckpt_path: str | None = None,
        ignore_keys: Sequence[str] = (),
        load_only_unet: bool = False,
        monitor: str = "val/loss",
        monitor_mode: str = "min",
        learning_rate: float = 1e-4,
        scheduler_config: Mapping[str, Any] | None = None,
        # Published config files may give these three; they have no effect in the published code either.
        num_timesteps_cond: int | None = None,
        clip_denoised: bool = True,
        use_positional_encodings: bool = False,
        model_class: Callable[[Mapping[str, Any], Any], nn.Module] | None = None,
        **options: Any,
    ):
        super().__init__(**options)
        if (num_timesteps_cond or 1) != 1:
            raise ConfigError("LatentDiffusion: num_timesteps_cond > 1 is not supported")
        self.first_stage_key, self.cond_stage_key = first_stage_key, cond_stage_key
        self.monitor, self.monitor_mode = monitor, monitor_mode
        self.learning_rate, self.scheduler_config = learning_rate, scheduler_config
        self.use_ema, self.scale_by_std, self.scale_batches = use_ema, scale_by_std, scale_batches
        self._scale_is_known = False
        self.register_buffer("scale_factor", torch.tensor(float(scale_factor)), persistent=scale_by_std)

        if conditioning_key is None and cond_stage_config not in ("__is_unconditional__", "__is_adaptive__"):
            conditioning_key = "concat" if concat_mode else "crossattn"
        self.model = (model_class or DiffusionWrapper)(unet_config, conditioning_key)
        if use_ema:
            self.model_ema = LitEma(self.model)
        self.instantiate_first_stage(first_stage_config)
        self.cond_stage_trainable, self.cond_stage_forward, self.cond_drop = (
            cond_stage_trainable,
            cond_stage_forward,
            cond_drop,
        )
        self.instantiate_cond_stage(cond_stage_config)
        if ckpt_path is not None:
            self.init_from_ckpt(ckpt_path, ignore_keys, load_only_unet)

    def instantiate_first_stage(self, config: Mapping[str, Any]) -> None:
        """Build the frozen autoencoder."""
        self.first_stage_model = instantiate_from_config(config).eval().requires_grad_(False)

    def instantiate_cond_stage(self, config: str | Mapping[str, Any]) -> None:
        """Build the condition stage, frozen unless it is to learn. Raises ConfigError."""
        method = self.cond_stage_forward
        if isinstance(config, str):
            check_choice(
                "cond_stage_config", config, ("__is_first_stage__", "__is_adaptive__", "__is_unconditional__")
            )
            if self.cond_stage_trainable:
                raise ConfigError(f"cond_stage_trainable: {config} has nothing to train")
            self.cond_stage_model = self.first_stage_model if config == "__is_first_stage__" else None
        else:
            self.cond_stage_model = instantiate_from_config(config)
            if not self.cond_stage_trainable:
                self.cond_stage_model.eval().requires_grad_(False)
        if method is not None and not callable(getattr(self.cond_stage_model, method, None)):
            raise ConfigError(f"cond_stage_forward: the condition stage has no method {method!r}")
        check_fractions(cond_drop=self.cond_drop)
        if self.cond_drop and not hasattr(self.cond_stage_model, "null_input"):
            raise ConfigError(
                "cond_drop needs a condition stage with a null input, like ClassEmbedder or FrozenCLIPEmbedder"
            )

    def init_from_ckpt(self, path: str, ignore_keys: Sequence[str] = (), only_model: bool = False) -> None:
        """Load weights strictly (with `only_model`, the network's alone). Raises CheckpointError. Averages: see `load_state_dict`."""
        state = read_state_dict(path)
        if only_model:
            load_strict(self.model, part_of(state, "model."), ignore_keys, where=str(path))
            for average, module in self.averaged():
                average.start_at(module)
            return
        averages = tuple(f"{name}." for name, child in self.named_children() if isinstance(child, LitEma))
        has_averages = any(name.startswith(averages) for name in state)
        left_out = (
            *ignore_keys,
            *self.optional_keys(state),
            *(() if has_averages else averages or self._averages_in(state, path)),
        )
        load_strict(self, state, left_out, where=str(path))
        self._scale_is_known = True

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """As in PyTorch; but from weights without (all of) their moving averages, as made for inference, these start at the weights."""
        result = super().load_state_dict(state_dict, strict, assign)
        names = {id(child): name for name, child in self.named_children()}
        for average, module in self.averaged():
            has_weights = any(name.startswith(f"{names[id(module)]}.") for name in state_dict)
            if (
                has_weights
                and not {f"{names[id(average)]}.{shadow}" for shadow in average.shadow_names.values()}
                <= state_dict.keys()
            ):
                average.start_at(module)
        return result

    def _averages_in(self, state: Mapping[str, Tensor], path: str) -> tuple[str, ...]:
        """Prefixes of a file's moving averages, for which this model has no place."""
        prefixes = {f"{name.partition('.')[0]}." for name in state if is_ema_name(name)}
        if prefixes:
            log.warning("%s: its averaged weights are left out, as the model has use_ema: false", path)
        return tuple(prefixes)

    def optional_keys(self, state: Mapping[str, Tensor]) -> tuple[str, ...]:
        """Prefixes of names that a whole checkpoint may have or lack."""
        of_condition_stage = getattr(self.cond_stage_model, "optional_keys", ())
        return ("first_stage_model.loss.", *(f"cond_stage_model.{key}" for key in of_condition_stage))

    def train(self, mode: bool = True) -> "LatentDiffusionModel":
        super().train(mode)
        # frozen: their dropout and norms must not wake up with the rest
        self.first_stage_model.eval()
        if self.cond_stage_model is not None and not self.cond_stage_trainable:
            self.cond_stage_model.eval()
        return self

    # Weights for inference

    def averaged(self) -> list[tuple[LitEma, nn.Module]]:
        """What has a moving average: (the average, the module)."""
        return [(self.model_ema, self.model)] if self.use_ema else []

    @contextmanager
    def ema_scope(self, context: str | None = None) -> Iterator[None]:
        """Within it the averaged weights are in place; the live ones come back even if the body raises."""
        pairs = self.averaged()
        for average, module in pairs:
            average.store(module)
        try:
            for average, module in pairs:
                average.copy_to(module)
            if context is not None:
                log.debug("%s: averaged weights in place", context)
            yield
        finally:
            for average, module in pairs:
                average.restore(module)

    # First stage

    def encode_first_stage(self, x: Tensor) -> DiagonalGaussianDistribution | Tensor:
        return self.first_stage_model.encode(x)

    def get_first_stage_encoding(self, encoder_posterior: DiagonalGaussianDistribution | Tensor) -> Tensor:
        """The scaled latent of a posterior (drawn from it) or of an unscaled latent."""
        return self.scale_factor * self.latent_of(encoder_posterior)

    def latent_of(self, posterior: DiagonalGaussianDistribution | Tensor) -> Tensor:
        """The unscaled latent: drawn from a posterior, or as a first stage without one gives it."""
        if isinstance(posterior, tuple):
            raise ConfigError(
                f"first_stage_config: {type(self.first_stage_model).__name__} gives codes, not latents; its target must be VQModelInterface"
            )
        return posterior if isinstance(posterior, Tensor) else self.of_posterior(posterior)

    def of_posterior(self, posterior: DiagonalGaussianDistribution) -> Tensor:
        return posterior.sample()

    def unscaled(self, z: Tensor) -> Tensor:
        """What the first stage decodes, of scaled latents."""
        return z / self.scale_factor

    def decode_first_stage(
        self, z: Tensor, predict_cids: bool = False, force_not_quantize: bool = False
    ) -> Tensor:
        """Pictures (N, 3, H, W), about [-1, 1], from scaled latents.

        A first stage with a codebook moves these to its nearest codes first, unless `force_not_quantize`. predict_cids: z tells
        its codes, see `latent_of_codes`.
        """
        if predict_cids:
            z = self.latent_of_codes(z)
        options = (
            {"force_not_quantize": True} if self.has_codes and (predict_cids or force_not_quantize) else {}
        )
        return self.first_stage_model.decode(self.unscaled(z), **options)

    # Conditions

    def get_learned_conditioning(self, c: Any) -> Condition:
        """The condition stage's condition for its input c: a batch of labels, texts or pictures."""
        if self.cond_stage_model is None:
            raise ConfigError("LatentDiffusion: this model has no condition stage")
        default = getattr(self.cond_stage_model, "encode", self.cond_stage_model)
        encode = (
            default
            if self.cond_stage_forward is None
            else getattr(self.cond_stage_model, self.cond_stage_forward)
        )
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.cond_stage_trainable):
            condition = encode(c)
        return condition.mode() if isinstance(condition, DiagonalGaussianDistribution) else condition

    def null_condition(self, n: int) -> Condition:
        """The condition of nothing in particular, n times: what guidance leads away from."""
        if not hasattr(self.cond_stage_model, "null_input"):
            raise ConfigError(
                "LatentDiffusion: this model's condition stage has no null input, so there is no guidance against it"
            )
        return self.get_learned_conditioning(self.cond_stage_model.null_input(n))

    def condition_input(self, batch: Mapping[str, Any]) -> Any:
        """What the condition stage takes of a batch; some samples' is the null input while training."""
        if self.cond_stage_key not in batch:
            raise ConfigError(
                f"LatentDiffusion: batches have no {self.cond_stage_key!r} (cond_stage_key), only {', '.join(batch)}"
            )
        c = batch[self.cond_stage_key]
        if isinstance(c, Tensor) and c.ndim == 4:
            c = c.permute(0, 3, 1, 2).float()
        return self._some_dropped(c) if self.training and self.cond_drop else c

    def _some_dropped(self, c: Any) -> Any:
        dropped = torch.rand(len(c)) < self.cond_drop
        null = self.cond_stage_model.null_input(len(c))
        if not isinstance(c, Tensor):
            return [nothing if drop else one for nothing, drop, one in zip(null, dropped, c, strict=True)]
        return torch.where(dropped.to(c.device).reshape(-1, *(1,) * (c.ndim - 1)), null.to(c), c)

    # Diffusion

    def apply_model(
        self, x_noisy: Tensor, t: Tensor, cond: Condition = None, return_ids: bool = False
    ) -> Tensor:
        """The network's prediction; of one that returns several things, the first, or with `return_ids` all."""
        if not isinstance(cond, Mapping):
            parts = list(cond) if isinstance(cond, (list, tuple)) else [cond]
            cond = (
                {}
                if cond is None
                else {"c_concat" if self.model.conditioning_key == "concat" else "c_crossattn": parts}
            )
        prediction = self.model(x_noisy, t, **cond)
        return prediction[0] if isinstance(prediction, tuple) and not return_ids else prediction

    # Training

    def shared_step(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """(loss, values to log) of a batch, by `get_input` and `forward`, which a class made from this one may override."""
        x, c, *_ = self.get_input(batch, self.first_stage_key)
        return self(x, c)

    def forward(
        self, x: Tensor, c: Any = None, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """(loss, values to log) of latents x at random time steps, under what `get_input` gave for the condition."""
        return self.p_losses(x, self.to_condition(c), self.random_time_steps(len(x)), *args, **kwargs)

    def to_condition(self, c: Any) -> Condition:
        """The condition of what `get_input` gave for it: that itself, or the input of a condition stage that learns."""
        return self.get_learned_conditioning(c) if self.cond_stage_trainable else c

    def random_time_steps(self, n: int) -> Tensor:
        return torch.randint(0, self.num_timesteps, (n,), device=self.device)

    def encode_batch(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """What the frozen networks make of a batch of channels-last pictures: the scaled latents, first of all."""
        x = batch[self.first_stage_key].permute(0, 3, 1, 2).float()
        with torch.no_grad():
            return (self.get_first_stage_encoding(self.encode_first_stage(x)),)

    def condition_of(self, batch: Mapping[str, Tensor], x: Tensor) -> Condition:
        """The condition of a model without a condition stage, by the present weights, of a batch and what `encode_batch` gave: here none."""
        return None

    def unscaled_latents(self, batch: Mapping[str, Tensor]) -> Tensor:
        with torch.no_grad():
            return self.latent_of(
                self.encode_first_stage(batch[self.first_stage_key].permute(0, 3, 1, 2).float())
            )

    def set_scale(self, z: Tensor) -> None:
        """Scale so that these unscaled latents get std 1."""
        self.scale_factor.fill_(1 / z.std())

    @torch.no_grad()
    def preview(
        self,
        batch: Mapping[str, Tensor],
        max_images: int = 4,
        ddim_steps: int = 20,
        guidance_scale: float = 3.0,
    ) -> dict[str, Tensor]:
        """Named (N, 3, H, W) pictures for the image logger: reconstructions, and samples of the averaged weights.

        Where the condition stage has a null input, samples under guidance too, from the same noise.
        """
        x, c, *_ = self.get_input(first_samples(batch, max_images), self.first_stage_key)
        c = self.to_condition(c)
        runs: dict[str, dict[str, Any]] = {"samples": {}}
        if hasattr(self.cond_stage_model, "null_input"):
            runs[f"guidance_{guidance_scale:g}"] = {
                "unconditional_guidance_scale": guidance_scale,
                "unconditional_conditioning": self.null_condition(len(x)),
            }
        noise, latents = torch.randn_like(x), {"reconstructions": x}
        with self.ema_scope():
            for name, options in runs.items():
                latents[name], _ = self.sample_log(
                    c,
                    len(x),
                    ddim=True,
                    ddim_steps=ddim_steps,
                    ddim_discretize="trailing",
                    x_T=noise,
                    **options,
                )
        return {name: self.decode_first_stage(latent) for name, latent in latents.items()}

    def trained_parameters(self) -> list[nn.Parameter]:
        condition_stage = [*self.cond_stage_model.parameters()] if self.cond_stage_trainable else []
        return [*self.model.parameters(), *condition_stage, *([self.logvar] if self.learn_logvar else [])]

    # Sampling

    @torch.no_grad()
    def sample_log(
        self, cond: Condition, batch_size: int, ddim: bool, ddim_steps: int | None = None, **options: Any
    ) -> tuple[Tensor, Any]:
        """(latents, intermediates) by DDIM or ancestral sampling; `options` go to the sampler."""
        if not ddim:
            if options.pop("eta", 1.0) != 1.0:
                raise ValueError("eta is DDIM's: ancestral sampling has the noise of eta 1, leave it out")
            return self.sample(cond, batch_size, return_intermediates=True, **options)
        if "quantize_denoised" in options:  # its name in the other sampler
            options["quantize_x0"] = options.pop("quantize_denoised")
        x_T = options.get("x_T")
        shape = (self.channels, self.image_size, self.image_size) if x_T is None else x_T.shape[1:]
        return DDIMSampler(self).sample(ddim_steps, batch_size, shape, cond, **{"verbose": False, **options})


class DiffusionWrapper(nn.Module):
    """Holds the network under the published name `model.diffusion_model` and gives it the condition.

    conditioning_key: None; "concat": tensors joined to the input's channels; "crossattn": sequences (N, L, width), joined,
    to attend to; "hybrid": both; "adm": labels (N,).
    """

    def __init__(self, diff_model_config: Mapping[str, Any], conditioning_key: str | None = None):
        super().__init__()
        check_choice("conditioning_key", conditioning_key, CONDITIONING_KEYS)
        self.conditioning_key = conditioning_key
        self.diffusion_model = instantiate_from_config(diff_model_config)

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        c_concat: Sequence[Tensor] | None = None,
        c_crossattn: Sequence[Tensor] | None = None,
    ) -> Tensor:
        key = self.conditioning_key
        wanted = (key in ("concat", "hybrid"), key in ("crossattn", "hybrid", "adm"))
        if wanted != (c_concat is not None, c_crossattn is not None):
            names = " and ".join(
                name for name, is_wanted in zip(("c_concat", "c_crossattn"), wanted) if is_wanted
            )
            raise ConfigError(f"conditioning_key {key!r} takes {names or 'no condition'}")
        if c_concat is not None:
            if any(c.ndim != x.ndim or c.shape[2:] != x.shape[2:] for c in c_concat):
                raise ConfigError(
                    f"conditioning_key {key!r} takes maps of the latent's size, {tuple(x.shape[2:])}, not {[tuple(c.shape) for c in c_concat]}"
                )
            x = torch.cat([x, *c_concat], dim=1)
        if c_crossattn is None:
            return self.diffusion_model(x, t)
        return (
            self.diffusion_model(x, t, y=c_crossattn[0])
            if key == "adm"
            else self.diffusion_model(x, t, context=torch.cat([*c_crossattn], dim=1))
        )


def first_samples(batch: Mapping[str, Any], n: int) -> dict[str, Any]:
    """The first n samples of a batch of tensors and lists."""
    return {key: value[:n] for key, value in batch.items()}


def samples_in(batch: Mapping[str, Any]) -> int:
    return len(next(iter(batch.values())))
