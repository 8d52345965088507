from ldm.modules.distributions.distributions import DiagonalGaussianDistribution, normal_kl

__all__ = ["DiagonalGaussianDistribution", "normal_kl"]
