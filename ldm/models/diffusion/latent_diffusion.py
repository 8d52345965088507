"""Latent diffusion (Rombach et al. 2022): Gaussian diffusion of a first stage's latents, under the
conditions of a condition stage.

Shapes: x (N, 3, H, W) pictures in [-1, 1]; z, x_0, x_t (N, channels, h, w) latents; t (N,) time
steps, int64.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ldm.checks import check_choice, check_flags
from ldm.config.factory import instantiate_from_config
from ldm.config.groups import flat_keys
from ldm.errors import ConfigError
from ldm.models.diffusion.conditions import Condition
from ldm.models.diffusion.gaussian import GaussianDiffusion
from ldm.models.diffusion.latent_scale import LatentScale, OneFactor
from ldm.modules.distributions import DiagonalGaussianDistribution

CONDITIONING_KEYS = (None, "concat", "crossattn", "hybrid", "adm")
NO_STAGE = ("__is_unconditional__", "__is_adaptive__")


@dataclass(frozen=True)
class ConditionStage:
    """What makes conditions of what batches have under `cond_stage_key`.

    cond_stage_config: the stage's config; or "__is_first_stage__", "__is_unconditional__", or
        "__is_adaptive__" (the model itself makes the conditions). It learns with
        `cond_stage_trainable` and else stays frozen, in eval mode.
    cond_stage_forward: the name of its method; by default `encode`, if it has that, or the call
        itself.
    """

    cond_stage_config: str | Mapping[str, Any] = "__is_unconditional__"
    cond_stage_key: str = "image"
    cond_stage_trainable: bool = False
    cond_stage_forward: str | None = None

    def __post_init__(self) -> None:
        check_flags(cond_stage_trainable=self.cond_stage_trainable)


@dataclass(frozen=True)
class Conditioning:
    """How the network takes the condition, see DiffusionWrapper.

    A conditioning_key of None with a condition stage is, as in published config files, "concat"
    with `concat_mode` and "crossattn" without.
    """

    conditioning_key: Any = None
    concat_mode: bool = True

    def __post_init__(self) -> None:
        check_flags(concat_mode=self.concat_mode)

    def key(self, has_stage: bool) -> Any:
        """The conditioning_key for a model with or without a condition stage."""
        if self.conditioning_key is None and has_stage:
            return "concat" if self.concat_mode else "crossattn"
        return self.conditioning_key


class DiffusionWrapper(nn.Module):
    """Holds the network under the published name `model.diffusion_model` and gives it the
    condition.

    conditioning_key: None; "concat": tensors joined to the input's channels; "crossattn": sequences
    (N, L, width), joined, to attend to; "hybrid": both; "adm": labels (N,).
    """

    def __init__(self, diff_model_config: Mapping[str, Any], conditioning_key: str | None = None):
        super().__init__()
        check_choice("conditioning_key", conditioning_key, CONDITIONING_KEYS)
        self.conditioning_key = conditioning_key
        self.diffusion_model = instantiate_from_config(diff_model_config, key="unet_config")

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        c_concat: Sequence[Tensor] | None = None,
        c_crossattn: Sequence[Tensor] | None = None,
    ) -> Tensor:
        """The network's prediction, like x."""
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


