"""ArtFusion: arbitrary style transfer with a dual-conditional latent diffusion model."""

__version__ = "0.1.0"
