"""Diagonal Gaussian over latents: what the KL encoder predicts."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


class DiagonalGaussianDistribution:
    """From moments (N, 2C, h, w): the mean, then the log variance (clipped to [-30, 20])."""

    def __init__(self, parameters: Tensor, deterministic: bool = False):
        self.parameters = parameters
        self.mean, logvar = parameters.chunk(2, dim=1)
        self.logvar = logvar.clamp(-30.0, 20.0)
        self.deterministic = deterministic
        self.std = torch.zeros_like(self.mean) if deterministic else torch.exp(0.5 * self.logvar)
        self.var = self.std**2

    def sample(self) -> Tensor:
        """A latent at random, by torch's generator."""
        return self.mean + self.std * torch.randn_like(self.mean)

    def mode(self) -> Tensor:
        """The most likely latent, which is the mean."""
        return self.mean

    def kl(self, other: "DiagonalGaussianDistribution | None" = None) -> Tensor:
        """(N,) divergence from the standard normal, or from another, summed over each latent; 0 for
        a deterministic one."""
        if self.deterministic:
            return self.mean.new_zeros(len(self.mean))
        if other is not None:
            return normal_kl(self.mean, self.logvar, other.mean, other.logvar).sum(dim=(1, 2, 3))
        return 0.5 * (self.mean**2 + self.var - 1.0 - self.logvar).sum(dim=(1, 2, 3))

    def nll(self, sample: Tensor, dims: Sequence[int] = (1, 2, 3)) -> Tensor:
        """(N,) negative log likelihood of a sample, summed over `dims`; 0 for a deterministic
        one."""
        if self.deterministic:
            return self.mean.new_zeros(len(self.mean))
        return 0.5 * (math.log(2 * math.pi) + self.logvar + (sample - self.mean) ** 2 / self.var).sum(
            dim=tuple(dims)
        )


def normal_kl(
    mean1: Tensor | float, logvar1: Tensor | float, mean2: Tensor | float, logvar2: Tensor | float
) -> Tensor:
    """Divergence of a normal distribution from a second one, element by element; numbers stand for
    tensors of them."""
    like = next(
        (given for given in (mean1, logvar1, mean2, logvar2) if isinstance(given, Tensor)), torch.zeros(())
    )
    logvar1, logvar2 = (torch.as_tensor(logvar).to(like) for logvar in (logvar1, logvar2))
    return 0.5 * (
        logvar2 - logvar1 - 1.0 + (logvar1 - logvar2).exp() + (mean1 - mean2) ** 2 * (-logvar2).exp()
    )