class LatentDiffusionModel(GaussianDiffusion):
    """What every latent diffusion model here shares, as inference needs it; `ddpm.LatentDiffusion`
    learns besides.

    unet_config, first_stage_config: the network and the frozen autoencoder. Further parameters:
    those of ConditionStage, Conditioning, OneFactor and GaussianDiffusion.

    wrapper: made with (unet_config, conditioning_key), it holds the network and hands it the
        condition.
    """

    what = "a latent diffusion model"  # in messages
    wrapper: type[nn.Module] = DiffusionWrapper

    @flat_keys
    def __init__(
        self,
        unet_config: Mapping[str, Any],
        first_stage_config: Mapping[str, Any],
        *,
        stage: ConditionStage,
        conditioning: Conditioning,
        scale: OneFactor,
        **options: Any,
    ):
        super().__init__(**options)
        self._register_scale(scale)
        self.model = self.wrapper(unet_config, conditioning.key(stage.cond_stage_config not in NO_STAGE))
        self.instantiate_first_stage(first_stage_config)
        self.cond_stage_key, self.cond_stage_forward = stage.cond_stage_key, stage.cond_stage_forward
        self.cond_stage_trainable = stage.cond_stage_trainable
        self.instantiate_cond_stage(stage.cond_stage_config)

    def instantiate_first_stage(self, config: Mapping[str, Any]) -> None:
        """Build the frozen autoencoder."""
        built = instantiate_from_config(config, key="first_stage_config")
        self.first_stage_model = built.eval().requires_grad_(False)

    def instantiate_cond_stage(self, config: str | Mapping[str, Any]) -> None:
        """Build the condition stage, frozen unless it is to learn. Raises ConfigError."""
        method = self.cond_stage_forward
        if isinstance(config, str):
            check_choice("cond_stage_config", config, ("__is_first_stage__", *reversed(NO_STAGE)))
            if self.cond_stage_trainable:
                raise ConfigError(f"cond_stage_trainable: {config} has nothing to train")
            self.cond_stage_model = self.first_stage_model if config == "__is_first_stage__" else None
        else:
            self.cond_stage_model = instantiate_from_config(config, key="cond_stage_config")
            if not self.cond_stage_trainable:
                self.cond_stage_model.eval().requires_grad_(False)
        if method is not None and not callable(getattr(self.cond_stage_model, method, None)):
            raise ConfigError(f"cond_stage_forward: the condition stage has no method {method!r}")

    def optional_keys(self, state: Mapping[str, Tensor]) -> tuple[str, ...]:
        """Prefixes of names that a whole checkpoint may have or lack."""
        of_condition_stage = getattr(self.cond_stage_model, "optional_keys", ())
        return ("first_stage_model.loss.", *(f"cond_stage_model.{key}" for key in of_condition_stage))

    def train(self, mode: bool = True) -> "LatentDiffusionModel":
        """As in PyTorch; what is frozen stays in eval mode."""
        super().train(mode)
        # frozen: their dropout and norms must not wake up with the rest
        self.first_stage_model.eval()
        if self.cond_stage_model is not None and not self.cond_stage_trainable:
            self.cond_stage_model.eval()
        return self

    # First stage

    def _register_scale(self, scale: LatentScale) -> None:
        self.latent_scale, self.scale_by_std = scale, scale.scale_by_std
        tables = scale.tables(self.channels)
        self._scale_names = tuple(tables)
        for name, table in tables.items():
            self.register_buffer(name, table, persistent=scale.persistent)

    def _scale_tables(self) -> dict[str, Tensor]:
        return {name: getattr(self, name) for name in self._scale_names}

    def encode_first_stage(self, x: Tensor) -> DiagonalGaussianDistribution | Tensor:
        """The posterior of pictures, or what a first stage without one gives."""
        return self.first_stage_model.encode(x)

    def get_first_stage_encoding(self, encoder_posterior: DiagonalGaussianDistribution | Tensor) -> Tensor:
        """The scaled latent of a posterior or of an unscaled latent."""
        return self.latent_scale.apply(self.latent_of(encoder_posterior), **self._scale_tables())

    def latent_of(self, posterior: DiagonalGaussianDistribution | Tensor) -> Tensor:
        """The unscaled latent of a posterior, see `of_posterior`, or as a first stage without one
        gives it."""
        if isinstance(posterior, tuple):
            raise ConfigError(
                f"first_stage_config: {type(self.first_stage_model).__name__} gives codes, not latents; its target must be VQModelInterface"
            )
        return posterior if isinstance(posterior, Tensor) else self.of_posterior(posterior)

    def of_posterior(self, posterior: DiagonalGaussianDistribution) -> Tensor:
        """A drawn latent."""
        return posterior.sample()

    def unscaled(self, z: Tensor) -> Tensor:
        """What the first stage decodes, of scaled latents."""
        return self.latent_scale.undo(z, **self._scale_tables())

    def decode_first_stage(self, z: Tensor) -> Tensor:
        """Pictures (N, 3, H, W), about [-1, 1], from scaled latents; a first stage with a codebook
        moves these to its nearest codes first."""
        return self.first_stage_model.decode(self.unscaled(z))

    @property
    def has_codes(self) -> bool:
        """Whether the first stage quantises its latents."""
        return hasattr(getattr(self.first_stage_model, "quantize", None), "embedding")

    def check_codes(self, asked: str) -> None:
        """Raises ConfigError if the first stage has no codes, which `asked` needs."""
        if not self.has_codes:
            name = type(self.first_stage_model).__name__
            raise ConfigError(
                f"{asked} needs a first stage with a codebook, like VQModelInterface; this model's is {name}: leave it out"
            )

    def quantized(self, z: Tensor) -> Tensor:
        """Scaled latents moved to the first stage's nearest codes. Raises ConfigError if it has
        none."""
        self.check_codes("quantize_x0 (quantize_denoised)")
        # differs: the published code looks the scaled latent up in the codebook, which has unscaled
        # ones.
        codes, *_ = self.first_stage_model.quantize(self.unscaled(z))
        return self.get_first_stage_encoding(codes)

    # Conditions

    def get_learned_conditioning(self, c: Any) -> Condition:
        """The condition stage's condition for its input c: a batch of labels, texts or pictures."""
        stage = self.cond_stage_model
        if stage is None:
            raise ConfigError("LatentDiffusion: this model has no condition stage")
        method = self.cond_stage_forward or ("encode" if hasattr(stage, "encode") else "__call__")
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.cond_stage_trainable):
            condition = getattr(stage, method)(c)
        return condition.mode() if isinstance(condition, DiagonalGaussianDistribution) else condition

    def null_condition(self, n: int) -> Condition:
        """The condition of nothing in particular, n times: what guidance leads away from."""
        if not hasattr(self.cond_stage_model, "null_input"):
            raise ConfigError(
                "LatentDiffusion: this model's condition stage has no null input, so there is no guidance against it"
            )
        return self.get_learned_conditioning(self.cond_stage_model.null_input(n))

    def apply_model(
        self, x_noisy: Tensor, t: Tensor, cond: Condition = None, return_ids: bool = False
    ) -> Tensor:
        """The network's prediction, like x_noisy; of one that returns several things, the first, or
        with `return_ids` all."""
        if not isinstance(cond, Mapping):
            parts = list(cond) if isinstance(cond, (list, tuple)) else [cond]
            cond = (
                {}
                if cond is None
                else {"c_concat" if self.model.conditioning_key == "concat" else "c_crossattn": parts}
            )
        prediction = self.model(x_noisy, t, **cond)
        return prediction[0] if isinstance(prediction, tuple) and not return_ids else prediction
