"""The distribution that a first stage's encoder gives."""

from ldm.modules.distributions.distributions import DiagonalGaussianDistribution, normal_kl

__all__ = ["DiagonalGaussianDistribution", "normal_kl"]
