"""Diagonal Gaussian over latents: what the KL encoder predicts."""

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
        return self.mean + self.std * torch.randn_like(self.mean)

    def mode(self) -> Tensor:
        return self.mean

    def kl(self) -> Tensor:
        """(N,) divergence from the standard normal, summed over each latent; 0 for a deterministic one."""
        if self.deterministic:
            return self.mean.new_zeros(len(self.mean))
        return 0.5 * (self.mean**2 + self.var - 1.0 - self.logvar).sum(dim=(1, 2, 3))
