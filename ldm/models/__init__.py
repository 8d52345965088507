"""What is trained: first stages and diffusion models."""
