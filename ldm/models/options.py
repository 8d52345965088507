"""Options that only training has, in groups: keys of published config files, which inference leaves
out.

Free of Lightning, as all that inference imports.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from ldm.checks import check_choice, check_count, check_flags, check_fractions, check_number
from ldm.errors import ConfigError


@dataclass(frozen=True)
class DiffusionLoss:
    """The simple loss, weighted, and the variational bound's beside it (Ho et al. 2020, equations
    12 and 14).

    loss_type: "l1" or "l2". min_snr_gamma: cap of the signal-to-noise weighting, off by default as
    in the published recipe.
    logvar_init, learn_logvar: log variance of every time step's loss, see `DDPM.p_losses`.
    """

    loss_type: str = "l2"
    l_simple_weight: float = 1.0
    original_elbo_weight: float = 0.0
    min_snr_gamma: float | None = None
    learn_logvar: bool = False
    logvar_init: float = 0.0

    def __post_init__(self) -> None:
        check_choice("loss_type", self.loss_type, ("l1", "l2"))
        check_number("l_simple_weight", self.l_simple_weight, least=0)
        check_number("original_elbo_weight", self.original_elbo_weight, least=0)
        if self.min_snr_gamma is not None:
            check_number("min_snr_gamma", self.min_snr_gamma, above=0)
        check_flags(learn_logvar=self.learn_logvar)
        check_number("logvar_init", self.logvar_init)

    def distance(self, prediction: Tensor, target: Tensor, reduction: str = "none") -> Tensor:
        """Of every element, like the target, or their "mean"."""
        return (F.l1_loss if self.loss_type == "l1" else F.mse_loss)(prediction, target, reduction=reduction)

    def min_snr_weight(self, alphas_cumprod: Tensor, parameterization: str) -> Tensor:
        """min(SNR, gamma) with SNR = alpha_bar / (1 - alpha_bar), as a weight of the predicted
        quantity's error: over SNR for eps, over SNR + 1 for v (Hang et al. 2023, equation 8 and
        appendix)."""
        snr = alphas_cumprod / (1 - alphas_cumprod)
        return snr.clamp(max=self.min_snr_gamma) / {"eps": snr, "x0": 1, "v": snr + 1}[parameterization]


@dataclass(frozen=True)
class Optimisation:
    """How weights move, and which value tells the best of them.

    use_ema: keep moving averages of the weights. scale_batches: so many batches are looked at
    before the first step, for `scale_by_std`.
    """

    learning_rate: float = 1e-4
    scheduler_config: Mapping[str, Any] | None = None
    use_ema: bool = True
    scale_batches: int = 16
    monitor: str | None = "val/loss"
    monitor_mode: str = "min"

    def __post_init__(self) -> None:
        check_number("learning_rate", self.learning_rate, least=0)
        check_flags(use_ema=self.use_ema)
        check_count("scale_batches", self.scale_batches)
        check_choice("monitor_mode", self.monitor_mode, ("min", "max"))


@dataclass(frozen=True)
class StartingWeights:
    """A file to start from, all of it but the names beginning with `ignore_keys`, or its network
    alone."""

    ckpt_path: str | None = None
    ignore_keys: Sequence[str] = ()
    load_only_unet: bool = False

    def __post_init__(self) -> None:
        check_flags(load_only_unet=self.load_only_unet)


@dataclass(frozen=True)
class Batches:
    """What is made of batches.

    first_stage_key: their key of the pictures, (N, H, W, 3). cond_drop: the share of the samples
    that get the condition stage's null input instead of theirs, for classifier-free guidance (Ho &
    Salimans 2022). log_every_t: which time steps `log_images` shows.
    """

    first_stage_key: str = "image"
    cond_drop: float = 0.0
    log_every_t: int = 200

    def __post_init__(self) -> None:
        check_fractions(cond_drop=self.cond_drop)
        check_count("log_every_t", self.log_every_t)


@dataclass(frozen=True)
class DualBatches:
    """Keys of batches: whether a sample may use its style and its content, (N,) bool."""

    style_flag_key: str = "style_flag"
    content_flag_key: str = "content_flag"


@dataclass(frozen=True)
class PublishedOptions:
    """What the published constructor takes besides.

    model_class: what holds the network, for classes made from the published one. The others have no
    effect, in the published code either.
    """

    model_class: type[nn.Module] | None = None
    num_timesteps_cond: int | None = None
    clip_denoised: bool = True
    use_positional_encodings: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.model_class, type | None):
            raise ConfigError(f"model_class must be a class, got {self.model_class!r}; leave it out")
        if (self.num_timesteps_cond or 1) != 1:
            raise ConfigError("LatentDiffusion: num_timesteps_cond > 1 is not supported")


@dataclass(frozen=True)
class FirstStageOptimisation:
    """How a first stage learns.

    image_key: of the pictures in batches. trainable: "all", or "decoder" alone: encoder and latent
    stay as they are.
    adam_betas: the published ones, for adversarial training; without it (0.9, 0.99) learns much
    faster.
    """

    image_key: str = "image"
    trainable: str = "all"
    learning_rate: float = 4.5e-6
    adam_betas: tuple[float, float] = (0.5, 0.9)
    scheduler_config: Mapping[str, Any] | None = None
    monitor: str | None = None

    def __post_init__(self) -> None:
        check_choice("trainable", self.trainable, ("all", "decoder"))
        check_number("learning_rate", self.learning_rate, least=0)


@dataclass(frozen=True)
class CrossPairBatches:
    """styles_per_content: paintings in whose styles each photo of a batch is painted. style_drop, content_drop: how
    often the diffusion loss goes without a condition, see HybridDraws. record_steps: on a GPU that
    trains alone, steps are recorded as CUDA graphs."""

    styles_per_content: int = 2
    style_drop: float = 0.1
    content_drop: float = 0.3
    record_steps: bool = False


@dataclass(frozen=True)
class LossWeights:
    """content_weight, style_weight: of the two losses of StyleTransferLoss. palette_weight: of the
    colours' distance from the painting's, as a share of the photo's. diffusion_weight: of the
    diffusion loss, which smooths the texture that the style loss asks for at all but the last steps
    of a run. identity_weight: of the squared error of the latents of pictures painted in their own
    styles, without guidance; 0 paints none. pattern_weight: of regular patterns that neither the
    photo nor the painting has (`pattern_loss`). places_weight: of places that are like none of the
    painting's, such as the cells that Gram matrices fill plain skies with. layout_weight: of what the paintings of different
    photos have in common (`layout_loss`).
    """

    content_weight: float = 1.0
    style_weight: float = 1.0
    palette_weight: float = 0.0
    diffusion_weight: float = 1.0
    identity_weight: float = 0.0
    pattern_weight: float = 0.0
    places_weight: float = 0.0
    layout_weight: float = 0.0

    def __post_init__(self) -> None:
        for weight in fields(self):
            check_number(weight.name, getattr(self, weight.name), least=0)

    def of_style(self, losses: Mapping[str, Tensor]) -> Tensor:
        """(N,) what style guidance asks for, weighed."""
        names = ("style", "palette", "pattern", "places", "layout")
        return sum(getattr(self, f"{name}_weight") * losses[name] for name in names)


@dataclass(frozen=True)
class Estimates:
    """Where on a sampling run's way paintings are estimated, and under which guidance.

    later: the share of them that starts from an estimate, noised again; hops: how many such at
        most.
    guided: the share under guidance. content_scales, style_scales: the lowest and highest scales,
        between which they are drawn evenly by their logarithm.
    """

    later: float = 0.5
    hops: int = 1
    guided: float = 1.0
    content_scales: tuple[float, float] = (0.5, 2.0)
    style_scales: tuple[float, float] = (0.5, 3.0)

    def __post_init__(self) -> None:
        check_fractions(later=self.later, guided=self.guided)
        if self.hops < 1:
            raise ConfigError(
                f"CrossPairLDM: hops must be at least 1, got {self.hops}; later: 0 has none start later"
            )


DIFFUSION = (DiffusionLoss, Optimisation, StartingWeights, Batches, PublishedOptions)
DUAL_DIFFUSION = (*DIFFUSION, DualBatches)
CROSS_PAIRS = (*DUAL_DIFFUSION, CrossPairBatches, LossWeights, Estimates)
FIRST_STAGE = (FirstStageOptimisation,)
