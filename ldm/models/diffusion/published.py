"""Latent-diffusion's names that our model does not need itself, with their published signatures,
thin over what it has."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ldm.errors import ConfigError
from ldm.models.diffusion.published_pictures import PublishedPictures
from ldm.models.diffusion.published_sampling import PublishedSampling

_NO_SPLIT = (
    "split_input_params: split input is out of scope; `--tile` (in Python: the setting `tile`) bounds memory"
)


class PublishedNames(PublishedPictures, PublishedSampling):
    """Methods of a DDPM."""

    # As the published constructor leaves them.
    clip_denoised, bbox_tokenizer = False, None
    num_timesteps_cond, shorten_cond_schedule = 1, False

    @property
    def restarted_from_ckpt(self) -> bool:
        """Whether the weights, scale included, came from a file."""
        return self._scale_is_known

    @property
    def split_input_params(self) -> Any:
        """Refused."""
        raise AttributeError(_NO_SPLIT)

    @split_input_params.setter
    def split_input_params(self, value: Any) -> None:
        raise ConfigError(_NO_SPLIT)

    def get_fold_unfold(self, *args: Any, **kwargs: Any) -> Any:
        """Refused."""
        raise ConfigError(_NO_SPLIT)

    @property
    def use_scheduler(self) -> bool:
        """Whether the learning rate has a schedule."""
        return self.scheduler_config is not None

    def make_cond_schedule(self) -> None:
        """Set `cond_ids`, the time step to which the condition is noised at each time step: without
        effect at the one `num_timesteps_cond` that there is."""
        last = self.num_timesteps - 1
        self.cond_ids = torch.full((self.num_timesteps,), last, dtype=torch.long)
        self.cond_ids[: self.num_timesteps_cond] = (
            torch.linspace(0, last, self.num_timesteps_cond).round().long()
        )

    def get_input(
        self,
        batch: Mapping[str, Any],
        k: str,
        return_first_stage_outputs: bool = False,
        force_c_encode: bool = False,
        cond_key: str | None = None,
        return_original_cond: bool = False,
        bs: int | None = None,
    ) -> list[Any]:
        """[scaled latents, condition] of a batch's first `bs` samples, with the pictures (N, H, W,
        3) under `k`.

        A condition stage that learns has its input in the condition's place, for `forward` to
        encode; not with `force_c_encode`.
        differs: the null style of a dual-conditional model keeps its gradient; nothing else has
        one.
        cond_key: where that input is, instead of under `cond_stage_key`.
        return_first_stage_outputs: the pictures (N, 3, H, W) and their reconstructions come after.
        return_original_cond: the condition stage's input comes last, None without such a stage.
        """
        batch = {
            key: value.to(self.device) if isinstance(value, Tensor) else value for key, value in batch.items()
        }
        if bs is not None:
            batch = {key: value[:bs] for key, value in batch.items()}
        batch |= {
            own: batch[given]
            for own, given in ((self.first_stage_key, k), (self.cond_stage_key, cond_key))
            if given not in (None, own)
        }
        encoded = self.encode_batch(batch)
        if self.cond_stage_model is None:
            c, original = self.condition_of(batch, *encoded), None
        else:
            c = original = self.condition_input(batch)
            if force_c_encode or not self.cond_stage_trainable:
                with torch.no_grad():
                    c = self.get_learned_conditioning(original)
        out = [encoded[0], c]
        if return_first_stage_outputs:
            with torch.no_grad():
                out += [
                    batch[self.first_stage_key].permute(0, 3, 1, 2).float(),
                    self.decode_first_stage(encoded[0]),
                ]
        return [*out, original] if return_original_cond else out

    def decode_first_stage(
        self, z: Tensor, predict_cids: bool = False, force_not_quantize: bool = False
    ) -> Tensor:
        """Pictures (N, 3, H, W) from scaled latents. predict_cids: z tells the first stage's codes,
        see `latent_of_codes`.

        force_not_quantize: a first stage with a codebook takes the latents as they are.
        """
        if predict_cids:
            z = self.latent_of_codes(z)
        if self.has_codes and (predict_cids or force_not_quantize):
            return self.first_stage_model.decode(self.unscaled(z), force_not_quantize=True)
        return super().decode_first_stage(z)

    def differentiable_decode_first_stage(
        self, z: Tensor, predict_cids: bool = False, force_not_quantize: bool = False
    ) -> Tensor:
        """`decode_first_stage`, which keeps gradients as well."""
        return self.decode_first_stage(z, predict_cids, force_not_quantize)

    def latent_of_codes(self, z: Tensor) -> Tensor:
        """Scaled latents of the first stage's codes: of their numbers (N, h, w), or of their scores
        (N, n_embed, h, w)."""
        self.check_codes("predict_cids")
        numbers = z.argmax(dim=1) if z.ndim == 4 else z.long()
        return self.get_first_stage_encoding(
            self.first_stage_model.quantize.embedding(numbers).permute(0, 3, 1, 2)
        )


def disabled_train(self: nn.Module, mode: bool = True) -> nn.Module:
    """What the published code puts in place of a frozen module's `train`."""
    return self


def uniform_on_device(r1: float, r2: float, shape: Sequence[int], device: torch.device | str) -> Tensor:
    """Uniform numbers between r1 and r2."""
    return (r1 - r2) * torch.rand(*shape, device=device) + r2
