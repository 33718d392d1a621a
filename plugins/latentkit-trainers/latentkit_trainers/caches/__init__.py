"""Sources of trainers' own latent caches, for `latentkit import`; a module for each format."""
