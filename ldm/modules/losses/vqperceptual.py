"""The loss of vector-quantised first stages: reconstruction + codebook + perceptual + adversarial
(Esser et al. 2021)."""

from typing import Any

import torch
from torch import Tensor

from ldm.modules.losses.contperceptual import FirstStageLoss
from ldm.published.configs import with_published_keys


@with_published_keys(
    perceptual_loss=("lpips", "`perceptual_config` names another"),
    pixel_loss=("l1", "reconstructions are compared by L1 distance"),
)
class VQLPIPSWithDiscriminator(FirstStageLoss):
    """Loss of both optimisers of a VQModel: means over pixels, channels and batch.

    With `n_classes`, the size of the codebook, how much of it a batch uses is logged too.
    """

    def __init__(
        self, disc_start: int, codebook_weight: float = 1.0, n_classes: int | None = None, **options: Any
    ):
        super().__init__(disc_start, **options)
        self.codebook_weight, self.n_classes = codebook_weight, n_classes

    def nll(self, rec: Tensor) -> Tensor:
        """The mean of the distances."""
        return rec.mean()

    def prior(self, latent: tuple[Tensor, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Of the quantiser's loss and indices."""
        loss, indices = latent
        usage = {} if self.n_classes is None else codebook_usage(indices, self.n_classes)
        return self.codebook_weight * loss, {"quant_loss": loss, **usage}


def codebook_usage(indices: Tensor, n_codes: int) -> dict[str, Tensor]:
    """`cluster_usage`: how many codes occur; `perplexity`: of how many used equally often the
    entropy would be the same."""
    shares = torch.bincount(indices.flatten(), minlength=n_codes) / indices.numel()
    return {"perplexity": torch.special.entr(shares).sum().exp(), "cluster_usage": (shares > 0).sum().float()}
