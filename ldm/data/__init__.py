"""Data sets of pictures, cached latents and shards, and the loaders that deal them."""
