"""The halves of first stages with a normal latent."""
