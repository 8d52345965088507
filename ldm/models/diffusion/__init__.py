"""Diffusion models, their guidance and their samplers."""
