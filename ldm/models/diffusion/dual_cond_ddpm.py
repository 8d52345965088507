"""ArtFusion as a LightningModule: the class that published config files name."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ldm.config.groups import flat_keys
from ldm.models.diffusion.ddpm import FirstMeasure, LatentDiffusion, channels_first, first_samples
from ldm.models.diffusion.dual_cond import DualConditionDiffusionWrapper, DualCondModel
from ldm.models.options import DualBatches, StartingWeights
from ldm.modules.ema import LitEma

__all__ = ["DualCondLDM", "DualConditionDiffusionWrapper"]


class DualCondLDM(DualCondModel, LatentDiffusion):
    """The dual-conditional model, learning; parameters are DualCondModel's, LatentDiffusion's and
    DualBatches'."""

    saves_logvar = True

    @flat_keys
    def __init__(self, *args: Any, dual_batches: DualBatches, start: StartingWeights, **options: Any):
        super().__init__(*args, **options)
        self.style_flag_key, self.content_flag_key = (
            dual_batches.style_flag_key,
            dual_batches.content_flag_key,
        )
        if self.use_ema:
            self.null_style_vector_ema = LitEma(self.null_style_vector)
        self.load_start(start)

    def averaged(self) -> list[tuple[LitEma, nn.Module]]:
        """What has a moving average: (the average, the module)."""
        own = [(self.null_style_vector_ema, self.null_style_vector)] if self.use_ema else []
        return super().averaged() + own

    def trained_parameters(self) -> list[nn.Parameter]:
        """What the optimiser moves."""
        return [*super().trained_parameters(), *self.null_style_vector.parameters()]

    # Batches

    def encode_batch(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """(scaled latents, style statistics) of a batch with either channels-last pictures
        (`image`) or what was computed from them before (`latent`, unscaled, and `style`)."""
        return (*super().encode_batch(batch), self.batch_style(batch))

    def unscaled_latents(self, batch: Mapping[str, Tensor]) -> Tensor:
        """What the first stage makes of a batch's pictures, or what was computed from them
        before."""
        return batch["latent"].float() if "latent" in batch else super().unscaled_latents(batch)

    @torch.no_grad()
    def batch_style(self, batch: Mapping[str, Tensor]) -> Tensor:
        """(N, style_dim) statistics of a batch's pictures."""
        if "style" in batch:
            return batch["style"].float()
        return self.get_style_statistics(channels_first(batch[self.first_stage_key])).float()

    def condition_of(self, batch: Mapping[str, Tensor], z: Tensor, style: Tensor) -> dict[str, Tensor]:
        """The condition, each part nulled where the batch's flag for it is off."""
        content = self.get_content_features(z, batch[self.content_flag_key])
        return self.condition(content, self.null_where_off(style, batch[self.style_flag_key]))

    # The training loop

    def on_fit_start(self) -> None:
        """Lightning's: see that what training needs is there."""
        super().on_fit_start()
        self.load_style_network()

    def first_measures(self) -> list[FirstMeasure]:
        """What a new model is set by before training: the scale, and the whitening of styles."""
        whitens = self.model.diffusion_model.context_whitening is not None
        return super().first_measures() + ([(self.batch_style, self.measure_styles)] if whitens else [])

    @torch.no_grad()
    def measure_styles(self, style: Tensor) -> None:
        """Set the network's whitening by style vectors (N, style_dim), those of all processes
        together, and the null style to their middle."""
        style = self.gathered(style)
        self.model.diffusion_model.context_whitening.measure(style)
        self.null_style_vector.weight.copy_(style.mean(dim=0, keepdim=True))
        self.start_averages()

    @torch.no_grad()
    def preview(
        self,
        batch: Mapping[str, Tensor],
        max_images: int = 4,
        ddim_steps: int = 20,
        style_scales: Sequence[float] = (5.0,),
        content_scales: Sequence[float] = (0.5, 0.25),
    ) -> dict[str, Tensor]:
        """Named (N, 3, H, W) pictures for the image logger, by the averaged weights, all from one
        noise.

        Reconstructions; samples (content and style of the same picture); every content in the style
        of the picture before it, without guidance and with each of the guidance scales.
        """
        n = min(max_images, len(batch[self.style_flag_key]))
        on = torch.ones(n, dtype=torch.bool, device=self.device)
        shown = {**first_samples(batch, n), self.style_flag_key: on, self.content_flag_key: on}
        with self.ema_scope():
            z, c = self.get_input(shown, self.first_stage_key)[:2]
            content, style = c["c1"], c["c2"].roll(1, dims=0)
            mixed = self.condition(content, style)
            no_content = self.condition(torch.zeros_like(content), style)
            no_style = self.condition(content, self.null_style(n))
            runs: dict[str, tuple[Any, dict[str, Any]]] = {
                "samples": (c, {}),
                "neighbours_style": (mixed, {}),
            }
            for scale in style_scales:
                options = {"unconditional_guidance_scale_2": scale, "unconditional_conditioning_2": no_style}
                runs[f"style_guidance_{scale:g}"] = mixed, options
            for scale in content_scales:
                options = {"unconditional_guidance_scale": scale, "unconditional_conditioning": no_content}
                runs[f"content_guidance_{scale:g}"] = mixed, options
            return self.previewed(z, runs, ddim_steps)
